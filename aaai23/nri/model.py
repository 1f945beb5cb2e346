"""The encoder and the decoder of Neural Relational Inference, written for speed on complete graphs.

n vertices have U = n(n-1)/2 undirected and E = n(n-1) directed edges. Undirected edges come in the order of
`torch.triu_indices(n, n, 1)`; directed ones row by row of an n x n matrix without its diagonal, where the row is the
receiver and the column the sender, so that the n - 1 edges into one vertex lie next to each other.

What makes it fast, with the results of a plain implementation:

* a dense layer on [sender, receiver] is a sum of two layers on vertices: W [x_s; x_r] = W_s x_s + W_r x_r;
* a start point is rolled out only as far as its predictions are kept;
* on a CPU, a message of weight 0 is never back-propagated, and is computed only for the gradient of its weight;
* on a CPU, dense layers go to oneDNN, see `aaai23.linear`.

Reference: T. Kipf, E. Fetaya, K.-C. Wang, M. Welling, R. Zemel, *Neural Relational Inference for Interacting
Systems*, ICML 2018.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from aaai23.errors import UsageError
from aaai23.linear import dense, dense_weight_gradient

_BLOCK = 2048  # edges at a time: 2 MB for each tensor of 256 numbers an edge
relu_backward = torch.ops.aten.threshold_backward  # (gradient, output, 0): one pass, where a boolean mask takes two


def directed_edges(vertices: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Return the receivers and the senders of the directed edges, `[E]` each.

    >>> directed_edges(3)
    (tensor([0, 0, 1, 1, 2, 2]), tensor([1, 2, 0, 2, 0, 1]))
    """
    return _ends(torch.arange(vertices * (vertices - 1), device=device), vertices)


def _ends(edge: Tensor, vertices: int) -> tuple[Tensor, Tensor]:
    """Return receivers and senders of edges, counted on through graph after graph, as vertices counted likewise."""
    receiver, place = edge // (vertices - 1), edge % (vertices - 1)
    row = receiver % vertices
    return receiver, receiver - row + place + (place >= row)


def to_directed(undirected: Tensor, vertices: int) -> Tensor:
    """Return both directions of undirected edges, `[..., U]` to `[..., E]`."""
    receiver, sender = directed_edges(vertices, undirected.device)
    low, high = torch.minimum(receiver, sender), torch.maximum(receiver, sender)
    return undirected[..., low * (2 * vertices - low - 1) // 2 + high - low - 1]


def symmetrise(directed: Tensor, vertices: int) -> Tensor:
    """Return the mean of the two directions of every edge, `[..., E]` to `[..., U]`."""
    low, high = torch.triu_indices(vertices, vertices, 1, device=directed.device)
    return (directed[..., low * (vertices - 1) + high - 1] + directed[..., high * (vertices - 1) + low]) / 2


def receiver_above_sender(directed: Tensor, vertices: int) -> Tensor:
    """Return the direction of every edge whose receiver is the larger vertex, `[..., E]` to `[..., U]`."""
    low, high = torch.triu_indices(vertices, vertices, 1, device=directed.device)
    return directed[..., high * (vertices - 1) + low]


def _pair_sum(send: Tensor, receive: Tensor) -> Tensor:
    """Return send[s] + receive[r] for all directed edges, two `[B, n, h]` to `[B, E, h]`."""
    n = send.shape[1]
    grid = (receive.unsqueeze(2) + send.unsqueeze(1)).flatten(1, 2)
    # From the second entry on, n rows of n are n - 1 rows of n + 1 that end on the diagonal.
    return grid[:, 1:].unflatten(1, (n - 1, n + 1))[:, :, :n].flatten(1, 2)


def _elu(x: Tensor) -> Tensor:
    """Return ELU(x), in place where the gradient, which is then found from the result, has the digits for it."""
    return F.elu(x, inplace=x.dtype == torch.float32)


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
        return self._finish(dense(x, self.fc1.weight, self.fc1.bias))

    def forward_edges(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map [sender, receiver, skip] to `[B, E, n_out]`: `x` `[B, n, h]` of vertices, `skip` `[B, E, k]` of edges."""
        width = x.shape[-1]
        send, receive, rest = self.fc1.weight.split((width, width, self.fc1.in_features - 2 * width), dim=1)
        pairs = _pair_sum(dense(x, send), dense(x, receive, self.fc1.bias))
        return self._finish(pairs if skip is None else pairs + dense(skip, rest))

    def _finish(self, x: Tensor) -> Tensor:
        x = F.dropout(_elu(x), self.dropout, self.training)
        x = _elu(dense(x, self.fc2.weight, self.fc2.bias))
        return self.bn(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class MLPEncoder(nn.Module):
    """Read a trajectory and returns one logit per directed edge.

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
        vertices = inputs.shape[1]
        edges = skip = self.mlp2.forward_edges(self.mlp1(inputs.flatten(2)))
        if self.factor:
            incoming = edges.unflatten(1, (vertices, vertices - 1)).sum(2) / vertices
            edges = self.mlp4.forward_edges(self.mlp3(incoming), skip)
        else:
            edges = self.mlp4(torch.cat([self.mlp3(edges), skip], dim=-1))
        return self.fc_out(edges).squeeze(-1)


class _Messages(torch.autograd.Function):
    """agg_r = sum_s w_rs relu(W relu(send_s + receive_r) + b), back-propagated only where w is not 0.

    It works through blocks of edges that stay in the processor's cache. Of what lies between send and agg, only the
    messages are kept for the backward pass, and those only if there will be one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        send: Tensor,
        receive: Tensor,
        w: Tensor,
        weight: Tensor,
        bias: Tensor,
        active: Tensor,
        every: bool,
        kept: bool,
    ) -> Tensor:
        """Return `[R, n, m]` from `[R, n, h]` twice and `[R, E]`.

        `active`: where w is not 0, see `_active`; `every`: w will be asked for its gradient; `kept`: anything will be.
        """
        (graphs, n), edges = send.shape[:2], w.shape[1]
        message = send.new_empty(((graphs * edges if every else active.shape[1]) if kept else 0, weight.shape[0]))
        gathered = send.new_zeros(graphs * n, weight.shape[0])

        def finish(hidden: Tensor, block: slice) -> Tensor:
            linear = dense(hidden, weight, bias)
            return torch.clamp_min(linear, 0, out=message[block]) if kept else linear.relu_()

        if every:
            for first, last in _blocks(graphs, per=edges):
                hidden = _pair_sum(send[first:last], receive[first:last]).relu_().flatten(0, 1)
                messages = finish(hidden, slice(first * edges, last * edges)).unflatten(0, (-1, n - 1))
                gathered[first * n : last * n] = (w[first:last].reshape(-1, 1, n - 1) @ messages).squeeze(1)
        else:
            for first, last in _blocks(active.shape[1]):
                some, receivers, senders = active[:, first:last]
                messages = finish(_hidden(send, receive, receivers, senders), slice(first, last))
                messages = messages * _column(w, some) if kept else messages.mul_(_column(w, some))
                gathered.index_add_(0, receivers, messages)
        ctx.save_for_backward(send, receive, w, weight, message, active)
        ctx.every = every
        return gathered.view(graphs, n, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the arguments of `forward`."""
        send, receive, w, weight, message, active = ctx.saved_tensors
        n = send.shape[1]
        grad = grad.flatten(0, 1)
        grad_w = w.new_empty(w.numel() // (n - 1), n - 1) if ctx.every else None
        if grad_w is not None:
            for first, last in _blocks(len(grad), per=n - 1):
                messages = message[first * (n - 1) : last * (n - 1)].unflatten(0, (-1, n - 1))
                grad_w[first:last] = (messages @ grad[first:last].unsqueeze(2)).squeeze(2)
        grad_send, grad_receive = torch.zeros_like(send.flatten(0, 1)), torch.zeros_like(receive.flatten(0, 1))
        # sums over many blocks: in bfloat16 they would lose what each adds
        exact = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=exact)
        grad_bias = weight.new_zeros(len(weight), dtype=exact)
        for first, last in _blocks(active.shape[1]):
            some, receivers, senders = active[:, first:last]
            messages = message.index_select(0, some) if ctx.every else message[first:last]
            grad_message = grad.index_select(0, receivers).mul_(_column(w, some))
            grad_message = relu_backward(grad_message, messages, 0)
            hidden = _hidden(send, receive, receivers, senders)
            grad_hidden = relu_backward(dense(grad_message, weight.T), hidden, 0)
            grad_send.index_add_(0, senders, grad_hidden)
            grad_receive.index_add_(0, receivers, grad_hidden)
            grad_weight += dense_weight_gradient(hidden, grad_message)
            grad_bias += grad_message.sum(0)
        return (
            grad_send.view_as(send),
            grad_receive.view_as(receive),
            None if grad_w is None else grad_w.view_as(w),
            grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype),
            None,
            None,
            None,
        )


def _blocks(total: int, per: int = 1) -> list[tuple[int, int]]:
    """Split 0..total into ranges of about `_BLOCK` edges, where each number stands for `per` of them.

    A range has a multiple of 16 numbers, so that `dense` can divide it: with many vertices it is larger than asked.
    """
    size = max(_BLOCK // per // 16, 1) * 16
    return [(first, min(first + size, total)) for first in range(0, total, size)]


def _active(w: Tensor, vertices: int) -> Tensor:
    """Return where w `[R, E]` is not 0, `[3, K]`: the entry of w, its receiver and its sender, all counted on."""
    entries = w.detach().flatten().nonzero().squeeze(1)
    return torch.stack((entries, *_ends(entries, vertices)))


def _column(w: Tensor, entries: Tensor) -> Tensor:
    """Return those entries of w, `[K, 1]`."""
    return w.flatten().index_select(0, entries).unsqueeze(1)


def _hidden(send: Tensor, receive: Tensor, receivers: Tensor, senders: Tensor) -> Tensor:
    """Return relu(send_s + receive_r) of the given edges, `[K, h]`."""
    hidden = send.flatten(0, 1).index_select(0, senders)
    return hidden.add_(receive.flatten(0, 1).index_select(0, receivers)).relu_()


class MLPDecoder(nn.Module):
    """Predicts each frame from the one before, by messages along weighted edges of several types.

    Args:
        dims: dimensions of a position.
        edge_types: number of edge types, each with a message network of its own.
        message_hidden: hidden width of the message networks.
        message_out: width of a message.
        hidden: width of the output network.
        dropout: probability of dropping a hidden unit in training.
        skip_first: edges of type 0 ("no edge") carry no message.
        skip_zeros: leave out messages of weight 0 where that changes nothing, on a CPU and without dropout. Their
            number depends on the data, which `torch.func.vmap` does not take: switch it off there.
    """

    def __init__(
        self,
        dims: int = 2,
        edge_types: int = 2,
        message_hidden: int = 256,
        message_out: int = 256,
        hidden: int = 256,
        dropout: float = 0.0,
        skip_first: bool = False,
        skip_zeros: bool = True,
    ):
        super().__init__()
        self.msg_fc1 = nn.ModuleList([nn.Linear(2 * dims, message_hidden) for _ in range(edge_types)])
        self.msg_fc2 = nn.ModuleList([nn.Linear(message_hidden, message_out) for _ in range(edge_types)])
        self.out_fc1 = nn.Linear(dims + message_out, hidden)
        self.out_fc2 = nn.Linear(hidden, hidden)
        self.out_fc3 = nn.Linear(hidden, dims)
        self.dropout = dropout
        self.skip_first = skip_first
        self.skip_zeros = skip_zeros

    def forward(self, inputs: Tensor, edges: Tensor, prediction_steps: int) -> Tensor:
        """Return predictions of frames 1 to T-1, `[B*S, n, T-1, dims]`.

        Every `prediction_steps`-th frame is a start point, from which the model feeds on its own predictions until
        the next one; with 1 it sees the true frame before each prediction (teacher forcing).

        Args:
            inputs: positions `[B, n, T, dims]`.
            edges: z in [0, 1], the weight of type 1, where type 0 has 1 - z: `[B*S, U]` or `[B*S, E]`; or a weight per
                type: `[B*S, U, types]` or `[B*S, E, types]`. The S samples of an instance are neighbours. Exact zeros
                and ones save work.
            prediction_steps: from 1 to T.

        Raises:
            UsageError: `prediction_steps` is out of range, or `edges` fits neither the inputs nor the types.
        """
        timesteps = inputs.shape[2]
        if not 1 <= prediction_steps <= timesteps:
            raise UsageError(f"prediction_steps is {prediction_steps}: choose 1 to {timesteps}, the number of frames")
        weights = self._type_weights(inputs, edges)
        starts = inputs.transpose(1, 2)[:, ::prediction_steps]
        starts = starts.repeat_interleave(edges.shape[0] // inputs.shape[0], dim=0)
        return self._roll_out(starts, weights, timesteps, prediction_steps)

    def _type_weights(self, inputs: Tensor, edges: Tensor) -> Tensor:
        """Return weights `[types, B*S, E]`, from any of the forms that `forward` takes."""
        (batch, n), types = inputs.shape[:2], len(self.msg_fc1)
        undirected, directed = n * (n - 1) // 2, n * (n - 1)
        if edges.dim() == 2 and types == 2:
            weights = torch.stack((1 - edges, edges))
        elif edges.dim() == 3 and edges.shape[2] == types:
            weights = edges.movedim(2, 0)
        else:
            raise UsageError(f"edges of shape {tuple(edges.shape)} do not fit a decoder of {types} edge types")
        if edges.shape[0] % batch or edges.shape[1] not in (undirected, directed):
            raise UsageError(
                f"edges of shape {tuple(edges.shape)} do not fit {batch} graphs of {n} vertices: give {undirected} "
                f"undirected or {directed} directed edges for each, and whole samples"
            )
        return to_directed(weights, n) if edges.shape[1] == undirected else weights

    def _roll_out(self, x: Tensor, weights: Tensor, timesteps: int, prediction_steps: int) -> Tensor:
        """Return `[B, n, T-1, dims]` from start points `[B, starts, n, dims]` and weights `[types, B, E]`."""
        rollout: list[Tensor] = []
        kept, typed = 0, []
        for step in range(min(prediction_steps, timesteps - 1)):
            # Start i predicts frame i * prediction_steps + step + 1, and T-1 is the last that is asked for.
            before, kept = kept, -(-(timesteps - 1 - step) // prediction_steps)
            if kept != before:
                typed = self._typed_edges(weights.repeat_interleave(kept, dim=1), x.shape[2])
            x = self._step(x[:, :kept].flatten(0, 1), typed).unflatten(0, (-1, kept))
            rollout.append(x)
        frames = [rollout[t % prediction_steps][:, t // prediction_steps] for t in range(timesteps - 1)]
        return torch.stack(frames, dim=2)

    def _typed_edges(self, weights: Tensor, vertices: int) -> list[tuple[Tensor, Tensor | None]]:
        """Return for each type the weights `[R, E]` and where they are not 0 (None: all edges are computed)."""
        if not self.skip_zeros or weights.device.type != "cpu" or (self.training and self.dropout > 0):
            return [(w, None) for w in weights]
        return [(w, _active(w, vertices)) for w in weights]

    def _step(self, x: Tensor, typed: list[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Move positions `[R, n, dims]` by one frame."""
        incoming = [self._messages(i, x, *edges) for i, edges in enumerate(typed) if i > 0 or not self.skip_first]
        from_position, from_messages = self.out_fc1.weight.tensor_split((x.shape[-1],), dim=1)
        hidden = F.linear(x, from_position, self.out_fc1.bias) + dense(sum(incoming[1:], incoming[0]), from_messages)
        hidden = F.dropout(hidden.relu_(), self.dropout, self.training)
        hidden = dense(hidden, self.out_fc2.weight, self.out_fc2.bias)
        hidden = F.dropout(hidden.relu_(), self.dropout, self.training)
        return x + self.out_fc3(hidden)

    def _messages(self, i: int, x: Tensor, w: Tensor, active: Tensor | None) -> Tensor:
        """Return the sum of the messages of type `i` that each vertex receives, `[R, n, message_out]`."""
        fc1, fc2 = cast(nn.Linear, self.msg_fc1[i]), cast(nn.Linear, self.msg_fc2[i])
        from_sender, from_receiver = fc1.weight.chunk(2, dim=1)
        send, receive = F.linear(x, from_sender), F.linear(x, from_receiver, fc1.bias)
        if active is not None:
            kept = torch.is_grad_enabled()
            every = kept and w.requires_grad
            # one type for all: autocast does not reach into the backward pass, and has rounded only the first two
            w, weight, bias = (tensor.to(send.dtype) for tensor in (w, fc2.weight, fc2.bias))
            return _Messages.apply(send, receive, w, weight, bias, active, every, kept)
        hidden = F.dropout(F.relu(_pair_sum(send, receive)), self.dropout, self.training)
        message, n = F.relu(dense(hidden, fc2.weight, fc2.bias)), x.shape[1]
        return (w.unflatten(1, (n, 1, n - 1)) @ message.unflatten(1, (n, n - 1))).squeeze(2)
