"""In which precision networks compute. Everything else stays in float32.

The discrete layer, its theta, the adaptive state, the losses and their divergences are not networks: they are small,
and a choice that flips for want of digits is another gradient.
"""

from collections.abc import Iterable

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
    if device.type == "cuda":  # torch has one setting for the process
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"  # torch's default rounds in convolutions
    elif precision == "tf32":
        raise UsageError(f"--precision tf32 exists on GPUs alone, and this is a {device.type}: choose float32 or bf16")
    if precision == "bf16":
        for network in networks:
            network.forward = torch.autocast(device.type, torch.bfloat16)(network.forward)
            network.register_forward_hook(_in_float32)


def _in_float32(network: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.float()
