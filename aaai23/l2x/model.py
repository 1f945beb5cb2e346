"""The networks of Learning to Explain: a selector that scores words, and a predictor that sees only the chosen ones.

Source: Chen, Song, Wainwright, Jordan, "Learning to Explain: An Information-Theoretic Perspective on Model
Interpretation", ICML 2018; sizes as in the experiments of Niepert et al. 2021 and Minervini et al. 2023.

Shapes: B reviews, T positions, S samples, D = 200 numbers a word vector, C = 100 channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aaai23.linear import Linear
from aaai23.methods import undo_mean_over_samples

CHANNELS = 100


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
    where = torch.arange(length, device=tokens.device)
    padding = (tokens != 0).int().argmax(dim=1, keepdim=True)
    dropped = (padding - (2 * reach + 1)).clamp(min=0)
    # positions 0..reach stay, `dropped` ones after them go
    local = torch.where(where <= reach, where, (where - dropped).clamp(min=reach))
    sizes = length - dropped[:, 0] + (kernel_size - 1)
    position = local + (sizes.cumsum(0) - sizes)[:, None]
    total = int(sizes.sum())
    packed = tokens.new_zeros(total)
    packed[position] = tokens
    real = torch.zeros(total, dtype=torch.bool, device=tokens.device)
    real[position] = True
    return Packing(packed, real, position, sizes.tolist())


class Selector(nn.Module):
    """Scores every position of a review from its own neighbourhood and from the review as a whole.

    Args:
        embedding: `[V, D]`, frozen word vectors; word 0 is padding. They are data and not in `state_dict()`.
        kernel_size: of the convolutions over words.
    """

    embedding: Tensor

    def __init__(self, embedding: Tensor, kernel_size: int = 3):
        super().__init__()
        self._given = embedding  # no buffer: what deferred initialisation empties is filled from here
        self.register_buffer("embedding", embedding, persistent=False)
        self.conv_in = nn.Conv1d(embedding.shape[1], CHANNELS, kernel_size, padding="same")
        self.conv_local = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, kernel_size, padding="same") for _ in range(2))
        self.dense_global = nn.Linear(CHANNELS, CHANNELS)
        self.dropout = Dropout(0.2)
        self.hidden = Linear(2 * CHANNELS, CHANNELS)
        self.score = nn.Linear(CHANNELS, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, and take the word vectors as they were given."""
        if self.embedding is not self._given:  # as after `to_empty`
            with torch.no_grad():
                self.embedding.copy_(self._given)
        self.apply(initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores `[B, T]` of word ids `[B, T]`."""
        if tokens.device.type == "cpu":
            whole, local = self._packed_features(tokens)
        else:
            whole, local = self._padded_features(tokens)
        whole = F.relu(self.dense_global(whole))
        features = torch.cat([whole.unsqueeze(1).expand_as(local), local], dim=2)
        hidden = F.relu(self.hidden(self.dropout(features)))
        return self.score(hidden).squeeze(2)

    def _padded_features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of reviews `[B, C]` and of positions `[B, T, C]`."""
        first, local = self._convolutions(F.embedding(tokens, self.embedding), None)
        return first.amax(dim=1), local

    def _packed_features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The same, computed on packed reviews; does not pay where the host must not wait for the device."""
        packing = pack(tokens, self.conv_in.kernel_size[0])
        words = F.embedding(packing.tokens, self.embedding) * packing.real[:, None]
        first, local = self._convolutions(words[None], packing.real.to(words.dtype)[:, None])
        # separators are 0, and so is the least value after a ReLU: they cannot change a maximum
        whole = torch.stack([review.amax(dim=0) for review in first[0].split(packing.sizes)])
        return whole, F.embedding(packing.position, local[0])

    def _convolutions(self, words: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return features after the first and after the last convolution `[B, L, C]`, 0 where `real` `[L, 1]` is 0."""
        first = hidden = _convolve(words, self.conv_in, real)
        for convolution in self.conv_local:
            hidden = _convolve(hidden, convolution, real)
        return first, hidden


def _convolve(x: Tensor, convolution: nn.Module, real: Tensor | None) -> Tensor:
    """Return the convolution and ReLU of `[B, L, C]`; two-dimensional and channels-last, which is faster on CPUs."""
    assert isinstance(convolution, nn.Conv1d)
    y = F.conv2d(x.mT.unsqueeze(2), convolution.weight.unsqueeze(2), convolution.bias, padding="same")
    y = F.relu(y).squeeze(2).mT
    return y if real is None else y * real


class Dropout(nn.Dropout):
    """Dropout that asks the CPU for sixteen random bits a number, a quarter of what torch takes.

    The probability is rounded to a multiple of 2**-16, and the kept numbers are scaled by just that.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` with a share p of its numbers replaced by zero (training), or as it is."""
        if not self.training or input.device.type != "cpu":
            return super().forward(input)
        cut = round(self.p * 2**16)
        words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: input.numel()].view(input.shape)
        return input * ((bits >= cut - 2**15) * (2**16 / (2**16 - cut)))


class Predictor(nn.Module):
    """Predicts a rating from the mean vector of the selected words.

    Args:
        dimension: D of the word vectors.
        hidden_dims: H.
    """

    def __init__(self, dimension: int, hidden_dims: int = 250):
        super().__init__()
        self.hidden = nn.Linear(dimension, hidden_dims)
        self.rating = nn.Linear(hidden_dims, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        self.apply(initialise)

    def forward(self, selected: Tensor) -> Tensor:
        """Return ratings `[..., ]` in (0, 1) for mean vectors `[..., D]`."""
        return torch.sigmoid(self.rating(F.relu(self.hidden(selected)))).squeeze(-1)


class Explainer(nn.Module):
    """Selector, discrete layer and predictor.

    Args:
        embedding: `[V, D]`, frozen word vectors.
        layer: theta `[B, T]` -> z `[B*S, T]`; with `mask_padding` it is called with `mask=[B, T]`.
        select_k: K, the number of words that the layer selects.
        kernel_size: of the selector's convolutions.
        hidden_dims: H of the predictor.
        mask_padding: keep the selection on real words; as published, padding can be selected.
    """

    def __init__(
        self,
        embedding: Tensor,
        layer: nn.Module,
        select_k: int,
        kernel_size: int = 3,
        hidden_dims: int = 250,
        mask_padding: bool = False,
    ):
        super().__init__()
        self.selector = Selector(embedding, kernel_size)
        self.layer = layer
        self.predictor = Predictor(embedding.shape[1], hidden_dims)
        self.select_k = select_k
        self.mask_padding = mask_padding

    def select(self, tokens: Tensor) -> Tensor:
        """Return z `[B*S, T]` for word ids `[B, T]` (S = 1 in evaluation)."""
        theta = self.selector(tokens)
        return self.layer(theta, mask=tokens != 0) if self.mask_padding else self.layer(theta)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return predicted ratings `[B, S]` for word ids `[B, T]`; made for a loss that is a mean over S."""
        z = self.select(tokens)
        z = undo_mean_over_samples(z, len(z) // len(tokens)).unflatten(0, (len(tokens), -1))
        words = F.embedding(tokens, self.selector.embedding)
        return self.predictor(torch.bmm(z, words) / self.select_k)


def initialise(module: nn.Module) -> None:
    """Xavier-uniform weights with the gain of ReLU, zero biases."""
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.xavier_uniform_(module.weight, gain=nn.init.calculate_gain("relu"))
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def squared_error(predicted: Tensor, ratings: Tensor) -> Tensor:
    """Return the loss of predictions `[B, S]` for ratings `[B]`: the mean over S and B."""
    return (predicted - ratings[:, None]).square().mean(dim=1).mean()
