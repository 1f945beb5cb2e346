"""How networks compute: in which precision, and compiled or not. Everything else stays in float32 and as it is.

The discrete layer, its theta, the adaptive state, the losses and their divergences are not networks: they are small,
and a choice that flips for want of digits is another gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from aaai23.errors import UsageError


def accelerate(networks: Iterable[nn.Module], precision: str, compiled: bool, device: torch.device) -> None:
    """Make networks compute in a precision, and compiled or not; inputs, outputs and weights stay float32.

    With float32 and not compiled, they are left as they are. `state_dict()` is the same in any case.

    Args:
        networks: modules on `device` whose `forward` returns one tensor.
        precision: "float32"; "bf16": matrix products and convolutions in bfloat16; "tf32": on GPUs, in 19 bits.
        compiled: whether `torch.compile` is to fuse them, at their first call.
        device: where they compute.

    Raises:
        UsageError: the precision does not exist on the device, or nothing can be compiled here.
    """
    _set_matrix_products(precision, device)
    if compiled:
        _check_compiler(device)
    for network in networks:
        if precision == "bf16":
            network.forward = _in_bfloat16(network.forward, device.type)
        if compiled:
            network.forward = torch.compile(_from_here(network.forward))


def _set_matrix_products(precision: str, device: torch.device) -> None:
    """Tell torch whether a GPU may round the factors of a float32 product; it has one setting for the process."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"  # torch's default rounds in convolutions
    elif precision == "tf32":
        raise UsageError(f"--precision tf32 exists on GPUs alone, and this is a {device.type}: choose float32 or bf16")


def _in_bfloat16(forward: Callable[..., Tensor], device_type: str) -> Callable[..., Tensor]:
    """Return `forward` under autocast, its result in float32; backward follows the precision of each operation."""

    @functools.wraps(forward)
    def wrapper(*args: object, **kwargs: object) -> Tensor:
        with torch.autocast(device_type, torch.bfloat16):
            return forward(*args, **kwargs).float()

    return wrapper


def _from_here(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `forward` as a function of this file: torch.compile passes over torch's own, as that of nn.Sequential."""

    def call(*args: object, **kwargs: object) -> Tensor:
        return forward(*args, **kwargs)

    # torch stops compiling a code object anew after a few times: no network may use up another's
    call.__code__ = call.__code__.replace()
    return functools.wraps(forward)(call)


def _check_compiler(device: torch.device) -> None:
    """Compile a function of one operation.

    Raises:
        UsageError: that fails; without a C++ compiler it does.
    """
    try:
        torch.compiler.reset()  # else the runs of one process share the number of times that torch compiles anew
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:  # each of torch's stages has its own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UsageError(
            f"--compile: torch cannot compile here ({reason}); install a C++ compiler (g++), or leave --compile out"
        ) from error
