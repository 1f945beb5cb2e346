"""The training step of the discrete VAE at the mission's command, against its floor."""

import functools
from collections.abc import Callable

import torch

from aaai23.dvae.model import DiscreteVAE, losses, training_loss
from aaai23.methods import METHODS, Options
from benchmarks.measure import Repeat, Row, compare, training_step
from imle.solvers import select_k

BATCH, SAMPLES, M, N, K = 100, 10, 20, 20, 10


def run(device: torch.device) -> list[Row]:
    """Measure S = 10, central differences, Sum-of-Gamma noise."""
    options = Options(
        noise="sog",
        noise_k=K,
        samples=SAMPLES,
        target="adaptive",
        symmetric=True,
        perturbation_size=0.5,
        beta_update_step=1e-3,
        target_norm=10.0,
    )
    aimle = METHODS["aimle"](functools.partial(select_k, k=K), options)
    images = torch.rand(BATCH, 784, device=device)
    step, floor = (_step(layer, images) for layer in (aimle, Repeat(SAMPLES)))
    return [
        compare(
            "VAE step, central, S=10",
            step,
            "floor",
            floor,
            device,
            pairs=25,
            target=1.25,
            per_call=BATCH,
            unit="images",
        )
    ]


def _step(layer: torch.nn.Module, images: torch.Tensor) -> Callable[[], None]:
    torch.manual_seed(0)
    model = DiscreteVAE(784, M, N, layer).to(images.device).train()

    def loss() -> torch.Tensor:
        logits, reconstruction_logits = model(images)
        return training_loss(*losses(logits, reconstruction_logits, images)).mean()

    return training_step(model, loss)
