"""The processes of a data-parallel job, and the numbers that they share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


class Processes:
    """The processes whose batches together are one batch.

    A copy belongs to the same processes. Pickled, "world" is found again by its name.

    Args:
        group: "world", all processes of the job (one, where torch.distributed was not initialised), or a group.

    Raises:
        ValueError: the group has another name.
        TypeError: it is no process group, or this process is not in it.
    """

    def __init__(self, group: Any):
        if isinstance(group, str) and group != "world":
            raise ValueError(f"process_group must be 'world', a process group or None, not {group!r}")
        if group != "world" and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            raise TypeError(
                f"process_group must be 'world', a process group that this process is in, or None, not {group!r}"
            )
        self.group = group

    def gather(self, *numbers: Tensor) -> Tensor:
        """Return n 0-dimensional numbers of each of W processes, `[W, n]`, the same on all of them.

        Every process of the group must call, in the same order of calls.

        Raises:
            RuntimeError: under the transforms of `torch.func`, which cannot wait for other processes.
        """
        own = torch.stack(numbers)
        if not several():
            return own.unsqueeze(0)
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "torch.func cannot join the batches of several processes: take this gradient by .backward(), or with a "
                "target distribution whose process_group is None"
            )
        group = None if self.group == "world" else self.group
        rows = own.new_zeros(dist.get_world_size(group), len(numbers))
        rows[dist.get_rank(group)] = own
        dist.all_reduce(rows, group=group)  # a sum with zeros: exact, and any backend has it
        return rows

    def __deepcopy__(self, memo: dict) -> Processes:
        return self

    def __reduce__(self) -> tuple:
        if self.group != "world":
            raise TypeError(
                "a process group lives in its process and cannot be pickled: save state_dict(), or make the target "
                'with process_group="world"'
            )
        return Processes, ("world",)


def several() -> bool:
    """Whether this process is one of several that torch.distributed has joined."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
