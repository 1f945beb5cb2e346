"""The settings of the discrete VAE, and the files that it reads. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aaai23 import flags
from aaai23.errors import UsageError
from aaai23.harness.config import (
    SWITCH,
    length,
    non_negative_float,
    positive_float,
    positive_int,
    setting,
)

METHODS = ("aimle", "imle", "ste", "gumbel-softmax")

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
REMEDY = "./get_data.sh vae downloads MNIST, ./get_data.sh sample makes sample data"

_ste = partial(flags.method, methods=("ste",))
_relaxed = partial(flags.method, methods=("gumbel-softmax",))


@dataclass(frozen=True, kw_only=True)
class VAEConfig(flags.MethodFlags):
    """The discrete VAE. Settings of estimators have the library's names."""

    epochs: int = length(100, "--epochs", "-e", type=positive_int, help="passes over the training images")
    batch_size: int = setting(100, "--batch-size", "-b", type=positive_int, help="images a step")
    input_dim: int = setting(784, "--input-dim", type=positive_int, help="pixels of an image")
    select_k: int = setting(
        10,
        "--select-k",
        "-K",
        type=positive_int,
        methods=("aimle", "imle", "ste"),
        help="ones in a row of a code; always 1 in gumbel-softmax",
    )
    code_m: int = setting(20, "--code-m", type=positive_int, help="rows of a code")
    code_n: int = setting(20, "--code-n", type=positive_int, help="entries of a row")
    max_iterations: int | None = setting(
        None, "--max-iterations", type=positive_int, help="end after this many steps; a resumed run keeps to them"
    )

    method: str = flags.method(
        "imle", "--method", "-M", choices=METHODS, help="how gradients pass through the choice of bits"
    )
    nb_samples: int = flags.method(1, "--imle-samples", type=positive_int, help="codes for each image; all methods")
    theta_noise_temperature: float = flags.changed("theta_noise_temperature", 10.0)
    perturbation_size: float = flags.changed("perturbation_size", 10.0)
    ste_noise: str = _ste("sog", "--ste-noise", choices=flags.NOISES, help="noise of method ste")
    ste_noise_temperature: float = _ste(0.0, "--ste-temperature", type=non_negative_float, help="noise of method ste")
    init_temperature: float = _relaxed(
        1.0, "--init-temperature", type=non_negative_float, help="of gumbel-softmax, in the first 1000 steps"
    )
    min_temperature: float = _relaxed(
        0.5, "--min-temperature", type=positive_float, help="of gumbel-softmax, at the end"
    )
    anneal_rate: float = _relaxed(
        3e-5, "--anneal-rate", type=non_negative_float, help="how fast the temperature falls with each step"
    )
    hard: bool = _relaxed(False, "--hard", **SWITCH, help="gumbel-softmax passes one-hot rows on, not relaxed ones")

    sample_reduction = "mean"  # the published loss sums over S

    @property
    def relaxation_temperature(self) -> float:
        """Temperature of gumbel-softmax at the start; the schedule sets it later."""
        return self.init_temperature

    @property
    def ones(self) -> int:
        """The number of ones in a row of a code."""
        return 1 if self.method == "gumbel-softmax" else self.select_k

    @property
    def label(self) -> str:
        """What a reader of a folder's name should see first."""
        return f"{self.method}_M{self.code_m}_N{self.code_n}_K{self.select_k}"

    def refusals(self) -> Iterator[str]:
        """Yield what is wrong with these settings, alone or together, and what to do."""
        if self.method == "gumbel-softmax" and self.init_temperature == 0:
            yield "--init-temperature must be above 0 with --method gumbel-softmax, such as 1.0"
        if self.ones > self.code_n:
            yield f"--select-k {self.select_k} of a row's --code-n {self.code_n} entries: select fewer"
        yield from super().refusals()

    def files(self) -> list[Path]:
        """Return the data files that are read."""
        return data_files(self.data_dir)


def present_files(folder: Path) -> list[Path]:
    """Return which of FILES are in `folder`, plain or gzipped."""
    paths = [folder / f"{name}{suffix}" for name in FILES for suffix in ("", ".gz")]
    return [path for path in paths if path.exists()]


def data_files(data_dir: Path) -> list[Path]:
    """Return the four files, in the order of FILES, in `data_dir`, or in its folder `mnist` if it has none itself.

    Raises:
        UsageError: a file is missing.
    """
    folder = next((folder for folder in (data_dir, data_dir / "mnist") if present_files(folder)), None)
    if folder is None:
        raise UsageError(f"{data_dir} has no MNIST files ({TRAIN_IMAGES}.gz and three more); {REMEDY}")
    return [_find(folder, name) for name in FILES]


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise UsageError(f"{folder / name}.gz is missing; {REMEDY}")
