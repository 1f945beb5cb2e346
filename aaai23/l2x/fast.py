"""The networks of `aaai23.l2x.model` for a CPU: the same numbers, sooner.

Most of a batch is padding, which goes through the convolutions once a review instead of once a position.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aaai23.l2x import model
from aaai23.speed.dense import dense


class Selector(model.Selector):
    """The selector on packed reviews; away from a CPU, where packing would wait for the device, as it is."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores `[B, T]` of word ids `[B, T]`."""
        if tokens.device.type != "cpu":
            return super().forward(tokens)
        packing = pack(tokens, self.conv_in.kernel_size[0])
        words = F.embedding(packing.tokens, self.embedding) * packing.real[:, None]
        real = packing.real.to(words.dtype)[:, None]
        first = hidden = _convolve(words[None], self.conv_in, real)
        for convolution in self.conv_local:
            hidden = _convolve(hidden, convolution, real)
        # separators are 0, and so is the least value after a ReLU: they cannot change a maximum
        whole = torch.stack([review.amax(dim=0) for review in first[0].split(packing.sizes)])
        whole, local = F.relu(self.dense_global(whole)), F.embedding(packing.position, hidden[0])
        features = torch.cat([whole.unsqueeze(1).expand_as(local), local], dim=2)
        features = dropout(features, self.dropout.p, self.dropout.training)
        return self.score(F.relu(dense(features, self.hidden.weight, self.hidden.bias))).squeeze(2)


class Packing(NamedTuple):
    """Reviews one after another, each without most of its padding; see `pack`.

    Args:
        tokens: `[L]`, word ids of all kept positions, separators between reviews included.
        real: `[L]`, True at kept positions, False at separators.
        position: `[B, T]`, where in `[L]` each position of each review finds its value.
        sizes: of the B pieces of `[L]`, their separators included.
    """

    tokens: Tensor
    real: Tensor
    position: Tensor
    sizes: list[int]


def pack(tokens: Tensor, kernel_size: int, layers: int = 3) -> Packing:
    """Drop the padding in front of reviews that no convolution can tell apart.

    Padding `reach` or more positions away from a review's first word and from the border carries one and the same
    value through a stack of convolutions: one such position stands for all of them.

    Args:
        tokens: `[B, T]` word ids, 0 in front of a review that is shorter than T.
        kernel_size: of each convolution.
        layers: number of convolutions.
    """
    length = tokens.shape[1]
    reach = layers * (kernel_size - 1)
    where = torch.arange(length)
    padding = (tokens != 0).int().argmax(dim=1, keepdim=True)
    dropped = (padding - (2 * reach + 1)).clamp(min=0)
    # positions 0..reach stay, `dropped` ones after them go
    local = torch.where(where <= reach, where, (where - dropped).clamp(min=reach))
    sizes = length - dropped[:, 0] + (kernel_size - 1)
    position = local + (sizes.cumsum(0) - sizes)[:, None]
    total = int(sizes.sum())
    packed = tokens.new_zeros(total)
    packed[position] = tokens
    real = torch.zeros(total, dtype=torch.bool)
    real[position] = True
    return Packing(packed, real, position, sizes.tolist())


def _convolve(x: Tensor, convolution: nn.Module, real: Tensor) -> Tensor:
    """Return the convolution and ReLU of `[B, L, C]`, 0 where `real` `[L, 1]` is; channels-last, as CPUs like it."""
    assert isinstance(convolution, nn.Conv1d)
    y = F.conv2d(x.mT.unsqueeze(2), convolution.weight.unsqueeze(2), convolution.bias, padding="same")
    return F.relu(y).squeeze(2).mT * real


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Return `x` with a share p of its numbers replaced by zero (training), or as it is; for tensors on a CPU.

    It asks for sixteen random bits a number, a quarter of what torch takes. p is rounded to a multiple of 2**-16, and
    the kept numbers are scaled by just that.
    """
    if not training:
        return x
    cut = round(p * 2**16)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    return x * ((bits >= cut - 2**15) * (2**16 / (2**16 - cut)))
