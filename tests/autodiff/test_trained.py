"""Which parameters count as trained, and l2 that differs between them: against dense formulas and training again."""

import copy
import pickle

import grid
import pytest
import torch
from grid import normal
from reference import Dense
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import crossfluence as cf
from crossfluence import errors
from crossfluence._autodiff.params import trained_parameters

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights

X, Y = normal(30, 3, seed=0), normal(30, seed=1)
LAYERS = [("0.weight", "0.bias"), ("2.weight", "2.bias")]
GLOBS = {"*.weight": 0.3, "2.bias": 0.1}
close = torch.testing.assert_close


def network(seed=0):
    return grid.seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), seed)


def squared(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


def ask(model):
    return model(X[:2] + 1)[:, 0]


def coefficients(model, l2=GLOBS):
    """One for each number, by hand."""
    by_name = {"0.weight": 0.3, "2.weight": 0.3, "2.bias": 0.1} if l2 is GLOBS else l2
    return torch.cat([
        torch.full((p.numel(),), by_name.get(name, 0.0)).double() for name, p in model.named_parameters()
    ])


def risk(model=None, l2=GLOBS, loss=squared, **changes):
    return cf.Risk(model or network(), loss, cf.batches(X, Y, size=7), l2=l2, **changes)


# l2 by glob.


TIGHT = {"rtol": 1e-12, "max_steps": 500}
P = 21  # parameters of the network


@pytest.mark.parametrize(
    "solver",
    [
        cf.Auto(2.0),
        cf.Exact(2.0),
        cf.CG(2.0, **TIGHT),
        cf.CG(2.0, preconditioner=cf.Jacobi(2.0), **TIGHT),
        cf.CG(2.0, preconditioner=cf.Nystrom(5, 2.0), **TIGHT),
        cf.GMRES(2.0, **TIGHT),
        cf.LiSSA(2.0, rtol=1e-10, max_steps=5_000),
        cf.LiSSA(2.0, rtol=1e-7, max_steps=20_000, batches=2),
        cf.LowRank(P, 2.0),
        cf.Exact(2.0, curvature=cf.FieldJacobian()),
    ],
    ids=repr,
)
def test_every_solver_has_the_l2_of_each_parameter(solver):
    model = network()
    dense = Dense(model, squared, (X, Y), coefficients(model))
    wanted = torch.stack([dense.scores(lambda m, k=k: ask(m)[k], 2.0) for k in range(2)], dim=1)
    close(cf.influence(risk(), ask, solver).values, wanted, rtol=1e-6, atol=1e-9)


def test_a_sketch_in_full_is_the_gauss_newton_matrix_with_the_l2_of_each_parameter():
    model, split = network(), cf.OnOutputs(lambda m, b: m(b[0])[:, 0], lambda z, b: (z - b[1]).square())
    dense = Dense(model, squared, (X, Y))
    outputs = torch.func.jacrev(lambda t: dense.call(t, t, lambda m, s: m(X)[:, 0]))(dense.theta)
    damped = 2 * outputs.T @ outputs / 30 + torch.diag(coefficients(model) + 0.5)
    wanted = -dense.slope(lambda m: ask(m)[0]) @ torch.linalg.solve(damped, dense.K)
    for solver in (cf.Nystrom(P, 0.5, curvature=cf.GaussNewton()), cf.LowRank(P, 0.5, curvature=cf.GaussNewton())):
        close(cf.influence(risk(loss=split), ask, solver).values[:, 0], wanted, rtol=1e-6, atol=1e-9)


def test_the_gradient_and_the_curvatures_hold_the_l2_of_each_parameter():
    split = cf.OnOutputs(lambda m, b: m(b[0])[:, 0], lambda z, b: (z - b[1]).square())
    none, some, by = risk(l2=0.0, loss=split), risk(loss=split), coefficients(network())
    close(some.gradient - none.gradient, by * some.layout.flatten(some.theta))
    vectors = normal(2, P, seed=5)
    for curvature in (cf.Hessian(), cf.GaussNewton(), cf.Fisher(), cf.EmpiricalFisher(), cf.FieldJacobian()):
        close(curvature.product(some, vectors) - curvature.product(none, vectors), by * vectors)


@pytest.mark.parametrize(
    ("l2", "joint"),
    [(GLOBS, []), ({"0.*": 0.3, "2.weight": 0.1}, LAYERS[:1]), (0.2, LAYERS)],
    ids=str,
)
def test_a_block_of_ekfac_has_one_l2(l2, joint):
    """Blocks in full: second moments of each parameter's gradients, of weight and bias together where l2 is one."""
    model, made = network(), risk(l2=l2)
    dense = Dense(model, squared, (X, Y))
    each = torch.func.jacrev(lambda t: dense.call(t, t, lambda m, s: squared(m, (X, Y))))(dense.theta)  # (n, p)
    block = {name: next((pair for pair in joint if name in pair), (name,)) for name, _ in model.named_parameters()}
    owner = [block[name] for name, p in model.named_parameters() for _ in range(p.numel())]
    together = torch.tensor([[one == other for other in owner] for one in owner])
    damped = each.T @ each / 30 * together + torch.diag(torch.as_tensor(made.decay).expand(P) + 0.5)
    wanted = -dense.slope(lambda m: ask(m)[0]) @ torch.linalg.solve(damped, each.T / 30)
    inverse = cf.BlockDiagonal(0.5).invert(made)
    close(cf.influence(made, lambda m: ask(m)[0], inverse).values[:, 0], wanted, rtol=1e-8, atol=1e-10)
    questions = cf.each_of(cf.batches(X, Y), squared)
    pairs = cf.influence(made, questions, cf.BlockDiagonal(0.5, tolerance=0.0)).values
    close(pairs, -each / 30 @ torch.linalg.solve(damped, each.T), rtol=1e-6, atol=1e-8)
    close(cf.self_influence(made, inverse).values[:, 0], pairs.diagonal(), rtol=1e-6, atol=1e-8)


def test_one_coefficient_for_all_is_a_number():
    close(cf.influence(risk(l2={"*": 0.2}), ask).values, cf.influence(risk(l2=0.2), ask).values)
    assert risk(l2={"*": 0.2}).decay.shape == (P,)
    assert risk(l2=0.2).decay == 0.2


def test_the_l2_decides_the_signature_and_stands_in_the_repr():
    assert len({risk(l2=l2).signature for l2 in (0.3, GLOBS, {"*.weight": 0.3})}) == 3
    assert risk().signature == risk(l2=dict(reversed(GLOBS.items()))).signature
    assert "l2={'*.weight': 0.3, '2.bias': 0.1}" in repr(risk())
    globs = {"*.weight": 0.3}
    made = risk(l2=globs)
    globs["*.weight"] = 0.5
    assert made.decay.max() == 0.3
    assert made.l2 == {"*.weight": 0.3}


def test_an_intercept_without_penalty_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    labels, l2 = (X @ torch.tensor([1.0, -1.0, 0.5]).double() - 1 + Y > 0).long(), 0.05

    def fit(rows):
        found = linear_model.LogisticRegression(C=1 / (30 * l2), tol=1e-13, max_iter=10_000).fit(X[rows], labels[rows])
        model = nn.Linear(3, 1).double()
        with torch.no_grad():
            model.weight.copy_(torch.tensor(found.coef_))
            model.bias.copy_(torch.tensor(found.intercept_))
        return model

    def loss(model, batch):
        return F.binary_cross_entropy_with_logits(model(batch[0])[:, 0], batch[1].double(), reduction="none")

    def point(model):
        return model(torch.ones(1, 3).double())[0, 0]

    rows = torch.arange(30)
    whole = fit(rows)
    truth = torch.stack([point(whole) - point(fit(rows[rows != row])) for row in rows]).detach()
    found = cf.influence(cf.Risk(whole, loss, cf.batches(X, labels), l2={"weight": l2}), point)
    assert found.report.gradient_norm < 1e-6
    predicted = found.values[:, 0]
    assert torch.corrcoef(torch.stack([predicted, truth]))[0, 1] > 0.99
    assert 0.8 < (predicted @ truth) / (predicted @ predicted) < 1.3


def test_a_recipe_trains_with_it_and_replay_is_the_derivative_of_that_training():
    recipe = cf.Recipe(network(), squared, (X, Y), optimizer=cf.SGD(0.05, 0.9), epochs=3, batch_size=10, l2=GLOBS)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for rows in torch.randperm(30, generator=generator).split(10):
            optimizer.zero_grad()
            flat = torch.cat([p.flatten() for p in model.parameters()])
            (squared(model, (X[rows], Y[rows])).mean() + (coefficients(model) * flat.square()).sum() / 2).backward()
            optimizer.step()
    for wanted, found in zip(model.parameters(), recipe.train().parameters(), strict=True):
        close(found, wanted)
    scores, step = cf.replay(recipe, lambda m: ask(m)[0]).values[:, 0], 1e-5
    for row in (0, 11):
        weights = torch.ones(2, 30, dtype=torch.float64)
        weights[0, row] += step
        weights[1, row] -= step
        ahead, behind = (ask(m)[0].detach() for m in recipe.retrain(weights))
        close(scores[row], (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-9)
    assert recipe.risk(model).l2 == GLOBS


def test_source_takes_it_in_both_ways():
    """At a minimum, over one long segment, it is influence; layer by layer, that of the exact blocks."""
    model = nn.Linear(3, 1).double()
    recipe = cf.Recipe(model, squared, (X, Y), optimizer=cf.SGD(0.1), epochs=600, l2={"weight": 0.5})
    wanted = cf.influence(recipe.risk(recipe.train()), lambda m: m.weight.sum()).values
    close(cf.source(recipe, lambda m: m.weight.sum(), segments=2, rtol=1e-8).values, wanted, rtol=1e-3, atol=1e-5)
    split = cf.OnOutputs(lambda m, b: m(b[0])[:, 0], lambda z, b: (z - b[1]).square())
    by_layer = cf.Recipe(model, split, (X, Y), optimizer=cf.SGD(0.1), epochs=600, l2={"weight": 0.5})
    hessian = 2 * X.T @ X / 30 + 0.5 * torch.eye(3)  # the weight's own block
    fitted = by_layer.train()
    gradients = 2 * (fitted(X)[:, 0] - Y).detach().unsqueeze(1) * X
    close(
        cf.source(by_layer, lambda m: m.weight.sum(), segments=2, curvature=cf.Fisher(None)).values[:, 0],
        -gradients @ torch.linalg.solve(hessian, torch.ones(3).double()) / 30,
        rtol=1e-3,
        atol=1e-5,
    )


def test_one_newton_step_and_steps_leave_the_l2_out_of_the_samples_loss():
    model = nn.Linear(3, 1).double()
    recipe = cf.Recipe(model, squared, (X, Y), optimizer=cf.SGD(0.1), epochs=2_000, l2={"weight": 0.5})
    made = recipe.risk(recipe.train())
    weights = torch.ones(30, dtype=torch.float64)
    weights[[1, 2]] = 0
    rest = recipe.train(weights)
    found = cf.unlearn(made, [1, 2], cf.Exact()).model
    close(found.weight, rest.weight, rtol=1e-6, atol=1e-8)  # least squares: one Newton step is enough
    close(found.bias, rest.bias, rtol=1e-6, atol=1e-8)
    start = copy.deepcopy(made.model)
    squared(start, (X[[1, 2]], Y[[1, 2]])).mean().backward()
    stepped = cf.undo(made, [1, 2], steps=1, lr=0.01).model
    close(stepped.weight - start.weight, 0.01 * start.weight.grad.sign(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("l2", "words"),
    [
        ({"weights": 0.1}, r"'weights' of l2 matches none of the 4 trained parameters \['0.weight'.*'\*weight'"),
        ({"*.weight": 0.1, "0.*": 0.2}, r"'0.weight' has several l2 coefficients.*do not overlap"),
        ({"*": -0.1}, r"l2\['\*'\]=-0.1; needed a number, zero or more"),
        ({"*": float("nan")}, "needed a number, zero or more"),
        (-1.0, "Got l2=-1.0; needed a number"),
        (float("inf"), "Got l2=inf; needed a number"),
        ("weight", r"Got l2='weight'; needed a number.*\{'\*weight': 1e-2\}"),
        (None, "Got l2=None; needed"),
    ],
    ids=str,
)
def test_l2_that_cannot_be_meant_is_refused(l2, words):
    for made in (risk, lambda l2: cf.Recipe(network(), squared, (X, Y), optimizer=cf.SGD(0.1), epochs=1, l2=l2)):
        with pytest.raises(errors.ParameterError, match=words):
            made(l2=l2)


def test_globs_may_overlap_where_they_agree_and_are_read_among_the_trained_alone():
    assert risk(l2={"*.weight": 0.1, "0.weight": 0.1, "*": 0.1}).decays == dict.fromkeys(
        dict(network().named_parameters()), 0.1
    )
    with pytest.raises(errors.ParameterError, match="matches none of the 2 trained"):
        risk(params="0.*", l2={"2.weight": 0.1})


# What counts as trained.


class Tied(nn.Module):
    """One table read twice."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 3), nn.Linear(3, 3)
        self.leave.weight = self.enter.weight

    def forward(self, x):
        return self.leave(self.enter(x).tanh())


@pytest.mark.parametrize("params", ["enter.weight", "leave.weight", ["*.weight"]])
def test_a_tied_weight_goes_by_each_of_its_names(params):
    model = grid.seeded(Tied())
    assert list(trained_parameters(model, params)) == ["enter.weight"]
    made = cf.Risk(model, squared, cf.batches(X, Y), params=params, l2={"leave.weight": 0.5})
    assert made.decays == {"enter.weight": 0.5}


def handle_of(parameter, kind):
    """A mask of the gradient, in one of the two ways to put a hook on a parameter."""
    if kind == "post":
        return parameter.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(0.5))
    return parameter.register_hook(lambda g: g * 0.5)


@pytest.mark.parametrize("kind", ["hook", "post"])
def test_a_hook_on_a_trained_parameter_is_refused_until_it_is_removed(kind):
    model = network()
    handle = handle_of(model[2].bias, kind)
    with pytest.raises(errors.ParameterError, match=r"'2.bias' has a hook.*handle\.remove\(\).*of its own"):
        risk(model)
    if kind == "post":
        with pytest.raises(errors.ParameterError, match=r"'2.bias' has a hook"):
            cf.Recipe(model, squared, (X, Y), optimizer=cf.SGD(0.1), epochs=1)
    assert risk(model, params="0.*", l2=0.1).p == 16  # held: the hook does nothing
    handle.remove()
    assert risk(model).p == P


def test_a_recipe_trains_through_the_hooks_and_replay_is_the_derivative_of_that(tmp_path):
    model, mask = network(), torch.tensor([1.0, 0.0, 1.0, 0.5], dtype=torch.float64).unsqueeze(1)
    model[0].weight.register_hook(lambda g: g * mask)
    recipe = cf.Recipe(model, squared, (X, Y), optimizer=cf.SGD(0.05), epochs=4, l2=0.1, at_once=3)
    wanted = network()
    wanted[0].weight.register_hook(lambda g: g * mask)
    optimizer = torch.optim.SGD(wanted.parameters(), lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        norm = sum(p.square().sum() for p in wanted.parameters())
        (squared(wanted, (X, Y)).mean() + 0.05 * norm).backward()
        optimizer.step()
    for trained in recipe.retrain(torch.ones(3, 30)):
        close([p.data for p in trained.parameters()], [p.data for p in wanted.parameters()])
    assert trained[0].weight[1].equal(model[0].weight[1])
    scores, step = cf.replay(recipe, lambda m: ask(m)[0]).values[:, 0], 1e-5
    weights = torch.ones(2, 30, dtype=torch.float64)
    weights[:, 3] += torch.tensor([step, -step])
    ahead, behind = (ask(m)[0].detach() for m in recipe.retrain(weights))
    close(scores[3], (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-9)
    with pytest.raises(errors.ParameterError, match=r"'0.weight' has a hook"):  # the minimum of another field
        recipe.risk(recipe.train())
    with pytest.raises(errors.UnsupportedError, match=r"\['0.weight'\] of init have hooks"):
        pickle.dumps(recipe)
    bare = cf.Recipe(network(), squared, (X, Y), optimizer=cf.SGD(0.05), epochs=4, l2=0.1, at_once=3)
    assert recipe.content != bare.content
    found = cf.leave_out(cf.Bank(recipe, tmp_path), ask, [3], n=30)
    again = cf.leave_out(cf.Bank(recipe, tmp_path), ask, [3], n=30)
    close(found.values, cf.leave_out(recipe, ask, [3]).values)
    close(found.values, again.values)


def test_complex_parameters_are_refused_where_they_are_trained():
    class Waves(nn.Module):
        def __init__(self):
            super().__init__()
            self.waves = nn.Parameter(torch.ones(3, dtype=torch.complex128))
            self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x):
            return self.scale * (x.to(self.waves) @ self.waves).real.unsqueeze(1)

    with pytest.raises(errors.ParameterError, match=r"'waves' is complex.*view_as_real.*params="):
        cf.Risk(Waves(), squared, cf.batches(X, Y))
    with pytest.raises(errors.ParameterError, match="'waves' is complex"):
        cf.Recipe(Waves(), squared, (X, Y), optimizer=cf.SGD(0.1), epochs=1)
    assert cf.Risk(Waves(), squared, cf.batches(X, Y), params="scale").p == 1
    frozen = Waves()
    frozen.waves.requires_grad_(False)
    assert cf.Risk(frozen, squared, cf.batches(X, Y)).p == 1


def tied_through_data(how):
    """Two linear layers whose weights are one in memory, whole or in part, and two parameters to PyTorch."""
    model, table = grid.seeded(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))), normal(4, 3, seed=4)
    if how == "data":
        model[1].weight.data = model[0].weight.data
    if how == "rows":
        model[0].weight.data, model[1].weight.data = table[:3], table[1:]
    if how == "transposed":
        model[1].weight.data = model[0].weight.data.T
    if how == "buffer":
        model[0].register_buffer("copy", model[0].weight.data[1])
    return model


@pytest.mark.parametrize("how", ["data", "rows", "transposed", "buffer"])
def test_parameters_that_share_memory_are_refused_with_both_names(how):
    model, second = tied_through_data(how), "0.copy" if how == "buffer" else "1.weight"
    words = rf"'{second}'.* share memory.*b\.weight = a\.weight"
    with pytest.raises(errors.ParameterError, match=words) as caught:
        cf.Risk(model, squared, cf.batches(X, Y))
    assert "'0.weight'" in str(caught.value)
    with pytest.raises(errors.ParameterError, match=words):
        cf.Recipe(model, squared, (X, Y), optimizer=cf.SGD(0.1), epochs=1)


def test_parts_of_one_tensor_that_have_no_number_in_common_are_two_parameters():
    model, table = grid.seeded(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))), normal(3, 6, seed=4)
    model[0].weight.data, model[1].weight.data = table[:, :3], table[:, 3:]
    assert cf.Risk(model, squared, cf.batches(X, Y), params="*weight").p == 18
    model[0].weight.data, model[1].weight.data = table[:, ::2], table[:, 1::2]
    assert cf.Risk(model, squared, cf.batches(X, Y), params="*weight").p == 18


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("change", ["pruned", "parametrised", "orthogonal"])
def test_pruned_and_parametrised_modules_score_as_the_formula_says(change):
    model = network()
    {
        "pruned": torch.no_grad()(lambda: prune.l1_unstructured(model[0], "weight", amount=4)),  # can be copied then
        "parametrised": lambda: parametrize.register_parametrization(model[0], "weight", Doubled()),
        "orthogonal": lambda: parametrizations.orthogonal(model[0], orthogonal_map="cayley"),
    }[change]()
    dense = Dense(model, squared, (X, Y), 0.1)
    found = cf.influence(risk(model, l2=0.1), lambda m: ask(m)[0], cf.Exact(3.0)).values[:, 0]
    close(found, dense.scores(lambda m: ask(m)[0], 3.0), rtol=1e-6, atol=1e-9)
