"""The settings of Neural Relational Inference, and the files that it reads. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aaai23 import flags
from aaai23.errors import UsageError
from aaai23.harness.config import (
    declared,
    folder_name,
    launch,
    length,
    non_negative_float,
    number,
    path_text,
    positive_float,
    positive_int,
    positive_or_infinite,
    probability,
    seed_number,
    setting,
    true_or_false,
)

METHODS = ("sst", "imle", "aimle", "ste")
PERTURBED = ("aimle", "imle")
SCORE = ("nvil", "reinforce")
RELAXATIONS = ("exp_family_entropy", "binary_entropy")
SPLITS = ("train", "valid", "test")
ROOT = Path("experiments")
"""The folder that experiments folders are in."""

BOOL: dict[str, Any] = {"type": true_or_false, "metavar": "BOOL"}
SWITCH: dict[str, Any] = {**BOOL, "nargs": "?", "const": True}
"""A flag that may stand alone, for True."""

_network = partial(setting, group="networks")
_edges = partial(setting, group="edges")
_sst = partial(_edges, methods=("sst",))
_score = partial(setting, group="score function", methods=SCORE)
_evaluation = partial(setting, group="evaluation")


@dataclass(frozen=True, kw_only=True)
class NRIConfig(flags.MethodFlags):
    """Neural Relational Inference. Settings of estimators have the library's names."""

    seed: int = launch(42, "--seed", type=seed_number, help="seed", group="run")
    device: Any = launch(
        None, "--device", choices=("auto", "cpu", "cuda"), help="where to compute; --cuda if not given", group="run"
    )

    mode: str = launch(
        "train", "--mode", choices=("train", "eval"), help="eval measures the trials of --experiments_folder"
    )
    cuda: bool = launch(False, "--cuda", **BOOL, help="use the GPU if there is one; --device goes first")
    num_iterations: int = length(50000, "--num_iterations", type=positive_int, help="training steps")
    max_steps: int | None = length(None, "--max-steps", type=positive_int, help="end training after this many steps")
    eval_every: int = setting(500, "--eval_every", type=positive_int, help="steps between two evaluations")
    batch_size: int = setting(128, "--batch_size", type=positive_int, help="graphs a step")
    lr: float = setting(3e-4, "--lr", type=positive_float, help="learning rate of Adam")
    lr_decay: int = setting(200, "--lr_decay", type=positive_int, help="passes over the graphs until --lr is scaled")
    gamma: float = setting(0.5, "--gamma", type=number(float, 1e-30, 1.0), help="by which --lr is scaled")
    enc_weight_decay: float = setting(
        0.0, "--enc_weight_decay", type=non_negative_float, help="weight decay of the encoder"
    )
    dec_weight_decay: float = setting(
        0.0, "--dec_weight_decay", type=non_negative_float, help="weight decay of the decoder"
    )
    suffix: str = setting("_novar_1skip_10t_1r_graph10", "--suffix", help="end of the names of the data files")
    num_vertices: int = setting(10, "--num_vertices", type=positive_int, help="vertices of a graph")
    dims: int = setting(2, "--dims", type=positive_int, help="coordinates of a position")
    timesteps: int = setting(10, "--timesteps", type=positive_int, help="frames that are read; files may hold more")
    prediction_steps: int = setting(
        10, "--prediction_steps", type=positive_int, help="frames predicted from one true frame in training"
    )
    var: float = setting(5e-5, "--var", type=positive_float, help="variance of a predicted coordinate")
    experiments_folder: str | None = launch(
        None,
        "--experiments_folder",
        type=path_text,
        help="folder of trials, under experiments/; ../exp_nri/NAME if not given",
    )
    experiment_name: str | None = launch(
        None,
        "--experiment_name",
        type=folder_name,
        help="a trial's folder; made from rates, --temp and --seed if not given",
    )
    add_timestamp: bool = launch(True, "--add_timestamp", **BOOL, help="add the time to --experiment_name")
    save_best_model: bool = setting(
        True, "--save_best_model", **BOOL, help="keep the best weights on validation graphs, not the last"
    )
    verbose: bool = launch(False, "--verbose", **BOOL, help="log each step, and find where NaN arises (slow)")

    encoder_hidden: int = _network(256, "--encoder_hidden", type=positive_int, help="width of the encoder")
    decoder_hidden: int = _network(256, "--decoder_hidden", type=positive_int, help="width of the decoder")
    encoder_dropout: float = _network(0.0, "--encoder_dropout", type=probability, help="dropout of the encoder")
    decoder_dropout: float = _network(0.0, "--decoder_dropout", type=probability, help="dropout of the decoder")
    factor: bool = _network(True, "--factor", **BOOL, help="factor graph encoder")
    edge_types: int = _network(2, "--edge_types", type=positive_int, help="2: edge or none")
    skip_first: bool = _network(False, "--skip_first", **BOOL, help="no messages where there is no edge")
    num_rounds: int = _network(1, "--num_rounds", type=positive_int, help="1: messages are passed once a frame")

    sst: str = _edges(
        "tree", "--sst", choices=("indep", "tree", "topk"), help="graphs: any edges, a spanning tree, or n-1 edges"
    )
    symmeterize_logits: bool = _edges(
        True, "--symmeterize_logits", **BOOL, help="one logit for both directions of an edge"
    )
    relaxation: str = _sst("exp_family_entropy", "--relaxation", choices=RELAXATIONS, help="of method sst")
    temp: float = _sst(5.0, "--temp", type=positive_float, help="temperature of method sst")
    max_range: float = _sst(
        math.inf, "--max_range", type=positive_or_infinite, help="of method sst: weights this far apart at most"
    )
    hard: bool = _sst(False, "--hard", **BOOL, help="method sst: discrete samples; the others' always are")
    st: bool = _sst(False, "--st", **BOOL, help="method sst: with the relaxed gradient; goes with --hard")
    eps_for_finitediff: float = _edges(
        1e-2, "--eps_for_finitediff", type=positive_float, methods=(), help="no effect: gradients are exact here"
    )
    use_gumbels_for_kl: bool = _edges(
        True, "--use_gumbels_for_kl", **BOOL, help="KL of Gumbel utilities; False: of single edges"
    )
    use_cpp_for_sampling: bool = _edges(
        False, "--use_cpp_for_sampling", **BOOL, methods=(), help="no effect: one implementation serves both"
    )
    use_cpp_for_edge_metric: bool = _edges(
        False, "--use_cpp_for_edge_metric", **BOOL, methods=(), help="no effect: one implementation serves both"
    )

    use_nvil: bool = setting(
        False, "--use_nvil", **BOOL, group="score function", help="in place of --method: NVIL, a learned baseline"
    )
    use_reinforce: bool = setting(
        False, "--use_reinforce", **BOOL, group="score function", help="in place of --method: REINFORCE"
    )
    num_samples: int = _score(1, "--num_samples", type=positive_int, help="graphs for each sample")
    reinforce_baseline: str = _score(
        "ema", "--reinforce_baseline", choices=("ema", "batch", "multi_sample"), help="of REINFORCE"
    )
    ema_for_loss: float = _score(
        0.99, "--ema_for_loss", type=probability, help="decay of the running mean of NVIL and of ema"
    )

    method: str = flags.method("sst", "--method", choices=METHODS, help="how gradients reach the encoder")
    symmetric_perturbation: bool = flags.changed("symmetric_perturbation", **SWITCH)
    beta_update_step: float = flags.changed("beta_update_step", 1e-4, "--imle-lambda-update-step")
    beta_update_momentum: float = 0.0
    target_norm: float = 1.0
    noise: str = flags.changed("noise", methods=(*PERTURBED, "ste"), help="noise of aimle, imle and ste")
    theta_noise_temperature: float = flags.changed(
        "theta_noise_temperature",
        0.0,
        "--imle-noise-temperature",
        methods=(*PERTURBED, "ste"),
        help="noise of both passes",
    )
    imle_samples: int = flags.method(
        1,
        "--imle-samples",
        type=positive_int,
        methods=(*PERTURBED, "ste"),
        help="graphs for each sample; aimle, imle and ste",
    )
    undirected_theta: bool = flags.method(
        False,
        "--undirected-theta",
        **SWITCH,
        methods=PERTURBED,
        help="over trees one entry an edge; else both directions, as published",
    )
    gradient_scaling: bool = flags.changed("gradient_scaling", **SWITCH)

    eval_batch_size: int = _evaluation(100, "--eval_batch_size", type=positive_int, help="held-out graphs at once")
    edge_metric_num_samples: int = _evaluation(
        1, "--edge_metric_num_samples", type=positive_int, help="sampled graphs for each edge metric"
    )
    eval_edge_metric_bs: int = _evaluation(
        10000, "--eval_edge_metric_bs", type=positive_int, help="graphs at once for the edge metrics"
    )
    log_edge_metric_train: bool = _evaluation(
        False, "--log_edge_metric_train", **BOOL, help="edge metrics on training graphs too"
    )
    log_edge_metric_val: bool = _evaluation(
        True, "--log_edge_metric_val", **BOOL, help="edge metrics at each evaluation"
    )

    exact_scaling = True  # the gradient does not grow with the number of samples

    @property
    def chosen_method(self) -> str:
        """The method that the flags choose: NVIL and REINFORCE go before `--method`."""
        return "nvil" if self.use_nvil else "reinforce" if self.use_reinforce else self.method

    @property
    def nb_samples(self) -> int:
        """Graphs for each sample."""
        return self.num_samples if self.chosen_method in SCORE else self.imle_samples if self.method != "sst" else 1

    @property
    def relaxation_temperature(self) -> float:
        """Temperature of method sst."""
        return self.temp

    @property
    def directed_theta(self) -> bool:
        """Whether the layer works on both directions of an edge: published for AIMLE and I-MLE over trees."""
        return self.chosen_method in PERTURBED and self.sst == "tree" and not self.undirected_theta

    @property
    def last(self) -> int:
        """The number of training steps."""
        return min(self.num_iterations, self.max_steps or self.num_iterations)

    @property
    def label(self) -> str:
        """What a reader of a folder's name should see first."""
        return f"{self.chosen_method}_T{self.timesteps}_{self.sst}"

    def settings(self) -> dict[str, Any]:
        """Return what decides the metrics; finished trials, which --mode eval measures, have no length."""
        found, known = super().settings(), declared(NRIConfig)
        return {name: it for name, it in found.items() if self.mode == "train" or known[name].role != "length"}

    def refusals(self) -> Iterator[str]:
        """Yield what is wrong with these settings, alone or together, and what to do."""
        yield from self._task_refusals()
        yield from self._method_refusals()

    def _task_refusals(self) -> Iterator[str]:
        if self.edge_types != 2:
            yield f"--edge_types {self.edge_types}: an edge is there or not; leave it at 2"
        if self.num_rounds != 1:
            yield f"--num_rounds {self.num_rounds}: messages are passed once a frame; leave it at 1"
        if self.num_vertices < 2 or self.timesteps < 2:
            yield "--num_vertices and --timesteps must be at least 2"
        if self.prediction_steps > self.timesteps:
            yield f"--prediction_steps {self.prediction_steps} of --timesteps {self.timesteps}: predict fewer"
        if self.sst == "tree" and not self.symmeterize_logits:
            yield "--sst tree needs --symmeterize_logits True: the edges of a tree have no direction"
        if self.sst != "indep" and not self.use_gumbels_for_kl:
            yield "--use_gumbels_for_kl False needs --sst indep: trees and subsets have no KL in closed form"

    def _method_refusals(self) -> Iterator[str]:
        score = self.chosen_method in SCORE
        if self.relaxation == "binary_entropy" and self.reads("relaxation"):
            yield "--relaxation binary_entropy needs a convex solver, which is not here: exp_family_entropy"
        if self.use_nvil and self.use_reinforce:
            yield "--use_nvil and --use_reinforce are two methods: choose one"
        if score and self.method != "sst":
            yield f"--method {self.method} together with NVIL or REINFORCE: choose one"
        if self.undirected_theta and (self.chosen_method not in PERTURBED or self.sst != "tree"):
            yield "--undirected-theta is of --method aimle and imle with --sst tree: leave it out"
        if self.use_reinforce and self.reinforce_baseline == "multi_sample" and self.num_samples < 2:
            yield "--reinforce_baseline multi_sample needs --num_samples of 2 or more"
        if self.use_reinforce and self.reinforce_baseline == "batch" and self.batch_size * self.num_samples < 2:
            yield "--reinforce_baseline batch needs --batch_size of 2 or more"
        if self.chosen_method == "sst" and self.hard != self.st:
            yield "--hard True and --st True go together: discrete samples have no gradient but a straight-through one"
        yield from super().refusals()

    def files(self) -> list[Path]:
        """Return the data files that are read."""
        return data_files(self.data_dir, self.suffix)


def data_files(data_dir: Path, suffix: str) -> list[Path]:
    """Return positions and edges of each split.

    Raises:
        UsageError: a file is missing.
    """
    files = [Path(data_dir) / f"{kind}_{split}{suffix}.npy" for split in SPLITS for kind in ("data", "edges")]
    for path in files:
        if not path.exists():
            raise UsageError(f"{path} is missing: run ./get_data.sh nri, or check --suffix and the data folder")
    return files
