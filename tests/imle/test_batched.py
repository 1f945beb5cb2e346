"""A solver of one instance, lifted to batches: alone, in threads and in processes."""

import contextlib
import copy
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import types
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from imle.aimle import aimle
from imle.noise import GumbelNoiseDistribution
from imle.solver import shared
from imle.solvers import batched, select_k
from imle.target import AdaptiveTargetDistribution, TargetDistribution
from tests.imle.instance_solvers import (
    Model,
    ends_sleeps_or_raises,
    ends_the_process_of_negative,
    fails_on_negative,
    make_model,
    process_id,
)


def transposed_copy(tensor):
    """Return an equal tensor whose memory is laid out the other way round."""
    dims = tuple(reversed(range(tensor.dim())))
    copied = tensor.permute(dims).contiguous().permute(dims)
    assert not copied.is_contiguous()
    return copied


def one_hot(theta):
    z = np.zeros_like(theta)
    z[theta.argmax()] = 1
    return z


def one_hot_in_torch(theta):
    assert isinstance(theta, torch.Tensor)
    return torch.nn.functional.one_hot(theta.argmax(), len(theta))


def one_hot_list(theta):
    return [int(i == theta.argmax()) for i in range(len(theta))]


def assignment(theta):
    z = np.zeros_like(theta)
    z[linear_sum_assignment(theta, maximize=True)] = 1
    return z


@batched(workers=1, executor="process")
def decorated(theta, scale):
    return scale * one_hot(theta)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("solver, instance", [(one_hot, "numpy"), (one_hot_list, "numpy"), (one_hot_in_torch, "torch")])
def test_a_lifted_solver_solves_each_instance(solver, instance, workers, dtype):
    theta = torch.randn(13, 5).to(dtype).requires_grad_()
    z = batched(solver, instance=instance, workers=workers)(theta)
    assert z.dtype == dtype and not z.requires_grad
    assert torch.equal(z, select_k(theta, 1))


def test_batched_is_a_decorator_with_and_without_options():
    @batched
    def bare(theta):
        """Say hello."""
        return one_hot(theta)

    @batched(workers=2)
    def with_options(theta):
        return one_hot(theta)

    theta = torch.randn(4, 3)
    assert torch.equal(bare(theta), select_k(theta, 1))
    assert torch.equal(with_options(theta), select_k(theta, 1))
    assert (bare.__name__, bare.__doc__) == ("bare", "Say hello.")


def test_a_lifted_solver_keeps_the_shape_of_its_instances():
    theta = torch.randn(3, 4, 4, dtype=torch.float64)
    z = batched(assignment)(transposed_copy(theta))
    assert z.shape == theta.shape
    assert torch.equal(z.sum(1), torch.ones(3, 4)) and torch.equal(z.sum(2), torch.ones(3, 4))
    assert torch.equal(z, batched(assignment, workers=2)(theta))
    assert batched(assignment)(torch.zeros(0, 4, 4)).shape == (0, 4, 4)
    assert batched(lambda x: x > 0)(torch.tensor([0.5, -0.5])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("instance", ["numpy", "torch"])
def test_further_arguments_are_dealt_out_where_their_first_dimension_is_the_batch(instance):
    seen = []

    @batched(instance=instance)
    def solver(theta, rows, table, *, sizes, word):
        seen.append((rows, table, sizes, word))
        return theta

    theta, rows, table = torch.zeros(3, 2), torch.arange(6).view(3, 2), torch.ones(4, 3)
    solver(theta, rows, shared(table), sizes=np.array([7, 8, 9]), word="abc")
    assert [list(row) for row, *_ in seen] == [[0, 1], [2, 3], [4, 5]]
    assert all(isinstance(row, torch.Tensor) == (instance == "torch") for row, *_ in seen)
    assert all(torch.equal(item, table) for _, item, *_ in seen)
    assert [(int(size), word) for *_, size, word in seen] == [(7, "abc"), (8, "abc"), (9, "abc")]


def scribble_on_everything(theta, *args, **kwargs):
    """Return theta + 1, written on theta, if this instance sees all arguments as they were, and write on them all."""
    intact = True
    for value in [*args, *kwargs.values()]:
        for array in (
            value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
        ):
            intact = intact and bool((array == 5).all())
            array[...] = -1
    theta[...] = theta + 1 if intact else np.nan
    return theta


POOLS = {"none": {}, "threads": {"workers": 2}, "processes": {"workers": 1, "executor": "process"}}


@pytest.mark.parametrize(
    "instance, pool",
    [("numpy", "none"), ("torch", "none"), ("numpy", "threads"), ("torch", "threads"), ("torch", "processes")],
)
def test_a_lifted_solver_may_write_on_all_its_arguments_and_the_callers_stay_as_they_are(instance, pool):
    def fives(*shape):
        return torch.full(shape, 5.0)

    owner, leaf = fives(3, 2), fives(3, 2).requires_grad_()
    arguments = [
        *(fives(3, 2), fives(3, 2).numpy(), owner.numpy(), fives(6, 4)[::2, ::2]),  # a row to each instance
        *map(shared, (fives(4), fives(4).numpy(), fives(4, 4)[1:].mT, leaf * 1)),  # the same to each instance
        *([fives(3, 2), shared(fives(4).numpy())], (fives(3, 2),), {"a": fives(3, 2), "b": shared(fives(4))}),
    ]
    theta = torch.zeros(3, 2)
    solver = batched(scribble_on_everything, instance=instance, **POOLS[pool])
    assert torch.equal(solver(theta, *arguments, table=shared(fives(2, 2)), rows=fives(3)[:, None]), torch.ones(3, 2))
    assert torch.equal(theta, torch.zeros(3, 2))
    flat = [item for value in arguments for item in (value if isinstance(value, list | tuple) else [value])]
    flat = [item["a"] if isinstance(item, dict) else getattr(item, "value", item) for item in flat]
    assert all((item == 5).all() for item in flat) and (owner == 5).all() and (leaf == 5).all()


def test_a_lifted_solver_may_use_one_buffer_for_all_its_results():
    buffer = torch.empty(3)

    @batched(instance="torch")
    def reuse(theta):
        return buffer.copy_(theta)

    theta = torch.randn(4, 3)
    assert torch.equal(reuse(theta), theta)


class SolverWithAttributes:
    """Its attributes have the names of those of what lifts it, and of an estimator's options."""

    def __init__(self):
        for name in ("solver", "instance", "workers", "executor", "_pool", "_pool_owner", "_split", "_started_pool"):
            setattr(self, name, 3)
        self._solve_in_pool = self.__call__ = self.sample = self.theta = self.__wrapped__ = 3

    def __call__(self, theta):
        return one_hot(theta)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_lifted_solver_may_be_an_object_with_any_attributes(workers):
    theta = torch.randn(5, 4)
    lifted = batched(SolverWithAttributes(), workers=workers)
    assert not hasattr(lifted, "sample")
    for solver in (lifted, copy.copy(lifted), copy.deepcopy(lifted), pickle.loads(pickle.dumps(lifted))):
        assert torch.equal(solver(theta), select_k(theta, 1))
    assert torch.equal(aimle(lifted, target_distribution=TargetDistribution(beta=1.0))(theta), select_k(theta, 1))


def test_without_workers_a_lifted_solver_solves_in_the_calling_thread():
    seen = []

    @batched
    def watched(theta):
        seen.append(threading.get_ident())
        return theta

    watched(torch.zeros(3, 2))
    assert seen == 3 * [threading.get_ident()]


def test_a_lifted_solver_may_return_views_running_backwards():
    theta = torch.randn(3, 4)
    assert torch.equal(batched(lambda x: x[::-1])(theta), theta.flip(1))


def test_threads_solve_at_the_same_time_and_are_used_again():
    barrier = threading.Barrier(2)

    @batched(workers=2)
    def meet(theta):
        barrier.wait(timeout=30)
        return [threading.get_ident()]

    first, second = (meet(torch.zeros(2, 1, dtype=torch.float64)) for _ in range(2))
    assert len(first.unique()) == 2 and threading.get_ident() not in first
    assert torch.equal(first.unique(), second.unique())


def test_a_failure_names_the_instance_and_keeps_its_cause():
    theta = torch.ones(9, 2)
    theta[6, 1] = -1.0
    for workers in (0, 2):
        with pytest.raises(RuntimeError, match="instance 6: KeyError: 'no such thing'") as caught:
            batched(fails_on_negative, workers=workers)(theta)
        assert isinstance(caught.value.__cause__, KeyError)


def test_a_lifted_solver_refuses_results_that_do_not_fit_together():
    with pytest.raises(ValueError, match=r"shape \(2,\) for instance 2 and \(0,\) for instance 0"):
        batched(lambda x: x[x > 0])(torch.tensor([[-1.0, -1.0], [-1.0, -2.0], [1.0, 1.0]]))
    for result in (None, "text", [[1.0], [1.0, 2.0]]):
        with pytest.raises(TypeError, match=f"returned {type(result).__name__} for instance 0"):
            batched(lambda x, result=result: result)(torch.zeros(2, 2))


def test_batched_refuses_options_it_does_not_know():
    with pytest.raises(TypeError, match="function of one instance"):
        batched(3)
    for options in [{"workers": -1}, {"executor": "gpu"}, {"instance": "jax"}]:
        with pytest.raises(ValueError, match="must be"):
            batched(one_hot, **options)
    with pytest.raises(ValueError, match="batch dimension"):
        batched(one_hot)(torch.tensor(1.0))


def test_a_lifted_solver_can_be_copied_and_pickled_and_leaves_its_pool_behind():
    theta = torch.randn(5, 4)
    solver = batched(one_hot, workers=2)
    z = solver(theta)
    for twin in (copy.copy(solver), copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert twin is not solver
        assert torch.equal(twin(theta), z)
    assert pickle.loads(pickle.dumps(decorated)) is decorated
    assert copy.deepcopy(decorated) is decorated


@aimle(target_distribution=TargetDistribution(beta=1.0))
@batched
def largest_under_two_decorators(theta):
    return theta == theta.max()


def test_a_batched_solver_under_another_decorator_is_pickled_by_name():
    inner = largest_under_two_decorators.__wrapped__
    assert pickle.loads(pickle.dumps(inner)) is inner
    assert pickle.loads(pickle.dumps(largest_under_two_decorators)) is largest_under_two_decorators


def test_a_process_pool_needs_a_solver_that_can_be_imported():
    with pytest.raises(TypeError, match="top level of a module"):
        batched(lambda x: x, workers=1, executor="process")(torch.zeros(2, 2))


def test_processes_solve_fail_and_die_in_the_open():
    theta = torch.randn(9, 4, dtype=torch.float64)
    assert torch.equal(decorated(theta, 2.0), 2 * select_k(theta, 1))
    first, second = (decorated(theta, scale) for scale in (torch.arange(9.0), shared(np.ones(4))))
    assert torch.equal(first, torch.arange(9.0)[:, None] * select_k(theta, 1))
    assert torch.equal(second, select_k(theta, 1))
    with pytest.raises(RuntimeError, match="instance 0: ValueError"):
        decorated(theta, shared(np.ones(3)))


@pytest.mark.slow
def test_processes_are_others_are_used_again_and_their_death_is_reported():
    solver = batched(process_id, workers=1, executor="process")
    first, second = (solver(torch.zeros(40, 1, dtype=torch.float64)) for _ in range(2))
    assert torch.equal(first, second) and len(first.unique()) == 1 and os.getpid() not in first
    in_torch = batched(one_hot_in_torch, instance="torch", workers=2, executor="process")
    theta = torch.randn(30, 4).bfloat16()
    assert torch.equal(in_torch(theta), select_k(theta, 1))
    mortal = batched(ends_the_process_of_negative, workers=1, executor="process")
    with pytest.raises(RuntimeError, match="ended abruptly"):
        mortal(-torch.ones(2, 2))
    assert torch.equal(mortal(torch.ones(2, 2)), torch.ones(2, 2))


@pytest.mark.slow
def test_processes_serve_a_solver_defined_in_a_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import torch
        from imle.solvers import batched

        @batched(workers=2, executor="process")
        def double(theta):
            return 2 * theta

        if __name__ == "__main__":
            print(double(torch.ones(3, 2)).tolist())
        """)
    )
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.stdout == "[[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]\n", done.stderr


@pytest.mark.gpu
def test_a_lifted_solver_solves_what_is_on_a_gpu():
    theta = torch.randn(50, 20)
    assert torch.equal(batched(one_hot, workers=2)(theta.cuda()).cpu(), select_k(theta, 1))


# Arguments of the instances' own


class Problem:
    """An instance as real solvers take it: an object."""

    def __init__(self, name):
        self.name = name


@pytest.mark.parametrize("workers", [0, 2])
def test_each_instance_gets_its_own_item_of_lists_tuples_and_dicts(workers):
    seen = []

    @batched(workers=workers)
    def solver(theta, problem, *, columns, word):
        seen.append((int(theta[0]), problem.name, columns, word))
        return theta

    columns = {"sizes": (7, 8, 9), "costs": torch.arange(6).view(3, 2), "limit": 4, "pair": shared([1, 2])}
    solver(torch.arange(3.0)[:, None], [Problem(name) for name in "abc"], columns=columns, word="xyz")
    for i, name, columns, word in sorted(seen, key=lambda item: item[0]):
        assert (name, word) == ("abc"[i], "xyz")
        assert columns["sizes"] == 7 + i and columns["costs"].tolist() == [2 * i, 2 * i + 1]
        assert isinstance(columns["costs"], np.ndarray)
        assert (columns["limit"], columns["pair"]) == (4, [1, 2])


def test_what_is_shared_reaches_every_instance_as_it_is():
    seen, cache = [], {}

    @batched
    def solver(theta, table, problems, cache):
        seen.append((table, problems, cache))
        return theta

    table, problems = torch.arange(3), [Problem(name) for name in "abc"]
    solver(torch.zeros(3, 2), shared(table), {"all": shared(problems)}, cache)
    assert len(seen) == 3 and all(torch.equal(found, table) and found is not table for found, *_ in seen)
    assert all(found["all"] is problems for _, found, _ in seen)
    assert all(found is cache for *_, found in seen)


@pytest.mark.parametrize("instance", ["numpy", "torch"])
@pytest.mark.parametrize("kind", [torch.tensor, list, np.array])
def test_instance_ids_reach_the_solver_through_an_estimator_as_keys_of_a_cache(instance, kind):
    cache, hits = {}, []

    def solver(theta, instance_ids):
        hits.append(instance_ids in cache)
        cache.setdefault(instance_ids, set()).add(round(float(theta[0]) / 1000))
        return theta == theta.max()

    layer = aimle(
        batched(solver, instance=instance),
        nb_samples=3,
        noise_distribution=GumbelNoiseDistribution(),
        target_distribution=TargetDistribution(beta=1e-3),
    )
    theta = (1000 * torch.tensor([[5.0], [6.0]]) + torch.randn(2, 4)).requires_grad_()
    ids = torch.tensor([15, 16]) if kind is list else kind([15, 16])
    layer(theta, instance_ids=ids).square().sum().backward()
    assert cache == {15: {5}, 16: {6}}
    assert len(hits) > 6 and sum(hits) == len(hits) - 2


# Failures


def refuses(theta):
    if theta[0] < -2:
        return None
    if theta[0] < -1:
        return np.array([np.nan, 1.0])
    if theta[0] < 0:
        raise KeyError("infeasible")
    return theta


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_leaves_out_what_fails_with_one_warning_that_names_it_and_the_cause(workers):
    theta = torch.arange(12.0).view(6, 2)
    theta[1], theta[3], theta[4] = -0.5, -1.5, -2.5
    solver = batched(refuses, workers=workers, on_error="skip")
    with pytest.warns(UserWarning) as caught:
        z = solver(theta)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert "rows 1, 3, 4 of 6" in str(caught[0].message)
    assert "instance 1: KeyError: 'infeasible'" in str(caught[0].message)
    assert solver.failed.tolist() == [False, True, False, True, True, False]
    assert z[solver.failed].isnan().all() and torch.equal(z[~solver.failed], theta[~solver.failed])
    assert solver.may_skip and not batched(refuses).may_skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(solver(theta.abs()), theta.abs())
    assert not solver.failed.any()


def test_a_batch_that_fails_as_a_whole_is_left_out_in_the_shape_of_theta():
    with pytest.warns(UserWarning, match="rows 0, 1, 2 of 3"):
        z = batched(refuses, on_error="skip")(-torch.ones(3, 2))
    assert z.shape == (3, 2) and z.isnan().all()


def test_what_is_no_solution_at_all_is_an_error_also_where_failures_are_left_out():
    with pytest.raises(TypeError, match="returned str for instance 0"):
        batched(lambda theta: "text", on_error="skip")(torch.zeros(2, 2))


def test_previous_answers_the_last_solution_of_the_same_instance():
    solver = batched(refuses, on_error="previous")
    first = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert torch.equal(solver(first, instance_ids=[10, 11, 12]), first)
    later = torch.tensor([[-1.0, 0.0], [7.0, 8.0], [-1.0, 0.0]])
    with pytest.warns(UserWarning, match="rows 0, 2 of 3, and previous solutions"):
        z = solver(later, instance_ids=torch.tensor([12, 10, 13]))
    assert z[:2].tolist() == [[5.0, 6.0], [7.0, 8.0]] and z[2].isnan().all()
    assert solver.failed.tolist() == [True, False, True]
    with pytest.warns(UserWarning):
        z = solver(-torch.ones(2, 2), instance_ids=[10, 12])
    assert z.tolist() == [[7.0, 8.0], [5.0, 6.0]]  # of the last call that solved it, not of the last call
    with pytest.warns(UserWarning):
        assert copy.deepcopy(solver)(-torch.ones(1, 2), instance_ids=[10]).isnan().all()


def test_previous_hands_ids_to_solvers_that_take_them():
    seen = []

    @batched(on_error="previous")
    def solver(theta, instance_ids):
        seen.append(instance_ids)
        return theta

    solver(torch.zeros(2, 1), instance_ids=["a", "b"])
    assert seen == ["a", "b"]
    with pytest.raises(ValueError, match="call with instance_ids="):
        solver(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="they are 3 for 2"):
        solver(torch.zeros(2, 1), instance_ids=[1, 2, 3])


# Solvers with a state


def test_a_factory_makes_one_solver_for_each_thread():
    made = []

    def make():
        made.append(threading.get_ident())
        return Model().solve

    theta = torch.randn(40, 3)
    solver = batched(factory=make, workers=3)
    for _ in range(2):
        assert torch.equal(solver(theta), (theta > 0).float())
    assert 1 < len(made) == len(set(made)) <= 3 and threading.get_ident() not in made


def test_a_factory_is_called_once_without_workers():
    made = []
    solver = batched(factory=lambda: made.append(threading.get_ident()) or Model().solve)
    theta = torch.randn(5, 3)
    assert torch.equal(solver(theta), (theta > 0).float()) and torch.equal(solver(-theta), (theta < 0).float())
    assert made == [threading.get_ident()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_factory_that_fails_says_so(workers):
    def no_licence():
        raise OSError("no licence")

    with pytest.raises(RuntimeError, match="could not be made: OSError: no licence"):
        batched(factory=no_licence, workers=workers)(torch.zeros(4, 2))
    with pytest.raises(RuntimeError, match="must return a function of one instance; it returned 3"):
        batched(factory=lambda: 3, workers=workers)(torch.zeros(4, 2))
    with pytest.raises(TypeError, match="not both"):
        batched(one_hot, factory=make_model)
    with pytest.raises(TypeError, match="factory must be"):
        batched(factory=3)


def test_threads_end_with_the_solver_that_they_serve():
    before = set(threading.enumerate())
    solver = batched(one_hot, workers=2)
    solver(torch.zeros(4, 2))
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2 and all(thread.daemon for thread in threads)
    del solver
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_a_solver_that_exits_in_a_thread_exits():
    def exits(theta):
        sys.exit(7)

    with pytest.raises(SystemExit, match="7"):
        batched(exits, workers=2)(torch.zeros(4, 2))


# Processes


def test_a_time_limit_needs_processes():
    for options in ({}, {"workers": 2}, {"executor": "process"}):
        with pytest.raises(ValueError, match="a thread cannot be ended from outside"):
            batched(one_hot, timeout=1.0, **options)
    for timeout in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive number of seconds"):
            batched(one_hot, timeout=timeout, workers=1, executor="process")


@pytest.mark.slow
def test_processes_that_die_or_run_over_cost_their_own_instance_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CHILD_FILE", str(tmp_path / "pid"))
    solver = batched(ends_sleeps_or_raises, workers=1, executor="process", timeout=3.0, on_error="skip")
    theta = torch.tensor([[1.0], [-1.0], [2.0], [-3.0], [-2.0], [3.0]])
    with pytest.warns(UserWarning, match=r"rows 1, 3, 4 of 6.*instance 1: the worker process ended .*\(exit code 3\)"):
        z = solver(theta)
    assert solver.failed.tolist() == [False, True, False, True, True, False]
    assert torch.equal(z[~solver.failed], theta[~solver.failed]) and z[solver.failed].isnan().all()
    child = int((tmp_path / "pid").read_text())
    assert not is_running(child)


def is_running(pid):
    """Return whether a process runs; one that is dead and not yet waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_an_instance_that_ends_or_outlives_its_process_is_named_and_the_next_call_works(tmp_path, monkeypatch):
    monkeypatch.setenv("CHILD_FILE", str(tmp_path / "pid"))
    solver = batched(ends_sleeps_or_raises, workers=1, executor="process", timeout=2.0)
    theta = torch.tensor([[1.0], [2.0], [3.0]])
    for value, message in [(-1.0, "abruptly"), (-2.0, "no answer within 2 s"), (-3.0, "KeyError: 'no such thing'")]:
        broken = theta.clone()
        broken[1] = value
        with pytest.raises(RuntimeError, match=f"instance 1: .*{message}") as caught:
            solver(broken)
        assert torch.equal(solver(theta), theta)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "ends_sleeps_or_raises" in caught.value.__cause__.__notes__[0]


@pytest.mark.slow
def test_instances_behind_one_that_ends_the_process_are_solved_by_the_next():
    solver = batched(ends_the_process_of_negative, workers=1, executor="process", on_error="skip")
    theta = torch.arange(20.0)[:, None]
    theta[7] = -1.0
    with pytest.warns(UserWarning, match="row 7 of 20"):
        z = solver(theta)
    assert z[7].isnan() and torch.equal(z[solver.failed.logical_not()], theta[theta >= 0][:, None])


def test_a_factory_is_all_that_processes_are_sent():
    with pytest.raises(TypeError, match=r"batched\(factory=make_solver"):
        batched(Model().solve, workers=1, executor="process")(torch.zeros(2, 2))
    theta = torch.randn(9, 3)
    solver = batched(factory=make_model, workers=1, executor="process")
    assert torch.equal(solver(theta), (theta > 0).float())
    with pytest.raises(TypeError, match="one cannot be sent"):
        solver(theta, threading.Lock())
    assert torch.equal(solver(-theta), (theta < 0).float())


def run_script(tmp_path, text, *arguments):
    """Start a script in a session of its own."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text))
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    )


INTERRUPTED = """
    import signal, sys, time
    import torch
    from imle.solvers import batched

    def solver(theta):
        if theta[0]:
            print("solving\\n", end="", flush=True)
        if theta[0] == 1:
            time.sleep(60)
        end = time.monotonic() + 60
        while theta[0] == 2 and time.monotonic() < end:
            torch.zeros(9) + 1
        return theta

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
        executor, *values = sys.argv[1:]
        lifted = batched(solver, workers=len(values), executor=executor)
        theta = torch.tensor([[float(value)] for value in values])
        try:
            lifted(theta)
        except KeyboardInterrupt:
            print("back", flush=True)
        if executor == "thread":
            print(lifted(0 * theta).tolist(), flush=True)
            lifted(theta)
"""


@pytest.mark.parametrize("executor, values", [("thread", "12"), pytest.param("process", "1", marks=pytest.mark.slow)])
def test_ctrl_c_returns_while_solvers_run_and_the_interpreter_ends_without_them(tmp_path, executor, values):
    program = run_script(tmp_path, INTERRUPTED, executor, *values)
    try:
        interrupt(program, len(values))
        assert program.stdout.readline() == "back\n"
        if executor == "thread":
            assert program.stdout.readline() == "[[0.0], [0.0]]\n"
            interrupt(program, len(values))
        _, errors = program.communicate(timeout=40)  # of the 60 seconds that they run
    finally:
        program.kill()
        program.wait()
    if executor == "process":
        assert (program.returncode, errors) == (0, "")
    else:
        assert program.returncode == -signal.SIGINT, errors
        # Main's own traceback, which may go on from the end of a wait, and none of a worker's.
        assert "Exception" not in errors and errors.endswith("KeyboardInterrupt\n"), errors
        assert errors.count("KeyboardInterrupt\n") == 1, errors


def interrupt(program, solvers):
    """Press Ctrl-C once all solvers run."""
    for _ in range(solvers):
        assert program.stdout.readline() == "solving\n"
    os.killpg(program.pid, signal.SIGINT)


@pytest.mark.parametrize("workers", ["2", pytest.param("processes", marks=pytest.mark.slow)])
def test_a_solver_of_tensors_needs_no_numpy(tmp_path, workers):
    text = """
        import sys
        sys.modules["numpy"] = None  # in the worker processes, too
        import torch
        from imle.aimle import aimle
        from imle.solvers import batched

        def double(theta, row, ids):
            assert isinstance(row, torch.Tensor) and isinstance(ids, int)
            return 2 * theta if len(theta) == 2 else [2 * x for x in theta.tolist()]

        if __name__ == "__main__":
            workers = sys.argv[1]
            options = {"workers": 1, "executor": "process"} if workers == "processes" else {"workers": int(workers)}
            solver = batched(double, instance="torch", **options)
            for n in (2, 3):
                theta = torch.randn(5, n).bfloat16()
                assert torch.equal(solver(theta, torch.arange(5), list(range(5))), 2 * theta)
            aimle(solver)(torch.randn(5, 2, requires_grad=True), torch.arange(5), list(range(5))).sum().backward()
            try:
                batched(double)(torch.zeros(1, 1))
            except ImportError as error:
                print(error)
        """
    out, errors = run_script(tmp_path, text, workers).communicate(timeout=120)
    assert out == "instances in numpy need numpy: install it, or use batched(..., instance='torch')\n", errors


@pytest.mark.slow
def test_a_main_script_that_does_not_guard_its_calls_is_told_so(tmp_path):
    text = """
        import torch
        from imle.solvers import batched

        def same(theta):
            return theta

        batched(same, workers=1, executor="process")(torch.zeros(2, 2))
        """
    _, errors = run_script(tmp_path, text).communicate(timeout=120)
    assert "did not start" in errors and "not under `if __name__ == '__main__':`" in errors


# Progress


class Bar(contextlib.AbstractContextManager):
    """Stands for tqdm, and keeps what was shown."""

    made = None

    def __init__(self, total, **options):
        Bar.made, self.total, self.options, self.solved, self.closed = self, total, options, 0, False

    def update(self, n=1):
        self.solved += n

    def __exit__(self, *_):
        self.closed = True


@pytest.mark.parametrize("workers", [0, 2])
def test_progress_counts_solved_instances_on_a_terminal(monkeypatch, workers):
    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=Bar))
    batched(one_hot, workers=workers, progress=True)(torch.zeros(7, 2))
    assert (Bar.made.total, Bar.made.solved, Bar.made.closed) == (7, 7, True)
    assert Bar.made.options["desc"] == "one_hot" and Bar.made.options["disable"] is None


def test_progress_needs_tqdm_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="needs tqdm"):
        batched(one_hot, progress=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_instance_that_is_skipped_gets_no_gradient_and_moves_no_state(workers):
    theta, c = torch.rand(4, 6), torch.randn(4, 6)
    theta[1] = -1.0
    kept = [0, 2, 3]

    def gradient(solver, theta, c):
        target = AdaptiveTargetDistribution(initial_beta=4.0, target_norm=3.0)
        theta = theta.clone().requires_grad_()
        (aimle(solver, target_distribution=target)(theta) * c).sum().backward()
        return theta.grad, target

    def solver(theta):
        if (theta == -1).all():
            raise KeyError("infeasible")
        return theta >= np.sort(theta)[-2]

    with pytest.warns(UserWarning, match="row 1 of 4"):
        grad, target = gradient(batched(solver, workers=workers, on_error="skip"), theta, c)
    expected, alone = gradient(batched(solver), theta[kept], c[kept])
    assert (grad[1] == 0).all() and grad.any()
    torch.testing.assert_close(grad[kept], expected)
    assert target.beta == alone.beta
