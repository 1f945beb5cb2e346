"""Who calls: what an estimator must know when torch runs its forward or backward pass more than once.

torch has no public question for this, so the stack is read: a few microseconds.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import MutableMapping
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

_TORCH = Path(torch.__file__).parent
_CHECKPOINTING = str(_TORCH / "utils" / "checkpoint.py")
_JACOBIANS = str(_TORCH / "autograd" / "functional.py")
_MOST_STATES = 1024  # 5 KB each

# for each generator of somebody's own, its state before each draw that may be repeated, under the draw's name; None
# where two draws have one name, since torch's own generator was seeded alike for both
_states: MutableMapping[torch.Generator, OrderedDict[int, Tensor | None]] = (
    WeakKeyDictionary() if torch.Generator.__weakrefoffset__ else {}  # torch 2.4 has no weak references to generators
)


def _called_from(file: str) -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == file:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def differentiated_row_by_row() -> bool:
    """Whether a Jacobian is being taken, by `torch.func` or `torch.autograd.functional`: many backward passes in one.

    An adaptive state must not move between the rows of one Jacobian.
    """
    return torch._C._are_functorch_transforms_active() or _called_from(_JACOBIANS)


def repeatable(generator: torch.Generator | None) -> torch.Generator | None:
    """Return what to draw from, so that `torch.utils.checkpoint` repeats a draw in the backward pass.

    It restores torch's own random state for the second run of a forward pass, and no other. A number drawn from that
    state therefore names the draw: what is drawn first leaves the generator's state under it, the repetition finds it.

    Raises:
        RuntimeError: the first run of the forward pass is not known.
    """
    if generator is None or not _called_from(_CHECKPOINTING):
        return generator
    name = int(torch.randint(2**62, (), device="cpu"))
    if torch._C._current_graph_task_id() == -1:  # not inside a backward pass: the first run
        states = _states.setdefault(generator, OrderedDict())
        state = generator.get_state()
        earlier = states.get(name, state)
        states[name] = state if earlier is not None and torch.equal(earlier, state) else None
        if len(states) > _MOST_STATES:
            states.popitem(last=False)
        return generator
    found = _states.get(generator, OrderedDict()).get(name)
    if found is None:
        raise RuntimeError(
            "torch.utils.checkpoint cannot repeat a draw from a generator of your own here: keep preserve_rng_state at "
            "True, do not seed torch's own generator alike for two draws, and have at most "
            f"{_MOST_STATES} such draws between a forward and its backward pass"
        )
    return torch.Generator(generator.device).set_state(found)
