"""Simulate the data of Neural Relational Inference: random trees whose drawings unfold, one layout step a frame.

    python -m aaai23.nri.simulate --timesteps 10 --output data

A tree is the maximum spanning tree of independent Gumbel(0, 1) weights. Its vertices start at standard normal
positions and move by the force-directed layout of Fruchterman and Reingold (1991), in the variant of networkx 3.4.2;
the first frame of a sample is the one after the first step. The same seed gives the same trees and the same first
frames for any number of time steps.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from aaai23.errors import UsageError
from aaai23.harness.config import ArgumentParser, whole_number
from aaai23.harness.files import MARKER, claim_folder
from aaai23.harness.shell import run_cli

SPLITS = ("train", "valid", "test")
SIZES = (50_000, 10_000, 10_000)

# Graphs that are simulated together: few enough for their temporaries to stay in the processor's cache.
_CHUNK = 1000


class _Pairs(NamedTuple):
    """The n (n - 1) / 2 pairs of vertices: their two ends, and +1 and -1 there in `incidence` [n, pairs]."""

    first: np.ndarray
    second: np.ndarray
    incidence: np.ndarray


def simulate(
    nb_graphs: int, nb_vertices: int = 10, timesteps: int = 10, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw random trees and lay them out.

    Args:
        nb_graphs: number of samples, N.
        nb_vertices: vertices of each tree, n, at least 2.
        timesteps: frames of each sample, T, at least 1.
        rng: source of the randomness; a fresh, unpredictable one when None.

    Returns:
        Positions, float64 [N, T, 2, n], in each frame centred and of largest absolute coordinate 1; and the
        adjacency matrices of the trees, float32 [N, n, n], symmetric, 0 and 1.

    Raises:
        UsageError: a number is too small.
    """
    _check_numbers(timesteps, nb_vertices, (nb_graphs,))
    rng = np.random.default_rng() if rng is None else rng
    edges = _random_trees(nb_graphs, nb_vertices, rng)
    current = rng.standard_normal((nb_graphs, nb_vertices, 2))
    positions = np.empty((nb_graphs, timesteps, 2, nb_vertices))
    for frame in range(timesteps):
        current = layout_step(current, edges)
        positions[:, frame] = current.swapaxes(1, 2)
    return positions, edges


def layout_step(positions: np.ndarray, adjacency: np.ndarray) -> np.ndarray:
    """Move the vertices of each graph by one step of the force-directed layout, then centre and scale the drawing.

    Equals `networkx.spring_layout(G, pos=pos, iterations=1, threshold=1e-10)` of networkx 3.4.2.

    Args:
        positions: where the vertices are, [N, n, 2].
        adjacency: symmetric adjacency matrices, [N, n, n].

    Returns:
        New positions, float64 [N, n, 2], of mean zero and largest absolute coordinate 1.
    """
    pairs = _pairs(positions.shape[1])
    k = np.sqrt(1 / positions.shape[1])
    points = np.ascontiguousarray(np.moveaxis(positions, -1, 0), dtype=np.float64)  # [2, N, n]

    difference = points @ pairs.incidence  # p_i - p_j, [2, N, pairs]
    distance2 = np.maximum(np.einsum("cgp,cgp->gp", difference, difference), 0.01**2)
    force = k**2 / distance2 - adjacency[:, pairs.first, pairs.second] * np.sqrt(distance2) / k
    displacement = (difference * force) @ pairs.incidence.T

    length = np.sqrt(np.einsum("cgv,cgv->gv", displacement, displacement))
    length = np.where(length < 0.01, 0.1, length)
    temperature = 0.1 * np.ptp(points, axis=-1).max(axis=0)
    points += displacement * (temperature[:, None] / length)

    points -= points.mean(axis=-1, keepdims=True)
    extent = np.abs(points).max(axis=(0, 2))[:, None]
    points /= np.where(extent > 0, extent, 1)
    return np.moveaxis(points, 0, -1)


def write(
    folder: str | os.PathLike[str],
    timesteps: int,
    nb_vertices: int = 10,
    sizes: Sequence[int] = SIZES,
    seed: int = 42,
    suffix: str | None = None,
) -> list[Path]:
    """Simulate the three splits and write them as `{data,edges}_{train,valid,test}{suffix}.npy`.

    The files are written aside and moved into place when all are whole, over those of the same names.

    Args:
        folder: where the files go; made when missing.
        timesteps: frames of each sample, T.
        nb_vertices: vertices of each tree, n.
        sizes: samples for training, validation and test.
        seed: of the random numbers; each split has a stream of its own.
        suffix: end of the names, by default the one that the experiments use for this T and n.

    Returns:
        The paths of the six files: positions, float64 [N, T, 2, n], and edges, float32 [N, n, n], of each split.

    Raises:
        UsageError: a number is too small, or there are not three sizes.
    """
    if len(sizes) != len(SPLITS):
        raise UsageError(f"sizes must be three numbers, for {', '.join(SPLITS)}; got {len(sizes)}")
    _check_numbers(timesteps, nb_vertices, sizes)
    if seed < 0:
        raise UsageError(f"the seed must not be negative, got {seed}")
    suffix = default_suffix(timesteps, nb_vertices) if suffix is None else suffix
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".simulate-", dir=folder) as aside,
        tqdm(total=sum(sizes), desc=f"simulate{suffix}", unit="graph", disable=None) as progress,
    ):
        names = []
        for index, (split, size) in enumerate(zip(SPLITS, sizes, strict=True)):
            data_name, edges_name = file_names(split, suffix)
            data = _new_array(Path(aside, data_name), np.float64, (size, timesteps, 2, nb_vertices))
            edges = _new_array(Path(aside, edges_name), np.float32, (size, nb_vertices, nb_vertices))
            _fill(data, edges, np.random.default_rng([seed, index]), progress)
            names += [data_name, edges_name]
        for name in names:
            os.replace(Path(aside, name), folder / name)
    return [folder / name for name in names]


def file_names(split: str, suffix: str) -> tuple[str, str]:
    """Return the names of a split's positions and edges."""
    return f"data_{split}{suffix}.npy", f"edges_{split}{suffix}.npy"


def default_suffix(timesteps: int, nb_vertices: int) -> str:
    """Return the end of the file names: no variance, first frame skipped, one layout step a frame."""
    return f"_novar_1skip_{timesteps}t_1r_graph{nb_vertices}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the six files as the command line says; exit with code 2 when it asks for what cannot be."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.sample:
            suffix = options.suffix or default_suffix(options.timesteps, options.vertices)
            claim_folder(options.output, [name for split in SPLITS for name in file_names(split, suffix)])
        write(options.output, options.timesteps, options.vertices, options.samples, options.seed, options.suffix)
    except (UsageError, OSError) as error:
        parser.error(str(error))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m aaai23.nri.simulate", description="Simulate graph layouts for NRI.")
    parser.add_argument("--timesteps", type=whole_number, required=True, metavar="T", help="frames of each sample")
    parser.add_argument("--vertices", type=whole_number, default=10, metavar="n", help="vertices of each tree (10)")
    parser.add_argument(
        "--samples",
        type=whole_number,
        nargs=3,
        default=SIZES,
        metavar=("TRAIN", "VALID", "TEST"),
        help="samples of each split (50000 10000 10000)",
    )
    parser.add_argument("--seed", type=whole_number, default=42, help="seed of the simulation (42)")
    parser.add_argument("--suffix", help="end of the file names (_novar_1skip_{T}t_1r_graph{n})")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder for the six files")
    parser.add_argument("--sample", action="store_true", help=f"mark the folder as sample data: {MARKER}")
    return parser


def _check_numbers(timesteps: int, nb_vertices: int, sizes: Sequence[int]) -> None:
    if timesteps < 1:
        raise UsageError(f"the number of time steps must be at least 1, got {timesteps}")
    if nb_vertices < 2:
        raise UsageError(f"a tree needs at least 2 vertices, got {nb_vertices}")
    if min(sizes) < 1:
        raise UsageError(f"the number of samples must be at least 1, got {min(sizes)}")


def _pairs(nb_vertices: int) -> _Pairs:
    first, second = np.triu_indices(nb_vertices, 1)
    incidence = np.zeros((nb_vertices, len(first)))
    incidence[first, np.arange(len(first))] = 1
    incidence[second, np.arange(len(first))] = -1
    return _Pairs(first, second, incidence)


def _random_trees(nb_graphs: int, nb_vertices: int, rng: np.random.Generator) -> np.ndarray:
    import torch

    from imle.solvers import spanning_tree

    first, second = np.triu_indices(nb_vertices, 1)
    weights = np.zeros((nb_graphs, nb_vertices, nb_vertices))
    weights[:, first, second] = weights[:, second, first] = rng.gumbel(size=(nb_graphs, len(first)))
    return spanning_tree(torch.from_numpy(weights)).numpy().astype(np.float32)


def _new_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _fill(data: np.memmap, edges: np.memmap, rng: np.random.Generator, progress: tqdm) -> None:
    _, timesteps, _, nb_vertices = data.shape
    for start in range(0, len(data), _CHUNK):
        size = min(_CHUNK, len(data) - start)
        chunk = slice(start, start + size)
        data[chunk], edges[chunk] = simulate(size, nb_vertices, timesteps, rng)
        progress.update(size)
    data.flush()
    edges.flush()


if __name__ == "__main__":
    run_cli(main, "aaai23.nri.simulate")
