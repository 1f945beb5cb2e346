"""Training steps that a GPU replays.

A step of these tasks is 200 to 1,900 small kernels, and Python takes longer to start them than the GPU to run them. A
CUDA graph holds them all and is started by one call: the same kernels, and the random numbers move on.
"""

import functools
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_WARM_UP = 3
"""Steps before the one that is recorded: libraries start, tables go to the device, the optimiser makes its state."""


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream on which steps are recorded: libraries keep memory for each stream that they have seen."""
    return torch.cuda.Stream(device)


class TrainingStep:
    """Forward pass, backward pass and update, called with the tensors of a batch.

    On a GPU the first three steps are Python's, and three after each change of shapes, learning rates or `fixed`; the
    others are replayed. All else that changes from step to step must live in tensors that are written in place: what
    Python holds stays what it was when the step was recorded.

    Args:
        optimiser: made with `fused=True` on a GPU, and told here whether its steps are recorded.
        loss: the tensors of a batch -> their loss, 0-dimensional. Nothing in it waits for the GPU.
        replay: False leaves every step to Python, for those that look at numbers.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, loss: Callable[..., Tensor], replay: bool = True):
        self._optimiser, self._loss = optimiser, loss
        parameters = (parameter for group in optimiser.param_groups for parameter in group["params"])
        self._device = next(parameters).device
        self._replay = replay and self._device.type == "cuda"
        for group in optimiser.param_groups:
            group["capturable"] = self._replay
        self._condition: Hashable = None
        self._warm = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: list[Tensor] = []
        self._recorded = torch.empty(0)

    def __call__(self, *batch: Tensor, fixed: Hashable = None) -> Tensor:
        """Take one step; returns its loss, detached.

        Args:
            batch: what `loss` is called with.
            fixed: a number that `loss` depends on beside its arguments.
        """
        if not self._replay:
            return self._step(*batch)
        rates = tuple(group["lr"] for group in self._optimiser.param_groups)
        condition = (fixed, rates, *(x.shape for x in batch))
        if condition != self._condition:
            self._condition, self._warm, self._graph = condition, 0, None
        if self._warm < _WARM_UP:
            self._warm += 1
            return self._aside(*batch)
        if self._graph is None:
            self._record(*batch)
        assert self._graph is not None
        for mine, given in zip(self._batch, batch, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._recorded.clone()

    def _step(self, *batch: Tensor) -> Tensor:
        loss = self._loss(*batch)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        return loss.detach()

    def _aside(self, *batch: Tensor) -> Tensor:
        """Take a step on a stream of its own, as one that is recorded will."""
        here, aside = torch.cuda.current_stream(self._device), _stream(self._device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            loss = self._step(*batch)
        here.wait_stream(aside)
        return loss

    def _record(self, *batch: Tensor) -> None:
        self._batch = [x.clone() for x in batch]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=_stream(self._device)):  # nothing runs here
            self._recorded = self._step(*self._batch)
        self._graph = graph
