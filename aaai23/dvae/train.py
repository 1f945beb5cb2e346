"""One seed of the discrete VAE: train, measure after each epoch, draw what it has learnt."""

from __future__ import annotations

import contextlib
import functools
import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aaai23.arguments import config_of
from aaai23.dvae.data import MNIST, intensities
from aaai23.dvae.model import DiscreteVAE, GumbelSoftmaxLayer, losses, nelbo, temperature_at, test_loss, training_loss
from aaai23.dvae.picture import random_codes, write_curves, write_images
from aaai23.dvae.settings import NOT_COMPARED
from aaai23.methods import METHODS, Options, beta_of
from aaai23.run import (
    Run,
    accelerate,
    earlier_state,
    epoch_order,
    loss_values,
    progress,
    random_state,
    record_path,
    save_checkpoint,
    seed_everything,
    set_random_state,
)
from imle.solvers import select_k

PROJECT = "aimle-dvae"
EVALUATION_BATCH = 200
PICTURED = 12  # images of each kind
REMEDY = "lower --imle-lambda or --imle-temperature"


def build(args: Namespace) -> DiscreteVAE:
    """Return the untrained network around the method that the command line names."""
    return DiscreteVAE(args.input_dim, args.code_m, args.code_n, build_layer(args))


def build_layer(args: Namespace) -> nn.Module:
    """Return the layer of the method that the command line names."""
    if args.method == "gumbel-softmax":
        return GumbelSoftmaxLayer(args.init_temperature, args.hard, args.imle_samples)
    return METHODS[args.method](functools.partial(select_k, k=args.select_k), options_of(args))


def options_of(args: Namespace) -> Options:
    """Return what the command line tells an estimator."""
    ste = args.method == "ste"
    return Options(
        noise=args.ste_noise if ste else args.imle_noise,
        noise_k=args.select_k,
        samples=args.imle_samples,
        theta_temperature=args.ste_temperature if ste else args.imle_temperature,
        target_temperature=args.imle_temperature,
        target=args.aimle_target,
        perturbation_size=args.imle_lambda,
        symmetric=args.aimle_symmetric,
        gradient_scaling=args.gradient_scaling,
        beta_update_step=args.aimle_beta_update_step,
        beta_update_momentum=args.aimle_beta_update_momentum,
        target_norm=args.aimle_target_norm,
        subset_size=args.select_k,
    )


def set_temperature(layer: nn.Module, temperature: float) -> None:
    """Give the schedule's temperature to the one method that uses it."""
    if isinstance(layer, GumbelSoftmaxLayer):
        layer.temperature = temperature


def new_optimiser(model: DiscreteVAE) -> torch.optim.Optimizer:
    """Return the published optimiser: one kernel for all parameters, wherever torch has it."""
    return torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)


def train_epoch(
    model: DiscreteVAE,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    batches: Sequence[Tensor],
    temperatures: Sequence[float],
    label: str,
) -> Tensor:
    """Train on batches of image indices, each at its temperature; returns the published loss of each, `[steps]`."""
    model.train()
    values = []
    for batch, temperature in progress(list(zip(batches, temperatures)), label):
        set_temperature(model.layer, temperature)
        x = intensities(images[batch])
        logits, reconstruction_logits = model(x)
        loss = training_loss(*losses(logits, reconstruction_logits, x)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(loss.detach())
    return torch.stack(values)


@contextlib.contextmanager
def own_noise(seed: int, device: torch.device) -> Iterator[None]:
    """Draw noise from a fresh start inside the block, and leave the generators as they were.

    Epochs are then measured with the same noise, and training goes on as if nothing had been measured.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@torch.inference_mode()
def evaluate(model: DiscreteVAE, images: Tensor, seed: int) -> dict[str, float]:
    """Return the published test loss, and the negative evidence lower bound; means over images, in nats."""
    model.train()  # published figures are those of sampled codes; in evaluation mode a layer solves without noise
    total = torch.zeros(2, dtype=torch.float64, device=images.device)
    with own_noise(seed, images.device):
        for batch in images.split(EVALUATION_BATCH):
            x = intensities(batch)
            logits, reconstruction_logits = model(x)
            bce, kl = losses(logits, reconstruction_logits, x)
            total += torch.stack([test_loss(bce, kl), nelbo(bce, kl)]).double().sum(-1)
    published, bound = (total / len(images)).tolist()
    return {"test_loss": published, "test_nelbo": bound}


@torch.inference_mode()
def reconstruct(model: DiscreteVAE, images: Tensor, seed: int) -> Tensor:
    """Return images uint8 [B, P] as the model shows them after one sampled code each, [B, P] in [0, 1]."""
    model.train()
    with own_noise(seed, images.device):
        _, logits = model(intensities(images))
    return logits.view(len(images), -1, images.shape[1])[:, 0].sigmoid()


@torch.inference_mode()
def imagine(model: DiscreteVAE, k: int, seed: int) -> Tensor:
    """Return what the decoder makes of random codes with k ones a row, [PICTURED, P] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    codes = random_codes(PICTURED, model.code_m, model.code_n, k, generator)
    return model.decoder(codes.to(next(model.parameters()).device)).sigmoid()


class Session:
    """The state of one training: what a checkpoint holds.

    Args:
        args: the parsed command line.
        data: images on `device`.
        path: of the checkpoint.
        device: where to compute.
    """

    def __init__(self, args: Namespace, data: MNIST, path: Path, device: torch.device):
        seed_everything(args.seed)
        self.args, self.data, self.path, self.device = args, data, path, device
        self.model = build(args).to(device)
        self.optimiser = new_optimiser(self.model)
        self.epoch, self.iteration = 0, 0
        self.history: list[dict[str, Any]] = []

    def state(self) -> dict[str, Any]:
        """Return all that is needed to continue to the same figures."""
        return {
            "config": config_of(self.args),
            "epoch": self.epoch,
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "history": self.history,
            "random": random_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.iteration, self.history = state["epoch"], state["iteration"], state["history"]
        set_temperature(self.model.layer, self.temperature(self.iteration))
        set_random_state(state["random"])

    def done(self) -> bool:
        """Whether all epochs, or all iterations, are behind."""
        limit = self.args.max_iterations
        return self.epoch >= self.args.epochs or (limit is not None and self.iteration >= limit)

    def temperature(self, iteration: int) -> float:
        """Return the schedule's temperature after so many batches."""
        args = self.args
        return temperature_at(iteration, args.init_temperature, args.anneal_rate, args.min_temperature)

    def next_epoch(self, log: logging.Logger) -> dict[str, Any]:
        """Train one epoch and measure; returns the figures for the record.

        Raises:
            FloatingPointError: a loss is NaN or infinite.
        """
        order = epoch_order(len(self.data.train), self.args.seed, self.epoch).to(self.device)
        batches = order.split(self.args.batch_size)
        if self.args.max_iterations is not None:
            batches = batches[: self.args.max_iterations - self.iteration]
        temperatures = [self.temperature(self.iteration + done) for done in range(len(batches))]
        self.epoch += 1
        self.iteration += len(batches)
        label = f"Epoch {self.epoch}/{self.args.epochs}"
        found = train_epoch(self.model, self.optimiser, self.data.train, batches, temperatures, label)
        values = torch.tensor(loss_values(found, label, REMEDY), dtype=torch.float64)
        temperature = self.temperature(self.iteration)
        set_temperature(self.model.layer, temperature)
        figures = {
            "loss": values.mean().item(),
            "loss_std": values.std(correction=0).item(),
            "tau": temperature,
            "beta": beta_of(self.model.layer),
        }
        log.info(training_line(label, figures))
        figures |= evaluate(self.model, self.data.test, self.args.seed)
        log.info(test_line(figures))
        return figures

    def final(self) -> dict[str, Any]:
        """Return the figures of the last epoch."""
        return {key: self.history[-1][key] for key in ("loss", "test_loss", "test_nelbo", "beta")}

    def draw(self) -> None:
        """Write the run's two pictures beside its checkpoint, with the seed in their names."""
        args, images = self.args, self.data.test[:PICTURED]
        k = 1 if args.method == "gumbel-softmax" else args.select_k
        rows = {
            "test images": intensities(images),
            "their reconstructions": reconstruct(self.model, images, args.seed),
            "decoded from random codes": imagine(self.model, k, args.seed),
        }
        title = f"{args.method}, seed {args.seed}, epoch {self.epoch}"
        title += " (sample data)" if self.data.sample_data else ""
        write_images(self.path.with_name(f"seed{args.seed}-images.png"), rows, self.data.image_size, title)
        write_curves(self.path.with_name(f"seed{args.seed}-curves.png"), self.history, title)


def training_line(label: str, figures: Mapping[str, Any]) -> str:
    """Return an epoch's line of the log; it ends before the beta for a method that has none."""
    line = f"{label}\tTraining Loss: {figures['loss']:.4f} ± {figures['loss_std']:.4f}"
    line += f"\tTemperature: {figures['tau']:.5f}"
    return line if figures["beta"] is None else f"{line}\tBeta: {figures['beta']:.5f}"


def test_line(figures: Mapping[str, Any]) -> str:
    """Return the log's line of the published test loss."""
    return f"Average Test Loss: {figures['test_loss']:.5f}"


def run_seed(
    args: Namespace, data: MNIST, path: Path, device: torch.device, log: logging.Logger
) -> Mapping[str, float | None]:
    """Train and measure, with record, checkpoint, pictures and W&B mirror; returns the final figures.

    Args:
        args: the parsed command line, with a name.
        data: images on `device`.
        path: of the checkpoint; pictures go beside it.
        device: where to compute.
        log: gets the lines of an epoch.
    """
    config, record = config_of(args), record_path(args.results_dir, "vae", args.name, args.seed)
    state = earlier_state(args, record, path, config, NOT_COMPARED)
    session = Session(args, data, path, device)
    if state is not None:
        session.restore(state)
    accelerate((session.model.encoder, session.model.decoder), args.precision, device)
    run = Run(
        "vae",
        args.name,
        args.seed,
        config,
        results_dir=args.results_dir,
        sample_data=data.sample_data,
        history=session.history,
        ignore=NOT_COMPARED,
        wandb_project=PROJECT,
        wandb_name=f"{args.method}-{args.seed}",
        wandb_tags=("vae", args.method, args.aimle_target),
    )
    with run:
        while not session.done():
            figures = session.next_epoch(log)
            run.log(session.epoch, figures)
            session.history = run.history
            save_checkpoint(path, session.state())
        session.draw()
        run.finish(session.final())
        log.info("Experiment completed.")  # W&B prints its summary below it
    return session.final()
