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
        between = (packing.tokens == SEPARATOR).nonzero()[:, 0]
        first = hidden = F.relu(_convolve_words(packing.tokens, self.embedding, self.conv_in)).index_fill(0, between, 0)
        for convolution in self.conv_local:
            hidden = F.relu(_convolve(hidden, convolution)).index_fill(0, between, 0)
        # separators are 0, and so is the least value after a ReLU: they cannot change a maximum
        whole = torch.stack([review.amax(dim=0) for review in first.split(packing.sizes)])
        whole, local = F.relu(self.dense_global(whole)), F.embedding(packing.position, hidden)
        features = torch.cat([whole.unsqueeze(1).expand_as(local), local], dim=2)
        features = dropout(features, self.dropout.p, self.dropout.training)
        return self.score(F.relu(dense(features, self.hidden.weight, self.hidden.bias))).squeeze(2)


SEPARATOR = -1


class Packing(NamedTuple):
    """Reviews one after another, each without most of its padding; see `pack`.

    Args:
        tokens: `[L]`, word ids of all kept positions; SEPARATOR between reviews.
        position: `[B, T]`, where in `[L]` each position of each review finds its value.
        sizes: of the B pieces of `[L]`, their separators included.
    """

    tokens: Tensor
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
    packed = tokens.new_full((int(sizes.sum()),), SEPARATOR)
    packed[position] = tokens
    return Packing(packed, position, sizes.tolist())


# Products in place of torch's convolutions: oneDNN compiles those for each new L, which a training run has in nearly
# every batch, at ten times the cost of the convolution itself (Zen 3, torch 2.13).


def _convolve(x: Tensor, convolution: nn.Module) -> Tensor:
    """Return the convolution of `[L, C]`, `[L, C']`; it sees zeros beyond both ends."""
    assert isinstance(convolution, nn.Conv1d)
    size = convolution.kernel_size[0]
    padded = F.pad(x, (0, 0, (size - 1) // 2, size // 2))
    windows = torch.cat([padded[i : i + len(x)] for i in range(size)], dim=1)
    return dense(windows, convolution.weight.permute(0, 2, 1).flatten(1), convolution.bias)


def _convolve_words(tokens: Tensor, embedding: Tensor, convolution: nn.Conv1d) -> Tensor:
    """Return the convolution of the vectors of word ids `[L]`, `[L, C']`; SEPARATOR has the vector 0.

    A batch has far fewer different words than words: the products are made once a word, and summed over windows.
    """
    assert convolution.bias is not None
    size, channels = convolution.kernel_size[0], convolution.out_channels
    padded = F.pad(tokens, ((size - 1) // 2, size // 2), value=SEPARATOR)
    words, which = padded.unique(return_inverse=True)
    vectors = F.embedding(words.clamp(min=0), embedding) * (words != SEPARATOR)[:, None]
    # a row for each word and place in the window
    products = dense(vectors, convolution.weight.permute(2, 0, 1).flatten(0, 1)).view(-1, channels)
    windows = which.unfold(0, size, 1) * size + torch.arange(size)
    return F.embedding_bag(windows, products, mode="sum") + convolution.bias


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
