"""Modules as functions of their parameters, whatever is inside them."""

import copy

import grid
import pytest
import torch
from grid import normal, seeded
from reference import Dense
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence._autodiff.functional import bind, isolated, jvp, vmap_in_chunks
from crossfluence._autodiff.params import Layout, fingerprint, trained_parameters
from crossfluence._losses import frozen_copy

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights

X, Y = normal(12, 3, seed=0), normal(12, 2, seed=1)


class Cube(torch.autograd.Function):
    """x³ with a derivative that is differentiable in reverse only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * cotangent


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1)


def tenth(model):
    return model(X[:1]).sum()


def agrees_with_the_dense_formula(model, loss=squared, question=tenth, data=(X, Y), damping=1.0):
    risk = cf.Risk(model, loss, cf.batches(*data, size=5), l2=0.1)
    wanted = Dense(model, loss, data, l2=0.1).scores(question, damping)
    for solver in (cf.Exact(damping), cf.GMRES(damping, rtol=1e-12)):
        found = cf.influence(risk, question, solver).values[:, 0]
        assert torch.allclose(found, wanted, rtol=1e-7, atol=1e-9 * float(wanted.abs().max()))


# Derivatives.


def test_a_derivative_along_a_direction_is_a_limit():
    theta, along = {"w": X[0], "b": Y[0]}, {"w": X[1], "b": Y[1]}

    def f(p):
        return torch.outer(p["w"].sin(), p["b"].exp())

    step = 1e-6
    moved = [f({k: theta[k] + sign * step * along[k] for k in theta}) for sign in (1, -1)]
    assert torch.allclose(jvp(f, theta, along), (moved[0] - moved[1]) / (2 * step), atol=1e-8)


def test_an_operation_without_forward_mode_falls_back_with_the_same_result():
    assert torch.allclose(jvp(Cube.apply, X, Y[:, :1] * X), 3 * X**2 * Y[:, :1] * X)
    own, plain = (
        nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 2)) for act in (Act(Cube.apply), Act(lambda x: x**3))
    )
    found, wanted = (
        cf.influence(cf.Risk(seeded(m), squared, cf.batches(X, Y), l2=0.1), tenth, cf.Exact(1.0)).values
        for m in (own, plain)
    )
    assert torch.allclose(found, wanted, rtol=1e-9)


class Act(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "peek",
    [
        lambda z: float(z.sum().item()) * 0 + 1,
        lambda z: 1 if z.sum() > 0 else 1.0,
        lambda z: z[z > 0].numel() * 0 + 1,
    ],
    ids=["item", "if", "mask"],
)
def test_user_code_that_looks_at_values_is_run_one_direction_at_a_time(peek):
    model = seeded(nn.Linear(3, 2))

    def peeking(net, batch):
        return squared(net, batch) * peek(net(batch[0]))

    found, wanted = (
        cf.influence(cf.Risk(model, loss, cf.batches(X, Y), l2=0.1), lambda m: m.weight[0], cf.CG(rtol=1e-12)).values
        for loss in (peeking, squared)
    )
    assert torch.allclose(found, wanted)


def test_many_directions_are_as_many_times_one():
    directions = normal(70, 3, seed=2)
    wanted = torch.stack([(direction**2).cumsum(0) for direction in directions])
    assert torch.equal(vmap_in_chunks(lambda v: (v**2).cumsum(0), directions), wanted)
    assert torch.equal(vmap_in_chunks(lambda v: (v**2).cumsum(0), directions[:1]), wanted[:1])
    with pytest.raises(RuntimeError, match="broken"):
        vmap_in_chunks(lambda v: (_ for _ in ()).throw(RuntimeError("broken")), directions)


# Binding.


def test_bound_functions_see_submodules_methods_buffers_and_what_was_not_passed():
    model = grid.AUTOENCODER.build()
    model.register_buffer("shift", torch.ones(2, dtype=torch.float64))

    def call(m, x):
        return m.encode(x) + m.shift + m.encoder.bias

    params = {name: tensor + 1 for name, tensor in trained_parameters(model, "encoder.*").items()}
    changed = copy.deepcopy(model)
    changed.load_state_dict({**model.state_dict(), **params})
    before = fingerprint(model)
    assert torch.equal(bind(call, model)(params, grid.MANIFOLD), call(changed, grid.MANIFOLD))
    partly = bind(call, model)({"encoder.bias": torch.zeros(2, dtype=torch.float64)}, grid.MANIFOLD)
    assert torch.allclose(partly, (grid.MANIFOLD @ model.encoder.weight.T).tanh() + 1)
    assert fingerprint(model) == before


def test_two_modules_are_bound_apart():
    one, two = seeded(nn.Linear(3, 1), 0), seeded(nn.Linear(3, 1), 1)
    zero = {"weight": torch.zeros(1, 3, dtype=torch.float64)}
    assert torch.equal(bind(lambda a, b: a.weight - b.weight, one, two)({}, zero), one.weight)
    assert torch.equal(bind(lambda a, b: a.weight - b.weight, one, two)(zero, {}), -two.weight)


def test_a_frozen_copy_shares_memory_blocks_gradients_and_keeps_ties():
    model = Tied()
    still = frozen_copy(model)
    assert still.out.weight is still.words.weight
    assert still.words.weight.data_ptr() == model.words.weight.data_ptr()
    assert not any(t.requires_grad for t in [still.words.weight, still.out.weight])
    assert all(t.requires_grad for t in model.parameters())


# Layers.


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.out.weight = self.words.weight
        seeded(self)

    def forward(self, text):
        return self.out(self.words(text).mean(1).tanh())


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights
def test_tied_weights_count_once_and_move_together():
    text, target = grid.integers(5, 12, 4, seed=3), grid.integers(5, 12, seed=4)
    model = Tied()
    assert cf.Risk(model, cross_entropy, cf.batches(text, target)).p == 15
    agrees_with_the_dense_formula(model, cross_entropy, lambda m: m(text[:1])[0, 0], (text, target))


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


LAYERS = {
    "layer norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)),
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.SiLU(), nn.Linear(4, 2)),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Softplus(), nn.Linear(4, 2)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 3, 2), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)
    ),
    "GRU": lambda: Recurrent(nn.GRU(1, 2, batch_first=True)),
    "LSTM": lambda: Recurrent(nn.LSTM(1, 2, batch_first=True)),
    "attention": lambda: Attention(nn.MultiheadAttention(2, 1, batch_first=True)),
}  # fmt: skip


class Attention(nn.Sequential):
    def forward(self, x):
        hidden = torch.stack([x, x.roll(1, 1)], dim=2)  # (b, 3, 2)
        return self[0](hidden, hidden, hidden, need_weights=False)[0].mean(1)


class Recurrent(nn.Sequential):
    def forward(self, x):
        return self[0](x[:, :, None])[0][:, -1]


@pytest.mark.parametrize("build", LAYERS.values(), ids=list(LAYERS))
def test_any_layer_will_do(build):
    model = seeded(build())
    agrees_with_the_dense_formula(model, damping=3.0)


# Small things.


def test_flattening_and_back_is_the_identity():
    params = trained_parameters(grid.AUTOENCODER.build())
    layout = Layout.of(params)
    back = layout.unflatten(layout.flatten(params))
    assert all(torch.equal(back[name], params[name]) for name in params)
    many = normal(4, layout.size, seed=5)
    assert torch.equal(layout.flatten(layout.unflatten(many)), many)


def test_a_fingerprint_sees_every_bit_of_parameters_and_buffers():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    seen = {fingerprint(model)}
    model[0].bias.data[0] = torch.nextafter(model[0].bias.data[0], torch.tensor(9.0))
    seen.add(fingerprint(model))
    model[1].running_mean[1] = -0.0
    seen.add(fingerprint(model))
    assert len(seen) == 3


def test_what_was_switched_off_comes_back_after_an_error():
    torch.backends.mha.set_fastpath_enabled(True)
    state = torch.random.get_rng_state()
    with pytest.raises(KeyError), isolated():
        {}[float(torch.rand(()))]
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_recurrent_model_in_single_precision_has_second_derivatives():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.read, self.head = nn.Embedding(9, 4), nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, tokens):
            return self.head(self.read(self.embed(tokens))[0][:, -1])

    single = grid.seeded(Reader()).float()
    tokens, labels = torch.arange(24).reshape(8, 3) % 9, torch.arange(8) % 2

    def scores(model):
        def loss(model, batch):
            return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

        risk = cf.Risk(model, loss, cf.batches(tokens, labels), l2=0.1)
        return cf.influence(risk, lambda model: model(tokens[:1])[0, 0], cf.Exact(1.0)).values

    flag = torch._C._get_mkldnn_enabled()
    assert torch.allclose(scores(single).double(), scores(copy.deepcopy(single).double()), atol=1e-4)
    assert torch._C._get_mkldnn_enabled() == flag
