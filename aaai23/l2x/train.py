"""Learning to Explain: train one seed, keep the weights that are best on validation reviews, measure them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aaai23.harness.checkpoint import export
from aaai23.harness.identity import Identity
from aaai23.harness.loop import Best, epoch_order, epochs_of, loss_values, seed_everything
from aaai23.harness.record import figure
from aaai23.harness.run import Run
from aaai23.harness.shell import progress
from aaai23.l2x import fast
from aaai23.l2x.config import L2XConfig
from aaai23.l2x.data import Annotations, L2XData, Reviews, split_heldout
from aaai23.l2x.model import Explainer, Predictor, squared_error
from aaai23.methods import METHODS, beta_of
from aaai23.speed.precision import accelerate
from aaai23.speed.replay import TrainingStep
from imle.structures import k_subsets

PROJECT = "beeradv-aaai23"
EVALUATION_BATCH = 200
REMEDY = "lower --imle-lambda, --imle-input-temperature or --imle-output-temperature"


def build(config: L2XConfig, embedding: Tensor) -> Explainer:
    """Return the untrained networks around the method that is asked for."""
    layer = METHODS[config.method](k_subsets(config.select_k), config)
    selector = fast.Selector(embedding, config.kernel_size)
    predictor = Predictor(embedding.shape[1], config.hidden_dims)
    return Explainer(selector, layer, predictor, config.select_k, config.mask_padding)


def run_seed(
    identity: Identity, config: L2XConfig, data: L2XData, device: torch.device, log: logging.Logger
) -> Mapping[str, Any]:
    """Train and measure one seed; returns its final metrics.

    Args:
        identity: who the run is.
        config: with the seed of this rerun.
        data: of the aspect.
        device: where to compute.
        log: gets the lines of an epoch.
    """
    seed_everything(config.seed)
    train, validation, test, annotated = to_device(data, config.seed, device)
    model = build(config, data.embedding).to(device)
    accelerate((model.selector, model.predictor), config.precision, device)
    # one kernel for all parameters, wherever torch has it
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7, fused=True)
    best = Best(model)
    epochs = epochs_of(len(train.ratings), config.batch_size, config.epochs, config.max_iterations)
    with Run(identity, config, project=PROJECT, describe=describe(config), log=log, tags=(config.target,)) as run:
        for epoch in run.steps(epochs, model=model, optimiser=optimiser, best=best):
            order = epoch_order(len(train.ratings), config.seed, epoch - 1).to(device)
            batches = order.split(config.batch_size)[: epochs.batches(epoch)]
            losses = train_epoch(model, optimiser, train, batches, f"Epoch {epoch}/{config.epochs}", config.debug, log)
            run.log(loss_mean=losses.mean(), loss_std=losses.std(correction=0))
            run.log(val_mse=mean_squared_error(model, validation), test_mse=mean_squared_error(model, test))
            run.log(beta=beta_of(model.layer))
            if run.entry["val_mse"] is None:
                raise FloatingPointError(f"the validation error is not finite in epoch {epoch}; {REMEDY}")
            best.update(run.entry["val_mse"])
        best.restore()
        export(config.export(), identity)
        selected = selections(model, annotated.tokens)
        run.finish(
            best_val_mse=mean_squared_error(model, validation),
            best_test_mse=mean_squared_error(model, test),
            best_subset_prec=subset_precision(selected, annotated, config.select_k),
            chance_subset_prec=chance_precision(annotated, config.select_k),
        )
    return run.final


def describe(config: L2XConfig) -> Any:
    """Return what makes an epoch's line of the log."""
    return lambda entry: [
        f"Epoch {entry['epoch']}/{config.epochs}\tLoss {entry['loss_mean']:.4f} ± {figure(entry, 'loss_std'):.4f}"
    ]


def train_epoch(
    model: Explainer,
    optimiser: torch.optim.Optimizer,
    reviews: Reviews,
    batches: tuple[Tensor, ...],
    epoch: str,
    debug: bool,
    log: logging.Logger,
) -> Tensor:
    """Train on batches of review indices; returns the loss of each, `[steps]` on the CPU.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    model.train()
    step = TrainingStep(optimiser, lambda batch: squared_error(model(reviews.tokens[batch]), reviews.ratings[batch]))
    losses = reviews.ratings.new_empty(len(batches))
    for index, batch in enumerate(progress(batches, epoch)):
        losses[index] = step(batch)
        if debug:
            log.info(f"{epoch}\tIteration {index + 1}\tLoss value: {losses[index].item():.4f}")
    return torch.tensor(loss_values(losses, epoch, REMEDY))


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
