"""The networks of `aaai23.l2x.model` for a CPU: the same numbers, sooner.

* Most of a batch is padding, which goes through the convolutions once a review instead of once a position.
* A batch has far fewer different words than words: the first convolution multiplies each once.
* A discrete layer gives few scores a gradient: the others are never back-propagated.
* Convolutions are products: oneDNN would compile its own for each new length, which nearly every batch has, and that
  takes several times as long as the convolution itself (Zen 3, torch 2.13).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from aaai23.l2x import model
from aaai23.speed.dense import dense, relu_backward


class Selector(model.Selector):
    """The selector on packed reviews; away from a CPU, where packing would wait for the device, as it is."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores `[B, T]` of word ids `[B, T]`."""
        if tokens.device.type != "cpu":
            return super().forward(tokens)
        packing = pack(tokens, self.conv_in.kernel_size[0])
        between = (packing.tokens == SEPARATOR).nonzero()[:, 0]
        first = F.relu(_convolve_words(packing.tokens, self.embedding, self.conv_in)).index_fill(0, between, 0)
        # separators are 0, and so is the least value after a ReLU: they cannot change a maximum
        whole = torch.stack([review.amax(dim=0) for review in first.split(packing.sizes)])
        convolutions = (cast(nn.Conv1d, layer) for layer in self.conv_local)
        layers = [(layer.weight.permute(0, 2, 1).flatten(1), layer.bias) for layer in convolutions]
        layers += [(layer.weight, layer.bias) for layer in (self.hidden, self.score)]
        # one type for all: autocast does not reach into the backward pass
        weights = (cast(Tensor, tensor).to(first.dtype) for layer in layers for tensor in layer)
        whole = F.relu(self.dense_global(whole)).to(first.dtype)
        return _Scores.apply(first, whole, packing.position, between, self._drop, *weights)

    def _drop(self, features: Tensor) -> Tensor:
        return dropout(features, self.dropout.p, self.dropout.training)


class _Scores(torch.autograd.Function):
    """The selector behind its first convolution, back-propagated only where a score has a gradient.

    Whatever is kept for the backward pass is the output of a ReLU, and 0 at separators.
    """

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        whole: Tensor,
        position: Tensor,
        between: Tensor,
        drop: Callable[[Tensor], Tensor],
        *weights: Tensor,
    ) -> Tensor:
        """Return scores `[B, T]`.

        `first` `[L, C]`: the first convolution; `whole` `[B, C]`: of the reviews; `position`: see `Packing`; `between`:
        where the separators are; `weights`: of the layers behind, a matrix and a bias each.
        """
        *convolutions, of_hidden, of_score = zip(weights[::2], weights[1::2], strict=True)
        outputs = [first]
        for weight, bias in convolutions:
            outputs.append(dense(_windows(outputs[-1], weight), weight, bias).relu_().index_fill_(0, between, 0))
        whole_of_each = whole.repeat_interleave(position.shape[1], dim=0)
        features = drop(torch.cat([whole_of_each, outputs[-1].index_select(0, position.flatten())], dim=1))
        hidden = dense(features, *of_hidden).relu_()
        ctx.save_for_backward(whole, position, features, hidden, *outputs, *weights[::2])
        return F.linear(hidden, *of_score).view(position.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the arguments of `forward`."""
        whole, position, features, hidden, *rest = ctx.saved_tensors
        outputs, weights = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        found: list[Tensor] = []  # gradients of weights and biases, the last one's first

        def through(weight: Tensor, x: Tensor, grad: Tensor) -> Tensor:
            found.extend((grad.sum(0), grad.T @ x))
            return grad @ weight

        grad = grad.flatten()
        rows = grad.nonzero()[:, 0]
        review, at = rows // position.shape[1], position.flatten()[rows]
        x = hidden[rows]
        grad = relu_backward(through(weights.pop(), x, grad[rows, None]), x, 0)
        before, x = torch.cat([whole[review], outputs[-1][at]], dim=1), features[rows]
        # what dropout made of a number; where that was 0, a ReLU lets no gradient through
        grad = through(weights.pop(), x, grad) * (x / before).masked_fill_(before == 0, 0)
        of_whole, grad = grad.chunk(2, dim=1)
        grad_whole = _add_rows(len(whole), review, of_whole)
        for weight, x, y in reversed(list(zip(weights, outputs, outputs[1:], strict=False))):
            at, place = at.unique(return_inverse=True)
            grad = relu_backward(_add_rows(len(at), place, grad), y[at], 0)
            # around a separator, which has no gradient, any window will do
            windows = (at[:, None] + _offsets(weight.shape[1] // x.shape[1])).clamp_(0, len(x) - 1)
            grad = through(weight, x[windows].flatten(1), grad).view(-1, x.shape[1])
            at = windows.flatten()
        return _add_rows(len(outputs[0]), at, grad), grad_whole, None, None, None, *reversed(found)


def _add_rows(length: int, at: Tensor, rows: Tensor) -> Tensor:
    """Return `[length, C]` with `rows` `[N, C]` added at `at` `[N]`; long sums in bfloat16 lose what each adds."""
    exact = torch.promote_types(rows.dtype, torch.float32)
    return rows.new_zeros(length, rows.shape[1], dtype=exact).index_add_(0, at, rows.to(exact)).to(rows.dtype)


def _offsets(size: int) -> Tensor:
    """Return where the positions of a window lie that a convolution of this size sees from one."""
    return torch.arange(size) - (size - 1) // 2


def _windows(x: Tensor, weight: Tensor) -> Tensor:
    """Return what the convolution by `weight` `[C', size * C]` sees from each of `[L, C]`, zeros beyond both ends."""
    size = weight.shape[1] // x.shape[1]
    padded = F.pad(x, (0, 0, (size - 1) // 2, size // 2))
    return torch.cat([padded[i : i + len(x)] for i in range(size)], dim=1)


SEPARATOR = -1


class Packing(NamedTuple):
    """Reviews one after another, each without most of its padding; see `pack`.

    Args:
        tokens: `[L]`, word ids of all kept positions; SEPARATOR between reviews, and where a window reaches beyond.
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
    before = (kernel_size - 1) // 2
    position = local + (before + sizes.cumsum(0) - sizes)[:, None]
    sizes[0] += before
    sizes[-1] += -sizes.sum() % 16  # a multiple of 16 rows is what `dense` can divide
    packed = tokens.new_full((int(sizes.sum()),), SEPARATOR)
    packed[position] = tokens
    return Packing(packed, position, sizes.tolist())


def _convolve_words(tokens: Tensor, embedding: Tensor, convolution: nn.Conv1d) -> Tensor:
    """Return the convolution of the vectors of word ids `[L]`, `[L, C]`; SEPARATOR has the vector 0."""
    assert convolution.bias is not None
    size, channels = convolution.kernel_size[0], convolution.out_channels
    padded = F.pad(tokens, ((size - 1) // 2, size // 2), value=SEPARATOR)
    words, which = padded.unique(return_inverse=True)
    vectors = F.embedding(words.clamp(min=0), embedding) * (words != SEPARATOR)[:, None]
    # a row for each word and place in the window
    products = dense(vectors, convolution.weight.permute(2, 0, 1).flatten(0, 1)).view(-1, channels)
    windows = which.unfold(0, size, 1) * size + torch.arange(size)
    return F.embedding_bag(windows, products, mode="sum") + convolution.bias.to(products.dtype)


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
    return (x * ((bits >= cut - 2**15) * (2**16 / (2**16 - cut)))).to(x.dtype)
