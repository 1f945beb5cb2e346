"""Why the edges of NRI stay wrong for long: what a run's trees mean to its decoder, and who gives way to whom.

python -m benchmarks.plateau results/nri/NAME/seed3.json                a run's decoder, along other trees than its own
python -m benchmarks.plateau results/nri/NAME/seed3.json --learn        with the run's settings, from the start: a
                                                                        decoder along true trees; then an encoder, with
                                                                        that decoder held, and with it learning on

Bounds and errors are of the first 500 validation graphs. On one thread `--learn` takes half an hour.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from aaai23.harness.record import read_record
from aaai23.nri.config import NRIConfig
from aaai23.nri.data import Layouts, load
from aaai23.nri.evaluate import measure
from aaai23.nri.metrics import nll_gaussian
from aaai23.nri.model import RelationalInference, build
from aaai23.nri.networks import to_directed

GRAPHS = 500
DECODER_STEPS, ENCODER_STEPS = 500, 250


def trees(model: RelationalInference, graphs: Layouts) -> Iterator[tuple[str, Tensor]]:
    """Yield trees `[N, U]` for graphs, and what they are."""
    positions, vertices = graphs.positions, graphs.positions.shape[1]
    low, high = torch.triu_indices(vertices, vertices, 1)
    theta = torch.cat([model.logits(some) for some in positions.split(100)])
    last = positions[:, :, -1]
    yield "the encoder's", model.structure.solve(theta)
    yield "the encoder's, drawn as in training", model.sample(theta, vertices, torch.Generator().manual_seed(1))[0]
    yield "true", graphs.edges
    yield "shortest in the last frame", model.structure.solve(-torch.cdist(last, last)[:, low, high])
    yield "any", model.structure.solve(torch.randn(theta.shape, generator=torch.Generator().manual_seed(0)))


@torch.inference_mode()
def error_along(model: RelationalInference, graphs: Layouts, edges: Tensor, steps: int) -> float:
    """Return the mean negative log-likelihood of frames, predicted `steps` ahead along edges `[N, U]` or `[N, E]`."""
    parts = zip(graphs.positions.split(100), edges.split(100), strict=True)
    predicted = torch.cat([model.decoder(positions, some, steps) for positions, some in parts])
    return nll_gaussian(predicted, graphs.positions[:, :, 1:], model.variance).mean().item()


@torch.inference_mode()
def show_trees(model: RelationalInference, graphs: Layouts, config: NRIConfig) -> None:
    """Print how well a decoder predicts along other trees than its encoder's."""
    model.eval()
    still = nll_gaussian(graphs.positions[:, :, :-1], graphs.positions[:, :, 1:], model.variance).mean().item()
    print(f"{'trees':38}{'precision':>10}{'NLL, one frame ahead':>22}{'NLL, all frames ahead':>23}")
    true = to_directed(graphs.edges, config.num_vertices)
    for name, edges in trees(model, graphs):
        directed = model.directed(edges, config.num_vertices)
        precision = ((directed * true).sum() / directed.sum()).item()
        ahead = [error_along(model, graphs, edges, steps) for steps in (1, config.prediction_steps)]
        print(f"{name:38}{precision:10.3f}{ahead[0]:22.1f}{ahead[1]:23.1f}", flush=True)
    print(f"{'(no vertex moves)':38}{'':10}{still:22.1f}")


def learn_decoder(config: NRIConfig, data: Mapping[str, Layouts], validation: Layouts) -> Mapping[str, Tensor]:
    """Train a decoder along true trees; returns its weights."""
    torch.manual_seed(config.seed)
    model = build(config)
    train, optimiser = data["train"], torch.optim.Adam(model.decoder.parameters(), lr=config.lr, fused=True)

    def loss() -> Tensor:
        batch = torch.randint(len(train), (config.batch_size,))
        predicted = model.decoder(train.positions[batch], train.edges[batch], config.prediction_steps)
        return nll_gaussian(predicted, train.positions[batch, :, 1:], model.variance).mean()

    def report(step: int) -> None:
        model.eval()
        ahead = [error_along(model, validation, validation.edges, steps) for steps in (1, config.prediction_steps)]
        print(
            f"{step:5} decoder along true trees: NLL {ahead[0]:.1f} one frame, {ahead[1]:.1f} all frames ahead",
            flush=True,
        )
        model.train()

    _steps(optimiser, loss, report, DECODER_STEPS, 100)
    return model.decoder.state_dict()


def learn_encoder(
    config: NRIConfig, data: Mapping[str, Layouts], validation: Layouts, decoder: Mapping[str, Tensor], held: bool
) -> None:
    """Train an encoder, with the run's estimator, to a decoder that knows true trees."""
    torch.manual_seed(config.seed)
    model = build(config)
    model.decoder.load_state_dict(decoder)
    model.decoder.requires_grad_(not held)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    train, optimiser = data["train"], torch.optim.Adam(learning, lr=config.lr, fused=True)

    def loss() -> Tensor:
        batch = torch.randint(len(train), (config.batch_size,))
        return model.loss(train.positions[batch], config.prediction_steps)

    def report(step: int) -> None:
        found = measure(model, validation, config, config.seed)
        told = ", ".join(f"{key} {found[key]:.1f}" for key in ("elbo", "kl"))
        which = "held" if held else "learning"
        print(f"{step:5} encoder, decoder {which}: {told}, precision {found['precision']:.3f}", flush=True)
        model.train()

    _steps(optimiser, loss, report, ENCODER_STEPS, 50)


def _steps(
    optimiser: torch.optim.Optimizer, loss: Callable[[], Tensor], report: Callable[[int], None], last: int, every: int
) -> None:
    for step in range(last):
        if step % every == 0:
            report(step)
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    report(last)


def main(argv: list[str] | None = None) -> int:
    """Print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plateau", description="Why NRI's edges stay wrong.")
    parser.add_argument("record", type=Path, help="of a run of NRI with a checkpoint beside it")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of the data (default data)")
    parser.add_argument("--learn", action="store_true", help="train, in place of measuring the run's weights")
    args = parser.parse_args(argv)
    record = read_record(args.record)
    config = NRIConfig(**{**record.settings, "seed": record.seed})
    data = load(args.data_dir, config.suffix, config.timesteps, config.num_vertices, config.dims, ("train", "valid"))
    validation = Layouts(data["valid"].positions[:GRAPHS], data["valid"].edges[:GRAPHS])
    if args.learn:
        decoder = learn_decoder(config, data, validation)
        for held in (True, False):
            learn_encoder(config, data, validation, decoder, held)
    else:
        model = build(config)
        checkpoint = torch.load(args.record.with_suffix(".pt"), weights_only=True, map_location="cpu")
        model.load_state_dict(checkpoint["parts"]["model"])
        print(f"{record.name}, seed {record.seed}, after {checkpoint['step']} iterations")
        show_trees(model, validation, config)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
