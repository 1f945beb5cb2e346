"""A device that exists in name only: what code would do on a GPU, seen without one.

torch lets a backend be registered under a name, and its fake tensors have a device, a shape and a dtype, but no
numbers. So an operation that mixes devices, or asks for a number, is an error, and a mode above them sees each copy
between device and host, in forward and backward passes. All this is about places: it is blind to numbers, to memory,
to streams, and to waits inside of an operation, such as a check of its arguments.

A case is a function without arguments: it makes what it needs on `DEVICE`, and returns a step, a function as well. A
step runs twice, and the second time counts: by then tables have been copied, and buffers have gone to the device.
A test's module keeps its cases in dicts and asks `faults(__name__, "CASES")`; for cases in a dict WITHOUT_FLOAT64 the
device knows no float64. They run in a process of their own, for a backend's name, and tables of fake tensors that are
kept for later, are there for good; the module's `prepare()`, if there is one, is called before.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Case = Callable[[], Callable[[], object]]

DEVICE = "fakegpu"
EXISTS = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")  # since torch 2.9
ROOT = Path(__file__).parent.parent
# they take indices from another device, by a copy for which the host waits
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Fakes(FakeTensorMode):
    """Fake tensors of a device that has nothing to start."""

    avoid_device_init = True


class Watch(TorchDispatchMode):
    """Writes down what fake tensors allow and a GPU does not like."""

    def __init__(self, float64: bool):
        super().__init__()
        self.float64, self.faults = float64, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        name, given, made = func.overloadpacket.__name__, tensors((args, kwargs)), tensors(answer)
        if name == "copy_" and on_device(given[0]) != on_device(given[1]):
            self.note("copies between host and device")
        elif name in INDEXING and on_device(given[0]) and not all(map(on_device, given)):
            self.note("copies indices from the host")
        elif given and any(map(on_device, given)) != any(map(on_device, made)) and made:
            self.note("copies to the host" if on_device(given[0]) else "copies from the host")
        if not self.float64 and any(on_device(tensor) and tensor.dtype == torch.float64 for tensor in made):
            self.note(f"{name} makes float64")
        return answer

    def note(self, fault: str) -> None:
        self.faults.append(f"{fault}, {place(traceback.extract_stack())}")


def tensors(nested: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, torch.Tensor)]


def on_device(tensor: torch.Tensor) -> bool:
    return tensor.device.type == DEVICE


def place(stack: traceback.StackSummary) -> str:
    """Return the innermost line of ours."""
    for line in reversed(stack):
        path = Path(line.filename)
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts and line.filename != __file__:
            return f"{path.relative_to(ROOT)}:{line.lineno}: {line.line}"
    return "in torch's own backward pass"


def faults_of(case: Case, float64: bool) -> list[str]:
    """Return what the second run of a case's step does that a GPU would not like; for the process that has one."""
    watch = Watch(float64)
    with Fakes(allow_non_fake_inputs=True):
        try:
            step = case()
            with contextlib.suppress(Exception):  # it will come again
                step()
            with watch:
                step()
        except Exception as error:
            watch.faults.append(f"{type(error).__name__}: {error}, {place(traceback.extract_tb(error.__traceback__))}")
    return list(dict.fromkeys(watch.faults))


def faults(module: str, *collections: str) -> dict[str, list[str]]:
    """Return what is wrong with each case of some dicts of a module, by the case's name; with most, nothing."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.fake_device", module, *collections]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    # an error in a hook of a tensor ends the process: torch calls the device's guard while it is on its way
    assert done.returncode == 0, f"{done.stderr} in the case after {list(found)[-1:]}"
    return found


if __name__ == "__main__":
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    torch.set_num_threads(1)
    module = importlib.import_module(sys.argv[1])
    getattr(module, "prepare", lambda: None)()
    for collection in sys.argv[2:]:
        for name, case in getattr(module, collection).items():
            float64, words = (False, ", without float64") if collection == "WITHOUT_FLOAT64" else (True, "")
            print(json.dumps((name + words, faults_of(case, float64))), flush=True)
    os._exit(0)  # torch's thread of this device does not survive an orderly end, now and then
