"""One seed of Neural Relational Inference: train, keep the best weights on validation graphs, measure them."""

from __future__ import annotations

import logging
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aaai23.arguments import config_of
from aaai23.nri.data import SPLITS, Layouts
from aaai23.nri.evaluate import measure, named
from aaai23.nri.inference import RelationalInference, build
from aaai23.nri.model import to_directed
from aaai23.nri.picture import adjacency, draw_curves, draw_graphs, infer
from aaai23.nri.settings import NOT_COMPARED, PROJECT, method_name
from aaai23.nri.trial import (
    CHECKPOINT,
    load_weights,
    refuse_another,
    save_weights,
    trial_folder,
    write_config,
    write_measurements,
)
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

REMEDY = "lower --lr, --imle-lambda or --imle-noise-temperature"


class Session:
    """The state of one seed's training: what a checkpoint holds.

    Args:
        args: the parsed command line.
        data: graphs for training, validation and test.
        trial: the folder of the trial.
        device: where to compute.
    """

    def __init__(self, args: Namespace, data: Mapping[str, Layouts], trial: Path, device: torch.device):
        seed_everything(args.seed)
        self.args, self.trial = args, trial
        self.train, self.validation, self.test = (data[name].to(device) for name in SPLITS)
        self.model = build(args).to(device)
        accelerate(self.networks.values(), args.precision, device)
        self.optimiser = optimiser_of(self.model, args)
        self.last = min(args.num_iterations, args.max_steps or args.num_iterations)
        self.iteration, self.epoch = 0, -1
        self.batches: tuple[Tensor, ...] = ()
        self.history: list[dict[str, Any]] = []
        self.best_elbo = -math.inf

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What is kept for evaluation, by the names of the files."""
        return {"encoder": self.model.encoder, "decoder": self.model.decoder}

    def state(self) -> dict[str, Any]:
        """Return all that is needed to continue to the same figures."""
        return {
            "config": config_of(self.args),
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best_elbo": self.best_elbo,
            "history": self.history,
            "random": random_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.iteration, self.best_elbo, self.history = state["iteration"], state["best_elbo"], state["history"]
        set_random_state(state["random"])

    def done(self) -> bool:
        """Whether all iterations are behind and measured."""
        return self.iteration >= self.last and bool(self.history)

    def next_evaluation(self, log: logging.Logger) -> dict[str, Any]:
        """Train up to the next evaluation, the first being that of the untrained model; returns its figures.

        Raises:
            FloatingPointError: a loss or the validation bound is NaN or infinite.
        """
        losses: list[float] = []
        if self.history:
            every = self.args.eval_every
            stop = min(self.last, (self.iteration // every + 1) * every)
            losses = self.train_until(stop, log if self.args.verbose else None)
        figures = self.figures(losses)
        if not math.isfinite(figures["val_elbo"]):
            raise FloatingPointError(f"the validation bound is not finite at iteration {self.iteration}; {REMEDY}")
        better = figures["val_elbo"] > self.best_elbo
        self.best_elbo = max(self.best_elbo, figures["val_elbo"])
        if better or not self.args.save_best_model:
            save_weights(self.trial, {name: network.state_dict() for name, network in self.networks.items()})
        return figures

    def train_until(self, stop: int, log: logging.Logger | None) -> list[float]:
        """Train until iteration `stop`; returns the loss of each step, and logs each where `log` is given.

        Nothing waits for the device before the last step.

        Raises:
            FloatingPointError: a loss is NaN or infinite.
        """
        self.model.train()
        losses = []
        with torch.autograd.set_detect_anomaly(log is not None):
            for _ in progress(range(self.iteration, stop), f"iterations to {stop}/{self.last}"):
                losses.append(self.step())
                if log:
                    log.info(f"Iteration {self.iteration}\tLoss value: {losses[-1].item():.4f}")
        return loss_values(losses, f"before iteration {stop}", REMEDY)

    def step(self) -> Tensor:
        """Train on the next batch; returns its loss, still on the device."""
        epoch, place = divmod(self.iteration, max(1, len(self.train) // self.args.batch_size))
        if epoch != self.epoch:
            self.begin_epoch(epoch)
        loss = self.model.loss(self.train.positions[self.batches[place]], self.args.prediction_steps)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.iteration += 1
        return loss.detach()

    def begin_epoch(self, epoch: int) -> None:
        """Shuffle, and set the learning rate; a last batch that is not full is left to another epoch's order."""
        self.epoch = epoch
        order = epoch_order(len(self.train), self.args.seed, epoch).to(self.train.positions.device)
        self.batches = order.split(self.args.batch_size)
        for group in self.optimiser.param_groups:
            group["lr"] = self.args.lr * self.args.gamma ** (epoch // self.args.lr_decay)

    def figures(self, losses: list[float]) -> dict[str, Any]:
        """Return the figures of an evaluation for the record."""
        spread = torch.tensor(losses, dtype=torch.float64)
        figures: dict[str, Any] = {
            "loss_mean": spread.mean().item() if losses else None,
            "loss_std": spread.std(correction=0).item() if losses else None,
        }
        seed, edges = self.args.seed, self.args.log_edge_metric_val
        validation = measure(self.model, self.validation, self.args, seed, edges=edges)
        figures.update(named(validation, "val"))
        if self.args.log_edge_metric_train:
            reading = validation.get("edge_reading")
            found = measure(self.model, self.some_training_graphs(), self.args, seed, bound=False, reading=reading)
            figures.update(named(found, "train"))
        figures["beta"] = self.model.sampler.beta
        figures["lr"] = self.optimiser.param_groups[0]["lr"]
        return figures

    def some_training_graphs(self) -> Layouts:
        """Return as many training graphs as there are for validation."""
        count = len(self.validation)
        return Layouts(self.train.positions[:count], self.train.edges[:count])

    def final(self) -> dict[str, Any]:
        """Return the figures of the weights that were kept, which stay loaded."""
        load_weights(self.trial, self.networks)
        final: dict[str, Any] = {}
        for name, split in (("val", self.validation), ("test", self.test)):
            reading = final.get("edge_reading")  # of the validation graphs, which come first
            final.update(named(measure(self.model, split, self.args, self.args.seed, reading=reading), name))
        return final


def optimiser_of(model: RelationalInference, args: Namespace) -> torch.optim.Optimizer:
    """Return Adam over the networks, each with its weight decay; one kernel for all, wherever torch has it."""
    groups = [
        {"params": list(model.encoder.parameters()), "weight_decay": args.enc_weight_decay},
        {"params": list(model.decoder.parameters()), "weight_decay": args.dec_weight_decay},
        {"params": list(model.sampler.parameters())},  # of a learned baseline; none for most methods
    ]
    return torch.optim.Adam([group for group in groups if group["params"]], lr=args.lr, fused=True)


def describe(figures: Mapping[str, Any], split: str) -> str:
    """Return what was measured on a split, val or test, as a part of a line."""
    shown = ("elbo", "elbo_sampled", "nll", "kl", "mse", "acc", "precision", "recall")
    return " ".join(f"{key} {figures[f'{split}_{key}']:.6g}" for key in shown if f"{split}_{key}" in figures)


def line(entry: Mapping[str, Any]) -> str:
    """Return one evaluation as a line of the log."""
    loss = "" if entry["loss_mean"] is None else f"\tLoss {entry['loss_mean']:.4f} ± {entry['loss_std']:.4f}"
    beta = "" if entry["beta"] is None else f"\tBeta: {entry['beta']:.5f}"
    return f"Iteration {entry['iteration']}{loss}\tValidation {describe(entry, 'val')}{beta}"


def run_seed(
    args: Namespace, data: Mapping[str, Layouts], device: torch.device, log: logging.Logger
) -> Mapping[str, Any]:
    """Train and measure one seed, with its record, trial folder, pictures and W&B mirror; returns the final figures.

    Args:
        args: the parsed command line, with a name and an experiments folder.
        data: graphs for training, validation and test.
        device: where to compute.
        log: gets a line for each evaluation.

    Raises:
        UsageError: the trial's folder or the record belongs to other settings.
    """
    trial, record = trial_folder(args), record_path(args.results_dir, "nri", args.name, args.seed)
    refuse_another(trial, config_of(args))
    state = earlier_state(args, record, trial / CHECKPOINT, config_of(args), NOT_COMPARED)
    session = Session(args, data, trial, device)
    if state is not None:
        session.restore(state)
    run = Run(
        "nri",
        args.name,
        args.seed,
        config_of(args),
        results_dir=args.results_dir,
        sample_data=data["train"].sample_data,
        step_name="iteration",
        history=session.history,
        ignore=NOT_COMPARED,
        wandb_project=PROJECT,
        wandb_name=f"{method_name(args)}-{args.seed}",
        wandb_tags=("nri", method_name(args), args.aimle_target, f"T{args.timesteps}"),
    )
    with run:
        write_config(trial, config_of(args))
        while not session.done():
            figures = session.next_evaluation(log)
            run.log(session.iteration, figures)
            session.history = run.history
            save_checkpoint(trial / CHECKPOINT, session.state())
            write_measurements(trial, run.history, map(line, run.history))
            log.info(line(run.history[-1]))
        final = session.final()
        draw_pictures(run.path, session, final["edge_reading"])
        run.finish(final)
    return final


def draw_pictures(record: Path, session: Session, reading: str) -> None:
    """Draw ten test graphs and the curves beside the record, as `seed<seed>_graphs.png` and `seed<seed>_curves.png`."""
    test = session.test
    title = f"{record.parent.name}, seed {session.args.seed}" + (", sample data" if test.sample_data else "")
    positions, vertices = test.positions[:10], test.positions.shape[1]
    draw_graphs(
        record.with_name(f"{record.stem}_graphs.png"),
        positions[:, :, -1],
        adjacency(to_directed(test.edges[:10], vertices), vertices),
        infer(session.model, positions, reading),
        f"{title}: ten test graphs, last frame",
    )
    draw_curves(record.with_name(f"{record.stem}_curves.png"), session.history, title)
