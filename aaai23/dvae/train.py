"""The discrete VAE: train one seed, measure after each epoch, draw what it has learnt."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aaai23.dvae import fast
from aaai23.dvae.config import VAEConfig
from aaai23.dvae.data import MNIST, intensities
from aaai23.dvae.model import DiscreteVAE, losses, nelbo, published_test_loss, temperature_at, training_loss
from aaai23.dvae.plots import random_codes, write_curves, write_images
from aaai23.harness.identity import Identity
from aaai23.harness.loop import epoch_order, epochs_of, loss_values, seed_everything
from aaai23.harness.record import figure
from aaai23.harness.run import Run
from aaai23.harness.shell import progress
from aaai23.methods import METHODS, beta_of
from aaai23.speed.precision import accelerate
from aaai23.speed.replay import TrainingStep
from imle.structures import k_subsets

PROJECT = "aimle-dvae"
EVALUATION_BATCH = 200
PICTURED = 12  # images of each kind
REMEDY = "lower --imle-lambda or --imle-temperature"


def build(config: VAEConfig) -> DiscreteVAE:
    """Return the untrained network around the method that is asked for."""
    layer = METHODS[config.method](k_subsets(config.ones), config)
    return fast.DiscreteVAE(config.input_dim, config.code_m, config.code_n, layer)


def run_seed(
    identity: Identity, config: VAEConfig, data: MNIST, device: torch.device, log: logging.Logger
) -> Mapping[str, Any]:
    """Train and measure one seed; returns its final metrics.

    Args:
        identity: who the run is.
        config: its settings.
        data: images on `device`.
        device: where to compute.
        log: gets the lines of an epoch.
    """
    seed_everything(config.seed)
    model = build(config).to(device)
    accelerate((model.encoder, model.decoder), config.precision, device)
    # one kernel for all parameters, wherever torch has it
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    epochs = epochs_of(len(data.train), config.batch_size, config.epochs, config.max_iterations)
    with Run(identity, config, project=PROJECT, describe=describe(config), log=log, tags=(config.target,)) as run:
        for epoch in run.steps(epochs, model=model, optimiser=optimiser):
            order = epoch_order(len(data.train), config.seed, epoch - 1).to(device)
            batches = order.split(config.batch_size)[: epochs.batches(epoch)]
            temperatures = [temperature(config, epochs.before(epoch) + done) for done in range(len(batches) + 1)]
            found = train_epoch(model, optimiser, data.train, batches, temperatures, f"Epoch {epoch}/{config.epochs}")
            run.log(
                loss=found.mean(), loss_std=found.std(correction=0), tau=temperatures[-1], beta=beta_of(model.layer)
            )
            run.log(**evaluate(model, data.test, config.seed))
        draw(identity, config, model, data, run.history)
        run.finish(**{key: run.history[-1][key] for key in ("loss", "test_loss", "test_nelbo", "beta")})
        log.info("Experiment completed.")  # W&B prints its summary below it
    return run.final


def describe(config: VAEConfig) -> Any:
    """Return what makes an epoch's lines of the log."""

    def lines(entry: Mapping[str, Any]) -> Iterator[str]:
        line = f"Epoch {entry['epoch']}/{config.epochs}\tTraining Loss: {entry['loss']:.4f}"
        line += f" ± {figure(entry, 'loss_std'):.4f}"
        line += f"\tTemperature: {entry['tau']:.5f}"
        yield line if entry["beta"] is None else f"{line}\tBeta: {entry['beta']:.5f}"
        yield f"Average Test Loss: {figure(entry, 'test_loss'):.5f}"

    return lines


def temperature(config: VAEConfig, iteration: int) -> float:
    """Return the schedule's temperature after so many batches."""
    return temperature_at(iteration, config.init_temperature, config.anneal_rate, config.min_temperature)


def set_temperature(layer: nn.Module, temperature: float) -> None:
    """Give the schedule's temperature to the one kind of layer that uses it."""
    if hasattr(layer, "temperature"):
        layer.temperature = temperature  # type: ignore[assignment]


def train_epoch(
    model: DiscreteVAE,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    batches: Sequence[Tensor],
    temperatures: Sequence[float],
    label: str,
) -> Tensor:
    """Train on batches of image indices, each at its temperature, and set the one after them.

    Returns:
        The published loss of each batch, `[steps]`, float64 on the CPU.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """

    def loss(batch: Tensor) -> Tensor:
        x = intensities(images[batch])
        logits, reconstruction_logits = model(x)
        return training_loss(*losses(logits, reconstruction_logits, x)).mean()

    model.train()
    step = TrainingStep(optimiser, loss)
    values = torch.empty(len(batches), device=images.device)
    for index, (batch, temperature) in enumerate(progress(list(zip(batches, temperatures)), label)):
        set_temperature(model.layer, temperature)
        values[index] = step(batch, fixed=getattr(model.layer, "temperature", None))
    set_temperature(model.layer, temperatures[-1])
    return torch.tensor(loss_values(values, label, REMEDY), dtype=torch.float64)


@torch.inference_mode()
def evaluate(model: DiscreteVAE, images: Tensor, seed: int) -> dict[str, float]:
    """Return the published test loss, and the negative evidence lower bound; means over images, in nats.

    Codes are drawn from a generator of their own: epochs are measured with the same noise, and no other number moves.
    """
    model.eval()
    generator = torch.Generator(images.device).manual_seed(seed)
    total = torch.zeros(2, dtype=torch.float64, device=images.device)
    for batch in images.split(EVALUATION_BATCH):
        x = intensities(batch)
        logits, reconstruction_logits = model(x, generator)
        bce, kl = losses(logits, reconstruction_logits, x)
        total += torch.stack([published_test_loss(bce, kl), nelbo(bce, kl)]).double().sum(-1)
    published, bound = (total / len(images)).tolist()
    return {"test_loss": published, "test_nelbo": bound}


@torch.inference_mode()
def reconstruct(model: DiscreteVAE, images: Tensor, seed: int) -> Tensor:
    """Return images uint8 [B, P] as the model shows them after one sampled code each, [B, P] in [0, 1]."""
    model.eval()
    _, logits = model(intensities(images), torch.Generator(images.device).manual_seed(seed))
    return logits.view(len(images), -1, images.shape[1])[:, 0].sigmoid()


@torch.inference_mode()
def imagine(model: DiscreteVAE, k: int, seed: int) -> Tensor:
    """Return what the decoder makes of random codes with k ones a row, [PICTURED, P] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    codes = random_codes(PICTURED, model.code_m, model.code_n, k, generator)
    return model.decoder(codes.to(next(model.parameters()).device)).sigmoid()


def draw(
    identity: Identity, config: VAEConfig, model: DiscreteVAE, data: MNIST, history: Sequence[Mapping[str, Any]]
) -> None:
    """Write the run's two pictures beside its record."""
    images = data.test[:PICTURED]
    set_temperature(model.layer, history[-1]["tau"])
    rows = {
        "test images": intensities(images),
        "their reconstructions": reconstruct(model, images, config.seed),
        "decoded from random codes": imagine(model, config.ones, config.seed),
    }
    title = f"{config.method}, seed {config.seed}, epoch {history[-1]['epoch']}"
    title += " (sample data)" if identity.sample_data else ""
    write_images(identity.file("-images.png"), rows, data.image_size, title)
    write_curves(identity.file("-curves.png"), history, title)
