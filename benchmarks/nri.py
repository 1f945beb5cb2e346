"""The training step of Neural Relational Inference against its floors, and the networks against plain ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from aaai23.methods import METHODS
from aaai23.nri import fast
from aaai23.nri import networks as plain_networks
from aaai23.nri.config import NRIConfig
from aaai23.nri.metrics import kl_gumbel, nll_gaussian
from aaai23.nri.networks import symmetrise, to_directed
from benchmarks.measure import Repeat, Row, compare, training_step
from benchmarks.memory import peak_of_step
from imle.relaxations import straight_through
from imle.solvers import spanning_tree_edges
from imle.structures import spanning_trees

BATCH, VERTICES, T, STEPS, DIMS = 128, 10, 10, 9, 2


class HardGraph(nn.Module):
    """A stricter floor than repeating theta: the same trees each time, as sparse as the layer's, straight through."""

    def __init__(self, trees: Tensor):
        super().__init__()
        self.register_buffer("trees", trees)

    def forward(self, theta: Tensor) -> Tensor:
        """Return the trees, with the gradient of theta."""
        assert isinstance(self.trees, Tensor)
        return straight_through(self.trees, theta)


class Network(nn.Module):
    """Encoder, layer, decoder and the loss, fast or plain."""

    def __init__(self, layer: nn.Module, plain: bool = False):
        super().__init__()
        networks = plain_networks if plain else fast
        torch.manual_seed(0)
        self.encoder, self.decoder = networks.MLPEncoder(T * DIMS), networks.MLPDecoder()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the loss of positions `[B, n, T, dims]`."""
        theta = symmetrise(self.encoder(inputs), VERTICES)
        predicted = self.decoder(inputs, self.layer(theta), STEPS)
        nll = nll_gaussian(predicted, inputs[:, :, 1:], 5e-5)
        return nll.mean() + kl_gumbel(to_directed(theta, VERTICES)).mean()


def training_step_of_the_paper(device: torch.device, replay: bool = True) -> Callable[[], object]:
    """Return the step of T = 10, forward differences."""
    return _step(_aimle(), _inputs(device), replay=replay)


def _step(layer: nn.Module, inputs: Tensor, plain: bool = False, replay: bool = True) -> Callable[[], object]:
    network = Network(layer, plain).to(inputs.device).train()
    return training_step(network, lambda: network(inputs), replay)


def _inputs(device: torch.device) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(BATCH, VERTICES, T, DIMS, device=device) * 2 - 1


def run(device: torch.device) -> list[Row]:
    """Measure T = 10, forward differences."""
    inputs = _inputs(device)
    trees = spanning_tree_edges(torch.randn(BATCH, VERTICES * (VERTICES - 1) // 2, device=device))
    ours = training_step_of_the_paper(device)
    name = "NRI T=10 step, forward"
    return [
        compare(
            name,
            ours,
            "floor, repeated theta",
            _step(Repeat(1), inputs),
            device,
            pairs=7,
            target=1.05,
            note=peak_of_step("nri", device),
        ),
        compare(name, ours, "floor, the same trees", _step(HardGraph(trees), inputs), device, pairs=9, target=1.05),
        compare(
            name,
            ours,
            "plain networks",
            _step(_aimle(), inputs, plain=True),
            device,
            pairs=5,
            target=1 / 3,
            per_call=BATCH,
            unit="graphs",
        ),
        _evaluation(inputs, trees, device),
    ]


def _aimle() -> nn.Module:
    settings = NRIConfig(theta_noise_temperature=1.0, target="adaptive", perturbation_size=0.5, beta_update_step=1e-3)
    return METHODS["aimle"](spanning_trees(VERTICES), settings)


def _evaluation(inputs: Tensor, trees: Tensor, device: torch.device) -> Row:
    ours, plain = (Network(_aimle(), is_plain).to(device).eval() for is_plain in (False, True))

    @torch.inference_mode()
    def evaluate(network: Network) -> Tensor:
        return network.decoder(inputs, trees * (network.encoder(inputs).shape[0] > 0), 1)

    return compare(
        "NRI T=10 evaluation",
        lambda: evaluate(ours),
        "plain networks",
        lambda: evaluate(plain),
        device,
        pairs=7,
        target=1 / 4,
        per_call=BATCH,
        unit="graphs",
    )
