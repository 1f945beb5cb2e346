"""The state of a module that learns by tiny steps: a handful of numbers that nothing rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from imle._numerics import exact_dtype


class ExactState(nn.Module):
    """A module whose buffers are numbers in the most exact dtype of their device, whatever becomes of the model.

    `.half()` or `.to(bfloat16)` on a whole model would round them, and steps of 1e-4 would vanish. So would FSDP1's
    `buffer_dtype`, which casts by `buffer.data = ...` behind the module's back: the memory that the buffers had before
    is kept, and put back. A subclass fills them in `reset_parameters`.
    """

    _kept: dict[str, tuple[Tensor, torch.UntypedStorage]]  # a buffer, and the memory that it is to have

    def register_numbers(self, *names: str) -> None:
        """Register 0-dimensional buffers."""
        for name in names:
            self.register_buffer(name, torch.zeros(()))
        self._keep()

    def reset_parameters(self) -> None:
        """Set the state to its start."""
        raise NotImplementedError

    def restore(self) -> None:
        """Undo what was done to the buffers by `buffer.data = ...`, apart from a move to another device."""
        for name, (buffer, memory) in self._kept.items():
            if self._buffers[name] is buffer and buffer.untyped_storage()._cdata != memory._cdata:
                exact = torch.empty((), dtype=exact_dtype(memory.device), device=memory.device).set_(memory, 0, (), ())
                buffer.data = exact.to(buffer.device)
                self._kept[name] = buffer, buffer.untyped_storage()

    def _keep(self) -> None:
        self._kept = {}
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer = buffer.to(exact_dtype(buffer.device))
                if not torch._C._functorch.is_functorch_wrapped_tensor(buffer):
                    self._kept[name] = buffer, buffer.untyped_storage()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.restore()
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        device = fn(torch.zeros((), device=next(iter(before.values())).device)).device
        if exact_dtype(device) == torch.float32:  # it must not be sent any float64
            before = {name: buffer.float() for name, buffer in before.items()}
            self._buffers.update(before)
        super()._apply(fn, recurse)
        for name, exact in before.items():
            if not exact.is_meta:
                self._buffers[name] = exact.to(device)
        self._keep()
        if all(buffer.is_meta for buffer in before.values()) and device.type != "meta":
            self.reset_parameters()  # what memory was given instead of nothing holds no state yet
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.restore()
        super()._load_from_state_dict(*args, **kwargs)
        self._keep()  # assign=True brings buffers of any dtype

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.restore()
        super()._save_to_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self.restore()
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._keep()
