"""The training step of the discrete VAE at the mission's command, against its floors."""

from collections.abc import Callable

import torch

from aaai23.dvae import fast
from aaai23.dvae.config import VAEConfig
from aaai23.dvae.model import DiscreteVAE, losses, training_loss
from aaai23.methods import METHODS, Layer
from benchmarks.measure import Repeat, Row, compare, training_step
from benchmarks.memory import peak_of_step
from imle.structures import k_subsets

BATCH, PIXELS, SAMPLES, M, N, K = 100, 784, 10, 20, 20, 10


def run(device: torch.device) -> list[Row]:
    """Measure S = 10, central differences, Sum-of-Gamma noise."""
    images = torch.rand(BATCH, PIXELS, device=device)
    step, floor = training_step_of_the_paper(device), _step(_model(Repeat(SAMPLES)), images)
    name = "VAE step, central, S=10"
    rows = [
        compare(
            name,
            step,
            "floor",
            floor,
            device,
            pairs=25,
            target=1.25,
            per_call=BATCH,
            unit="images",
            note=peak_of_step("dvae", device),
        )
    ]
    if device.type == "cpu":
        plain = _step(_model(Repeat(SAMPLES), DiscreteVAE), images)
        rows.append(compare(name, step, "floor, torch's linear layers", plain, device, pairs=15))
    return rows


def training_step_of_the_paper(device: torch.device, replay: bool = True) -> Callable[[], object]:
    """Return the step that the mission's command takes."""
    return _step(_model(_aimle()), torch.rand(BATCH, PIXELS, device=device), replay)


def _aimle() -> Layer:
    settings = VAEConfig(
        nb_samples=SAMPLES,
        target="adaptive",
        symmetric_perturbation=True,
        theta_noise_temperature=1.0,
        perturbation_size=0.5,
        beta_update_step=1e-3,
        target_norm=10.0,
    )
    return METHODS["aimle"](k_subsets(K), settings)


def _model(layer: Layer, kind: type[DiscreteVAE] = fast.DiscreteVAE) -> DiscreteVAE:
    torch.manual_seed(0)
    return kind(PIXELS, M, N, layer)


def _step(model: DiscreteVAE, images: torch.Tensor, replay: bool = True) -> Callable[[], object]:
    model.to(images.device).train()

    def loss() -> torch.Tensor:
        logits, reconstruction_logits = model(images)
        return training_loss(*losses(logits, reconstruction_logits, images)).mean()

    return training_step(model, loss, replay)
