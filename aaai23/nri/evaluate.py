"""Measure models on held-out graphs: evidence lower bound, squared error, recovered edges."""

from __future__ import annotations

import json
import logging
import statistics
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aaai23.arguments import config_of
from aaai23.fingerprint import fingerprint
from aaai23.nri.data import Layouts
from aaai23.nri.inference import RelationalInference, build
from aaai23.nri.metrics import edge_metrics, nll_gaussian
from aaai23.nri.model import to_directed
from aaai23.nri.settings import MEASURING, NOT_COMPARED, PROJECT, TRAINED_WITH, method_name
from aaai23.nri.trial import (
    MEASUREMENTS,
    check_config,
    experiments_folder,
    find_trials,
    load_weights,
    read_config,
)
from aaai23.record import plain, write_atomically
from aaai23.run import Run, accelerate
from imle.noise import draw

_LOGGER = logging.getLogger(__name__)
ALL_MEASUREMENTS = "all_measurements.json"
PRINTED = {"elbo": np.float64, "acc": np.float32, "precision": np.float32, "recall": np.float32}


@torch.inference_mode()
def measure(
    model: RelationalInference,
    split: Layouts,
    args: Namespace,
    seed: int,
    bound: bool = True,
    edges: bool = True,
    reading: str | None = None,
) -> dict[str, Any]:
    """Return elbo, nll, kl and mse (`bound`), and acc, precision and recall (`edges`), all means over graphs.

    With the edges comes `edge_reading`, "as_is" or "flipped": the model's "no edge" was read as "edge".

    The bound of aimle and imle is that of their MAP graphs, and `elbo_sampled` that of graphs drawn as in training;
    all other methods are measured along drawn graphs.

    The noise comes from generators of its own: the same weights have the same figures, and no other random number
    moves.

    Args:
        model: the networks.
        split: graphs.
        args: eval_batch_size, eval_edge_metric_bs, edge_metric_num_samples.
        seed: of the noise.
        bound: whether to predict.
        edges: whether to compare edges.
        reading: of the edges; None takes the better one, which is for validation graphs to say.
    """
    model.eval()
    theta = torch.cat([model.logits(inputs) for inputs in split.positions.split(args.eval_batch_size)])
    figures: dict[str, Any] = {}
    if bound:
        figures.update(_measure_bounds(model, split, theta, args.eval_batch_size, seed))
    if edges:
        figures.update(_measure_edges(model, split, theta, args, seed, reading))
    return figures


def _measure_bounds(
    model: RelationalInference, split: Layouts, theta: Tensor, batch_size: int, seed: int
) -> dict[str, float]:
    """Measure along graphs drawn as in training; of aimle and imle along MAP graphs, and `elbo_sampled` beside it."""
    drawn = model.sampler.draw(theta, torch.Generator(theta.device).manual_seed(seed))
    sampled = _measure_bound(model, split, theta, drawn, batch_size)
    if not model.sampler.measured_without_noise:
        return sampled
    best = _measure_bound(model, split, theta, model.sampler.structure.solver(theta), batch_size)
    return {**best, "elbo_sampled": sampled["elbo"]}


def _measure_bound(
    model: RelationalInference, split: Layouts, theta: Tensor, edges: Tensor, batch_size: int
) -> dict[str, float]:
    """Measure along given graphs `[N, E]`, each frame predicted from the true one before it."""
    totals = torch.zeros(3, dtype=torch.float64, device=theta.device)
    batches = (split.positions, theta, edges)
    for inputs, logits, graphs in zip(*(part.split(batch_size) for part in batches), strict=True):
        predicted, frames = model.decoder(inputs, graphs, 1), inputs[:, :, 1:]
        nll = nll_gaussian(predicted, frames, model.variance)
        error = (predicted - frames).square().flatten(1).mean(dim=1)
        kl = model.divergence(logits, inputs.shape[1])
        totals += torch.stack([nll, kl, error]).sum(dim=1, dtype=torch.float64)
    nll, kl, mse = (totals / len(split)).tolist()
    return {"elbo": -nll - kl, "nll": nll, "kl": kl, "mse": mse}


def _measure_edges(
    model: RelationalInference, split: Layouts, theta: Tensor, args: Namespace, seed: int, reading: str | None
) -> dict[str, Any]:
    """Measure directed edges drawn with the noise of their structure, Gumbel(0, 1) for trees, in every method."""
    generator = torch.Generator(theta.device).manual_seed(seed)
    structure, vertices, samples = model.sampler.structure, split.positions.shape[1], args.edge_metric_num_samples
    theta = theta.repeat_interleave(samples, dim=0)
    utilities = theta + draw(structure.noise, theta.shape, like=theta, generator=generator)
    inferred = torch.cat([structure.solver(part) for part in utilities.split(args.eval_edge_metric_bs)])
    true = to_directed(split.edges, vertices).repeat_interleave(samples, dim=0)
    found = edge_metrics(model.directed(inferred, vertices), true, reading)
    return {**found.means(), "edge_reading": found.reading}


def named(figures: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return figures under the names that a record has for them; the reading of the edges is one for all splits."""
    return {key if key == "edge_reading" else f"{split}_{key}": value for key, value in figures.items()}


def load_trial(trial: Path, args: Namespace, device: torch.device) -> RelationalInference:
    """Return the networks of a trial with its weights.

    Raises:
        UsageError: it was trained with other settings, or its weights are missing or broken.
    """
    check_config(trial, config_of(args), TRAINED_WITH)
    model = build(args)
    load_weights(trial, {"encoder": model.encoder, "decoder": model.decoder})
    accelerate((model.encoder, model.decoder), args.precision, device)
    return model.to(device)


def evaluate_trials(
    args: Namespace, data: Mapping[str, Layouts], device: torch.device
) -> dict[str, dict[str, np.ndarray]]:
    """Measure all trials of the experiments folder on validation and test graphs, and print the figures.

    They are saved as `all_measurements.json` beside the trials, in a record of the task `nri-eval`, and in W&B.

    Returns:
        For "valid" and "test": elbo, acc, precision and recall, each an array of one number per trial.

    Raises:
        UsageError: there is no trial, or one of them cannot be measured; then no figure is printed.
    """
    folder = experiments_folder(args)
    trials = find_trials(folder)
    for trial in trials:
        print("trial_path 1", trial, trial.exists())
        print("trial_path 2", trial / MEASUREMENTS, (trial / MEASUREMENTS).exists())
    models = [load_trial(trial, args, device) for trial in trials]
    print("encoder", models[0].encoder)
    print("decoder", models[0].decoder, flush=True)
    splits = {name: data[name].to(device) for name in ("valid", "test")}
    for trial in trials:
        if read_config(trial).get("data") != getattr(args, "data", None):
            _LOGGER.warning(f"{trial} was trained on other data than it is measured on")
    args.trials = fingerprint(trial / f"{name}.pt" for trial in trials for name in ("encoder", "decoder"))
    with evaluation_run(args, data["test"].sample_data) as run:
        for index, (trial, model) in enumerate(zip(trials, models, strict=True)):
            seed = read_config(trial).get("seed", args.seed)
            figures: dict[str, Any] = {}
            for name, split in splits.items():
                reading = figures.get("edge_reading")  # of the validation graphs, which come first
                figures.update(named(timed_measure(model, split, args, seed, name, index, reading), name))
            run.log(index, figures)
        measurements = {
            name: {key: np.array([e[f"{name}_{key}"] for e in run.history], kind) for key, kind in PRINTED.items()}
            for name in splits
        }
        print("all_measurements", measurements)
        print("Saving data.", flush=True)
        save_measurements(folder / ALL_MEASUREMENTS, trials, run.history)
        means = [key for key in run.history[0] if key not in ("trial", "edge_reading")]
        run.finish({key: statistics.fmean(e[key] for e in run.history) for key in means})
    return measurements


def timed_measure(
    model: RelationalInference,
    split: Layouts,
    args: Namespace,
    seed: int,
    name: str,
    index: int,
    reading: str | None,
) -> dict[str, Any]:
    """Measure one trial on one split, and print how long it took."""
    start = time.perf_counter()
    figures = measure(model, split, args, seed, reading=reading)
    print(f"{name} trial {index} for {args.experiments_folder} took {time.perf_counter() - start}s.", flush=True)
    return figures


def evaluation_run(args: Namespace, sample_data: bool) -> Run:
    """Return the record of an evaluation, a step of which is a trial; with --again it may replace that of others."""
    return Run(
        "nri-eval",
        args.name,
        args.seed,
        config_of(args),
        results_dir=args.results_dir,
        sample_data=sample_data,
        step_name="trial",
        ignore=(*NOT_COMPARED, *MEASURING, *(("trials",) if args.again else ())),
        wandb_project=PROJECT,
        wandb_name=f"eval-{method_name(args)}-{args.seed}",
        wandb_tags=("nri", "eval", method_name(args), args.aimle_target),
    )


def save_measurements(path: Path, trials: list[Path], history: list[dict[str, Any]]) -> None:
    """Write the figures of all trials as JSON, by the names of their folders."""
    figures = {trial.name: plain(entry) for trial, entry in zip(trials, history, strict=True)}
    write_atomically(path, (json.dumps(figures, indent=1) + "\n").encode())
