"""Paths across grids where the host may not look: a fixed number of steps is enough."""

import importlib

import pytest
import torch

from imle.solvers import shortest_path
from tests.reference.oracles import all_simple_paths

SNAKE = [  # with 4 neighbours: two in three cells of a grid, without a shortcut
    "........",
    "#######.",
    "........",
    ".#######",
    "........",
    "#######.",
    "........",
    ".#######",
    "........",
]
KINGS = [  # with 8 neighbours: every other row in full, and a cell between two of them
    ".......#",
    "#######.",
    ".......#",
    ".#######",
    "#.......",
    "#######.",
]


def maze(rows):
    return torch.tensor([[[1.0 if cell == "." else 1e4 for cell in row] for row in rows]])


@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("h, w", [(1, 1), (1, 6), (4, 1), (2, 2), (5, 4), (9, 8)])
def test_a_fixed_number_of_steps_finds_the_path_that_the_host_would_wait_for(h, w, neighbours, no_waiting):
    costs = torch.cat([torch.rand(40, h, w) ** 3, torch.where(torch.rand(60, h, w) < 0.5, 100.0, 1.0)])
    expected = shortest_path(costs, neighbours)
    no_waiting()
    assert torch.equal(shortest_path(costs, neighbours), expected)


@pytest.mark.parametrize("rows, neighbours, cells", [(SNAKE, 4, 44), (KINGS, 8, 22)])
def test_the_longest_ways_without_a_shortcut_are_walked_to_their_end(rows, neighbours, cells, no_waiting):
    costs = maze(rows)
    expected = shortest_path(costs, neighbours)
    assert expected.sum() == cells and (expected * costs).sum() == cells
    no_waiting()
    assert torch.equal(shortest_path(costs, neighbours), expected)


@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("h, w", [(2, 2), (3, 3), (3, 4), (4, 4)])
def test_no_path_without_a_shortcut_has_more_cells_than_the_steps_allow(h, w, neighbours):
    if (h, w, neighbours) == (4, 4, 8):
        pytest.skip("too many paths to list")
    most = importlib.import_module("imle.solvers.shortest_path")._most_cells(h, w, neighbours)
    paths = all_simple_paths(h, w, neighbours)
    reach = paths.new_tensor([[1, 1, 1]] * 3 if neighbours == 8 else [[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    touching = torch.nn.functional.conv2d(paths[:, None], reach[None, None], padding=1)[:, 0] * paths
    # n cells of which only consecutive ones touch: each touches itself and two others, but for the two ends
    cells = paths.sum(dim=(1, 2))
    without_shortcut = touching.sum(dim=(1, 2)) == 3 * cells - 2
    assert without_shortcut.any() and cells[without_shortcut].max() <= most
