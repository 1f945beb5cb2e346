"""The fast encoder and decoder against plain ones that share their weights: results, gradients, work done."""

import pytest
import torch
import torch.nn.functional as F

from aaai23.errors import UsageError
from aaai23.nri import model
from aaai23.nri.model import MLPDecoder, MLPEncoder, directed_edges, symmetrise, to_directed
from tests.plain_nri import PlainDecoder, PlainEncoder, one_hot_edges

TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.float64: {"atol": 1e-11, "rtol": 1e-11}}


def assert_same(got, expected):
    """Compare within 1e-5 (float32) or 1e-11 (float64) of the largest entry."""
    scale = expected.detach().abs().max().clamp(min=1e-30)
    torch.testing.assert_close(got / scale, expected / scale, **TOLERANCE[expected.dtype])


def assert_same_gradients(got, expected):
    grads = {name: p.grad for name, p in expected.named_parameters()}
    assert set(grads) == {name for name, _ in got.named_parameters()}
    for name, p in got.named_parameters():
        if grads[name] is None:
            assert p.grad is None, name
        else:
            assert_same(p.grad, grads[name])


def encoders(dtype=torch.float64, n_in=6, **options):
    fast, plain = MLPEncoder(n_in, hidden=16, **options).to(dtype), PlainEncoder(n_in, hidden=16, **options).to(dtype)
    plain.load_state_dict(fast.state_dict())
    return fast, plain


def decoders(dtype=torch.float64, dims=2, **options):
    sizes = {"dims": dims, "message_hidden": 12, "message_out": 20, "hidden": 24} | options
    fast, plain = MLPDecoder(**sizes).to(dtype), PlainDecoder(**sizes).to(dtype)
    plain.load_state_dict(fast.state_dict())
    return fast, plain


def random_edges(kind, *shape, dtype=torch.float64):
    z = torch.rand(*shape, dtype=dtype)
    return (z if kind == "soft" else (z < 0.3).to(dtype)).requires_grad_()


# Edges


def test_directed_edges_are_the_rows_of_a_matrix_without_its_diagonal():
    receivers, senders = directed_edges(5)
    expected = torch.where(~torch.eye(5, dtype=torch.bool))
    assert torch.equal(receivers, expected[0]) and torch.equal(senders, expected[1])


@pytest.mark.parametrize("n", [2, 3, 6])
def test_to_directed_reads_a_symmetric_matrix(n):
    u = n * (n - 1) // 2
    undirected = torch.randn(2, u)
    low, high = torch.triu_indices(n, n, 1)
    matrix = torch.zeros(2, n, n)
    matrix[:, low, high] = matrix[:, high, low] = undirected
    receivers, senders = directed_edges(n)
    assert torch.equal(to_directed(undirected, n), matrix[:, receivers, senders])


def test_symmetrise_averages_both_directions():
    matrix = torch.randn(3, 6, 6)
    receivers, senders = directed_edges(6)
    low, high = torch.triu_indices(6, 6, 1)
    expected = ((matrix + matrix.mT) / 2)[:, low, high]
    torch.testing.assert_close(symmetrise(matrix[:, receivers, senders], 6), expected)


def test_symmetrise_undoes_to_directed():
    undirected = torch.randn(2, 10)
    assert torch.equal(symmetrise(to_directed(undirected, 5), 5), undirected)


# Encoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [True, False])
def test_encoder_equals_the_plain_one_in_training(factor, dtype):
    fast, plain = encoders(dtype, factor=factor)
    x = torch.randn(7, 5, 3, 2, dtype=dtype)
    direction = torch.randn(7, 20, dtype=dtype)
    for _ in range(2):
        got, expected = fast(x), plain(x)
        assert_same(got, expected)
        (got * direction).sum().backward()
        (expected * direction).sum().backward()
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(fast.get_buffer(name), buffer, **TOLERANCE[dtype])
    if dtype == torch.float64:  # the gradient of a bias before batch norm is rounding alone
        for name, p in fast.named_parameters():
            torch.testing.assert_close(p.grad, plain.get_parameter(name).grad, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("factor", [True, False])
def test_encoder_equals_the_plain_one_in_evaluation(factor):
    fast, plain = encoders(factor=factor)
    for _ in range(3):
        fast(torch.randn(8, 5, 3, 2, dtype=torch.float64))
    plain.load_state_dict(fast.state_dict())
    fast.eval(), plain.eval()
    x = torch.randn(4, 5, 3, 2, dtype=torch.float64)
    assert_same(fast(x), plain(x))
    assert_same(fast(x)[:1], fast(x[:1]))
    assert (fast.mlp1.bn.running_mean != 0).any()


def test_encoder_passes_gradients_to_its_input():
    fast, _ = encoders()
    fast.eval()
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fast, x)


def test_encoder_treats_vertices_alike():
    fast, _ = encoders()
    fast.eval()
    order = torch.randperm(5)
    x = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    receivers, senders = directed_edges(5)
    matrix = torch.zeros(2, 5, 5, dtype=torch.float64)
    matrix[:, receivers, senders] = fast(x)
    assert_same(fast(x[:, order]), matrix[:, order][:, :, order][:, receivers, senders])


def test_encoder_dropout_acts_in_training_only():
    fast, plain = encoders(dropout=0.5)
    x = torch.randn(4, 5, 3, 2, dtype=torch.float64)
    assert not torch.equal(fast(x), fast(x))
    plain.load_state_dict(fast.state_dict())
    fast.eval(), plain.eval()
    assert_same(fast(x), plain(x))


def test_encoder_starts_from_xavier_weights_and_small_biases():
    weights = torch.cat([p.flatten() for name, p in MLPEncoder(20).named_parameters() if name.endswith("fc2.weight")])
    assert weights.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    for module in MLPEncoder(20).modules():
        if isinstance(module, torch.nn.Linear):
            assert (module.bias == 0.1).all()
        if isinstance(module, torch.nn.BatchNorm1d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


# Decoder


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("skip_first", [True, False])
@pytest.mark.parametrize("timesteps, steps", [(10, 9), (10, 10), (10, 1), (10, 3), (7, 4), (20, 10), (2, 1), (2, 2)])
def test_decoder_equals_the_plain_one(timesteps, steps, skip_first, kind):
    fast, plain = decoders(skip_first=skip_first)
    x = torch.randn(3, 4, timesteps, 2, dtype=torch.float64)
    z = random_edges(kind, 3, 12)
    direction = torch.randn(3, 4, timesteps - 1, 2, dtype=torch.float64)
    expected = plain(x, torch.stack((1 - z, z), -1), steps)
    (expected_grad,) = torch.autograd.grad((expected * direction).sum(), z, retain_graph=True)
    (expected * direction).sum().backward(inputs=list(plain.parameters()))
    got = fast(x, z, steps)
    assert got.shape == (3, 4, timesteps - 1, 2)
    assert_same(got, expected)
    (got * direction).sum().backward()
    assert_same(z.grad, expected_grad)
    assert_same_gradients(fast, plain)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_decoder_equals_the_plain_one_at_full_width_in_float32(kind):
    fast, plain = decoders(torch.float32, message_hidden=256, message_out=256, hidden=256)
    x = torch.randn(4, 10, 10, 2)
    z = random_edges(kind, 4, 90, dtype=torch.float32)
    expected = plain(x, torch.stack((1 - z, z), -1), 9)
    expected_grads = torch.autograd.grad(expected.square().sum(), [z, *plain.parameters()])
    got = fast(x, z, 9)
    assert_same(got, expected)
    for grad, other in zip(
        torch.autograd.grad(got.square().sum(), [z, *fast.parameters()]), expected_grads, strict=True
    ):
        # Among millions of ReLUs, one at rounding distance from 0 may switch: no bound on single entries.
        assert (grad - other).norm() < 1e-3 * other.norm()


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_decoder_equals_the_plain_one_in_evaluation(kind):
    fast, plain = decoders()
    x, z = torch.randn(3, 4, 6, 2, dtype=torch.float64), random_edges(kind, 3, 12)
    with torch.inference_mode():
        assert_same(fast(x, z, 1), plain(x, torch.stack((1 - z, z), -1), 1))


def test_parameters_get_their_gradients_when_edges_ask_for_none():
    fast, plain = decoders()
    x, z = torch.randn(3, 4, 6, 2, dtype=torch.float64), random_edges("hard", 3, 12).detach()
    fast(x, z, 5).square().sum().backward()
    plain(x, torch.stack((1 - z, z), -1), 5).square().sum().backward()
    assert_same_gradients(fast, plain)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_type_without_edges_is_no_special_case(value):
    fast, plain = decoders()
    x = torch.randn(3, 4, 6, 2, dtype=torch.float64)
    for requires_grad in (True, False):
        z = torch.full((3, 12), value, dtype=torch.float64, requires_grad=requires_grad)
        fast.zero_grad(), plain.zero_grad()
        got, expected = fast(x, z, 5), plain(x, torch.stack((1 - z, z), -1), 5)
        assert_same(got, expected)
        got.sum().backward(), expected.sum().backward()
        assert_same(fast.out_fc1.weight.grad, plain.out_fc1.weight.grad)
        assert (fast.msg_fc2[int(1 - value)].weight.grad == 0).all()


@pytest.mark.parametrize("types", [1, 3])
@pytest.mark.parametrize("width", ["directed", "undirected"])
def test_any_number_of_edge_types_takes_a_weight_each(types, width):
    fast, plain = decoders(edge_types=types)
    x = torch.randn(2, 5, 6, 2, dtype=torch.float64)
    weights = torch.rand(2, 10 if width == "undirected" else 20, types, dtype=torch.float64)
    directed = to_directed(weights.mT, 5).mT if width == "undirected" else weights
    assert_same(fast(x, weights, 3), plain(x, directed, 3))


def test_undirected_edges_are_edges_in_both_directions():
    fast, _ = decoders()
    x, z = torch.randn(3, 5, 4, 2, dtype=torch.float64), random_edges("hard", 3, 10)
    assert torch.equal(fast(x, z, 3), fast(x, to_directed(z, 5), 3))


def test_samples_of_an_instance_are_neighbours():
    fast, _ = decoders()
    x, z = torch.randn(2, 5, 4, 2, dtype=torch.float64), random_edges("hard", 6, 10)
    assert_same(fast(x, z, 3), fast(x.repeat_interleave(3, 0), z, 3))
    assert_same(fast(x, z, 3)[4:5], fast(x[1:], z[4:5], 3))


def test_three_dimensions_work_too():
    fast, plain = decoders(dims=3)
    x, z = torch.randn(2, 4, 5, 3, dtype=torch.float64), random_edges("hard", 2, 12)
    assert_same(fast(x, z, 4), plain(x, torch.stack((1 - z, z), -1), 4))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_all_gradients_pass_gradcheck(kind):
    fast, _ = decoders(message_hidden=3, message_out=4, hidden=5)
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    z = random_edges("soft", 2, 6) if kind == "soft" else random_edges("hard", 2, 6).detach()
    assert torch.autograd.gradcheck(lambda x: fast(x, z, 3), x)
    if kind == "soft":
        assert torch.autograd.gradcheck(lambda z: fast(x.detach(), z, 3), z)


@pytest.mark.parametrize("options", [{"skip_zeros": False}, {"dropout": 0.5}])
def test_decoder_without_skipping_equals_the_plain_one(options):
    fast = MLPDecoder(message_hidden=12, message_out=20, hidden=24, **options).double()
    plain = PlainDecoder(message_hidden=12, message_out=20, hidden=24).double()
    plain.load_state_dict(fast.state_dict())
    fast.train("dropout" not in options)
    x, z = torch.randn(3, 4, 6, 2, dtype=torch.float64), random_edges("hard", 3, 12)
    expected = plain(x, torch.stack((1 - z, z), -1), 3)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), z)
    got = fast(x, z, 3)
    assert_same(got, expected)
    (grad,) = torch.autograd.grad(got.square().sum(), z)
    assert_same(grad, expected_grad)


def test_decoder_dropout_keeps_messages_in_the_mean():
    torch.manual_seed(1)
    decoder = MLPDecoder(message_hidden=12, message_out=20, hidden=24, dropout=0.3)
    x, z = torch.randn(1, 4, 2, 2), random_edges("hard", 1, 12, dtype=torch.float32).detach()
    draws = decoder(x.expand(4000, -1, -1, -1), z.expand(4000, -1), 1)
    assert draws.std(0).min() > 0
    torch.testing.assert_close(draws.mean(0, keepdim=True), decoder.eval()(x, z, 1), atol=0.05, rtol=0)


def test_decoder_runs_many_models_at_once_under_vmap():
    models = [MLPDecoder(2, 2, 6, 6, 6, skip_zeros=False) for _ in range(3)]
    params, buffers = torch.func.stack_module_state(models)
    x, z = torch.randn(3, 2, 4, 5, 2), (torch.rand(3, 2, 12) < 0.3).float()
    run = torch.func.vmap(lambda p, b, x, z: torch.func.functional_call(models[0], (p, b), (x, z, 4)))
    expected = torch.stack([m(x[i], z[i], 4) for i, m in enumerate(models)])
    torch.testing.assert_close(run(params, buffers, x, z), expected)


# Work done


def count_graph_steps(decoder, timesteps, steps):
    """Return how many graphs the output network moved by a frame, for one instance."""
    moved = []
    handle = decoder.out_fc3.register_forward_hook(lambda module, args, output: moved.append(output.shape[0]))
    decoder(torch.randn(1, 4, timesteps, 2, dtype=torch.float64), random_edges("hard", 1, 12), steps)
    handle.remove()
    return sum(moved)


@pytest.mark.parametrize("timesteps, steps", [(10, 9), (10, 10), (20, 10), (20, 7), (10, 1), (2, 2), (11, 4)])
def test_no_prediction_is_computed_that_is_cut_off(timesteps, steps):
    fast, _ = decoders()
    assert count_graph_steps(fast, timesteps, steps) == timesteps - 1


@pytest.fixture
def rows_of_messages(monkeypatch):
    """Record how many rows go through the second message layer, forward and backward."""
    rows = []
    dense = model.dense

    def recording(x, weight, bias=None):
        if {weight.shape[0], weight.shape[1]} == {12, 20}:
            rows.append(x.numel() // x.shape[-1])
        return dense(x, weight, bias)

    monkeypatch.setattr(model, "dense", recording)
    return rows


def test_hard_edges_cost_one_message_each_in_evaluation(rows_of_messages):
    fast, _ = decoders()
    z = random_edges("hard", 3, 12)
    with torch.inference_mode():
        fast(torch.randn(3, 4, 6, 2, dtype=torch.float64), z, 5)
    edges = int(z.sum())
    assert 0 < edges < 36
    assert rows_of_messages == [36 - edges, edges] * 5


def test_hard_edges_are_back_propagated_through_their_own_type_only(rows_of_messages):
    fast, _ = decoders()
    z = random_edges("hard", 3, 12)
    prediction = fast(torch.randn(3, 4, 6, 2, dtype=torch.float64), z, 5)
    assert rows_of_messages == [36, 36] * 5
    rows_of_messages.clear()
    prediction.sum().backward()
    assert sum(rows_of_messages) == 36 * 5


def test_dense_is_linear():
    for rows in (0, 1, 16, 31, 48):
        x, weight, bias = torch.randn(rows, 1, 6).double(), torch.randn(3, 6).double(), torch.randn(3).double()
        torch.testing.assert_close(model.dense(x, weight, bias), F.linear(x, weight, bias))


# Contract


def test_modules_have_the_published_names_and_shapes():
    encoder = {name: tuple(p.shape) for name, p in MLPEncoder(20).named_parameters() if name.endswith("weight")}
    assert {name: shape for name, shape in encoder.items() if ".bn." not in name} == {
        "mlp1.fc1.weight": (256, 20),
        "mlp1.fc2.weight": (256, 256),
        "mlp2.fc1.weight": (256, 512),
        "mlp2.fc2.weight": (256, 256),
        "mlp3.fc1.weight": (256, 256),
        "mlp3.fc2.weight": (256, 256),
        "mlp4.fc1.weight": (256, 768),
        "mlp4.fc2.weight": (256, 256),
        "fc_out.weight": (1, 256),
    }
    assert MLPEncoder(20, factor=False).mlp4.fc1.in_features == 512
    decoder = {name: tuple(p.shape) for name, p in MLPDecoder().named_parameters() if name.endswith("weight")}
    assert decoder == {
        "msg_fc1.0.weight": (256, 4),
        "msg_fc1.1.weight": (256, 4),
        "msg_fc2.0.weight": (256, 256),
        "msg_fc2.1.weight": (256, 256),
        "out_fc1.weight": (256, 258),
        "out_fc2.weight": (256, 256),
        "out_fc3.weight": (2, 256),
    }
    assert [name for name, _ in MLPEncoder(20).mlp1.named_children()] == ["fc1", "fc2", "bn"]


def test_a_training_step_repeats_exactly():
    fast, _ = decoders(torch.float32)
    x, z = torch.randn(8, 6, 5, 2), random_edges("hard", 8, 30, dtype=torch.float32)
    grads = []
    for _ in range(2):
        fast.zero_grad()
        fast(x, z, 4).square().sum().backward()
        grads.append([p.grad.clone() for p in fast.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    "edges, steps, message",
    [
        (torch.zeros(2, 6), 0, "prediction_steps is 0: choose 1 to 5"),
        (torch.zeros(2, 6), 6, "prediction_steps is 6: choose 1 to 5"),
        (torch.zeros(2, 7), 4, "6 undirected or 12 directed edges"),
        (torch.zeros(3, 6), 4, "whole samples"),
        (torch.zeros(2, 6, 3), 4, "2 edge types"),
        (torch.zeros(6), 4, "2 edge types"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(edges, steps, message):
    with pytest.raises(UsageError, match=message):
        MLPDecoder()(torch.zeros(2, 4, 5, 2), edges, steps)


def test_the_plain_gather_follows_the_order_of_edges():
    x = torch.randn(4, 3)
    receivers, senders = directed_edges(4)
    one_hot_receivers, one_hot_senders = one_hot_edges(4, x)
    torch.testing.assert_close(one_hot_receivers @ x, x[receivers])
    torch.testing.assert_close(one_hot_senders @ x, x[senders])
