"""A solver of one instance, lifted to batches: alone, in threads and in processes."""

import contextlib
import copy
import inspect
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import types
import warnings
from pathlib import Path

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
    make_model,
    process_id,
)

POOLS = {"none": {}, "threads": {"workers": 2}, "processes": {"workers": 1, "executor": "process"}}
in_a_process = pytest.param("processes", marks=pytest.mark.slow)


def one_hot(theta):
    z = np.zeros_like(theta)
    z[theta.argmax()] = 1
    return z


def one_hot_in_torch(theta):
    assert isinstance(theta, torch.Tensor)
    return torch.nn.functional.one_hot(theta.argmax(), len(theta))


def assignment(theta):
    z = np.zeros_like(theta)
    z[linear_sum_assignment(theta, maximize=True)] = 1
    return z


@batched(workers=1, executor="process")
def decorated(theta, scale):
    return scale * one_hot(theta)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "solver, instance",
    [(one_hot, "numpy"), (lambda theta: one_hot(theta).tolist(), "numpy"), (one_hot_in_torch, "torch")],
)
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

    theta = torch.randn(4, 3)
    for lifted in (bare, batched(workers=2)(one_hot)):
        assert torch.equal(lifted(theta), select_k(theta, 1))
    assert (bare.__name__, bare.__doc__) == ("bare", "Say hello.")


def test_a_lifted_solver_prints_its_solver_and_the_options_that_are_not_the_defaults():
    assert repr(batched(one_hot)) == "batched(one_hot)"
    lifted = batched(one_hot, workers=2, on_error="skip", minimises=False)
    assert repr(lifted) == "batched(one_hot, workers=2, on_error='skip', minimises=False)"
    assert repr(batched(factory=make_model)) == "batched(factory=make_model)"
    assert "workers" in inspect.signature(batched).parameters


def test_a_lifted_solver_minimises_if_its_solver_does_or_the_option_says_so():
    def cheapest(theta):
        return -one_hot(-theta)

    assert batched(cheapest).minimises is None and batched(factory=make_model).minimises is None
    assert batched(cheapest, minimises=True).minimises is True
    cheapest.minimises = True
    for lifted in (batched(cheapest), batched(cheapest, minimises=True), batched(batched(cheapest))):
        assert lifted.minimises is True
    with pytest.raises(ValueError, match="contradicts"):
        batched(cheapest, minimises=False)


def test_a_lifted_solver_keeps_the_shape_of_its_instances():
    theta = torch.randn(3, 4, 4, dtype=torch.float64)
    z = batched(assignment)(theta.mT.contiguous().mT)
    assert z.shape == theta.shape
    assert torch.equal(z.sum(1), torch.ones(3, 4)) and torch.equal(z.sum(2), torch.ones(3, 4))
    assert torch.equal(z, batched(assignment, workers=2)(theta))
    assert batched(assignment)(torch.zeros(0, 4, 4)).shape == (0, 4, 4)
    assert batched(lambda x: x > 0)(torch.tensor([0.5, -0.5])).tolist() == [1.0, 0.0]
    assert torch.equal(batched(lambda x: x[::-1])(theta), theta.flip(1))


# Arguments


@pytest.mark.parametrize("instance", ["numpy", "torch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_instance_gets_its_own_item_of_tensors_arrays_lists_tuples_and_dicts(instance, workers):
    seen = {}

    @batched(instance=instance, workers=workers)
    def solver(theta, rows, problem, table, *, columns, word):
        seen[int(theta[0])] = rows, problem, table, columns, word
        return theta

    table = torch.ones(4, 3)
    columns = {"sizes": (7, 8, 9), "costs": torch.arange(6).view(3, 2), "ids": np.arange(3), "pair": shared([1, 2])}
    problems = [types.SimpleNamespace(name=name) for name in "abc"]
    solver(torch.arange(3.0)[:, None], torch.arange(6).view(3, 2), problems, shared(table), columns=columns, word="xyz")
    for i in range(3):
        rows, problem, found, columns, word = seen[i]
        assert isinstance(rows, torch.Tensor) == isinstance(columns["costs"], torch.Tensor) == (instance == "torch")
        assert rows.tolist() == columns["costs"].tolist() == [2 * i, 2 * i + 1]
        assert (problem.name, word) == ("abc"[i], "xyz") and torch.equal(found, table)
        assert (columns["sizes"], int(columns["ids"]), columns["pair"]) == (7 + i, i, [1, 2])


def scribble_on_everything(theta, *args, pair, named):
    """Return theta + 1, written on theta, if this instance sees all arguments as they were, and write on them all."""
    arrays = [*args, *pair, *named.values()]
    intact = all((array == 5).all() for array in arrays)
    for array in arrays:
        array[...] = -1
    theta[...] = theta + 1 if intact else np.nan
    return theta


@pytest.mark.parametrize("instance", ["numpy", "torch"])
@pytest.mark.parametrize("pool", POOLS)
def test_a_lifted_solver_may_write_on_all_its_arguments_and_the_callers_stay_as_they_are(instance, pool):
    def fives(*shape):
        return torch.full(shape, 5.0)

    owner, leaf, theta = fives(3, 2), fives(3, 2).requires_grad_(), torch.zeros(3, 2)
    own = [fives(3, 2), fives(3, 2).numpy(), owner.numpy(), fives(6, 4)[::2, ::2]]  # a row to each instance
    common = [fives(4), fives(4).numpy(), fives(4, 4)[1:].mT, leaf * 1]  # the same to each
    pair, named = [fives(3, 2), fives(4).numpy()], {"own": fives(3, 2), "common": fives(4)}
    solver = batched(scribble_on_everything, instance=instance, **POOLS[pool])
    assert torch.equal(
        solver(
            theta,
            *own,
            *map(shared, common),
            pair=[pair[0], shared(pair[1])],
            named=named | {"common": shared(named["common"])},
        ),
        torch.ones(3, 2),
    )
    assert all((each == 5).all() for each in [*own, *common, *pair, *named.values(), owner, leaf])
    assert torch.equal(theta, torch.zeros(3, 2))


def test_a_lifted_solver_may_use_one_buffer_for_all_its_results():
    buffer = torch.empty(3)
    theta = torch.randn(4, 3)
    assert torch.equal(batched(buffer.copy_, instance="torch")(theta), theta)


def test_what_is_shared_reaches_every_instance_as_it_is():
    seen, cache, table, problems = [], {}, torch.arange(3), ["a", "b", "c"]
    solver = batched(lambda theta, *args: seen.append(args) or theta)
    solver(torch.zeros(3, 2), shared(table), {"all": shared(problems)}, cache)
    assert len(seen) == 3
    for found, named, same in seen:
        assert torch.equal(found, table) and found is not table and named["all"] is problems and same is cache


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
    layer(theta, instance_ids=kind([15, 16])).square().sum().backward()
    assert cache == {15: {5}, 16: {6}}
    assert len(hits) > 6 and sum(hits) == len(hits) - 2
    with pytest.raises(ValueError, match="they are 3 for 2"):
        batched(solver)(theta, instance_ids=[1, 2, 3])


# Objects


class SolverWithAttributes:
    """Its attributes have the names of those of what lifts it, and of an estimator's options."""

    def __init__(self):
        for name in ("solver", "instance", "workers", "executor", "_pool", "_pool_owner", "_split", "_started_pool"):
            setattr(self, name, 3)
        self.__call__ = self.sample = self.theta = self.__wrapped__ = 3

    def __call__(self, theta):
        return one_hot(theta)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("solver", [one_hot, SolverWithAttributes()])
def test_a_lifted_solver_can_be_copied_and_pickled_and_leaves_its_pool_behind(solver, workers):
    theta = torch.randn(5, 4)
    lifted = batched(solver, workers=workers)
    assert torch.equal(lifted(theta), select_k(theta, 1)) and not hasattr(lifted, "sample")
    for twin in (copy.copy(lifted), copy.deepcopy(lifted), pickle.loads(pickle.dumps(lifted))):
        assert twin is not lifted
        assert torch.equal(twin(theta), select_k(theta, 1))
    assert torch.equal(aimle(lifted, target_distribution=TargetDistribution(beta=1.0))(theta), select_k(theta, 1))


@aimle(target_distribution=TargetDistribution(beta=1.0))
@batched
def largest_under_two_decorators(theta):
    return theta == theta.max()


def test_a_decorated_solver_is_pickled_by_name_also_under_another_decorator():
    for solver in (decorated, largest_under_two_decorators, largest_under_two_decorators.__wrapped__):
        assert pickle.loads(pickle.dumps(solver)) is solver
    assert copy.deepcopy(decorated) is decorated


# Threads


def test_without_workers_a_lifted_solver_solves_in_the_calling_thread():
    seen = []
    batched(lambda theta: seen.append(threading.get_ident()) or theta)(torch.zeros(3, 2))
    assert seen == 3 * [threading.get_ident()]


def test_threads_solve_at_the_same_time_are_used_again_and_end_with_their_solver():
    barrier, before = threading.Barrier(2), set(threading.enumerate())

    @batched(workers=2)
    def meet(theta):
        barrier.wait(timeout=30)
        return [threading.get_ident()]

    first, second = (meet(torch.zeros(2, 1, dtype=torch.float64)) for _ in range(2))
    assert len(first.unique()) == 2 and threading.get_ident() not in first
    assert torch.equal(first.unique(), second.unique())
    threads = set(threading.enumerate()) - before
    del meet
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_an_error_waits_for_no_thread_and_leaves_none_of_them_another_instance():
    held, solved, before = threading.Event(), [], set(threading.enumerate())

    @batched(workers=3)
    def solver(theta):
        if theta[0] == 0:
            raise KeyError("no such thing")
        if theta[0] < 9:
            held.wait(timeout=30)
            solved.append(int(theta[0]))
        return theta

    with pytest.raises(RuntimeError, match="instance 0: KeyError"):
        solver(torch.arange(9.0)[:, None])
    threads = set(threading.enumerate()) - before
    assert solver(torch.tensor([[9.0]])).tolist() == [[9.0]] and not solved
    held.set()
    del solver
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert len(solved) <= 3


def test_a_solver_that_exits_in_a_thread_exits():
    with pytest.raises(SystemExit, match="7"):
        batched(lambda theta: sys.exit(7), workers=2)(torch.zeros(4, 2))


@pytest.mark.gpu
def test_a_lifted_solver_solves_what_is_on_a_gpu():
    theta = torch.randn(50, 20)
    assert torch.equal(batched(one_hot, workers=2)(theta.cuda()).cpu(), select_k(theta, 1))


# Failures


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failure_names_the_instance_and_keeps_its_cause(workers):
    theta = torch.ones(9, 2)
    theta[6, 1] = -1.0
    with pytest.raises(RuntimeError, match="instance 6: KeyError: 'infeasible'") as caught:
        batched(refuses, workers=workers)(theta.flip(1))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_lifted_solver_refuses_results_that_do_not_fit_together():
    with pytest.raises(ValueError, match=r"shape \(2,\) for instance 2 and \(0,\) for instance 0"):
        batched(lambda x: x[x > 0])(torch.tensor([[-1.0, -1.0], [-1.0, -2.0], [1.0, 1.0]]))
    for result in (None, "text", [[1.0], [1.0, 2.0]]):
        with pytest.raises(RuntimeError, match=f"instance 0: TypeError: it returned {type(result).__name__}"):
            batched(lambda x, result=result: result)(torch.zeros(2, 2))


def test_batched_refuses_options_it_does_not_know():
    with pytest.raises(TypeError, match="function of one instance"):
        batched(3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'worker'"):
        batched(one_hot, worker=2)
    for options in [{"workers": -1}, {"executor": "gpu"}, {"instance": "jax"}, {"on_error": "previous"}]:
        with pytest.raises(ValueError, match="must be"):
            batched(one_hot, **options)
    with pytest.raises(ValueError, match="batch dimension"):
        batched(one_hot)(torch.tensor(1.0))
    for options in ({}, {"workers": 2}, {"executor": "process"}):
        with pytest.raises(ValueError, match="a thread cannot be ended from outside"):
            batched(one_hot, timeout=1.0, **options)
    for timeout in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive number of seconds"):
            batched(one_hot, timeout=timeout, workers=1, executor="process")


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
    with pytest.warns(UserWarning, match="rows 0, 1, 2 of 3"):
        z = solver(-torch.ones(3, 2))
    assert z.shape == (3, 2) and z.isnan().all()
    with pytest.warns(UserWarning, match="row 1 of 2"):
        z = batched(lambda x: x if x > 0 else np.nan, on_error="skip")(torch.tensor([1.0, -1.0]))
    assert z[0] == 1 and z[1].isnan()


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


# Solvers with a state


@pytest.mark.parametrize("workers", [0, 3])
def test_a_factory_makes_one_solver_for_each_thread(workers):
    made = []

    def make():
        made.append(threading.get_ident())
        return Model().solve

    theta = torch.randn(40, 3)
    solver = batched(factory=make, workers=workers)
    for _ in range(2):
        assert torch.equal(solver(theta), (theta > 0).float())
    if workers:
        assert 1 < len(made) == len(set(made)) <= 3 and threading.get_ident() not in made
    else:
        assert made == [threading.get_ident()]


@pytest.mark.parametrize("pool", ["none", "threads", in_a_process])
def test_a_factory_that_fails_says_so(pool):
    with pytest.raises(RuntimeError, match=r"could not be made.*: OSError: no licence"):
        batched(factory=no_licence, **POOLS[pool])(torch.zeros(4, 2))
    with pytest.raises(RuntimeError, match="must return a function of one instance; it returned 3"):
        batched(factory=make_nothing, **POOLS[pool])(torch.zeros(4, 2))
    with pytest.raises(TypeError, match="not both"):
        batched(one_hot, factory=make_model)
    with pytest.raises(TypeError, match="factory must be"):
        batched(factory=3)


def no_licence():
    raise OSError("no licence")


def make_nothing():
    return 3


# Processes


def test_processes_solve_and_fail_in_the_open(monkeypatch):
    theta = torch.randn(9, 4, dtype=torch.float64)
    for scale in (2.0, torch.arange(9.0), np.ones(9)):
        expected = torch.as_tensor(scale, dtype=theta.dtype).expand(9)[:, None] * select_k(theta, 1)
        assert torch.equal(decorated(theta, scale), expected)
    with pytest.raises(RuntimeError, match="instance 0: ValueError"):
        decorated(theta, shared(np.ones(3)))
    for solver, options in [(lambda x: x, {}), (Model().solve, {}), (None, {"factory": lambda: one_hot})]:
        with pytest.raises(TypeError, match=r"top level of a module.*batched\(factory=make_solver"):
            batched(solver, workers=1, executor="process", **options)(theta)
    solver = batched(factory=make_model, workers=1, executor="process")
    assert torch.equal(solver(theta), (theta > 0).double())
    with pytest.raises(TypeError, match="one cannot be sent"):
        solver(theta, threading.Lock())
    monkeypatch.setitem(sys.modules, "pebble", None)
    with pytest.raises(ImportError, match=r'pip install "adaptive-imle\[solvers\]"'):
        batched(one_hot, workers=1, executor="process")(theta)


@pytest.mark.slow
def test_processes_are_others_are_used_again_and_not_by_a_fork():
    solver = batched(process_id, workers=1, executor="process")
    first, second = (solver(torch.zeros(40, 1, dtype=torch.float64)) for _ in range(2))
    assert torch.equal(first, second) and len(first.unique()) == 1 and os.getpid() not in first
    if (child := os.fork()) == 0:
        other = solver(torch.zeros(1, 1, dtype=torch.float64))
        os._exit(int(other.item() in first))
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(solver(torch.zeros(40, 1, dtype=torch.float64)), first)
    in_torch = batched(one_hot_in_torch, instance="torch", workers=2, executor="process")
    theta = torch.randn(30, 4).bfloat16()
    assert torch.equal(in_torch(theta), select_k(theta, 1))


@pytest.mark.slow
def test_processes_that_die_or_run_over_cost_their_own_instance_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CHILD_FILE", str(tmp_path / "pid"))
    solver = batched(ends_sleeps_or_raises, workers=1, executor="process", timeout=3.0, on_error="skip")
    theta = torch.tensor([[1.0], [-1.0], [2.0], [-3.0], [-2.0], [3.0]])
    with pytest.warns(UserWarning, match=r"rows 1, 3, 4 of 6.*instance 1: the worker process ended .*\(exit code 3\)"):
        z = solver(theta)
    assert solver.failed.tolist() == [False, True, False, True, True, False]
    assert torch.equal(z[~solver.failed], theta[~solver.failed]) and z[solver.failed].isnan().all()
    with contextlib.suppress(FileNotFoundError):  # where it is not even dead and waited for
        assert Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    in_chunks = batched(ends_the_process_of_negative, workers=1, executor="process", on_error="skip")
    theta = torch.arange(20.0)[:, None]
    theta[7] = -1.0
    with pytest.warns(UserWarning, match="row 7 of 20"):
        z = in_chunks(theta)
    assert z[7].isnan() and torch.equal(z[in_chunks.failed.logical_not()], theta[theta >= 0][:, None])


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
    assert "ends_sleeps_or_raises" in str(caught.value.__cause__)


# Scripts


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


@pytest.mark.parametrize(
    "executor, seconds", [("thread", "33"), pytest.param("process", ["60"], marks=pytest.mark.slow)]
)
def test_ctrl_c_waits_for_no_solver_and_the_next_call_works(tmp_path, executor, seconds):
    text = """
    import signal, sys, time
    import torch
    from imle.solvers import batched

    def solver(theta):
        if theta[0]:
            print("solving\\n", end="", flush=True)
            time.sleep(float(theta[0]))
            print("solved\\n", end="", flush=True)
        return theta

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
        executor, *seconds = sys.argv[1:]
        lifted = batched(solver, workers=len(seconds), executor=executor)
        theta = torch.tensor([[float(each)] for each in seconds])
        try:
            lifted(theta)
        except KeyboardInterrupt:
            print("back", flush=True)
        print(lifted(0 * theta).tolist(), flush=True)
    """
    program = run_script(tmp_path, text, executor, *seconds)
    try:
        for _ in seconds:
            assert program.stdout.readline() == "solving\n"
        os.killpg(program.pid, signal.SIGINT)
        out, errors = program.communicate(timeout=40)
    finally:
        program.kill()
        program.wait()
    solved = len(seconds) * ["solved"] if executor == "thread" else []  # threads end by themselves, later
    assert out.split("\n")[:-1] == ["back", str([[0.0] for _ in seconds]), *solved]
    assert (program.returncode, errors) == (0, "")


@pytest.mark.parametrize("pool", ["threads", in_a_process])
def test_a_solver_of_tensors_needs_no_numpy(tmp_path, pool):
    text = f"""
        import sys
        sys.modules["numpy"] = None  # in the worker processes, too
        import torch
        from imle.aimle import aimle
        from imle.solvers import batched

        def double(theta, row, ids):
            assert isinstance(row, torch.Tensor) and isinstance(ids, int)
            return 2 * theta if len(theta) == 2 else [2 * x for x in theta.tolist()]

        if __name__ == "__main__":
            solver = batched(double, instance="torch", **{POOLS[pool]})
            for n in (2, 3):
                theta = torch.randn(5, n).bfloat16()
                assert torch.equal(solver(theta, torch.arange(5), list(range(5))), 2 * theta)
            aimle(solver)(torch.randn(5, 2, requires_grad=True), torch.arange(5), list(range(5))).sum().backward()
            try:
                batched(double)(torch.zeros(1, 1))
            except ImportError as error:
                print(error)
        """
    out, errors = run_script(tmp_path, text).communicate(timeout=120)
    assert out == "instances in numpy need numpy: install it, or use batched(..., instance='torch')\n", errors


@pytest.mark.slow
def test_a_script_keeps_its_calls_under_a_guard_and_is_told_so(tmp_path):
    text = """
        import torch
        from imle.solvers import batched

        @batched(workers=2, executor="process")
        def double(theta):
            print("solving")
            return 2 * theta

        if __name__ == "__main__":
            print(double(torch.ones(3, 2)).tolist())
        """
    out, errors = run_script(tmp_path, text).communicate(timeout=120)
    assert out == 3 * "solving\n" + "[[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]\n", errors
    _, errors = run_script(tmp_path, text.replace('__name__ == "__main__"', "True")).communicate(timeout=120)
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
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="needs tqdm"):
        batched(one_hot, progress=True)
