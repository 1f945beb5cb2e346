"""Neural Relational Inference: train one seed, keep the best weights on validation graphs, measure them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aaai23.harness.identity import Identity
from aaai23.harness.loop import Best, epoch_order, loss_values, seed_everything
from aaai23.harness.record import figure
from aaai23.harness.run import Run
from aaai23.harness.shell import progress
from aaai23.methods import beta_of
from aaai23.nri import trial
from aaai23.nri.config import SPLITS, NRIConfig
from aaai23.nri.data import Layouts
from aaai23.nri.evaluate import measure, named
from aaai23.nri.model import RelationalInference, build
from aaai23.nri.networks import to_directed
from aaai23.nri.plots import adjacency, draw_curves, draw_graphs, infer
from aaai23.speed.precision import accelerate
from aaai23.speed.replay import TrainingStep

PROJECT = "aimle-nri"
REMEDY = "lower --lr, --imle-lambda or --imle-noise-temperature"


def run_seed(
    identity: Identity,
    config: NRIConfig,
    data: Mapping[str, Layouts],
    folder: Path,
    device: torch.device,
    log: logging.Logger,
) -> Mapping[str, Any]:
    """Train and measure one seed; returns its final metrics.

    Args:
        identity: who the run is.
        config: its settings.
        data: graphs for training, validation and test.
        folder: of the trial, which is written from the run.
        device: where to compute.
        log: gets a line for each evaluation.
    """
    trial.check(folder, identity)
    seed_everything(config.seed)
    train, validation, test = (data[name].to(device) for name in SPLITS)
    model = build(config).to(device)
    networks = {"encoder": model.encoder, "decoder": model.decoder}
    accelerate(networks.values(), config.precision, device)
    optimiser = optimiser_of(model, config)
    best, batches = Best(model), Batches(config, optimiser, train)
    tags = (config.target, f"T{config.timesteps}")
    with Run(
        identity, config, project=PROJECT, step_name="iteration", describe=lambda it: [line(it)], log=log, tags=tags
    ) as run:
        trial.begin(folder, identity)
        for stop in run.steps(evaluations(config), model=model, optimiser=optimiser, best=best):
            start = stop if run.behind is None else run.behind
            losses = train_steps(model, optimiser, batches, start, stop, config, log)
            run.log(loss_mean=losses.mean() if len(losses) else None)
            run.log(loss_std=losses.std(correction=0) if len(losses) else None)
            run.log(**evaluate(model, train, validation, config), beta=beta_of(model.layer))
            run.log(lr=optimiser.param_groups[0]["lr"])
            if run.entry["val_elbo"] is None:
                raise FloatingPointError(f"the validation bound is not finite at iteration {stop}; {REMEDY}")
            if best.update(-run.entry["val_elbo"] if config.save_best_model else -stop):
                trial.save_weights(folder, networks)
            history = [*run.history, {"iteration": stop, **run.entry}]
            trial.write_measurements(folder, history, map(line, history))
        best.restore()
        trial.save_weights(folder, networks)  # a resumed run may have another folder than the one that found them
        final = named(measure(model, validation, config, config.seed), "val")
        final |= named(measure(model, test, config, config.seed, reading=final["edge_reading"]), "test")
        draw_pictures(identity, model, test, run.history, final["edge_reading"])
        run.finish(**final)
    return run.final


def evaluations(config: NRIConfig) -> Iterator[int]:
    """Yield the iterations at which the model is measured: 0, every `eval_every`, and the last."""
    yield from range(0, config.last, config.eval_every)
    yield config.last


class Batches:
    """Batches of training positions by iteration; each epoch has an order, and a learning rate, of its own.

    A last batch that is not full is left to another epoch's order.
    """

    def __init__(self, config: NRIConfig, optimiser: torch.optim.Optimizer, train: Layouts):
        self.config, self.optimiser, self.positions = config, optimiser, train.positions
        self.per_epoch = max(1, len(train) // config.batch_size)
        self.epoch, self.order = -1, torch.empty(0)

    def __call__(self, iteration: int) -> Tensor:
        """Return positions `[B, n, T, dims]`."""
        epoch, place = divmod(iteration, self.per_epoch)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = epoch_order(len(self.positions), self.config.seed, epoch).to(self.positions.device)
            for group in self.optimiser.param_groups:
                group["lr"] = self.config.lr * self.config.gamma ** (epoch // self.config.lr_decay)
        return self.positions[self.order.split(self.config.batch_size)[place]]


def train_steps(
    model: RelationalInference,
    optimiser: torch.optim.Optimizer,
    batches: Batches,
    start: int,
    stop: int,
    config: NRIConfig,
    log: logging.Logger,
) -> Tensor:
    """Train from one iteration to another; returns the loss of each step, float64 on the CPU.

    Nothing waits for the device before the last step.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    model.train()
    step = TrainingStep(optimiser, lambda x: model.loss(x, config.prediction_steps), replay=not config.verbose)
    losses = batches.positions.new_empty(stop - start)
    with torch.autograd.set_detect_anomaly(config.verbose):
        for iteration in progress(range(start, stop), f"iterations to {stop}/{config.last}"):
            losses[iteration - start] = step(batches(iteration))
            if config.verbose:
                log.info(f"Iteration {iteration + 1}\tLoss value: {losses[iteration - start].item():.4f}")
    return torch.tensor(loss_values(losses, f"before iteration {stop}", REMEDY), dtype=torch.float64)


def evaluate(model: RelationalInference, train: Layouts, validation: Layouts, config: NRIConfig) -> dict[str, Any]:
    """Return the metrics of an evaluation for the record."""
    found = named(measure(model, validation, config, config.seed, edges=config.log_edge_metric_val), "val")
    if config.log_edge_metric_train:
        count = len(validation)
        some = Layouts(train.positions[:count], train.edges[:count])
        reading = found.get("edge_reading")
        found |= named(measure(model, some, config, config.seed, bound=False, reading=reading), "train")
    return found


def optimiser_of(model: RelationalInference, config: NRIConfig) -> torch.optim.Optimizer:
    """Return Adam over the networks, each with its weight decay; one kernel for all, wherever torch has it."""
    groups: list[dict[str, Any]] = [
        {"params": list(model.encoder.parameters()), "weight_decay": config.enc_weight_decay},
        {"params": list(model.decoder.parameters()), "weight_decay": config.dec_weight_decay},
        {"params": list(model.baseline.parameters()) if model.baseline is not None else []},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]], lr=config.lr, fused=True)


def describe(metrics: Mapping[str, Any], split: str) -> str:
    """Return what was measured on a split, val or test, as a part of a line."""
    shown = ("elbo", "elbo_sampled", "nll", "kl", "mse", "acc", "precision", "recall")
    return " ".join(f"{key} {figure(metrics, f'{split}_{key}'):.6g}" for key in shown if f"{split}_{key}" in metrics)


def line(entry: Mapping[str, Any]) -> str:
    """Return one evaluation as a line of the log."""
    loss = f"\tLoss {figure(entry, 'loss_mean'):.4f} ± {figure(entry, 'loss_std'):.4f}"
    loss = "" if entry["loss_mean"] is None else loss
    beta = "" if entry["beta"] is None else f"\tBeta: {entry['beta']:.5f}"
    return f"Iteration {entry['iteration']}{loss}\tValidation {describe(entry, 'val')}{beta}"


def draw_pictures(
    identity: Identity, model: RelationalInference, test: Layouts, history: list[dict[str, Any]], reading: str
) -> None:
    """Draw ten test graphs and the curves beside the record."""
    title = f"{identity.name}, seed {identity.seed}" + (", sample data" if identity.sample_data else "")
    positions, vertices = test.positions[:10], test.positions.shape[1]
    draw_graphs(
        identity.file("_graphs.png"),
        positions[:, :, -1],
        adjacency(to_directed(test.edges[:10], vertices), vertices),
        infer(model, positions, reading),
        f"{title}: ten test graphs, last frame",
    )
    draw_curves(identity.file("_curves.png"), history, title)
