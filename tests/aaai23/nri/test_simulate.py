import itertools
import subprocess
import sys

import networkx as nx
import numpy as np
import pytest
from scipy.stats import chisquare

from aaai23.errors import UsageError
from aaai23.harness.files import MARKER
from aaai23.nri import simulate as S


def rng(seed=0):
    return np.random.default_rng(seed)


def networkx_step(positions, adjacency):
    """One step of networkx's layout from the same positions, [n, 2]."""
    graph = nx.from_numpy_array(adjacency.astype(float))
    start = {vertex: point.copy() for vertex, point in enumerate(positions)}
    layout = nx.spring_layout(graph, pos=start, iterations=1, threshold=1e-10, center=(0, 0))
    return np.array([layout[vertex] for vertex in range(len(positions))])


# The layout


@pytest.mark.parametrize("nb_vertices", [2, 3, 10, 17])
def test_ten_layout_steps_equal_networkx(nb_vertices):
    assert nx.__version__ == "3.4.2"  # later versions treat small displacements in another way
    _, edges = S.simulate(40, nb_vertices, 1, rng())
    ours = rng(1).standard_normal((40, nb_vertices, 2))
    theirs = ours.copy()
    for _ in range(10):
        ours = S.layout_step(ours, edges)
        theirs = np.stack([networkx_step(p, a) for p, a in zip(theirs, edges, strict=True)])
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_close_vertices_and_small_displacements_follow_the_rules_of_networkx():
    crowd = np.array([[0.0, 0.0], [0.001, 0.0], [0.0, 0.002]])  # all closer than 0.01
    side = 1.5 ** (1 / 3) / np.sqrt(3)  # a straight path with edges this long is in balance; here it is bent a little
    balance = np.array([[-side, 0.0], [0.0, 0.01], [side, 0.0]])
    positions, path = np.stack([crowd, balance]), np.array([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
    moved = S.layout_step(positions, np.stack([path, path]))
    for index in range(2):
        np.testing.assert_allclose(moved[index], networkx_step(positions[index], path), atol=1e-12)
    assert np.abs(moved[1, :, 1]).max() < 0.02  # a step of full length would be ten times this


def test_vertices_that_all_coincide_stay_where_they_are():
    assert (S.layout_step(np.zeros((1, 4, 2)), np.ones((1, 4, 4))) == 0).all()


# The trees


def kruskal(order, n):
    """The tree that takes the edges (i, j) in this order unless they close a cycle, as a sorted tuple."""
    group, tree = list(range(n)), []
    for i, j in order:
        if group[i] != group[j]:
            tree.append((i, j))
            old, new = group[i], group[j]
            group = [new if g == old else g for g in group]
    return tuple(sorted(tree))


def test_trees_of_four_vertices_have_their_exact_distribution():
    # All orders of independent, equally distributed weights are equally likely, and the order decides the tree.
    edges = list(itertools.combinations(range(4), 2))
    trees = [kruskal(order, 4) for order in itertools.permutations(edges)]
    kinds = sorted(set(trees))
    assert len(kinds) == 16
    exact = np.array([trees.count(kind) for kind in kinds]) / len(trees)

    _, adjacency = S.simulate(40_000, 4, 1, rng())
    drawn = [tuple(edge for edge in edges if matrix[edge]) for matrix in adjacency]
    observed = np.array([drawn.count(kind) for kind in kinds])
    assert observed.sum() == len(drawn)
    assert chisquare(observed, exact * len(drawn)).pvalue > 0.01
    assert chisquare(observed).pvalue < 1e-6  # and it is not the uniform distribution


def test_edges_are_trees():
    _, edges = S.simulate(300, 12, 1, rng())
    assert edges.dtype == np.float32
    assert set(np.unique(edges)) == {0.0, 1.0}
    np.testing.assert_array_equal(edges, edges.swapaxes(1, 2))
    assert (edges.sum((1, 2)) == 2 * 11).all()
    reached = np.linalg.matrix_power(edges.astype(np.float64) + np.eye(12), 11)
    assert (reached > 0).all()
    assert len({matrix.tobytes() for matrix in edges}) == 300


# The frames


def test_every_frame_is_centred_with_largest_coordinate_one():
    positions, _ = S.simulate(200, 10, 7, rng())
    assert positions.shape == (200, 7, 2, 10)
    assert positions.dtype == np.float64
    np.testing.assert_allclose(np.abs(positions).max((2, 3)), 1)
    np.testing.assert_allclose(positions.mean(-1), 0, atol=1e-12)


def test_each_frame_is_one_layout_step_after_the_one_before():
    positions, edges = S.simulate(50, 10, 6, rng())
    points = positions.swapaxes(2, 3)
    for frame in range(5):
        np.testing.assert_allclose(S.layout_step(points[:, frame], edges), points[:, frame + 1], atol=1e-12)


def test_the_first_frame_is_one_step_from_standard_normal_positions():
    positions, edges = S.simulate(50, 10, 1, rng())
    again = rng()
    again.gumbel(size=(50, 45))
    start = again.standard_normal((50, 10, 2))
    np.testing.assert_allclose(positions[:, 0].swapaxes(1, 2), S.layout_step(start, edges), atol=1e-12)


def test_layout_pulls_neighbours_together_and_pushes_others_apart():
    positions, edges = S.simulate(500, 10, 10, rng())
    points = positions.swapaxes(2, 3)
    distance = np.linalg.norm(points[..., :, None, :] - points[..., None, :, :], axis=-1)
    along = (distance * edges[:, None]).sum((0, 2, 3)) / edges.sum()
    off = (distance * (1 - edges[:, None] - np.eye(10))).sum((0, 2, 3)) / (500 * 72)
    assert (np.diff(along) < 0).all()
    assert (np.diff(off) > 0).all()
    assert along[-1] < off[-1] / 2


# The files


def test_write_makes_six_files_and_nothing_else(tmp_path):
    paths = S.write(tmp_path / "new", 3, 5, sizes=(7, 4, 2))
    suffix = "_novar_1skip_3t_1r_graph5"
    expected = {f"{kind}_{split}{suffix}.npy" for kind in ("data", "edges") for split in ("train", "valid", "test")}
    assert {path.name for path in (tmp_path / "new").iterdir()} == expected == {path.name for path in paths}
    for split, size in (("train", 7), ("valid", 4), ("test", 2)):
        data = np.load(tmp_path / "new" / f"data_{split}{suffix}.npy")
        edges = np.load(tmp_path / "new" / f"edges_{split}{suffix}.npy")
        assert (data.shape, data.dtype) == ((size, 3, 2, 5), np.float64)
        assert (edges.shape, edges.dtype) == ((size, 5, 5), np.float32)
        np.testing.assert_allclose(np.abs(data).max((2, 3)), 1)
        assert (edges.sum((1, 2)) == 8).all()


def test_files_depend_on_seed_and_split_only(tmp_path):
    first = S.write(tmp_path / "a", 2, 6, sizes=(5, 5, 5))
    second = S.write(tmp_path / "b", 2, 6, sizes=(5, 5, 5))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    other = S.write(tmp_path / "c", 2, 6, sizes=(5, 5, 5), seed=43)
    contents = [path.read_bytes() for path in [*first, *other]]
    assert len(set(contents)) == len(contents)


def test_a_longer_simulation_begins_like_a_shorter_one(tmp_path):
    short = S.write(tmp_path, 2, 6, sizes=(5, 1, 1))
    long = S.write(tmp_path, 4, 6, sizes=(5, 1, 1))
    np.testing.assert_array_equal(np.load(long[0])[:, :2], np.load(short[0]))
    np.testing.assert_array_equal(np.load(long[1]), np.load(short[1]))


def test_many_samples_are_written_in_chunks_that_all_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(S, "_CHUNK", 4)
    data = np.load(S.write(tmp_path, 1, 5, sizes=(11, 1, 1))[0])
    assert len({sample.tobytes() for sample in data}) == 11


def test_an_interrupted_write_leaves_the_old_files_and_no_pieces(tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in S.write(tmp_path, 2, 5, sizes=(3, 3, 3))}
    simulate, calls = S.simulate, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return simulate(*arguments)

    monkeypatch.setattr(S, "simulate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        S.write(tmp_path, 2, 5, sizes=(3, 3, 3), seed=1)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# The command line


def test_the_command_line_sets_every_option_and_is_quiet_when_piped(tmp_path, capsys):
    command = "--timesteps 2 --vertices 4 --samples 3 2 1 --seed 5 --suffix _x --sample --output"
    S.main([*command.split(), str(tmp_path / "data")])
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        MARKER,
        *(f"{kind}_{split}_x.npy" for kind in ("data", "edges") for split in S.SPLITS),
    }
    expected = S.write(tmp_path / "same", 2, 4, (3, 2, 1), seed=5, suffix="_x")[0]
    assert (tmp_path / "data" / expected.name).read_bytes() == expected.read_bytes()


def test_the_module_runs_from_the_shell():
    command = [sys.executable, "-m", "aaai23.nri.simulate", "--timesteps", "0", "--output", "unused"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "time steps must be at least 1" in result.stderr


def test_the_marker_of_sample_data_is_optional_and_an_earlier_one_stays(tmp_path):
    arguments = ["--timesteps", "1", "--samples", "1", "1", "1", "--output", str(tmp_path)]
    S.main(arguments)
    assert not (tmp_path / MARKER).exists()
    (tmp_path / MARKER).write_text("from another task")
    S.main([*arguments, "--sample"])
    assert (tmp_path / MARKER).read_text() == "from another task"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--output out", "--timesteps"),
        ("--timesteps 2", "--output"),
        ("--timesteps 0 --output out", "time steps must be at least 1, got 0"),
        ("--timesteps 2 --vertices 1 --output out", "at least 2 vertices, got 1"),
        ("--timesteps 2 --samples 1 0 1 --output out", "samples must be at least 1, got 0"),
        ("--timesteps 2 --seed -1 --output out", "seed must not be negative, got -1"),
        ("--timesteps 99999999999999999999 --output out", "--timesteps: expected a whole number"),
        ("--timesteps 2 --vertices 1_0 --output out", "--vertices: expected a whole number"),
        ("--timesteps 2 --samples 1 1 1 --output file/out", "file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SystemExit) as error:
        S.main(arguments.split())
    assert error.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_sizes_must_be_three(tmp_path):
    with pytest.raises(UsageError, match="three numbers"):
        S.write(tmp_path, 2, sizes=(1, 2))
