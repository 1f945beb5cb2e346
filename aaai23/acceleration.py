"""In which precision networks compute. Everything else stays in float32.

The discrete layer, its theta, the adaptive state, the losses and their divergences are not networks: they are small,
and a choice that flips for want of digits is another gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from aaai23.errors import UsageError


def accelerate(networks: Iterable[nn.Module], precision: str, device: torch.device) -> None:
    """Make networks compute in a precision; inputs, outputs and weights stay float32.

    With float32 they are left as they are. `state_dict()` is the same in any case.

    Args:
        networks: modules on `device` whose `forward` returns one tensor.
        precision: "float32"; "bf16": matrix products and convolutions in bfloat16; "tf32": on GPUs, in 19 bits.
        device: where they compute.

    Raises:
        UsageError: the precision does not exist on the device.
    """
    _set_matrix_products(precision, device)
    for network in networks:
        if precision == "bf16":
            network.forward = _in_bfloat16(network.forward, device.type)


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
