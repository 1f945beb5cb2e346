"""Read simulated graph layouts: trajectories of vertices, and the edges that shaped them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aaai23.errors import UsageError
from aaai23.harness.files import is_sample, open_regular
from aaai23.nri.config import SPLITS

if TYPE_CHECKING:
    import numpy as np

_LOGGER = logging.getLogger(__name__)


REMAKE = "make the files anew with ./get_data.sh nri"


@dataclass(frozen=True)
class Layouts:
    """Trajectories of graph layouts.

    Attributes:
        positions: `[N, n, T, dims]`, float32, in [-1, 1] on the training set.
        edges: 0/1 `[N, U]`, float32, in the order of `torch.triu_indices(n, n, 1)`.
        sample_data: these are sample data, not the full-size set.
    """

    positions: Tensor
    edges: Tensor
    sample_data: bool = False

    def __len__(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device | str) -> "Layouts":
        """Return the layouts on a device."""
        return Layouts(self.positions.to(device), self.edges.to(device), self.sample_data)


def load(
    data_dir: Path | str,
    suffix: str,
    timesteps: int,
    vertices: int = 10,
    dims: int = 2,
    splits: Sequence[str] = SPLITS,
) -> dict[str, Layouts]:
    """Read the layouts of some splits, scaled to [-1, 1] by the minimum and the maximum of the training positions.

    Args:
        data_dir: the folder of `data_{split}{suffix}.npy`, `[N, T', dims, n]`, and of `edges_{split}{suffix}.npy`,
            symmetric 0/1 `[N, n, n]`.
        suffix: names the data set, e.g. "_novar_1skip_10t_1r_graph10".
        timesteps: T, the number of frames to keep, from the first.
        vertices: n, the number that the files should have.
        dims: dimensions of a position that the files should have.
        splits: which of "train", "valid" and "test"; the training positions are needed for all of them.

    Raises:
        UsageError: a file is missing, cannot be read, or is not of the shape or the content that was asked for.
    """
    import numpy as np

    folder = Path(data_dir)
    train = _read_layouts(folder / f"data_train{suffix}.npy", timesteps, vertices, dims)
    low, high = float(np.min(train, initial=np.inf)), float(np.max(train, initial=-np.inf))
    if not (np.isfinite((low, high)).all() and low < high):
        raise UsageError(f"data_train{suffix}.npy in {folder} has no range to scale by: {low} to {high}; {REMAKE}")
    layouts = {}
    for split in splits:
        positions = _read_positions(folder / f"data_{split}{suffix}.npy", timesteps, vertices, dims)
        edges = _read_edges(folder / f"edges_{split}{suffix}.npy", len(positions), vertices)
        # to float32 last: far from 0 it has no digits left for the shape of a layout
        positions = positions.sub_(low).mul_(2 / (high - low)).sub_(1).float()
        if not (positions.isfinite().all() and positions.min() < positions.max()):
            raise UsageError(
                f"data_{split}{suffix}.npy in {folder} has no range on the scale of the training positions, "
                f"{low} to {high}; {REMAKE}"
            )
        layouts[split] = Layouts(positions, edges, sample_data=is_sample(folder))
    return layouts


def _read(path: Path) -> "np.ndarray":
    """Map an array of numbers into memory."""
    import numpy as np

    if not path.exists():
        raise UsageError(f"{path} is missing: run ./get_data.sh nri, or check --suffix and the data folder")
    open_regular(path).close()
    try:
        array = np.load(path, mmap_mode="r")
    except Exception as error:  # numpy has several for a broken header
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{path} cannot be read ({reason}): {REMAKE}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise UsageError(f"{path} does not hold an array of numbers: {REMAKE}")
    return array


def _read_layouts(path: Path, timesteps: int, vertices: int, dims: int) -> "np.ndarray":
    """Map positions `[N, T', dims, n]` into memory; their header says whether they are."""
    array = _read(path)
    if array.dtype.kind != "f":
        raise UsageError(f"{path} holds {array.dtype} numbers, and positions are floats: {REMAKE}")
    if array.ndim != 4 or len(array) == 0:
        raise UsageError(f"{path} has shape {array.shape}, not [N, T, dims, n]: {REMAKE}")
    _, frames, file_dims, file_vertices = array.shape
    if file_dims != dims:
        raise UsageError(f"{path} has {file_dims} dimensions, not {dims}: set --dims {file_dims}")
    if file_vertices != vertices:
        raise UsageError(f"{path} has {file_vertices} vertices, not {vertices}: set --num_vertices {file_vertices}")
    if not 2 <= timesteps <= frames:
        raise UsageError(f"{path} has {frames} frames, so --timesteps can be 2 to {frames}, not {timesteps}")
    return array


def _read_positions(path: Path, timesteps: int, vertices: int, dims: int) -> Tensor:
    """Return positions `[N, n, T, dims]` as they are in the file, in float64."""
    import numpy as np

    array = _read_layouts(path, timesteps, vertices, dims)
    positions = torch.from_numpy(np.array(array[:, :timesteps].transpose(0, 3, 1, 2), np.float64, order="C"))
    if not positions.isfinite().all():
        raise UsageError(f"{path} holds positions that are not finite: {REMAKE}")
    return positions


def _read_edges(path: Path, samples: int, vertices: int) -> Tensor:
    """Return the edges `[N, U]`, where the file says 1 for an edge and 0 or -1 for none."""
    import numpy as np

    array = _read(path)
    if array.shape != (samples, vertices, vertices):
        raise UsageError(f"{path} has shape {array.shape}, not {(samples, vertices, vertices)} as its data: {REMAKE}")
    if not ((array == 0) | (array == 1) | (array == -1)).all():
        raise UsageError(f"{path} holds edges other than 0 and 1: {REMAKE}")
    edges = torch.from_numpy(np.trunc((array + 1.0) / 2).astype(np.float32))
    if not torch.equal(edges, edges.mT):
        raise UsageError(f"{path} holds edges that are not symmetric: {REMAKE}")
    low, high = torch.triu_indices(vertices, vertices, 1)
    return edges[:, low, high]


def check_pairs(layouts: Mapping[str, Layouts]) -> None:
    """Warn of files that do not look as if they belong together, as those of two simulations do.

    Edges pull their vertices together: in the last frame these are nearer to one another than vertices are on average,
    unless the edges are those of other layouts. And all splits are of about one size.
    """
    for split, found in layouts.items():
        points = found.positions[:1000, :, -1]
        ends = torch.triu_indices(points.shape[1], points.shape[1], 1)
        distances = (points[:, ends[0]] - points[:, ends[1]]).norm(dim=-1)
        edges = found.edges[:1000]
        ratio = ((distances * edges).sum() / edges.sum() / distances.mean()).item()
        if not ratio < 0.95:
            _LOGGER.warning(
                f"the {split} edges join vertices at {ratio:.2f} of their mean distance, as chance does: "
                "do positions and edges belong together?"
            )
        extent = found.positions.abs().max().item()  # that of the training positions is 1
        if not 0.5 < extent < 2:
            _LOGGER.warning(f"the {split} positions reach {extent:.2g} times as far as the training positions do")
