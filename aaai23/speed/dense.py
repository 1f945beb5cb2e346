"""Dense layers by the fastest product that torch has on a CPU.

torch's `linear` goes to MKL, which on AMD processors with AVX-512 reaches about half of what oneDNN does; and torch
hands convolutions to oneDNN. So there a dense layer is a convolution of width 1. With AVX2 alone both are equally fast,
but oneDNN's gradient of the weights takes three times as long as MKL's (Zen 3, torch 2.13): `linear` it is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

relu_backward = torch.ops.aten.threshold_backward  # (gradient, output, 0): one pass, where a boolean mask takes two
_ONEDNN_PAYS = torch.backends.cpu.get_cpu_capability() == "AVX512"


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b, `[..., k]` to `[..., m]`: torch's `linear`, but for float rounding."""
    if not _goes_to_onednn(x):
        return F.linear(x, weight, bias)
    image = F.conv2d(_as_image(x.reshape(-1, x.shape[-1])), weight[:, :, None, None], bias)
    return image.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def dense_weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of W in `dense`, grad^T x, from `[K, k]` and `[K, m]`."""
    if not _goes_to_onednn(x):
        return grad.T @ x
    return conv2d_weight(_as_image(x), [grad.shape[1], x.shape[1], 1, 1], _as_image(grad)).flatten(1)


def _goes_to_onednn(x: Tensor) -> bool:
    return _ONEDNN_PAYS and x.device.type == "cpu" and x.numel() > 0


def _as_image(rows: Tensor) -> Tensor:
    """View rows `[K, k]` as channels-last images `[N, k, K/N, 1]`."""
    # On one thread torch takes oneDNN for 16 images or more, and oneDNN likes few large ones.
    images = next((n for n in range(16, 64) if len(rows) % n == 0), 1)
    return rows.reshape(images, len(rows) // images, 1, rows.shape[1]).permute(0, 3, 1, 2)
