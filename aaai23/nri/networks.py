"""The encoder and the decoder of Neural Relational Inference.

n vertices have U = n(n-1)/2 undirected and E = n(n-1) directed edges. Undirected edges come in the order of
`torch.triu_indices(n, n, 1)`; directed ones row by row of an n x n matrix without its diagonal, where the row is the
receiver and the column the sender, so that the n - 1 edges into one vertex lie next to each other.

Reference: T. Kipf, E. Fetaya, K.-C. Wang, M. Welling, R. Zemel, *Neural Relational Inference for Interacting
Systems*, ICML 2018.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aaai23.errors import UsageError


def directed_edges(vertices: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Return the receivers and the senders of the directed edges, `[E]` each.

    >>> directed_edges(3)
    (tensor([0, 0, 1, 1, 2, 2]), tensor([1, 2, 0, 2, 0, 1]))
    """
    edge = torch.arange(vertices * (vertices - 1), device=device)
    receiver, place = edge // (vertices - 1), edge % (vertices - 1)
    return receiver, place + (place >= receiver)


def to_directed(undirected: Tensor, vertices: int) -> Tensor:
    """Return both directions of undirected edges, `[..., U]` to `[..., E]`."""
    receiver, sender = directed_edges(vertices, undirected.device)
    low, high = torch.minimum(receiver, sender), torch.maximum(receiver, sender)
    return undirected[..., low * (2 * vertices - low - 1) // 2 + high - low - 1]


def symmetrise(directed: Tensor, vertices: int) -> Tensor:
    """Return the mean of the two directions of every edge, `[..., E]` to `[..., U]`."""
    low, high = torch.triu_indices(vertices, vertices, 1, device=directed.device)
    return (directed[..., low * (vertices - 1) + high - 1] + directed[..., high * (vertices - 1) + low]) / 2


def ends(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the receivers and the senders of the directed edges among vertices `[..., n, h]`, one-hot `[E, n]`."""
    receiver, sender = directed_edges(x.shape[-2], x.device)
    return F.one_hot(receiver, x.shape[-2]).to(x), F.one_hot(sender, x.shape[-2]).to(x)


class MLP(nn.Module):
    """Two dense layers with ELU, then batch norm over all rows of the batch."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(n_in, n_hidden)
        self.fc2 = nn.Linear(n_hidden, n_out)
        self.bn = nn.BatchNorm1d(n_out)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map rows `[B, rows, n_in]` to `[B, rows, n_out]`."""
        x = F.dropout(F.elu(self.fc1(x)), self.dropout, self.training)
        x = F.elu(self.fc2(x))
        return self.bn(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class MLPEncoder(nn.Module):
    """Read a trajectory and return one logit per directed edge.

    Args:
        n_in: numbers per vertex, frames times dimensions.
        hidden: width of all layers.
        dropout: probability of dropping a hidden unit in training.
        factor: pass from edges to vertices and back once more (the factor graph encoder).
    """

    def __init__(self, n_in: int, hidden: int = 256, dropout: float = 0.0, factor: bool = True):
        super().__init__()
        self.factor = factor
        self.mlp1 = MLP(n_in, hidden, hidden, dropout)
        self.mlp2 = MLP(2 * hidden, hidden, hidden, dropout)
        self.mlp3 = MLP(hidden, hidden, hidden, dropout)
        self.mlp4 = MLP((3 if factor else 2) * hidden, hidden, hidden, dropout)
        self.fc_out = nn.Linear(hidden, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw Xavier-normal weights and set biases to 0.1."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.constant_(module.bias, 0.1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of directed edges `[B, E]` for positions `[B, n, T, dims]`; see `symmetrise`."""
        receivers, senders = ends(inputs.flatten(2))
        x = self.mlp1(inputs.flatten(2))
        edges = skip = self.mlp2(torch.cat([senders @ x, receivers @ x], dim=-1))
        if self.factor:
            x = self.mlp3(receivers.T @ edges / inputs.shape[1])
            edges = torch.cat([senders @ x, receivers @ x], dim=-1)
        else:
            edges = self.mlp3(edges)
        edges = self.mlp4(torch.cat([edges, skip], dim=-1))
        return self.fc_out(edges).squeeze(-1)


class MLPDecoder(nn.Module):
    """Predict each frame from the one before, by messages along weighted edges of two types: no edge, and an edge.

    Args:
        dims: dimensions of a position.
        hidden: width of all layers.
        dropout: probability of dropping a hidden unit in training.
        skip_first: edges of type 0 ("no edge") carry no message.
    """

    def __init__(self, dims: int = 2, hidden: int = 256, dropout: float = 0.0, skip_first: bool = False):
        super().__init__()
        self.msg_fc1 = nn.ModuleList([nn.Linear(2 * dims, hidden) for _ in range(2)])
        self.msg_fc2 = nn.ModuleList([nn.Linear(hidden, hidden) for _ in range(2)])
        self.out_fc1 = nn.Linear(dims + hidden, hidden)
        self.out_fc2 = nn.Linear(hidden, hidden)
        self.out_fc3 = nn.Linear(hidden, dims)
        self.dropout = dropout
        self.types = (1,) if skip_first else (0, 1)

    def forward(self, inputs: Tensor, edges: Tensor, prediction_steps: int) -> Tensor:
        """Return predictions of frames 1 to T-1, `[B*S, n, T-1, dims]`.

        Every `prediction_steps`-th frame is a start point, from which the model feeds on its own predictions until
        the next one; with 1 it sees the true frame before each prediction (teacher forcing).

        Args:
            inputs: positions `[B, n, T, dims]`.
            edges: z in [0, 1], the weight of type 1, where type 0 has 1 - z: `[B*S, U]` or `[B*S, E]`. The S samples
                of an instance are neighbours.
            prediction_steps: from 1 to T.

        Raises:
            UsageError: `prediction_steps` is out of range, or `edges` does not fit the inputs.
        """
        (batch, n, timesteps), shape = inputs.shape[:3], tuple(edges.shape)
        if not 1 <= prediction_steps <= timesteps:
            raise UsageError(f"prediction_steps is {prediction_steps}: choose 1 to {timesteps}, the number of frames")
        undirected, directed = n * (n - 1) // 2, n * (n - 1)
        if len(shape) != 2 or shape[0] % batch or shape[1] not in (undirected, directed):
            raise UsageError(
                f"edges of shape {shape} do not fit {batch} graphs of {n} vertices: give {undirected} undirected or "
                f"{directed} directed edges for each, and whole samples"
            )
        weights = torch.stack((1 - edges, edges))
        if shape[1] == undirected:
            weights = to_directed(weights, n)
        starts = inputs.transpose(1, 2)[:, ::prediction_steps].repeat_interleave(shape[0] // batch, dim=0)
        return self.roll_out(starts, weights, timesteps - 1, prediction_steps)

    def roll_out(self, x: Tensor, weights: Tensor, frames: int, steps: int) -> Tensor:
        """Return predictions `[R, n, frames, dims]`, `steps` from each start point.

        Args:
            x: start points `[R, starts, n, dims]`.
            weights: of types and edges `[2, R, E]`.
            frames: how many predictions to keep.
            steps: how far to roll out.
        """
        starts = x.shape[1]
        x, weights = x.flatten(0, 1), weights.repeat_interleave(starts, dim=1)
        predicted = []
        for _ in range(steps):
            x = self.step(x, weights)
            predicted.append(x)
        by_start = torch.stack(predicted, dim=1).unflatten(0, (-1, starts))
        return by_start.flatten(1, 2)[:, :frames].transpose(1, 2)

    def step(self, x: Tensor, weights: Tensor) -> Tensor:
        """Move positions `[R, n, dims]` by one frame, along edges weighted `[2, R, E]`."""
        hidden = torch.cat([x, self.messages(x, weights)], dim=-1)
        hidden = F.dropout(F.relu(self.out_fc1(hidden)), self.dropout, self.training)
        hidden = F.dropout(F.relu(self.out_fc2(hidden)), self.dropout, self.training)
        return x + self.out_fc3(hidden)

    def messages(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the sum of the messages that each vertex receives, `[R, n, hidden]`."""
        receivers, senders = ends(x)
        pairs = torch.cat([senders @ x, receivers @ x], dim=-1)
        messages = []
        for i in self.types:
            message = F.dropout(F.relu(self.msg_fc1[i](pairs)), self.dropout, self.training)
            messages.append(F.relu(self.msg_fc2[i](message)) * weights[i].unsqueeze(-1))
        return receivers.T @ sum(messages[1:], messages[0])
