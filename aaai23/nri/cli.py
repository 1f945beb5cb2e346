"""The command line of Neural Relational Inference."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aaai23.arguments import (
    ArgumentParser,
    add_run_arguments,
    config_of,
    default_name,
    non_negative_float,
    positive_float,
    positive_int,
    probability,
    true_or_false,
)
from aaai23.errors import UsageError
from aaai23.fingerprint import fingerprint
from aaai23.nri.settings import NOT_COMPARED, NOT_IN_NAME, data_files, method_name
from aaai23.record import finished_line, finished_record, record_path
from aaai23.sample_data import is_sample
from aaai23.shell import configure_logging, run_cli

if TYPE_CHECKING:
    import logging

    import torch

SCRIPT = "torch-nri-cli.py"


def parser() -> ArgumentParser:
    """Return the parser of the script's flags."""
    result = ArgumentParser(prog=SCRIPT, description="Neural Relational Inference: find the tree behind a layout.")
    _add_task_arguments(result)
    _add_network_arguments(result)
    _add_structure_arguments(result)
    _add_score_arguments(result)
    _add_method_arguments(result)
    _add_evaluation_arguments(result)
    add_run_arguments(result, seed=42)
    result.set_defaults(device=None)  # --cuda, which the published commands give, decides
    return result


def _add_task_arguments(result: ArgumentParser) -> None:
    add = result.add_argument_group("task").add_argument
    add("--mode", choices=("train", "eval"), default="train", help="eval measures the trials of --experiments_folder")
    add("--cuda", type=true_or_false, default=False, help="use the GPU if there is one; --device goes first")
    add("--num_iterations", type=positive_int, default=50000, help="training steps")
    add("--max-steps", type=positive_int, help="end training after this many steps")
    add("--eval_every", type=positive_int, default=500, help="steps between two evaluations")
    add("--batch_size", type=positive_int, default=128, help="graphs a step")
    add("--lr", type=positive_float, default=3e-4, help="learning rate of Adam")
    add("--lr_decay", type=positive_int, default=200, help="passes over the training set until --lr is scaled")
    add("--gamma", type=positive_float, default=0.5, help="by which --lr is scaled")
    add("--enc_weight_decay", type=non_negative_float, default=0.0, help="weight decay of the encoder")
    add("--dec_weight_decay", type=non_negative_float, default=0.0, help="weight decay of the decoder")
    add("--suffix", default="_novar_1skip_10t_1r_graph10", help="end of the names of the data files")
    add("--num_vertices", type=positive_int, default=10, help="vertices of a graph")
    add("--dims", type=positive_int, default=2, help="coordinates of a position")
    add("--timesteps", type=positive_int, default=10, help="frames that are read; the files may hold more")
    add("--prediction_steps", type=positive_int, default=10, help="frames predicted from one true frame in training")
    add("--var", type=positive_float, default=5e-5, help="variance of a predicted coordinate")
    add("--experiments_folder", help="folder of trials, under experiments/; ../exp_nri/NAME if not given")
    add("--experiment_name", help="a trial's folder; made from --lr, --temp, the weight decays and --seed if not given")
    add("--add_timestamp", type=true_or_false, default=True, help="add the time to --experiment_name")
    add("--save_best_model", type=true_or_false, default=True, help="keep the best weights on validation, not the last")
    add("--verbose", type=true_or_false, default=False, help="log each step, and find where NaN arises (slow)")


def _add_network_arguments(result: ArgumentParser) -> None:
    add = result.add_argument_group("networks").add_argument
    add("--encoder_hidden", type=positive_int, default=256, help="width of the encoder")
    add("--decoder_hidden", type=positive_int, default=256, help="width of the decoder")
    add("--encoder_dropout", type=probability, default=0.0, help="dropout of the encoder")
    add("--decoder_dropout", type=probability, default=0.0, help="dropout of the decoder")
    add("--factor", type=true_or_false, default=True, help="factor graph encoder")
    add("--edge_types", type=positive_int, default=2, help="2: edge or none")
    add("--skip_first", type=true_or_false, default=False, help="no messages where there is no edge")
    add("--num_rounds", type=positive_int, default=1, help="1: messages are passed once a frame")


def _add_structure_arguments(result: ArgumentParser) -> None:
    add = result.add_argument_group("edges").add_argument
    add(
        "--sst",
        choices=("indep", "tree", "topk"),
        default="tree",
        help="what samples are: a tree, n-1 edges, any edges",
    )
    add("--symmeterize_logits", type=true_or_false, default=True, help="one logit for both directions of an edge")
    relaxations = ("exp_family_entropy", "binary_entropy")
    add("--relaxation", choices=relaxations, default="exp_family_entropy", help="of method sst")
    add("--temp", type=positive_float, default=5.0, help="temperature of method sst")
    add("--max_range", type=_positive_or_inf, default=math.inf, help="of method sst: weights this far apart at most")
    add("--hard", type=true_or_false, default=False, help="method sst: discrete samples; the others' always are")
    add("--st", type=true_or_false, default=False, help="method sst: with the relaxed gradient; goes with --hard")
    add("--eps_for_finitediff", type=positive_float, default=1e-2, help="no effect: gradients are exact here")
    add("--use_gumbels_for_kl", type=true_or_false, default=True, help="KL of Gumbel utilities; False: of single edges")
    add("--use_cpp_for_sampling", type=true_or_false, default=False, help="one implementation serves True and False")
    add("--use_cpp_for_edge_metric", type=true_or_false, default=False, help="one implementation serves True and False")


def _add_score_arguments(result: ArgumentParser) -> None:
    add = result.add_argument_group("score function").add_argument
    add("--use_nvil", type=true_or_false, default=False, help="in place of --method: NVIL, a learned baseline")
    add("--use_reinforce", type=true_or_false, default=False, help="in place of --method: REINFORCE")
    add("--num_samples", type=positive_int, default=1, help="graphs for each sample of NVIL and REINFORCE")
    add("--reinforce_baseline", choices=("ema", "batch", "multi_sample"), default="ema", help="of REINFORCE")
    add("--ema_for_loss", type=probability, default=0.99, help="decay of the running mean of NVIL and of ema")


def _add_method_arguments(result: ArgumentParser) -> None:
    add = result.add_argument_group("method").add_argument
    switch: dict[str, Any] = {"type": true_or_false, "nargs": "?", "const": True, "default": False, "metavar": "BOOL"}
    add("--method", choices=("sst", "imle", "aimle", "ste"), default="sst", help="how gradients reach the encoder")
    add("--aimle-symmetric", help="central instead of forward differences", **switch)
    add("--aimle-target", choices=("standard", "adaptive"), default="standard", help="where lambda comes from")
    add("--imle-lambda", type=non_negative_float, default=0.0, help="lambda; for the adaptive target the first beta")
    add("--imle-lambda-update-step", type=non_negative_float, default=1e-4, help="how fast beta moves")
    add("--imle-noise", choices=("none", "sog", "gumbel"), default="sog", help="noise of aimle, imle and ste")
    add("--imle-noise-temperature", type=non_negative_float, default=0.0, help="noise of both passes")
    add("--imle-samples", type=positive_int, default=1, help="graphs for each sample; aimle, imle and ste")
    add("--undirected-theta", help="aimle and imle over trees: one entry an edge; else both, as published", **switch)
    add("--gradient-scaling", help="divide by lambda; the adaptive target always does", **switch)


def _add_evaluation_arguments(result: ArgumentParser) -> None:
    add = result.add_argument_group("evaluation").add_argument
    add("--eval_batch_size", type=positive_int, default=100, help="held-out graphs at once")
    add("--edge_metric_num_samples", type=positive_int, default=1, help="sampled graphs for each edge metric")
    add("--eval_edge_metric_bs", type=positive_int, default=10000, help="graphs at once for the edge metrics")
    add("--log_edge_metric_train", type=true_or_false, default=False, help="edge metrics on training graphs too")
    add("--log_edge_metric_val", type=true_or_false, default=True, help="edge metrics at each evaluation")


def _positive_or_inf(text: str) -> float:
    return math.inf if text.strip().lower() in ("inf", "infinity") else positive_float(text)


def check(args: Namespace) -> None:
    """Refuse settings that cannot work, alone or together.

    Raises:
        UsageError: says which, and what to do.
    """
    for reason in (*_task_refusals(args), *_method_refusals(args)):
        raise UsageError(reason)


def _task_refusals(args: Namespace) -> Iterator[str]:
    if args.edge_types != 2:
        yield f"--edge_types {args.edge_types}: an edge is there or not; leave it at 2"
    if args.num_rounds != 1:
        yield f"--num_rounds {args.num_rounds}: messages are passed once a frame; leave it at 1"
    if args.num_vertices < 2 or args.timesteps < 2:
        yield "--num_vertices and --timesteps must be at least 2"
    if args.prediction_steps > args.timesteps:
        yield f"--prediction_steps {args.prediction_steps} of --timesteps {args.timesteps}: predict fewer"
    if args.sst == "tree" and not args.symmeterize_logits:
        yield "--sst tree needs --symmeterize_logits True: the edges of a tree have no direction"
    if args.sst != "indep" and not args.use_gumbels_for_kl:
        yield "--use_gumbels_for_kl False needs --sst indep: the KL divergence of trees and subsets has no closed form"


def _method_refusals(args: Namespace) -> Iterator[str]:
    score = args.use_nvil or args.use_reinforce
    if args.relaxation == "binary_entropy":
        yield "--relaxation binary_entropy needs a convex solver, which this project does without: exp_family_entropy"
    if args.use_nvil and args.use_reinforce:
        yield "--use_nvil and --use_reinforce are two methods: choose one"
    if score and args.method != "sst":
        yield f"--method {args.method} together with NVIL or REINFORCE: choose one"
    if args.undirected_theta and (args.method not in ("imle", "aimle") or args.sst != "tree"):
        yield "--undirected-theta is of --method aimle and imle with --sst tree: leave it out"
    if not score and args.num_samples != 1:
        yield "--num_samples is of NVIL and REINFORCE: aimle, imle and ste take --imle-samples"
    if args.use_reinforce and args.reinforce_baseline == "multi_sample" and args.num_samples < 2:
        yield "--reinforce_baseline multi_sample needs --num_samples of 2 or more"
    if args.use_reinforce and args.reinforce_baseline == "batch" and args.batch_size * args.num_samples < 2:
        yield "--reinforce_baseline batch needs --batch_size of 2 or more"
    if not score and args.method == "sst" and args.hard != args.st:
        yield "--hard True and --st True go together: discrete samples have no gradient but a straight-through one"
    if args.method in ("imle", "aimle") and args.aimle_target == "standard" and args.imle_lambda == 0:
        yield "--imle-lambda 0 with the standard target gives no gradient: raise it or give --aimle-target adaptive"


def notes(args: Namespace) -> list[str]:
    """Return a line for each flag of the authors' code that is accepted and changes nothing here."""
    found = [
        f"--{flag}: one implementation serves both, there is nothing to build"
        for flag in ("use_cpp_for_sampling", "use_cpp_for_edge_metric")
        if getattr(args, flag)
    ]
    if args.eps_for_finitediff != parser().get_default("eps_for_finitediff"):
        found.append("--eps_for_finitediff: gradients of the relaxation are exact here, no difference is taken")
    return found


def choose_device(args: Namespace, log: logging.Logger) -> torch.device:
    """Return where to compute: what --device says, else the GPU with --cuda True if there is one, else the CPU.

    Raises:
        UsageError: `--device cuda` without a GPU.
    """
    from aaai23.run import select_device

    device = select_device(args.device or ("auto" if args.cuda else "cpu"))
    if args.cuda and args.device is None and device.type == "cpu":
        log.warning("--cuda True: torch finds no usable GPU here, computing on the CPU")
    args.cuda = device.type == "cuda"
    return device


def label(args: Namespace) -> str:
    """Return what a reader of folder names should see first."""
    return f"{method_name(args)}_T{args.timesteps}_{args.sst}"


def announcements(args: Namespace) -> list[str]:
    """Return what the authors' code prints about its networks."""
    encoder = "factor graph MLP" if args.factor else "MLP"
    return [f"Using {encoder} encoder.", "Using learned interaction net decoder.", "Using Adam."]


def main(argv: list[str] | None = None) -> int:
    """Train one seed, or measure the trials of a folder."""
    args = parser().parse_args(argv)
    check(args)
    args.data = fingerprint(data_files(args))
    args.name = args.name or default_name(vars(args), label(args), NOT_IN_NAME)
    args.experiments_folder = args.experiments_folder or f"../exp_nri/{args.name}"
    log = configure_logging(SCRIPT)
    device = choose_device(args, log)
    print(Namespace(**dict(sorted(vars(args).items()))), flush=True)
    for note in notes(args):
        log.info(note)
    for line in announcements(args):
        print(line, flush=True)

    if is_sample(args.data_dir):
        log.info(f"{args.data_dir} holds sample data, a stand-in for the full set: no figure below is a published one")

    from aaai23.nri.data import check_pairs, load  # torch and its friends load only when there is work to do

    record = finished(args) if args.mode == "train" and not args.again else None
    if record is not None:
        log.info(finished_line(record_of(args), record))
        say_final(record["final"], log)
        return 0
    data = load(args.data_dir, args.suffix, args.timesteps, args.num_vertices, args.dims)
    check_pairs(data)
    if args.mode == "train":
        from aaai23.nri.train import run_seed

        say_final(run_seed(args, data, device, log), log)
    else:
        from aaai23.nri.evaluate import evaluate_trials

        evaluate_trials(args, data, device)
    return 0


def say_final(final: Mapping[str, Any], log: logging.Logger) -> None:
    """Log the final figures of a run."""
    from aaai23.nri.train import describe

    for name, title in (("val", "Validation"), ("test", "Test")):
        log.info(f"{title} {describe(final, name)}")
    log.info("Experiment completed.")


def record_of(args: Namespace) -> Path:
    """Return the path of a run's record."""
    return record_path(args.results_dir, "nri", args.name, args.seed)


def finished(args: Namespace) -> dict[str, Any] | None:
    """Return the record of this run if it is finished and has gone as far as the command line asks, else None.

    Args:
        args: the parsed command line, with a name, and with the fingerprint of its data.

    Raises:
        UsageError: the finished run had other settings or other data.
    """
    record = finished_record(record_of(args), config_of(args), NOT_COMPARED)
    last = min(args.num_iterations, args.max_steps or args.num_iterations)
    return record if record is not None and record["history"][-1]["iteration"] >= last else None


def entry() -> None:
    """Run from the shell, with its exit codes."""
    run_cli(main, SCRIPT)
