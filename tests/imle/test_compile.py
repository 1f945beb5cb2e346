"""Under `torch.compile` and `torch.export`: solvers are graphs; estimators break the graph, and say so."""

import functools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from imle._compile import _TAKES_REASON, REASON
from imle.aimle import aimle
from imle.imle import imle
from imle.layers import MAPLayer
from imle.noise import SumOfGammaNoiseDistribution
from imle.sfe import sfe
from imle.solvers import (
    grid_arcs,
    mathias_select_k,
    select_k,
    shortest_path,
    shortest_path_arcs,
    spanning_tree,
    spanning_tree_edges,
)
from imle.ste import ste

ESTIMATORS = {"aimle": aimle, "imle": imle, "ste": ste, "sfe": sfe}
SOLVERS = {
    "select_k": (functools.partial(select_k, k=2), (6, 5)),
    "select_k, many short rows": (functools.partial(select_k, k=2), (4000, 20)),
    "select_k, masked": (lambda theta: select_k(theta, 2, mask=torch.arange(theta.shape[-1]) < 4), (6, 5)),
    "mathias_select_k": (functools.partial(mathias_select_k, k=2), (6, 5)),
    "spanning_tree": (spanning_tree, (6, 4, 4)),
    "spanning_tree_edges": (spanning_tree_edges, (6, 6)),
}
select_two = functools.partial(select_k, k=2)


class Solver(torch.nn.Module):
    """A function as a module, as `torch.export` wants it."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, theta):
        return self.function(theta)


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def solutions(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_is_one_graph(name):
    solver, shape = SOLVERS[name]
    theta, other = torch.randn(2, *shape)
    compiled = torch.compile(solver, fullgraph=True, backend="eager")
    exported = torch.export.export(Solver(solver), (theta,)).module()
    assert torch.equal(compiled(other), solver(other))
    assert torch.equal(exported(other), solver(other))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_in_a_whole_graph_says_that_it_breaks_the_graph_on_purpose(name, training):
    layer = MAPLayer(select_two, ESTIMATORS[name]()).train(training)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=REASON if _TAKES_REASON else "disable"):
        compiled(torch.randn(6, 5))


@pytest.mark.skipif(not _TAKES_REASON, reason="torch.export of this version traces through no disabled function")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_layer_in_evaluation_is_exported_for_any_batch_size(name):
    layer = MAPLayer(select_two, ESTIMATORS[name]()).eval()
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(layer, (torch.randn(6, 5),), dynamic_shapes=({0: batch},)).module()
    theta = torch.randn(4, 5)
    assert torch.equal(solutions(exported(theta)), select_two(theta))


# What is kept between calls


def under_fake_tensors(function, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return function(mode.from_tensor(x))


TRACED = {
    "export": lambda function, x: torch.export.export(Solver(function), (x,)),
    "make_fx": lambda function, x: make_fx(lambda theta: function(theta))(x),
    "make_fx, fake": lambda function, x: make_fx(lambda theta: function(theta), tracing_mode="fake")(x),
    "fake tensors": under_fake_tensors,
    "compile": lambda function, x: torch.compile(function, backend="eager")(x),
    "vmap": lambda function, x: torch.func.vmap(function)(x[None].expand(2, *x.shape)),
    "inference": lambda function, x: torch.inference_mode()(function)(x),
}
KEEPING = {  # what has a table of tensors -> of a size that has not been asked for before, and its parameters
    "shortest_path": lambda n: (shortest_path, (2, 1, n)),
    "shortest_path_arcs": lambda n: (
        functools.partial(shortest_path_arcs, arcs=grid_arcs(2, n), source=0, target=2 * n - 1),
        (2, 3 * n - 2),
    ),
    "sum of gamma": lambda n: (
        lambda x: x + SumOfGammaNoiseDistribution(k=n + 0.7, nb_iterations=7).sample(x.shape),
        (2, 5),
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", TRACED)
@pytest.mark.parametrize("name", KEEPING)
def test_what_is_made_while_torch_traces_is_not_kept(name, way):
    function, shape = KEEPING[name](2 + list(TRACED).index(way))
    x = torch.rand(shape)
    try:
        TRACED[way](function, x)
    except Exception as error:  # not every function can be traced in every way
        assert way not in ("export", "compile", "inference") or name == "sum of gamma", error
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = function(x)
    finally:
        torch.set_default_dtype(default)
    assert type(found) is torch.Tensor and not found.is_inference() and found.isfinite().all()
    assert torch.equal(function(x), found.to(x)) or name == "sum of gamma"


@pytest.mark.parametrize("name", ["shortest_path", "shortest_path_arcs"])
def test_a_layer_of_paths_is_exported_and_the_solver_serves_on(name):
    solver, shape = KEEPING[name](9)
    layer = MAPLayer(solver, ste()).eval()
    exported = torch.export.export(layer, (torch.rand(shape),)).module()
    other = torch.rand(shape)
    assert torch.equal(exported(other), solver(other))
