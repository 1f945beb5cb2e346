"""The networks of Learning to Explain: a selector that scores words, and a predictor that sees only the chosen ones.

Source: Chen, Song, Wainwright, Jordan, "Learning to Explain: An Information-Theoretic Perspective on Model
Interpretation", ICML 2018; sizes as in the experiments of Niepert et al. 2021 and Minervini et al. 2023.

Shapes: B reviews, T positions, S samples, D = 200 numbers a word vector, C = 100 channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 100


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
        self.dropout = nn.Dropout(0.2)
        self.hidden = nn.Linear(2 * CHANNELS, CHANNELS)
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
        words = F.embedding(tokens, self.embedding)
        first = hidden = F.relu(self.conv_in(words.mT))
        for convolution in self.conv_local:
            hidden = F.relu(convolution(hidden))
        whole, local = F.relu(self.dense_global(first.amax(dim=2))), hidden.mT
        features = torch.cat([whole.unsqueeze(1).expand_as(local), local], dim=2)
        return self.score(F.relu(self.hidden(self.dropout(features)))).squeeze(2)


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
        selector: word ids `[B, T]` -> theta `[B, T]`.
        layer: theta `[B, T]` -> z `[B*S, T]`; with `mask_padding` it is called with `mask=[B, T]`.
        predictor: mean vectors of the selected words `[B, S, D]` -> ratings `[B, S]`.
        select_k: K, the number of words that the layer selects.
        mask_padding: keep the selection on real words; as published, padding can be selected.
    """

    def __init__(
        self, selector: Selector, layer: nn.Module, predictor: Predictor, select_k: int, mask_padding: bool = False
    ):
        super().__init__()
        self.selector, self.layer, self.predictor = selector, layer, predictor
        self.select_k, self.mask_padding = select_k, mask_padding

    def select(self, tokens: Tensor) -> Tensor:
        """Return z `[B*S, T]` for word ids `[B, T]` (S = 1 in evaluation)."""
        theta = self.selector(tokens)
        return self.layer(theta, mask=tokens != 0) if self.mask_padding else self.layer(theta)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return predicted ratings `[B, S]` for word ids `[B, T]`; made for a loss that is a mean over S."""
        z = self.select(tokens).unflatten(0, (len(tokens), -1))
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
