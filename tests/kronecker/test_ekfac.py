"""EK-FAC against per-sample gradients written out, over every kind of layer and of its use."""

import copy
import pickle
from dataclasses import replace

import classes
import grid
import pytest
import torch
from grid import integers, normal, seeded
from reference import ekfac_matrix, sample_gradients
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors
from crossfluence._autodiff.functional import isolated
from crossfluence._autodiff.params import trained_parameters
from crossfluence._curvature.output_gradients import OutputGradients
from crossfluence._kronecker import factors as eigenbasis
from crossfluence._kronecker.factors import KroneckerFit
from crossfluence._kronecker.gradients import _gram
from crossfluence._kronecker.layers import layers_of

# Factors are compared with dense matrices at random weights, where nothing has ended.
pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")

N = 6


class Calls(nn.Module):
    """A model from parts and a function that calls them."""

    def __init__(self, function, **parts):
        super().__init__()
        self.parts, self.function = nn.ModuleDict(parts), function

    def forward(self, x):
        return self.function(self.parts, x)


def attention(m, x):
    q, k, v = (m[name](x) for name in "qkv")
    return m["out"](F.scaled_dot_product_attention(q, k, v)).mean(1)


def tied(m, text):
    return F.linear(m["hidden"](m["words"](text)).tanh(), m["words"].weight).mean(1)


class Tied(nn.Module):
    """The head is the table, as a layer of its own."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(7, 3), nn.Linear(3, 7)
        self.head.weight = self.words.weight

    def forward(self, text):
        return self.head(self.words(text).tanh()).mean(1)


class Own(nn.Module):
    """Parameters that belong to no layer."""

    def __init__(self):
        super().__init__()
        self.first, self.scale = nn.Linear(4, 3), nn.Parameter(torch.ones(()))
        self.second, self.large = nn.Parameter(torch.ones(3, 5)), nn.Parameter(torch.ones(5, 300))

    def forward(self, x):
        return ((self.first(x).tanh() @ self.second).tanh() @ self.large)[:, :40] * self.scale


MASK = torch.ones(5, 5, dtype=torch.bool).triu(1)
TEXT = integers(7, N, 5, seed=1)
IMAGES = normal(N, 4, 6, 5, seed=2)
SEQUENCES = normal(N, 5, 4, seed=3)
INSIDE = {
    "chain": (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), SEQUENCES[:, 0]),
    "no bias": (nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(inplace=True), nn.Linear(5, 3)), SEQUENCES[:, 0]),
    "one output": (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), SEQUENCES[:, 0]),
    "positions": (Calls(lambda m, x: m["l"](x).tanh().sum(1), l=nn.Linear(4, 3)), SEQUENCES),
    "flattened": (Calls(lambda m, x: m["l"](x.flatten(0, 1)).tanh().unflatten(0, (-1, 5)).sum(1), l=nn.Linear(4, 3)),
                  SEQUENCES),
    "sequence first": (Calls(lambda m, x: m["l"](x.transpose(0, 1)).tanh().sum(0), l=nn.Linear(4, 3)), SEQUENCES),
    "used twice": (Calls(lambda m, x: m["l"](m["l"](x).tanh()), l=nn.Linear(4, 4)), SEQUENCES[:, 0]),
    "attention": (Calls(attention, q=nn.Linear(4, 4), k=nn.Linear(4, 4), v=nn.Linear(4, 4), out=nn.Linear(4, 2)),
                  SEQUENCES),
    "attention layer": (Calls(lambda m, x: m["a"](x, value=x, key=x, attn_mask=MASK, need_weights=False)[0].mean(1),
                              a=nn.MultiheadAttention(4, 2, batch_first=True)), SEQUENCES),
    "attention without bias": (Calls(lambda m, x: m["a"](*(y.transpose(0, 1) for y in (x, x, x.flip(1))))[0].mean(0),
                                     a=nn.MultiheadAttention(4, 2, bias=False)), SEQUENCES),
    "transformer": (Calls(lambda m, x: m["t"](x.transpose(0, 1)).mean(0), t=nn.TransformerEncoderLayer(4, 2, 6)),
                    SEQUENCES),
    "conv2d": (Calls(lambda m, x: m["c"](x).tanh().flatten(1),
                     c=nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))), IMAGES),
    "grouped": (Calls(lambda m, x: m["c"](x).tanh().flatten(1), c=nn.Conv2d(4, 6, 3, groups=2, padding="same")),
                IMAGES),
    "depthwise": (Calls(lambda m, x: m["c"](x).tanh().flatten(1), c=nn.Conv2d(4, 4, 2, groups=4, bias=False)), IMAGES),
    "circular": (Calls(lambda m, x: m["c"](x).tanh().flatten(1),
                       c=nn.Conv1d(4, 2, 3, padding=1, padding_mode="circular")), IMAGES[:, :, 0]),
    "table": (Calls(lambda m, x: m["t"](x).tanh().sum(1), t=nn.Embedding(7, 3, padding_idx=2)), TEXT),
    "places": (Calls(lambda m, x: (m["t"](x) + m["p"](torch.arange(5))).tanh().sum(1),
                     t=nn.Embedding(7, 3), p=nn.Embedding(5, 3)), TEXT),
    "places, one row": (Calls(lambda m, x: (m["t"](x) + m["p"](torch.arange(5)[None])).tanh().sum(1),
                              t=nn.Embedding(7, 3), p=nn.Embedding(5, 3)), TEXT),
    "tied layers": (Tied(), TEXT),
    "layer norm": (nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)), SEQUENCES[:, 0]),
    "norms of positions": (Calls(lambda m, x: m["r"](m["l"](x)).tanh().sum(1), l=nn.LayerNorm(4), r=nn.RMSNorm((5, 4))),
                           SEQUENCES),
    "batch norm": (Calls(lambda m, x: m["g"](m["b"](m["c"](x))).tanh().flatten(1), c=nn.Conv2d(4, 6, 2),
                         b=nn.BatchNorm2d(6), g=nn.GroupNorm(3, 6)), IMAGES),
    "attention across": (Calls(lambda m, x: m["a"](x, x[:, :3], x[:, :3])[0].mean(1),
                               a=nn.MultiheadAttention(4, 2, batch_first=True)), SEQUENCES),
    "recurrent": (Calls(lambda m, x: m["r"](x)[0][:, -1], r=nn.GRU(4, 3, batch_first=True)), SEQUENCES),
} | classes.INSIDE  # fmt: skip
OUTSIDE = {
    "tied in a function": (Calls(tied, hidden=nn.Linear(3, 3), words=nn.Embedding(7, 3)), TEXT, ["parts.words.weight"]),
    "own parameters": (Own(), SEQUENCES[:, 0], ["scale", "second", "large"]),
}  # fmt: skip
MODELS = [pytest.param(seeded(model), x, [], id=name) for name, (model, x) in INSIDE.items()]
MODELS += [pytest.param(seeded(model), x, outside, id=name) for name, (model, x, outside) in OUTSIDE.items()]


def curve(model, x):
    """Some loss of the outputs that is not symmetric in them."""
    z = model(x)
    return (z * torch.arange(1, z.shape[1] + 1).to(z)).sin().sum(1)


def found_by_hooks(model, x, loss=curve):
    with isolated():
        layers = layers_of(model, trained_parameters(model), loss, x)
        return layers, layers.gradients(loss, x)


def close(found, wanted, share=1e-9):
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= share * wanted.abs().max() + 1e-13


@pytest.mark.parametrize(("model", "x", "outside"), MODELS)
def test_gradients_from_hooks_are_those_of_each_sample_alone(model, x, outside):
    wanted = sample_gradients(model, curve, (x,))
    layers, found = found_by_hooks(model, x)
    assert sorted(layers.outside) == sorted(outside)
    assert sorted(name for slot in found for name in slot.names) == sorted(wanted)
    for slot, gradients in found.items():
        each = slot.gather(wanted)  # (n, g, r, c)
        close(gradients.dense().movedim(0, 1), each)
        close(gradients.squares(), each.square().sum(0))
        close(gradients[2:4].dense().movedim(0, 1), each[2:4])
        directions = normal(3, *slot.form, seed=4)
        close(gradients.along(directions), each.flatten(1) @ directions.flatten(1).T)


@pytest.mark.parametrize(("model", "x", "outside"), MODELS)
def test_directions_of_the_outputs_share_one_forward_pass(model, x, outside):
    with isolated():
        layers = layers_of(model, trained_parameters(model), curve, x)
        directions, passed = list(normal(3, *model(x).shape, seed=9)), []
        output_gradients = OutputGradients(lambda model, batch: model(batch), lambda _: directions)
        counted = model.register_forward_hook(lambda *_: passed.append(1))
        together = list(layers.along(output_gradients, x))
        counted.remove()
        alone = [layers.gradients(output_gradients.along(direction), x) for direction in directions]
    assert len(passed) == 1 or outside  # what no layer explains is differentiated sample by sample
    for one, other in zip(together, alone, strict=True):
        for slot, gradients in one.items():
            close(gradients.dense(), other[slot].dense())


@pytest.mark.parametrize("columns", [3, 600, 1_025])
def test_second_moments_are_those_of_the_whole_product(columns):
    rows = normal(2, 7, columns, seed=10)
    close(_gram(rows), rows.mT @ rows)


@pytest.mark.parametrize(("model", "x", "outside"), MODELS)
def test_eigenvalues_are_mean_squared_gradients_along_the_eigenvectors(model, x, outside):
    weights = torch.tensor([1, 1, 0, 1, 1, 1]).double()
    wanted = sample_gradients(model, curve, (x,))
    risk = cf.Risk(model, curve, cf.batches(x, size=4), l2=0.1).without([2])
    with isolated():
        blocks = KroneckerFit.of(risk, cf.EmpiricalFisher()).blocks()
    assert sum(block.slot.size for block in blocks) == risk.p
    for block in blocks:
        each = block.along(block.slot.gather(wanted))
        close(block.values, (weights[:, None, None, None] * each.square()).mean(0))
        again = block.back(each)
        close(again, block.slot.gather(wanted))


@pytest.mark.parametrize("name", ["one output", "layer norm", "own parameters", "depthwise"])
def test_blocks_of_one_row_are_exact(name):
    model, x = (INSIDE | OUTSIDE)[name][:2]
    wanted, risk = sample_gradients(model, curve, (x,)), cf.Risk(model, curve, cf.batches(x))
    with isolated():
        blocks = KroneckerFit.of(risk, cf.EmpiricalFisher()).blocks()
    rows = [block for block in blocks if block.slot.form[1] == 1]
    assert rows
    for block in rows:
        each = block.slot.gather(wanted)[:, :, 0].movedim(1, 0)  # (g, n, c)
        units = torch.eye(block.slot.form[2], dtype=torch.float64).expand(block.slot.form[0], -1, -1)
        found = block.apply_eigenfunction(units.movedim(1, 0).unsqueeze(2), block.values)[:, :, 0].movedim(1, 0)
        close(found, each.mT @ each / N)


CHAIN = seeded(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
X, Y = normal(30, 4, seed=5), integers(3, 30, seed=6)


def entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


SPLIT = cf.OnOutputs(
    lambda model, batch: model(batch[0]), lambda z, batch: F.cross_entropy(z, batch[1], reduction="none")
)


def question(model):
    return {"logit": model(X[0])[1], "norm": model[0].weight.square().sum()}


def dense_scores(matrix, model=CHAIN, loss=entropy, tensors=(X, Y)):
    gradients = sample_gradients(model, loss, tensors)
    rows = torch.cat([each.flatten(1) for each in gradients.values()], 1) / len(X)
    asked = question(model)
    slopes = [
        torch.cat([part.flatten() for part in torch.autograd.grad(value, list(model.parameters()), allow_unused=True,
                                                                  materialize_grads=True)])
        for value in asked.values()
    ]  # fmt: skip
    return -rows @ torch.linalg.solve(matrix, torch.stack(slopes, 1))


@pytest.mark.parametrize("damping", [0.02, cf.Relative(0.1)], ids=str)
@pytest.mark.parametrize("size", [30, 7])
def test_scores_equal_the_dense_formula(damping, size):
    added = damping if isinstance(damping, float) else lambda mean: damping.factor * mean
    matrix = ekfac_matrix(CHAIN, lambda z, y: F.cross_entropy(z, y, reduction="none"), X, Y, damping=added, l2=0.01)
    risk = cf.Risk(CHAIN, entropy, cf.batches(X, Y, size=size), l2=0.01)
    scores = cf.influence(risk, question, cf.EKFAC(damping))
    close(scores.values, dense_scores(matrix))
    assert scores.report.smallest_eigenvalue == pytest.approx(0.01, abs=1e-3)
    assert any("EmpiricalFisher" in note for note in scores.report.notes)
    assert any("100.00% Kronecker" in note for note in scores.report.notes)


@pytest.mark.parametrize("damping", [0.02, cf.Relative(0.1)], ids=str)
def test_scores_by_products_of_eigenvalues_equal_the_dense_formula(damping):
    added = damping if isinstance(damping, float) else lambda mean: damping.factor * mean
    matrix = ekfac_matrix(
        CHAIN, lambda z, y: F.cross_entropy(z, y, reduction="none"), X, Y, damping=added, l2=0.01, corrected=False
    )
    risk = cf.Risk(CHAIN, entropy, cf.batches(X, Y, size=7), l2=0.01)
    scores = cf.influence(risk, question, cf.KFAC(damping))
    close(scores.values, dense_scores(matrix))
    assert any("K-FAC of EmpiricalFisher" in note for note in scores.report.notes)


@pytest.mark.parametrize("kind", ["exact", "diagonal"])
@pytest.mark.parametrize(("model", "x", "outside"), MODELS)
def test_plain_blocks_are_those_of_the_second_moment_of_whole_gradients(model, x, outside, kind):
    each = sample_gradients(model, curve, (x,))
    risk = cf.Risk(model, curve, cf.batches(x, size=4))
    with isolated():
        how = {"in_full": True, "by_squares": False} if kind == "exact" else {"by_factors": False}
        blocks = KroneckerFit.of(risk, cf.EmpiricalFisher(), **how).blocks()
    assert sum(block.slot.size for block in blocks) == risk.p
    for block in blocks:
        rows = block.slot.gather(each).flatten(1)  # (n, size)
        moment = rows.T @ rows / N
        moment = moment if kind == "exact" else moment.diagonal().diag()
        vectors = normal(3, *block.slot.form, seed=4)
        close(block.apply_eigenfunction(vectors, block.values).flatten(1), vectors.flatten(1) @ moment, 1e-8)


def test_larger_layers_keep_their_factors_among_exact_blocks(monkeypatch):
    monkeypatch.setattr(eigenbasis, "LONGEST_SIDE", 20)
    scores = cf.influence(cf.Risk(CHAIN, entropy, cf.batches(X, Y)), question, cf.BlockDiagonal())
    notes = " ".join(scores.report.notes)
    assert "58.14% Kronecker factors of their layer (0.weight, ...); 41.86% exact (2.weight, ...)" in notes
    assert scores.values.isfinite().all()


def kronecker(model, loss, data, size=4):
    with isolated():
        risk = cf.Risk(model, loss, cf.batches(*data, size=size))
        return KroneckerFit.of(risk, cf.EmpiricalFisher(), by_squares=False).blocks()


def multiplied(block, vectors):
    return block.apply_eigenfunction(vectors, block.values)


def test_a_table_has_the_products_of_a_linear_layer_that_reads_unit_vectors():
    table = seeded(Calls(lambda m, x: m["t"](x).tanh().sum(1), t=nn.Embedding(7, 3)))
    layer = Calls(lambda m, x: m["l"](x).tanh().sum(1), l=nn.Linear(7, 3, bias=False)).double()
    with torch.no_grad():
        layer.parts["l"].weight.copy_(table.parts["t"].weight.T)
    (rows,), (columns,) = kronecker(table, curve, (TEXT,)), kronecker(layer, curve, (F.one_hot(TEXT, 7).double(),))
    vectors = normal(3, 1, 7, 3, seed=4)
    close(multiplied(rows, vectors), multiplied(columns, vectors.mT).mT)


def test_positions_count_as_samples_whose_losses_add_up():
    model = seeded(nn.Sequential(nn.Linear(4, 3)))
    losses = lambda m, x: (m(x) ** 3).sum(-1)  # noqa: E731
    (whole,) = kronecker(model, lambda m, x: losses(m, x).sum(1), (SEQUENCES,))
    (parts,) = kronecker(model, losses, (SEQUENCES.flatten(0, 1),))
    vectors = normal(3, 1, 3, 5, seed=4)
    close(multiplied(whole, vectors), 5 * multiplied(parts, vectors))


def test_draws_do_not_change_the_size_of_products():
    risk = cf.Risk(CHAIN, SPLIT, cf.batches(X, Y))
    with isolated():
        one, many = (KroneckerFit.of(risk, cf.Fisher(samples=count), by_squares=False).blocks() for count in (2, 64))
    for few, more in zip(one, many, strict=True):
        assert float(more.values.sum() / few.values.sum()) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("kind", [cf.KFAC, cf.BlockDiagonal, cf.Diagonal])
@pytest.mark.parametrize("name", ["chain", "conv2d", "table", "transformer"])
def test_all_pairs_of_other_blocks_score_as_one_question_after_another(name, kind):
    model, x = seeded(INSIDE[name][0]), INSIDE[name][1]
    risk = cf.Risk(model, curve, cf.batches(x, size=4), l2=0.1)
    inverse = kind(tolerance=0).invert(risk)
    found = cf.influence(risk, each(curve, x), inverse)
    close(found.values, one_by_one(risk, curve, (x,), inverse).values)


@pytest.mark.parametrize(
    ("string", "kind"),
    {"corrected": cf.EKFAC, "kronecker": cf.KFAC, "exact": cf.BlockDiagonal, "diagonal": cf.Diagonal}.items(),
)
def test_a_string_for_the_blocks_still_works_and_names_the_solver_to_type(string, kind):
    with pytest.warns(DeprecationWarning, match=rf"EKFAC\(blocks='{string}'\) is {kind.__name__}\(\) now"):
        found = cf.EKFAC(0.5, blocks=string)
    assert found == kind(0.5)
    assert replace(found, damping=0.1) == kind(0.1)
    assert pickle.loads(pickle.dumps(found)) == found


def test_layers_are_looked_at_once_for_fit_samples_and_queries(monkeypatch):
    looks, layers_of = [], eigenbasis.layers_of
    monkeypatch.setattr(eigenbasis, "layers_of", lambda *args, **how: looks.append(1) or layers_of(*args, **how))
    risk = cf.Risk(CHAIN, entropy, cf.batches(X, Y))
    inverse = cf.EKFAC().invert(risk)
    cf.influence(risk, cf.each_of(cf.batches(X[:5], Y[:5]), entropy), inverse)
    cf.self_influence(risk, inverse)
    assert len(looks) == 1
    cf.influence(risk, cf.each_of(cf.batches(X[:5], Y[:5]), lambda m, b: entropy(m, b)), inverse)
    assert len(looks) == 2  # another function of the model may use its layers in another way


def test_unknown_blocks_are_refused():
    with pytest.raises(ValueError, match="Got blocks='full'; needed one of 'corrected', 'kronecker', 'exact'"):
        cf.EKFAC(blocks="full")


def test_scores_in_single_precision_are_close():
    double = cf.influence(cf.Risk(CHAIN, entropy, cf.batches(X, Y)), question, cf.EKFAC())
    model = copy.deepcopy(CHAIN).float()

    def asked(model):
        return {"logit": model(X[0].float())[1], "norm": model[0].weight.square().sum()}

    single = cf.influence(cf.Risk(model, entropy, cf.batches(X.float(), Y)), asked, cf.EKFAC())
    assert single.values.dtype == torch.float32
    assert torch.allclose(single.values.double(), double.values, rtol=1e-3, atol=1e-5)


def test_a_linear_model_with_white_inputs_and_squared_error_is_solved_exactly():
    x = torch.linalg.qr(normal(40, 5, seed=7))[0][:, :4]
    x = torch.linalg.qr(x - x.mean(0))[0] * 40**0.5  # mean zero, covariance one
    y = normal(40, 3, seed=8)
    split = cf.OnOutputs(lambda model, batch: model(batch[0]), lambda z, batch: (z - batch[1]).square().sum(1))
    risk = cf.Risk(seeded(nn.Linear(4, 3)), split, cf.batches(x, y), l2=0.3)
    ask = lambda model: model(normal(4, seed=9)).prod()  # noqa: E731
    solver = cf.EKFAC(0.1, curvature=cf.Fisher(samples=None))
    close(cf.influence(risk, ask, solver).values, cf.influence(risk, ask, cf.Exact(0.1)).values)


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("problem", [grid.ON_OUTPUTS, grid.SOFTMAX_ON_OUTPUTS, grid.SKIP_GRAM], ids=lambda p: p.name)
def test_draws_and_blocks_do_not_depend_on_the_batches(problem, size):
    whole, parts = (cf.influence(problem.risk(size=s), problem.ask, cf.EKFAC()).values for s in (10_000, size))
    close(parts, whole)


def test_a_first_batch_of_one_sample_does_not_hide_that_sequences_come_first():
    model, x = INSIDE["sequence first"]
    whole, parts = (
        cf.influence(cf.Risk(model, curve, data), each(curve, x, size=1), cf.EKFAC(0.1, tolerance=0)).values
        for data in ([x], [x[:1], x[1:]])
    )
    close(parts, whole)


def test_losses_that_stop_gradients_are_refused():
    risk = cf.Risk(CHAIN, cf.FieldLoss(lambda m, s, b, w: w @ curve(m, b)), cf.batches(X))
    with pytest.raises(errors.UnsupportedError, match=r"EKFAC needs a gradient for each sample alone.*GMRES"):
        cf.EKFAC().invert(risk)


def test_a_gradient_that_is_not_finite_is_named_with_its_batch_and_parameters():
    x = X.clone()
    x[17] = 0  # the square root of zero is finite, and its derivative is not
    model = seeded(nn.Sequential(nn.Linear(4, 3, bias=False)))
    risk = cf.Risk(model, lambda model, x: model(x).norm(dim=1).sqrt(), cf.batches(x, size=10))
    with pytest.raises(errors.NonFiniteError, match=r"0\.weight gives a NaN or an infinity in batch 1"):
        cf.EKFAC().invert(risk)


def test_the_model_is_left_as_it_was():
    model = copy.deepcopy(CHAIN)
    state = torch.get_rng_state()
    cf.influence(cf.Risk(model, SPLIT, cf.batches(X, Y)), question, cf.EKFAC())
    assert all(not layer._forward_hooks and not layer._backward_hooks for layer in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_parameters_without_any_gradient_are_left_out_and_said():
    model = seeded(nn.ModuleDict({"used": nn.Linear(4, 3), "idle": nn.Linear(4, 3)}))
    risk = cf.Risk(model, lambda m, b: F.cross_entropy(m["used"](b[0]), b[1], reduction="none"), cf.batches(X, Y))
    scores = cf.influence(risk, lambda m: m["used"].bias[0], cf.EKFAC(0.1))
    assert scores.values.isfinite().all()
    assert any("50.00% without any curvature" in note for note in scores.report.notes)
    both = cf.influence(risk, each(lambda m, x: m["used"](x)[:, 0] + m["idle"](x)[:, 1], X), cf.EKFAC(0.1))
    alone = cf.influence(risk, each(lambda m, x: m["used"](x)[:, 0], X), cf.EKFAC(0.1))
    close(both.values, alone.values)


def test_short_sums_bear_inputs_that_only_questions_have():
    x, asked = MANY.clone(), MANY[:9].clone()
    x[:, :10], asked[:, :10] = 0, 1e3
    risk = cf.Risk(WIDE, SPLIT, cf.batches(x, LABELS))
    exact, short = (
        cf.influence(risk, each(entropy, asked, LABELS[:9]), cf.EKFAC(1.0, tolerance=t)).values for t in (0, 0.2)
    )
    assert (short - exact).norm() <= 0.2 * exact.norm()


def test_as_a_preconditioner_it_saves_steps():
    x = X * torch.tensor([100.0, 10.0, 1.0, 0.1])  # badly scaled inputs
    risk = cf.Risk(seeded(nn.Linear(4, 3), size=0.01), SPLIT, cf.batches(x, Y), l2=1e-4)
    ask = lambda model: model(X[0])[1]  # noqa: E731
    plain, helped = (
        cf.influence(risk, ask, cf.CG(rtol=1e-8, curvature=cf.GaussNewton(), preconditioner=by))
        for by in (None, cf.EKFAC(1e-4))
    )
    close(helped.values, plain.values, 1e-4)
    assert sum(helped.report.steps) < sum(plain.report.steps) / 2


# Many questions at once.


def each(loss, *tensors, size=4):
    return cf.each_of(cf.batches(*tensors, size=size), loss)


def one_by_one(risk, loss, tensors, inverse):
    """The same questions as a plain objective: gradients in full, a solve, and forward-mode passes."""
    batch = tensors[0] if len(tensors) == 1 else tensors
    return cf.influence(risk, lambda model: loss(model, batch), inverse)


@pytest.mark.parametrize(("model", "x", "outside"), MODELS)
def test_all_pairs_score_as_one_question_after_another(model, x, outside):
    risk = cf.Risk(model, curve, cf.batches(x, size=4), l2=0.1)
    inverse = cf.EKFAC(tolerance=0).invert(risk)
    ask = lambda m, b: curve(m, b).square()  # noqa: E731
    pairs = cf.influence(risk, each(ask, x), inverse)
    wanted = one_by_one(risk, ask, (x,), inverse)
    close(pairs.values, wanted.values)
    assert pairs.report.values == pytest.approx(wanted.report.values)
    assert pairs.report.drift == pytest.approx(wanted.report.drift)
    assert pairs.objectives == wanted.objectives
    assert any("met layer by layer" in note for note in pairs.report.notes) == (not outside)
    close(cf.influence(risk, each(ask, x), inverse, candidates=[x[2:5], x[:1]]).values, pairs.values[[2, 3, 4, 0]])


WIDE = seeded(nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 3)), size=0.3)
MANY = normal(200, 40, seed=10) * torch.linspace(0, 3, 40).exp()
LABELS = integers(3, 200, seed=11)


@pytest.mark.parametrize("tolerance", [0.2, 0.02, 1e-3])
def test_short_sums_stay_within_the_tolerance(tolerance):
    risk = cf.Risk(WIDE, SPLIT, cf.batches(MANY, LABELS))
    exact = cf.influence(risk, each(entropy, MANY[:50], LABELS[:50]), cf.EKFAC(tolerance=0))
    short = cf.influence(risk, each(entropy, MANY[:50], LABELS[:50]), cf.EKFAC(tolerance=tolerance))
    assert (short.values - exact.values).norm() <= tolerance * exact.values.norm()
    if tolerance > 0.1:
        assert any("in sums of" in note for note in short.report.notes)
        assert not torch.allclose(short.values, exact.values, rtol=1e-6)


@pytest.mark.parametrize("size", [7, 600])
def test_hundreds_of_questions_are_answered_in_chunks(size):
    points, labels = normal(600, 40, seed=12), integers(3, 600, seed=13)
    risk = cf.Risk(WIDE, SPLIT, cf.batches(MANY, LABELS))
    inverse = cf.EKFAC(tolerance=0.02).invert(risk)
    found = cf.influence(risk, each(entropy, points, labels, size=size), inverse)
    assert found.objectives == tuple(map(str, range(600)))
    some = [0, 255, 256, 599]
    wanted = one_by_one(risk, entropy, (points[some], labels[some]), inverse)
    assert (found.values[:, some] - wanted.values).norm() <= 0.02 * wanted.values.norm()


def test_questions_about_a_part_of_the_model_reach_only_that_part():
    model = seeded(grid.Coder(4, 3, 2))
    loss = lambda m, b: grid.mixed_loss(m, (*b, torch.ones(len(b[0]), dtype=torch.float64)))  # noqa: E731
    risk = cf.Risk(model, loss, cf.batches(X, Y % 2), l2=0.1)
    inverse = cf.EKFAC(tolerance=0).invert(risk)
    code = lambda m, x: m.encode(x).square().sum(1)  # noqa: E731
    found = cf.influence(risk, each(code, X[:9]), inverse)
    close(found.values, one_by_one(risk, code, (X[:9],), inverse).values)
    assert any("met layer by layer" in note for note in found.report.notes)


@pytest.mark.parametrize("kind", [cf.EKFAC, cf.BlockDiagonal])
@pytest.mark.parametrize(("model", "x", "outside"), MODELS)
def test_scores_of_own_losses_equal_those_of_a_solve_for_each_sample(model, x, outside, kind, monkeypatch):
    risk = cf.Risk(model, curve, cf.batches(x, size=4), l2=0.1)
    inverse = kind().invert(risk)
    with isolated():
        gradients = torch.cat(list(risk.sample_gradients()))
    wanted = -risk.n * (inverse.solve(gradients).vectors * gradients).sum(1, keepdim=True)
    if kind is cf.EKFAC:
        monkeypatch.setattr(cf.Risk, "sample_gradients", None)  # no gradient is written out by a solve
    close(cf.self_influence(risk, inverse).values, wanted)


def test_bad_questions_in_pairs_are_refused_as_others_are():
    risk = cf.Risk(CHAIN, entropy, cf.batches(X, Y))
    with pytest.raises(errors.ObjectiveError, match="does not depend on the trained parameters"):
        cf.influence(risk, each(lambda m, b: b.sum(1), X), cf.EKFAC())
    with pytest.raises(errors.ObjectiveError, match="each_of got no batches"):
        cf.influence(risk, cf.each_of([], curve), cf.EKFAC())
    with pytest.raises(errors.NonFiniteError, match="The objective '2' is NaN"):
        cf.influence(risk, each(lambda m, b: m(b)[:, 0] / (b != X[2]).all(1), X), cf.EKFAC())
    bad = [(X[:3], Y[:3]), (X[3:5] * torch.nan, Y[3:5])]
    with pytest.raises(errors.NonFiniteError, match="Candidate batch 1 gives a NaN"):
        cf.influence(risk, each(lambda m, b: m(b)[:, 0], X), cf.EKFAC(), candidates=bad)
