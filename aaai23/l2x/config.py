"""The settings of Learning to Explain, and the files that it reads. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aaai23 import flags
from aaai23.errors import UsageError
from aaai23.harness.config import (
    SWITCH,
    launch,
    length,
    non_negative_float,
    number,
    path,
    positive_int,
    setting,
)

METHODS = ("aimle", "imle", "imletopk", "ste", "sst", "softsub", "l2x")
PRESETS: dict[str, dict[str, Any]] = {
    # as published for I-MLE
    "imletopk": {
        "noise": "sog",
        "theta_noise_temperature": 10.0,
        "target_noise_temperature": 10.0,
        "perturbation_size": 1000.0,
    }
}
"""Defaults of a method's own."""

TRAIN_FILE = "reviews.aspect{aspect}.train.txt"
HELDOUT_FILE = "reviews.aspect{aspect}.heldout.txt"
ANNOTATIONS_FILE = "annotations.json"
VECTORS_FILE = "review+wiki.filtered.200.txt"
EMBEDDING_SIZE = 200  # numbers after a word; the selector's first convolution has this many input channels


_ste = partial(flags.method, methods=("ste",))


@dataclass(frozen=True, kw_only=True)
class L2XConfig(flags.MethodFlags):
    """Learning to Explain: rate a review from K of its words. Settings of estimators have the library's names."""

    aspect: int = setting(
        1, "--aspect", "-a", type=number(int, 0, 4), choices=range(5), help="0 appearance, 1 aroma, 2 palate, 3 taste"
    )
    epochs: int = length(20, "--epochs", "-e", type=positive_int, help="passes over the training reviews")
    batch_size: int = setting(40, "--batch-size", "-b", type=positive_int, help="reviews a step")
    kernel_size: int = setting(3, "--kernel-size", "-k", type=positive_int, help="words that a convolution sees")
    hidden_dims: int = setting(250, "--hidden-dims", "-H", type=positive_int, help="width of the predictor")
    max_len: int = setting(350, "--max-len", "-m", type=positive_int, help="words of a review that are read")
    select_k: int = setting(10, "--select-k", "-K", type=positive_int, help="words that are selected")
    checkpoint: Path | None = launch(
        None, "--checkpoint", "-c", type=path, help="write the best weights here too; of several reruns one file a seed"
    )
    reruns: int = launch(10, "--reruns", "-r", type=number(int, 1, 10_000), help="number of seeds, from --seed up")
    max_iterations: int | None = setting(
        None, "--max-iterations", type=positive_int, help="end after this many steps; a resumed run keeps to them"
    )
    mask_padding: bool = setting(
        False, "--mask-padding", **SWITCH, help="select words only, and no padding as published"
    )
    debug: bool = launch(False, "--debug", "-D", **SWITCH, help="log the loss of every step")

    method: str = flags.method(
        "imle", "--method", "-M", choices=METHODS, help="imletopk: imle, with the published defaults"
    )
    nb_samples: int = flags.method(1, "--imle-samples", type=positive_int, help="solutions for each review")
    theta_noise_temperature: float = flags.changed(
        "theta_noise_temperature", 0.0, "--imle-input-temperature", help="noise of the forward pass"
    )
    target_noise_temperature: float = flags.method(
        10.0,
        "--imle-output-temperature",
        type=non_negative_float,
        methods=flags.DIFFERENCES,
        help="noise of the target pass",
    )
    perturbation_size: float = flags.changed("perturbation_size", 1000.0)
    sst_temperature: float = flags.method(
        0.1, "--sst-temperature", type=non_negative_float, methods=("sst",), help="of method sst"
    )
    softsub_temperature: float = flags.method(
        0.5, "--softsub-temperature", type=non_negative_float, methods=("softsub",), help="of method softsub"
    )
    ste_noise: str = _ste("sog", "--ste-noise", choices=flags.NOISES, help="noise of method ste")
    ste_noise_temperature: float = _ste(0.0, "--ste-temperature", type=non_negative_float, help="noise of method ste")

    exact_scaling = True  # the gradient does not grow with the number of samples

    @property
    def relaxation_temperature(self) -> float:
        """Temperature of the relaxations; that of l2x is no flag."""
        return {"sst": self.sst_temperature, "softsub": self.softsub_temperature}.get(self.method, 0.1)

    @property
    def label(self) -> str:
        """What a reader of a folder's name should see first."""
        return f"{self.method}_a{self.aspect}_K{self.select_k}"

    def export(self) -> Path | None:
        """Return where a seed's weights go too: `--checkpoint`, of several seeds with each one's before the ending."""
        path = self.checkpoint
        return path if path is None or self.reruns == 1 else path.with_name(f"{path.stem}.seed{self.seed}{path.suffix}")

    def refusals(self) -> Iterator[str]:
        """Yield what is wrong with these settings, alone or together, and what to do."""
        if self.seed + self.reruns > 2**32:
            yield f"--seed {self.seed} with --reruns {self.reruns}: the last seed would be beyond {2**32 - 1}"
        if self.checkpoint is not None and self.checkpoint.name in ("", ".."):
            yield f"--checkpoint {self.checkpoint} is a folder: name a file"
        if self.select_k > self.max_len:
            yield f"--select-k {self.select_k} words of --max-len {self.max_len}: select fewer words"
        if self.method in ("sst", "softsub") and self.relaxation_temperature == 0:
            yield f"--{self.method}-temperature must be above 0 with --method {self.method}"
        yield from super().refusals()

    def files(self) -> list[Path]:
        """Return the data files that are read."""
        return data_files(self.data_dir, self.aspect)


def data_files(data_dir: Path, aspect: int) -> list[Path]:
    """Return what is read for an aspect: training reviews, held-out reviews, annotated reviews, word vectors.

    Raises:
        UsageError: a file is missing or empty.
    """
    names = (TRAIN_FILE, HELDOUT_FILE, ANNOTATIONS_FILE, VECTORS_FILE)
    files = [data_dir / name.format(aspect=aspect) for name in names]
    for file in files:
        if not file.exists():
            raise UsageError(
                f"{file} is missing: get BeerAdvocate with `./get_data.sh l2x`, or make sample data with "
                f"`./get_data.sh sample` and read it with `--data-dir data/sample`"
            )
        if file.is_file() and file.stat().st_size == 0:
            raise UsageError(f"{file} is empty; fetch or make it again")
    return files
