"""EK-FAC needs one plain reverse pass: models that torch.func cannot transform, and layers that a batch hides."""

import pytest
import torch
from grid import integers, normal, seeded
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import crossfluence as cf
from crossfluence import errors
from crossfluence._autodiff.functional import isolated
from crossfluence._curvature.fisher import EmpiricalFisher
from crossfluence._kronecker.factors import KroneckerFit, layers_at
from crossfluence._kronecker.layers import layers_of

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights

N = 8
X, Y = normal(N, 4, seed=1), normal(N, seed=2)
TEXT, LENGTHS = integers(7, N, 5, seed=3), 1 + integers(5, N, seed=4)
SEQUENCES = normal(N, 5, 4, seed=5)


class Swish(torch.autograd.Function):
    """Written as before setup_context."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return g * (s + x * s * (1 - s))


class Numbers(torch.autograd.Function):
    """Its way back reads a number, which no vectorised pass has."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return g * 2 if g.abs().max().item() >= 0 else g


class Net(nn.Module):
    """Two layers, and a scale that no layer explains."""

    def __init__(self, act, again=None):
        super().__init__()
        self.first, self.last, self.scale = nn.Linear(4, 5), nn.Linear(5, 1), nn.Parameter(torch.ones(5).double())
        self.act, self.again = act, again

    def forward(self, x):
        middle = lambda h: self.act(h) * self.scale  # noqa: E731
        h = self.first(x)
        return self.last(middle(h) if self.again is None else checkpoint(middle, h, use_reentrant=self.again))[:, 0]


class Packed(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.r, self.last = getattr(nn, kind)(4, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        state = self.r(packed)[1]
        return self.last((state[0] if isinstance(state, tuple) else state)[-1])[:, 0]


class Bag(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table, self.last = table, nn.Linear(3, 1)

    def forward(self, text):
        read = self.table(text)
        return self.last(read if read.ndim == 2 else read.sum(1))[:, 0]


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.last(self.first(x).tanh())[:, 0]


def hooked():
    """As those leave behind who log gradients."""
    model, seen = Net(torch.tanh), []
    model.last.register_full_backward_hook(lambda module, into, out: seen.append(out[0].max().item()))
    return model


def squares(model, batch):
    return (model(*batch[:-1]) - batch[-1]).square()


def slopes(model, batch):
    """As a physics-informed loss has them."""
    x = batch[0].detach().clone().requires_grad_()
    u = model(x)
    return (torch.autograd.grad(u.sum(), x, create_graph=True)[0].sum(1) + u - batch[1]).square()


MODELS = {
    "function of the old form": (lambda: Net(Swish.apply), squares, (X, Y)),
    "way back that reads numbers": (lambda: Net(Numbers.apply), squares, (X, Y)),
    "backward hook": (hooked, squares, (X, Y)),
    "checkpoint": (lambda: Net(torch.tanh, False), squares, (X, Y)),
    "reentrant checkpoint": (lambda: Net(torch.tanh, True), squares, (X, Y)),
    "packed LSTM": (lambda: Packed("LSTM"), squares, (SEQUENCES, LENGTHS, Y)),
    "packed GRU": (lambda: Packed("GRU"), squares, (SEQUENCES, LENGTHS, Y)),
    "derivative in the loss": (lambda: Net(torch.tanh), slopes, (X, Y)),
    "bag": (lambda: Bag(nn.EmbeddingBag(7, 3)), squares, (TEXT, Y)),
    "sparse bag": (lambda: Bag(nn.EmbeddingBag(7, 3, sparse=True, mode="sum")), squares, (TEXT, Y)),
    "sparse table": (lambda: Bag(nn.Embedding(7, 3, sparse=True)), squares, (TEXT, Y)),
    "scripted": (lambda: torch.jit.script(Plain().double()), squares, (X, Y)),
    "compiled": (lambda: torch.compile(Plain(), backend="eager"), squares, (X, Y)),
}


def one_by_one(model, loss, batch):
    """Every sample's gradient, each by a backward pass of its own."""
    found = []
    for i in range(len(batch[0])):
        model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss(model, batch if len(batch) > 1 else batch[0])[i].backward()
        found.append({
            name: torch.zeros_like(part) if part.grad is None else part.grad.to_dense().clone()
            for name, part in model.named_parameters()
        })
    model.zero_grad(set_to_none=True)
    return {name: torch.stack([each[name] for each in found]) for name in found[0]}


@pytest.mark.filterwarnings("ignore")  # of scripting and compiling
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_a_backward_pass_for_each_sample(name):
    build, loss, batch = MODELS[name]
    torch.compiler.reset()
    model = build() if name == "scripted" else seeded(build())
    wanted, theta = one_by_one(model, loss, batch), {n: p.detach() for n, p in model.named_parameters()}
    with isolated():
        layers = layers_of(model, theta, loss, batch)
        found = layers.gradients(loss, batch)
    assert sorted(part for slot in found for part in slot.names) == sorted(wanted)
    for slot, gradients in found.items():
        assert (gradients.dense().movedim(0, 1) - slot.gather(wanted)).abs().max() < 1e-12
    assert all(part.grad is None for part in model.parameters())


@pytest.mark.parametrize("name", ["function of the old form", "backward hook", "reentrant checkpoint", "packed LSTM"])
def test_ek_fac_answers_by_the_exact_blocks_of_these_gradients(name):
    build, loss, batch = MODELS[name]
    model = seeded(build())
    wanted, damping = one_by_one(model, loss, batch), 0.1
    risk = cf.Risk(model, loss, cf.batches(*batch), l2=0.01)
    asked = lambda m: loss(m, batch)[0]  # noqa: E731
    scores = cf.influence(risk, asked, cf.BlockDiagonal(damping))
    total, seen = torch.zeros(N).double(), set()
    for block in cf.BlockDiagonal(damping).invert(risk).blocks:
        rows = block.slot.row.gather(wanted)[:, 0, 0]
        curvature = rows.mT @ rows / N + (0.01 + damping) * torch.eye(rows.shape[1]).double()
        total -= rows @ torch.linalg.solve(curvature, rows[0]) / N
        seen.update(block.slot.names)
    assert seen == set(wanted)
    assert (scores.values[:, 0] - total).abs().max() < 1e-9 * total.abs().max()


class Scaled(nn.Embedding):
    """A table whose layer does more than read it."""

    def forward(self, text):
        return 3 * super().forward(text)


def words(model, text):
    return F.cross_entropy(model(text).transpose(1, 2), text.roll(1, 1), reduction="none").sum(1)


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.places, self.head = Scaled(7, 4), nn.Embedding(5, 4), nn.Linear(4, 7)

    def forward(self, text):
        return self.head((self.table(text) + self.places(torch.arange(5))).tanh())


def test_weights_of_zero_hide_no_layer():
    risk = cf.Risk(seeded(Language()), words, cf.batches(TEXT, size=4))
    whole, part = (KroneckerFit.of(one, EmpiricalFisher()).layers for one in (risk, risk.without(range(4))))
    assert list(whole.outside) == list(part.outside) == []
    assert [each.slot for each in whole.layer_blocks] == [each.slot for each in part.layer_blocks]
    assert whole.slots == part.slots


def test_samples_that_were_looked_at_are_unlearnt_as_others_are():
    """The Newton step of weights that leave them out, whichever batch they stand in."""
    model = seeded(Language())
    ask = lambda m: m(TEXT[:1])[0, -1].log_softmax(-1)[2]  # noqa: E731
    found = []
    for order in (torch.arange(N), torch.arange(N).flip(0)):
        risk = cf.Risk(model, words, cf.batches(TEXT[order], size=4), ids=order.tolist())
        found.append(cf.unlearn(risk, [0, 1, 2, 3], cf.EKFAC(damping=1.0), watch=ask).achieved)
    assert torch.allclose(*found, rtol=1e-9)


def test_scores_without_the_samples_that_were_looked_at_are_those_of_the_dense_blocks():
    model, solver = seeded(Language()), cf.BlockDiagonal(1.0)
    risk = cf.Risk(model, words, cf.batches(TEXT, size=4)).without(range(4))
    scores = cf.influence(risk, lambda m: words(m, TEXT)[0], solver).values[:, 0]
    wanted, total = one_by_one(model, words, (TEXT,)), torch.zeros(N).double()
    for block in solver.invert(risk).blocks:
        rows = block.slot.row.gather(wanted)[:, 0, 0]
        curvature = rows[4:].mT @ rows[4:] / N + torch.eye(rows.shape[1]).double()
        total -= rows @ torch.linalg.solve(curvature, rows[0]) / N
    assert (scores - total).abs().max() < 1e-9


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 1)
        self.mask_token, self.idle = nn.Parameter(torch.zeros(1, 32).double()), nn.Linear(3, 2)

    def forward(self, x):
        return self.first(x)[:, 0]


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_a_parameter_the_loss_never_reaches_is_left_out_by_name(l2):
    model = seeded(Unused())
    scores = cf.influence(cf.Risk(model, squares, cf.batches(X, Y), l2=l2), lambda m: m(X)[0], cf.EKFAC())
    used = cf.Risk(model, squares, cf.batches(X, Y), l2=l2, params="first*")
    assert torch.allclose(scores.values, cf.influence(used, lambda m: m(X)[0], cf.EKFAC()).values)
    (note,) = [note for note in scores.report.notes if "never reached by the loss" in note]
    assert "mask_token" in note
    assert "idle.weight" in note


def test_a_curvature_that_ek_fac_cannot_take_is_named_with_one_that_it_can():
    with pytest.raises(
        errors.UnsupportedError, match=r"Got GaussNewton; EKFAC needs.*curvature=crossfluence.Fisher\(\)"
    ):
        cf.EKFAC(curvature=cf.GaussNewton())


class Experts(nn.Module):
    """Which of them reads a sample depends on it."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))

    def forward(self, x):
        out = x.new_zeros(len(x))
        for number, expert in enumerate(self.experts):
            rows = ((x[:, 0] > 0) == bool(number)).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(x[rows])[:, 0]) if len(rows) else out
        return out


def test_a_layer_that_another_batch_reaches_is_differentiated_there():
    order = X[:, 0].argsort()
    x, model = X[order], seeded(Experts())
    size = int((x[:, 0] <= 0).sum())
    risk = cf.Risk(model, lambda m, b: squares(m, (b[0], b[1])), [(x[:size], Y[:size]), (x[size:], Y[size:])])
    with isolated():
        layers = layers_at(risk, squares, (x[:size], Y[:size]))
        found = layers.gradients(squares, (x[size:], Y[size:]))
    wanted = one_by_one(model, squares, (x[size:], Y[size:]))
    assert [slot.names for slot in layers.idle] == [("experts.1.weight", "experts.1.bias")]
    for slot in layers.idle:
        assert (found[slot].dense().movedim(0, 1) - slot.gather(wanted)).abs().max() < 1e-12


class Shifts(nn.Module):
    """The key's bias moves all of an attention's logits together: its gradient is a sum of terms that cancel."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return ((self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x)).sum((1, 2))


def test_gradients_that_add_up_to_rounding_are_judged_by_their_terms():
    model = seeded(Shifts())
    theta = {name: part.detach() for name, part in model.named_parameters()}
    decay = {name: float("bias" in name) for name in theta}
    with isolated():
        layers = layers_of(model, theta, lambda m, b: m(b).sin(), SEQUENCES, decay=decay)
    assert not layers.outside
    assert {layer_block.slot.names for layer_block in layers.layer_blocks} >= {("k.bias",), ("k.weight",)}


def test_an_l2_term_of_its_own_for_each_parameter_is_added_to_its_block():
    model = seeded(Plain())
    risk = cf.Risk(model, squares, cf.batches(X, Y), l2={"*.weight": 0.5})
    scores = cf.influence(risk, lambda m: squares(m, (X, Y))[0], cf.BlockDiagonal(0.1)).values[:, 0]
    wanted, total = one_by_one(model, squares, (X, Y)), torch.zeros(N).double()
    for name, part in wanted.items():
        rows = part.flatten(1)
        own = 0.1 + (0.5 if "weight" in name else 0.0)
        total -= rows @ torch.linalg.solve(rows.mT @ rows / N + own * torch.eye(rows.shape[1]).double(), rows[0]) / N
    assert (scores - total).abs().max() < 1e-9
