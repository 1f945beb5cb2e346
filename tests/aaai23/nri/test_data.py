"""Reading simulated layouts: scaling, order of edges, and what is said of files that do not fit."""

import numpy as np
import pytest
import torch

from aaai23.errors import UsageError
from aaai23.harness.files import MARKER
from aaai23.nri.data import check_pairs, load
from aaai23.nri.simulate import write

N, T, DIMS, VERTICES = 6, 5, 2, 4
SUFFIX = "_tiny"


def random_edges(rng: np.random.Generator, samples: int) -> np.ndarray:
    upper = np.triu(rng.integers(0, 2, (samples, VERTICES, VERTICES)), 1)
    return (upper + upper.transpose(0, 2, 1)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for scale, split in enumerate(("train", "valid", "test"), start=1):
        np.save(tmp_path / f"data_{split}{SUFFIX}.npy", scale * rng.normal(size=(N, T, DIMS, VERTICES)) + 3)
        np.save(tmp_path / f"edges_{split}{SUFFIX}.npy", random_edges(rng, N))
    return tmp_path


def read(folder, **options):
    return load(folder, SUFFIX, **({"timesteps": T, "vertices": VERTICES} | options))


def test_positions_are_scaled_by_the_training_minimum_and_maximum(folder):
    layouts = read(folder)
    train = np.load(folder / f"data_train{SUFFIX}.npy")
    assert layouts["train"].positions.min() == -1
    assert layouts["train"].positions.max() == pytest.approx(1, abs=1e-6)
    for split, got in layouts.items():
        raw = np.load(folder / f"data_{split}{SUFFIX}.npy")
        expected = 2 * (raw - train.min()) / (train.max() - train.min()) - 1
        assert got.positions.dtype == torch.float32
        assert got.positions.shape == (N, VERTICES, T, DIMS)
        np.testing.assert_allclose(got.positions.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert layouts["test"].positions.abs().max() > 1.2


@pytest.mark.parametrize(("scale", "offset"), [(5.0, 5e6), (1.0, 1.7e9), (1e-3, -1e6)])
def test_positions_far_from_zero_keep_their_shape(folder, scale, offset):
    before = read(folder)
    for split in before:
        path = folder / f"data_{split}{SUFFIX}.npy"
        np.save(path, scale * np.load(path) + offset)
    for split, got in read(folder).items():
        torch.testing.assert_close(got.positions, before[split].positions, atol=2e-6, rtol=0)
        assert len(got.positions.unique()) > 0.9 * got.positions.numel()


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("value", [3.0, 1e300])
def test_a_split_without_a_range_is_refused(folder, split, value):
    np.save(folder / f"data_{split}{SUFFIX}.npy", np.full((N, T, DIMS, VERTICES), value))
    with pytest.raises(UsageError, match=f"data_{split}{SUFFIX}.*range"):
        read(folder)


def test_a_position_that_float32_does_not_hold_is_refused(folder):
    path = folder / f"data_test{SUFFIX}.npy"
    positions = np.load(path)
    positions[0, 0, 0, 0] = 1e300
    np.save(path, positions)
    with pytest.raises(UsageError, match="range"):
        read(folder)


def test_frames_that_are_read_need_a_range_too(folder):
    path = folder / f"data_train{SUFFIX}.npy"
    positions = np.load(path)
    positions[:, :3] = 0.25
    np.save(path, positions)
    with pytest.raises(UsageError, match="range"):
        read(folder, timesteps=3)


def test_edges_come_in_the_order_of_the_upper_triangle(folder):
    raw = np.load(folder / f"edges_valid{SUFFIX}.npy")
    edges = read(folder)["valid"].edges
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert edges.tolist() == [[graph[pair] for pair in pairs] for graph in raw]
    assert 0 < edges.mean() < 1


def test_minus_one_stands_for_no_edge_too(folder):
    before = read(folder)["train"].edges
    path = folder / f"edges_train{SUFFIX}.npy"
    np.save(path, 2 * np.load(path) - 1)
    assert torch.equal(read(folder)["train"].edges, before)


def test_fewer_timesteps_are_the_first_ones(folder):
    assert torch.equal(read(folder, timesteps=3)["test"].positions, read(folder)["test"].positions[:, :, :3])


def test_one_split_can_be_read_alone(folder):
    everything = read(folder)
    (folder / f"edges_train{SUFFIX}.npy").unlink()
    (folder / f"data_test{SUFFIX}.npy").unlink()
    alone = read(folder, splits=["valid"])
    assert list(alone) == ["valid"]
    assert torch.equal(alone["valid"].positions, everything["valid"].positions)


def test_sample_data_say_that_they_are(folder):
    assert not read(folder)["train"].sample_data
    (folder / MARKER).write_text("sample data\n")
    assert read(folder)["train"].sample_data
    assert read(folder)["valid"].to("cpu").sample_data


def overwrite(name, change):
    def spoil(folder):
        path = folder / f"{name}{SUFFIX}.npy"
        np.save(path, change(np.load(path)))

    return spoil


def cut_short(folder):
    path = folder / f"data_valid{SUFFIX}.npy"
    path.write_bytes(path.read_bytes()[:300])


def one_way(edges):
    edges[0, 0, 1] = 1 - edges[0, 0, 1]
    return edges


def with_nan(data):
    data[0, 0, 0, 0] = np.nan
    return data


def half_edge(edges):
    edges[0, 0, 1] = edges[0, 1, 0] = 0.5
    return edges


SPOILT = {
    "missing data": (lambda f: (f / f"data_test{SUFFIX}.npy").unlink(), "data_test.*missing.*get_data.sh nri"),
    "missing edges": (lambda f: (f / f"edges_test{SUFFIX}.npy").unlink(), "edges_test.*missing.*get_data.sh nri"),
    "cut short": (cut_short, "data_valid.*cannot be read"),
    "empty file": (lambda f: (f / f"data_valid{SUFFIX}.npy").write_bytes(b""), "data_valid.*cannot be read"),
    "not an array": (lambda f: (f / f"data_valid{SUFFIX}.npy").write_text("hello"), "data_valid.*cannot be read"),
    "words": (overwrite("data_valid", lambda a: a.astype(str)), "data_valid.*array of numbers"),
    "three axes": (overwrite("data_valid", lambda a: a[0]), "data_valid.*has shape"),
    "no samples": (overwrite("data_valid", lambda a: a[:0]), "data_valid.*has shape"),
    "three dimensions": (overwrite("data_valid", lambda a: np.concatenate([a, a[:, :, :1]], 2)), "--dims 3"),
    "other vertices": (overwrite("data_valid", lambda a: a[..., :3]), "--num_vertices 3"),
    "too few frames": (overwrite("data_valid", lambda a: a[:, :4]), "has 4 frames.*2 to 4, not 5"),
    "nan": (overwrite("data_valid", with_nan), "not finite"),
    "nan in training": (overwrite("data_train", with_nan), "no range to scale by"),
    "constant training": (overwrite("data_train", np.ones_like), "no range to scale by"),
    "more edges than data": (overwrite("edges_valid", lambda a: np.concatenate([a, a])), "edges_valid.*has shape"),
    "edges of other vertices": (overwrite("edges_valid", lambda a: a[:, :3, :3]), "edges_valid.*has shape"),
    "one-way edges": (overwrite("edges_valid", one_way), "edges_valid.*not symmetric"),
    "half an edge": (overwrite("edges_valid", half_edge), "edges_valid.*other than 0 and 1"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_file_is_named_in_one_line(folder, case):
    spoil, message = SPOILT[case]
    read(folder)
    spoil(folder)
    with pytest.raises(UsageError, match=message) as error:
        read(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("timesteps", [0, 1, T + 1])
def test_timesteps_out_of_range_are_refused(folder, timesteps):
    with pytest.raises(UsageError, match=f"--timesteps can be 2 to {T}, not {timesteps}"):
        read(folder, timesteps=timesteps)


def test_an_unknown_suffix_is_refused(folder):
    with pytest.raises(UsageError, match=r"data_train_other\.npy is missing.*--suffix"):
        load(folder, "_other", T, VERTICES)


@pytest.mark.parametrize("timesteps", [2, 10])
def test_edges_of_another_simulation_are_warned_about_and_those_of_the_same_are_not(tmp_path, caplog, timesteps):
    write(tmp_path, 10, sizes=(200, 100, 100))
    suffix = "_novar_1skip_10t_1r_graph10"
    found = load(tmp_path, suffix, timesteps)
    check_pairs(found)
    assert not caplog.records
    path = tmp_path / f"edges_valid{suffix}.npy"
    np.save(path, np.load(path)[::-1])
    check_pairs(load(tmp_path, suffix, timesteps))
    assert len(caplog.records) == 1 and "the valid edges join vertices at" in caplog.text


def test_positions_of_another_size_than_the_training_positions_are_warned_about(tmp_path, caplog):
    write(tmp_path, 6, nb_vertices=5, sizes=(50, 50, 50))
    suffix = "_novar_1skip_6t_1r_graph5"
    path = tmp_path / f"data_test{suffix}.npy"
    np.save(path, 5 * np.load(path))
    check_pairs(load(tmp_path, suffix, 6, 5))
    assert caplog.messages == ["the test positions reach 5 times as far as the training positions do"]
