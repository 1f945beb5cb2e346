"""Measure models on held-out graphs: evidence lower bound, squared error, recovered edges."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aaai23.harness.files import write_atomically
from aaai23.harness.identity import finished, finished_line, identify
from aaai23.harness.record import plain
from aaai23.harness.run import Run
from aaai23.methods import beta_of
from aaai23.nri.config import NRIConfig
from aaai23.nri.data import Layouts
from aaai23.nri.metrics import edge_metrics, nll_gaussian
from aaai23.nri.model import RelationalInference, build
from aaai23.nri.networks import to_directed
from aaai23.nri.trial import MEASUREMENTS, check_config, find_trials, load_weights
from aaai23.speed.precision import accelerate
from imle.layers import RelaxedLayer

_LOGGER = logging.getLogger(__name__)
PROJECT = "aimle-nri"
TRAINED_WITH = (
    *("num_vertices", "dims", "timesteps", "var", "encoder_hidden", "decoder_hidden", "factor", "skip_first"),
    *("symmeterize_logits", "sst", "method", "use_nvil", "use_reinforce", "use_gumbels_for_kl"),
    *("undirected_theta", "noise", "theta_noise_temperature", "target", "symmetric_perturbation"),
)
"""Settings that a trial must have been trained with to be measured by a command line."""
ALL_MEASUREMENTS = "all_measurements.json"
PRINTED = {"elbo": np.float64, "acc": np.float32, "precision": np.float32, "recall": np.float32}


@torch.inference_mode()
def measure(
    model: RelationalInference,
    split: Layouts,
    config: NRIConfig,
    seed: int,
    bound: bool = True,
    edges: bool = True,
    reading: str | None = None,
) -> dict[str, Any]:
    """Return elbo, nll, kl and mse (`bound`), and acc, precision and recall (`edges`), all means over graphs.

    With the edges comes `edge_reading`, "as_is" or "flipped": the model's "no edge" was read as "edge".

    The bound of aimle and imle is that of their MAP graphs, and `elbo_sampled` that of graphs drawn as in training;
    all other methods are measured along drawn graphs.

    The noise comes from generators of its own: the same weights have the same metrics, and no other random number
    moves.

    Args:
        model: the networks.
        split: graphs.
        config: sizes of batches, and the number of samples of the edge metrics.
        seed: of the noise.
        bound: whether to predict.
        edges: whether to compare edges.
        reading: of the edges; None takes the better one, which is for validation graphs to say.
    """
    model.eval()
    theta = torch.cat([model.logits(inputs) for inputs in split.positions.split(config.eval_batch_size)])
    metrics: dict[str, Any] = {}
    if bound:
        metrics.update(_measure_bounds(model, split, theta, config.eval_batch_size, seed))
    if edges:
        metrics.update(_measure_edges(model, split, theta, config, seed, reading))
    return metrics


def _measure_bounds(
    model: RelationalInference, split: Layouts, theta: Tensor, batch_size: int, seed: int
) -> dict[str, float]:
    """Measure along graphs drawn as in training; of aimle and imle along MAP graphs, and `elbo_sampled` beside it."""
    drawn = _draw(model, theta, split.positions.shape[1], torch.Generator(theta.device).manual_seed(seed))
    sampled = _measure_bound(model, split, theta, drawn, batch_size)
    if beta_of(model.layer) is None:
        return sampled
    best = _measure_bound(model, split, theta, model.structure.solve(theta), batch_size)
    return {**best, "elbo_sampled": sampled["elbo"]}


def _draw(model: RelationalInference, theta: Tensor, vertices: int, generator: torch.Generator) -> Tensor:
    """Return a graph for each theta `[N, E]`, drawn as in training, but discrete also where training is relaxed."""
    if isinstance(model.layer, RelaxedLayer):
        return model.structure.solve(model.structure.perturb(theta, generator=generator))
    edges, _ = model.sample(theta, vertices, generator)
    return edges.unflatten(0, (len(theta), -1))[:, 0]


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
    model: RelationalInference, split: Layouts, theta: Tensor, config: NRIConfig, seed: int, reading: str | None
) -> dict[str, Any]:
    """Measure directed edges drawn with the noise of their structure, Gumbel(0, 1) for trees, in every method."""
    generator = torch.Generator(theta.device).manual_seed(seed)
    vertices, samples = split.positions.shape[1], config.edge_metric_num_samples
    utilities = model.structure.perturb(theta.repeat_interleave(samples, dim=0), generator=generator)
    inferred = torch.cat([model.structure.solve(part) for part in utilities.split(config.eval_edge_metric_bs)])
    true = to_directed(split.edges, vertices).repeat_interleave(samples, dim=0)
    found = edge_metrics(model.directed(inferred, vertices), true, reading)
    return {**found.means(), "edge_reading": found.reading}


def named(metrics: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return metrics under the names that a record has for them; the reading of the edges is one for all splits."""
    return {key if key == "edge_reading" else f"{split}_{key}": value for key, value in metrics.items()}


def evaluate_trials(
    config: NRIConfig, folder: Path, data: Mapping[str, Layouts], device: torch.device
) -> dict[str, dict[str, np.ndarray]]:
    """Measure all trials of a folder on validation and test graphs, and print their metrics.

    They are saved as `all_measurements.json` beside the trials, in a record of the task `nri-eval`, and in W&B.

    Returns:
        For "valid" and "test": elbo, acc, precision and recall, each an array of one number per trial.

    Raises:
        UsageError: there is no trial, or one of them cannot be measured; then no metric is printed.
    """
    trials = find_trials(folder)
    for trial in trials:
        print("trial_path 1", trial, trial.exists())
        print("trial_path 2", trial / MEASUREMENTS, (trial / MEASUREMENTS).exists())
    run_of_data = identify("nri-eval", config, config.files())
    origins = [check_config(trial, run_of_data, TRAINED_WITH) for trial in trials]
    models = [build(config) for _ in trials]
    for trial, model in zip(trials, models, strict=True):
        load_weights(trial, {"encoder": model.encoder, "decoder": model.decoder})
        accelerate((model.encoder, model.decoder), config.precision, device)
    print("encoder", models[0].encoder)
    print("decoder", models[0].decoder, flush=True)
    weights = [trial / f"{name}.pt" for trial in trials for name in ("encoder", "decoder")]
    identity = identify("nri-eval", config, [*config.files(), *weights])
    for trial, origin in zip(trials, origins, strict=True):
        if origin.get("data") != run_of_data.data:
            _LOGGER.warning(f"{trial} was trained on other data than it is measured on")
    record = None if config.again else finished(identity)
    if record is not None:
        _LOGGER.info(finished_line(identity, record))
        history = record.history
    else:
        splits = {name: data[name].to(device) for name in ("valid", "test")}
        with Run(identity, config, project=PROJECT, step_name="trial", tags=("eval", config.target)) as run:
            for index in run.steps(range(len(trials))):
                seed = origins[index].get("seed", config.seed)
                metrics: dict[str, Any] = {}
                for name, split in splits.items():
                    reading = metrics.get("edge_reading")  # of the validation graphs, which come first
                    start = time.perf_counter()
                    found = measure(models[index].to(device), split, config, seed, reading=reading)
                    metrics |= named(found, name)
                    took = time.perf_counter() - start
                    print(f"{name} trial {index} for {config.experiments_folder} took {took}s.", flush=True)
                run.log(**metrics)
            history = run.history
            run.finish(**means(history))
    measurements = {
        name: {key: np.array([entry[f"{name}_{key}"] for entry in history], kind) for key, kind in PRINTED.items()}
        for name in ("valid", "test")
    }
    print("all_measurements", measurements)
    print("Saving data.", flush=True)
    save_measurements(folder / ALL_MEASUREMENTS, trials, history)
    return measurements


def means(history: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the mean of each metric over trials, None where one of them is not finite."""
    columns = {key: [it[key] for it in history] for key in history[0] if key not in ("trial", "edge_reading")}
    return {key: None if None in values else statistics.fmean(values) for key, values in columns.items()}


def save_measurements(path: Path, trials: Sequence[Path], history: Sequence[Mapping[str, Any]]) -> None:
    """Write the metrics of all trials as JSON, by the names of their folders."""
    metrics = {trial.name: plain(entry) for trial, entry in zip(trials, history, strict=True)}
    write_atomically(path, (json.dumps(metrics, indent=1) + "\n").encode())
