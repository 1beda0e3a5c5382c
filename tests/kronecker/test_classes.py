"""Layers as people have them: of classes of their own, registered, or outside of all layers."""

import classes
import pytest
import torch
from grid import normal, seeded
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence._autodiff.functional import isolated
from crossfluence._autodiff.params import trained_parameters
from crossfluence._kronecker.layers import layers_of
from crossfluence._kronecker.recognised import Alone, Products, Scales, Table, layer_gradients

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")

N, X = 40, normal(40, 5, 4, seed=3)


def curve(model, x):
    z = model(x)
    return (z * torch.arange(1, z.shape[1] + 1).to(z)).sin().sum(1)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("matrix with inputs in rows", [Products(True), Products(True)]),
        ("matrices of positions", [Products(True), Products(False)]),
        ("any norm", [Scales(), Scales()]),
        ("gate by name", [Alone(("scale", "shift"))] * 2),
        ("scaled table", [Table()]),
        ("experts", [Alone(("up", "down"))] * 2),
    ],
)
def test_layers_of_other_classes_are_recognised(name, kinds):
    model, x = classes.INSIDE[name]
    with isolated():
        layers = layers_of(model, trained_parameters(model), curve, x)
    found = [each.kind for each in layers.layer_blocks]
    assert [kind for kind in found if kind in kinds] == kinds


@pytest.mark.parametrize("kind", [cf.EKFAC, cf.KFAC])
def test_a_matrix_with_inputs_in_its_rows_scores_as_the_same_linear_layer(kind):
    own = seeded(nn.Sequential(classes.Conv1D(5, 4), nn.Tanh(), classes.Conv1D(3, 5)))
    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for one, other in ((own[0], plain[0]), (own[2], plain[2])):
            other.weight.copy_(one.weight.T), other.bias.copy_(one.bias)
    loss = lambda m, x: curve(m, x[:, 0])  # noqa: E731
    ask = cf.each_of(cf.batches(X[:7], size=3), loss)
    found, wanted = (cf.influence(cf.Risk(m, loss, cf.batches(X, size=9)), ask, kind()) for m in (own, plain))
    torch.testing.assert_close(found.values, wanted.values)
    assert found.report.notes[-2:] == wanted.report.notes[-2:]


def test_a_stack_of_matrices_has_the_factors_of_each():
    model, x = classes.INSIDE["experts"]
    inverse = cf.EKFAC().invert(cf.Risk(model, curve, cf.batches(x)))
    forms = {block.slot.names[0].rpartition(".")[2]: block.slot.form for block in inverse.blocks}
    assert forms["up"] == (1, 1, 60)  # small: exact
    large = seeded(classes.Calls(classes.experts, l=nn.Linear(20, 20), e=classes.Experts(3, 20, 30)))
    inverse = cf.EKFAC().invert(cf.Risk(large, curve, cf.batches(normal(12, 5, 20, seed=4))))
    forms = {block.slot.names[0].rpartition(".")[2]: block.slot.form for block in inverse.blocks}
    assert (forms["up"], forms["down"]) == ((3, 30, 20), (3, 20, 30))


class Twice(nn.Module):
    """A layer that nothing recognises as a product: its inputs are squared first."""

    def __init__(self):
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.empty(3, 4)), nn.Parameter(torch.empty(3))

    def forward(self, x):
        return F.linear(x.square(), self.weight) + self.shift


def test_gradients_of_a_layer_can_be_registered_in_a_few_lines():
    model = seeded(nn.Sequential(nn.Linear(4, 4), Twice(), nn.Flatten()))
    alone = cf.EKFAC().invert(cf.Risk(model, curve, cf.batches(X)))

    @layer_gradients.register
    def _(layer: Twice, inputs, gradient):
        return {"weight": (gradient, inputs.square()), "shift": gradient}

    risk = cf.Risk(model, curve, cf.batches(X, size=7))
    scores = cf.influence(risk, cf.each_of(cf.batches(X[:5]), curve), cf.EKFAC(tolerance=0))
    assert any("Kronecker factors of their layer" in note for note in scores.report.notes)
    inverse = cf.EKFAC().invert(risk)
    with isolated():
        each = torch.cat(list(risk.sample_gradients())) * N
    for block in inverse.blocks:
        rows = block.along(block.slot.gather(risk.layout.split(each)))
        torch.testing.assert_close(block.values, rows.square().mean(0))
    torch.testing.assert_close(scores.values, cf.influence(risk, lambda m: curve(m, X[:5]), inverse).values)
    assert {block.slot.names for block in alone.blocks} == {block.slot.names for block in inverse.blocks}


def test_registered_gradients_that_are_wrong_are_not_used():
    class Wrong(Twice):
        pass

    @layer_gradients.register
    def _(layer: Wrong, inputs, gradient):
        return {"weight": (gradient, inputs), "shift": gradient}

    model = seeded(nn.Sequential(nn.Linear(4, 4), Wrong(), nn.Flatten()))
    with isolated():
        layers = layers_of(model, trained_parameters(model), curve, X)
    kinds = {each.slot.names: each.kind for each in layers.layer_blocks}
    assert kinds["1.weight",] == Alone(("weight",))


class Own(nn.Module):
    """A parameter of the outermost module, which only the whole model explains."""

    def __init__(self, d=4):
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.ones(d)), nn.Linear(d, 3)

    def forward(self, x):
        return self.layer((x * self.scale).tanh()).sum(1)


class Branch(Own):
    """The same, and no vectorised run."""

    def forward(self, x):
        return super().forward(x) if float(x.detach().sum()) != 0 else x


@pytest.mark.parametrize("kind", [Own, Branch])
def test_what_no_layer_explains_costs_one_run_of_each_sample(kind):
    model = seeded(kind())
    rows = []
    counted = model.register_forward_hook(lambda m, args, out: rows.append(len(args[0])))
    risk = cf.Risk(model, curve, cf.batches(X))
    with isolated():
        layers = layers_of(model, risk.theta, curve, X)
        for _ in range(2):
            rows.clear()
            found = layers.gradients(curve, X)
    counted.remove()
    assert list(layers.outside) == ["scale"]
    assert sum(rows) <= 2 * N  # the batch, and every sample once more; a vectorised run counts as one sample
    wanted = torch.cat(list(risk.sample_gradients())) * N
    for slot, part in found.items():
        torch.testing.assert_close(part.dense().movedim(0, 1), slot.gather(risk.layout.split(wanted)))
    note = cf.EKFAC().invert(risk).notes[-1]
    assert "(scale) lie outside of layers" in note
    assert ("vectorised" in note) == (kind is Own)


def test_parameters_that_seemed_idle_are_found_where_a_batch_reaches_them():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x[:, 0]) + (self.other(x[:, 0]) if float(x[0, 0, 0]) > 5 else 0)

    x = X.clone()
    x[20:, 0, 0] = 6
    model = seeded(Sometimes())
    risk = cf.Risk(model, curve, cf.batches(x, size=20))
    with isolated():
        layers = layers_of(model, risk.theta, curve, x[:20])
        assert len(layers.gradients(curve, x[:20])) == 1
        found = layers.gradients(curve, x[20:])
        wanted = list(risk.sample_gradients())[1] * N
    for slot, part in found.items():
        torch.testing.assert_close(part.dense().movedim(0, 1), slot.gather(risk.layout.split(wanted)))
