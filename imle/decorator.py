"""How an estimator becomes a function in three spellings: `@aimle`, `@aimle(options)`, `aimle(solver, options)`."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from types import ModuleType
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

from imle.noise import BaseNoiseDistribution
from imle.perturb_and_map import Estimator
from imle.solver import DifferentiableSolver
from imle.target import BaseTargetDistribution

Options = ParamSpec("Options")
Arguments = ParamSpec("Arguments")
Output = TypeVar("Output")


class Decorator(Protocol[Options, Output]):
    """What `aimle`, `imle`, `ste` and `sfe` are: one function in three spellings."""

    @overload
    def __call__(
        self, function: Callable[Arguments, Any], /, *args: Options.args, **kwargs: Options.kwargs
    ) -> DifferentiableSolver[Arguments, Output]: ...
    @overload
    def __call__(
        self, function: None = None, /, *args: Options.args, **kwargs: Options.kwargs
    ) -> Estimator[Output]: ...
    def __call__(self, function: Any = None, /, *args: Options.args, **kwargs: Options.kwargs) -> Any:
        """Decorate a solver, or return the estimator that does."""
        ...


def decorator(name: str, estimator: Callable[Options, Estimator[Output]]) -> Decorator[Options, Output]:
    """Return the function `name` that serves `@name`, `@name(options)` and `name(solver, options)`.

    It has the estimator's docstring, with those of its bases for the options that they share. Where the module has the
    same name, calling it is calling the function: `from imle import aimle` finds either.
    """

    def decorate(function: Any = None, /, **options: Any) -> Any:
        if isinstance(function, BaseTargetDistribution | BaseNoiseDistribution) or (
            hasattr(function, "sample") and not callable(function)
        ):
            raise TypeError(f"give options by name, such as noise_distribution=...; {function!r} stands for the solver")
        for option in options.keys() - parameters.keys():
            near = difflib.get_close_matches(option, parameters, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its options are {', '.join(parameters)}"
            raise TypeError(f"{name} has no option {option}: {hint}")
        missing = [option for option, its in parameters.items() if its.default is its.empty and option not in options]
        if missing:
            raise TypeError(f"{name} needs {', '.join(missing)}: see help({name})")
        made: Any = estimator(**options)  # type: ignore[call-arg]
        return made if function is None else made(function)

    kind = cast(type, estimator)
    made_anew = {field.name: field.default_factory() for field in fields(kind) if field.default_factory is not MISSING}
    parameters = {
        option: its.replace(default=made_anew.get(option, its.default))
        for option, its in inspect.signature(kind).parameters.items()
    }
    solver = inspect.Parameter("function", inspect.Parameter.POSITIONAL_ONLY, default=None)
    shared = [base for base in kind.__mro__[1:] if issubclass(base, Estimator)]
    decorate.__name__ = decorate.__qualname__ = name
    decorate.__module__ = kind.__module__
    decorate.__doc__ = "\n\n".join(
        [inspect.getdoc(kind) or "", *(inspect.cleandoc(base.__doc__ or "") for base in shared)]
    )
    decorate.__signature__ = inspect.Signature([solver, *parameters.values()])  # type: ignore[attr-defined]
    if kind.__module__ == f"imle.{name}":
        sys.modules[kind.__module__].__class__ = _CallableModule
    return cast(Any, decorate)


class _CallableModule(ModuleType):
    """A module that is called as the function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)
