"""Keep a function out of compiled graphs, and tensors in a cache, without loading the compiler where none is asked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from imle._numerics import traces

P = ParamSpec("P")
R = TypeVar("R")

REASON = (
    "imle breaks the graph on purpose, for a solver and its gradient run as they are: compile without fullgraph=True, "
    "or compile what comes before and after"
)
_TAKES_REASON = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function, which under `torch.compile` makes a graph break and runs as it is.

    Where a graph must be whole, `fullgraph=True`, torch's error says why. `torch.export` traces through the function.

    `torch.compiler.disable` as a decorator would import torch's compiler, about a second, wherever `imle` is imported.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            if _TAKES_REASON:
                torch._dynamo.graph_break(msg=REASON)
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return wrapper


def kept(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function of tensors that keeps its last 64 answers, but none that is made while torch traces.

    What is made under `torch.export`, `make_fx`, a fake mode or a transform of `torch.func` stands for numbers, and
    would stand in the way of every later call.
    """
    cached = functools.lru_cache(maxsize=64)(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        traced = torch.compiler.is_compiling() or traces() or torch._C._are_functorch_transforms_active()
        with torch.inference_mode(False), torch.no_grad():
            return (function if traced else cached)(*args, **kwargs)  # type: ignore[arg-type]

    return wrapper
