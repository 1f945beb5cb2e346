"""Which flags count for what (a run's name, resuming it, measuring a trial), and the six files that are read.

Nothing here imports torch.
"""

from argparse import Namespace
from pathlib import Path

from aaai23.errors import UsageError
from aaai23.record import NOT_COMPARED as SHARED_NOT_COMPARED

PROJECT = "aimle-nri"
WITHOUT_EFFECT = ("use_cpp_for_sampling", "use_cpp_for_edge_metric", "eps_for_finitediff")
"""Flags of the authors' code that choose between implementations; here there is one."""
MEASURING = ("eval_batch_size", "eval_edge_metric_bs", "edge_metric_num_samples")
"""Flags of evaluation alone."""
PLACES = ("mode", "cuda", "verbose", "experiments_folder", "experiment_name", "add_timestamp")
NOT_IN_NAME = (*SHARED_NOT_COMPARED, *PLACES, *WITHOUT_EFFECT, *MEASURING)
"""Flags that are no part of a run's default name."""
NOT_COMPARED = (*SHARED_NOT_COMPARED, *PLACES, *WITHOUT_EFFECT, "num_iterations", "max_steps")
"""Flags that say how long or where, not what: a resumed run may differ in them."""
TRAINED_WITH = (
    "num_vertices",
    "dims",
    "timesteps",
    "var",
    "encoder_hidden",
    "decoder_hidden",
    "factor",
    "skip_first",
    "symmeterize_logits",
    "sst",
    "method",
    "use_nvil",
    "use_reinforce",
    "use_gumbels_for_kl",
    "imle_noise",
    "imle_noise_temperature",
)
"""Flags that a trial must have been trained with to be measured by a command line."""


def data_files(args: Namespace) -> list[Path]:
    """Return the files that a command line reads: positions and edges for training, validation and test.

    Raises:
        UsageError: one is missing.
    """
    names = [f"{kind}_{split}{args.suffix}.npy" for split in ("train", "valid", "test") for kind in ("data", "edges")]
    for name in names:
        if not (args.data_dir / name).is_file():
            raise UsageError(
                f"{args.data_dir / name} is missing: run ./get_data.sh nri, or check --suffix and the data folder"
            )
    return [args.data_dir / name for name in names]


def method_name(args: Namespace) -> str:
    """Return the method that the flags choose: NVIL and REINFORCE go before `--method`."""
    return "nvil" if args.use_nvil else "reinforce" if args.use_reinforce else args.method
