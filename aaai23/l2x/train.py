"""One seed of Learning to Explain: train, keep the weights that are best on validation reviews, measure them."""

from __future__ import annotations

import functools
import logging
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aaai23.arguments import config_of
from aaai23.l2x.data import Annotations, L2XData, Reviews, split_heldout
from aaai23.l2x.model import Explainer, squared_error
from aaai23.l2x.settings import NOT_COMPARED
from aaai23.methods import SUBSET_METHODS, Options, beta_of
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

PROJECT = "beeradv-aaai23"
EVALUATION_BATCH = 200
REMEDY = "lower --imle-lambda, --imle-input-temperature or --imle-output-temperature"


def build(args: Namespace, embedding: Tensor) -> Explainer:
    """Return the untrained networks around the method that the command line names."""
    ste = args.method == "ste"
    options = Options(
        noise=args.ste_noise if ste else args.imle_noise,
        noise_k=args.select_k,
        samples=args.imle_samples,
        theta_temperature=args.ste_temperature if ste else args.imle_input_temperature,
        target_temperature=args.imle_output_temperature,
        target=args.aimle_target,
        perturbation_size=args.imle_lambda,
        symmetric=args.aimle_symmetric,
        gradient_scaling=args.gradient_scaling,
        beta_update_step=args.aimle_beta_update_step,
        beta_update_momentum=args.aimle_beta_update_momentum,
        target_norm=args.aimle_target_norm,
        exact_scaling=True,
        subset_size=args.select_k,
        relaxation_temperature={"sst": args.sst_temperature, "softsub": args.softsub_temperature}.get(args.method, 0.1),
    )
    layer = SUBSET_METHODS[args.method](functools.partial(select_k, k=args.select_k), options)
    return Explainer(embedding, layer, args.select_k, args.kernel_size, args.hidden_dims, args.mask_padding)


def train_epoch(
    model: Explainer,
    optimiser: torch.optim.Optimizer,
    reviews: Reviews,
    batches: list[Tensor],
    epoch: str,
    log: logging.Logger | None,
) -> list[float]:
    """Train on batches of review indices; returns the loss of each, and logs each where `log` is given.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    model.train()
    losses = []
    for iteration, batch in enumerate(progress(batches, epoch), start=1):
        loss = squared_error(model(reviews.tokens[batch]), reviews.ratings[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
        if log:
            log.info(f"{epoch}\tIteration {iteration}\tLoss value: {loss.item():.4f}")
    return loss_values(losses, epoch, REMEDY)


@torch.inference_mode()
def mean_squared_error(model: Explainer, reviews: Reviews) -> float:
    """Return 100 times the mean squared error of the ratings predicted from the best-scored words."""
    model.eval()
    error = torch.zeros((), dtype=torch.float64, device=reviews.ratings.device)
    for tokens, ratings in zip(reviews.tokens.split(EVALUATION_BATCH), reviews.ratings.split(EVALUATION_BATCH)):
        error += (model(tokens)[:, 0] - ratings).square().sum()
    return 100 * error.item() / len(reviews.ratings)


@torch.inference_mode()
def selections(model: Explainer, tokens: Tensor) -> Tensor:
    """Return which positions the trained selector chooses, bool `[A, T]`."""
    model.eval()
    return torch.cat([model.select(batch) > 0 for batch in tokens.split(EVALUATION_BATCH)])


def subset_precision(selected: Tensor, annotations: Annotations, k: int) -> float:
    """Return 100 times the share of selected words that lie in annotated ranges.

    Args:
        selected: bool `[A, T]`.
        annotations: of the same A reviews.
        k: a review with fewer selected words counts as if it had k.
    """
    words = selected & (annotations.tokens != 0)
    relevant = (words & annotations.relevant).sum()
    return 100 * relevant.item() / words.sum(dim=1).clamp(min=k).sum().item()


def chance_precision(annotations: Annotations, k: int) -> float:
    """Return the subset precision that k real words of each review, drawn at random, have on average."""
    words = (annotations.tokens != 0).sum(dim=1).clamp(min=1)
    hits = (annotations.relevant & (annotations.tokens != 0)).sum(dim=1) * words.clamp(max=k) / words
    return 100 * hits.sum().item() / (k * len(words))


def to_device(data: L2XData, seed: int, device: torch.device) -> tuple[Reviews, Reviews, Reviews, Annotations]:
    """Return training, validation, test and annotated reviews on the device of the run."""

    def subset(reviews: Reviews, index: Any = slice(None)) -> Reviews:
        return Reviews(reviews.tokens[index].to(device), reviews.ratings[index].to(device))

    validation, test = (torch.as_tensor(half) for half in split_heldout(len(data.heldout.ratings), seed))
    annotated = Annotations(data.annotated.tokens.to(device), data.annotated.relevant.to(device))
    return subset(data.train), subset(data.heldout, validation), subset(data.heldout, test), annotated


class Session:
    """The state of one seed's training: what a checkpoint holds.

    Args:
        args: the parsed command line, with the seed of this rerun.
        data: of the aspect.
        device: where to compute.
    """

    def __init__(self, args: Namespace, data: L2XData, device: torch.device):
        seed_everything(args.seed)
        self.args = args
        self.train, self.validation, self.test, self.annotated = to_device(data, args.seed, device)
        self.model = build(args, data.embedding).to(device)
        accelerate((self.model.selector, self.model.predictor), args.precision, device)
        # one kernel for all parameters, wherever torch has it
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-3, eps=1e-7, fused=True)
        self.epoch, self.iteration = 0, 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"val_mse": math.inf, "model": self.model.state_dict()}

    def state(self) -> dict[str, Any]:
        """Return all that is needed to continue to the same figures."""
        return {
            "config": config_of(self.args),
            "epoch": self.epoch,
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "history": self.history,
            "random": random_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.iteration = state["epoch"], state["iteration"]
        self.best, self.history = state["best"], state["history"]
        set_random_state(state["random"])

    def done(self) -> bool:
        """Whether all epochs, or all iterations, are behind."""
        limit = self.args.max_iterations
        return self.epoch >= self.args.epochs or (limit is not None and self.iteration >= limit)

    def next_epoch(self, log: logging.Logger) -> dict[str, Any]:
        """Train one epoch and measure; returns the figures for the record."""
        order = epoch_order(len(self.train.ratings), self.args.seed, self.epoch).to(self.train.tokens.device)
        batches = list(order.split(self.args.batch_size))
        if self.args.max_iterations is not None:
            batches = batches[: self.args.max_iterations - self.iteration]
        self.epoch += 1
        self.iteration += len(batches)
        label = f"Epoch {self.epoch}/{self.args.epochs}"
        debug_log = log if self.args.debug else None
        losses = torch.tensor(train_epoch(self.model, self.optimiser, self.train, batches, label, debug_log))
        mean, deviation = losses.mean().item(), losses.std(correction=0).item()
        log.info(f"{label}\tLoss {mean:.4f} ± {deviation:.4f}")
        figures = {
            "loss_mean": mean,
            "loss_std": deviation,
            "val_mse": mean_squared_error(self.model, self.validation),
            "test_mse": mean_squared_error(self.model, self.test),
            "beta": beta_of(self.model.layer),
        }
        if figures["val_mse"] < self.best["val_mse"]:
            weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.best = {"val_mse": figures["val_mse"], "model": weights}
        return figures

    def final(self) -> dict[str, float]:
        """Return the figures of the weights that were best on validation reviews, which stay loaded."""
        self.model.load_state_dict(self.best["model"])
        precision = subset_precision(selections(self.model, self.annotated.tokens), self.annotated, self.args.select_k)
        return {
            "best_val_mse": mean_squared_error(self.model, self.validation),
            "best_test_mse": mean_squared_error(self.model, self.test),
            "best_subset_prec": precision,
            "chance_subset_prec": chance_precision(self.annotated, self.args.select_k),
        }


def run_seed(
    args: Namespace, data: L2XData, path: Path, device: torch.device, log: logging.Logger
) -> Mapping[str, float]:
    """Train and measure one seed, with its record, checkpoint and W&B mirror; returns the final figures.

    Args:
        args: the parsed command line, with a name and the seed of this rerun.
        data: of the aspect.
        path: of the checkpoint.
        device: where to compute.
        log: gets the lines of an epoch.
    """
    config, record = config_of(args), record_path(args.results_dir, "l2x", args.name, args.seed)
    state = earlier_state(args, record, path, config, NOT_COMPARED)
    session = Session(args, data, device)
    if state is not None:
        session.restore(state)
    run = Run(
        "l2x",
        args.name,
        args.seed,
        config,
        results_dir=args.results_dir,
        sample_data=data.sample_data,
        history=session.history,
        ignore=NOT_COMPARED,
        wandb_project=PROJECT,
        wandb_name=f"{args.method}-{args.seed}",
        wandb_tags=("l2x", args.method, args.aimle_target),
    )
    with run:
        if not path.exists():
            save_checkpoint(path, session.state())  # a path that cannot be written shows before hours of work
        while not session.done():
            figures = session.next_epoch(log)
            run.log(session.epoch, figures)
            session.history = run.history
            save_checkpoint(path, session.state())
        final = session.final()
        run.finish(final)
    return final
