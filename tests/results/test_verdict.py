"""Whether an answer says that it cannot be believed: verdicts beside trainings whose truth is known."""

import json
from dataclasses import replace

import grid
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import crossfluence as cf
from crossfluence._attribution.evidence import kinks, stranger
from crossfluence._attribution.influence import _solvers
from crossfluence._results.verdict import Evidence, merged, of_influence, of_trainings
from crossfluence._solvers.base import Solution
from crossfluence.errors import NotConvergedWarning, UnreliableWarning

X = grid.normal(60, 3, seed=1)
Y = X @ torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64) + 0.5 * grid.normal(60, 1, seed=2)
POINT = grid.normal(3, seed=3)


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1)


def ridge(epochs):
    start = nn.Linear(3, 1, dtype=torch.float64)
    _ = nn.init.zeros_(start.weight), nn.init.zeros_(start.bias)
    return cf.Recipe(start, squared, (X, Y), optimizer=cf.SGD(0.1, 0.5), epochs=epochs, l2=0.01)


def ask(model):
    return model(POINT)[0]


def agreement(scores, recipe, objective=ask):
    return cf.compare(scores, cf.leave_out(recipe, objective, range(0, 60, 4)))


# Scores at the end of a training.


def test_at_a_minimum_the_sizes_are_right_and_the_verdict_says_so():
    made = ridge(300)
    scores = cf.influence(made.risk(made.train()), ask)
    assert scores.verdict.level == "sizes"
    assert "training had ended" in str(scores.verdict)
    found = agreement(scores, made)
    assert found.pearson > 0.99
    assert 0.8 < found.slope < 1.25


def test_of_a_training_that_was_stopped_the_verdict_is_unreliable_and_warned_of():
    made = ridge(2)
    with pytest.warns(UnreliableWarning, match="training had not ended.*replay"):
        scores = cf.influence(made.risk(made.train()), ask, cf.Exact())
    assert scores.verdict.level == "unreliable"
    found = agreement(scores, made)
    assert found.pearson < 0.6 or not 0.67 < found.slope < 1.5


def test_replay_of_the_same_stopped_training_is_believed():
    made = ridge(2)
    scores = cf.replay(made, ask)
    assert scores.verdict.level == "sizes"
    found = agreement(scores, made)
    assert found.pearson > 0.99
    assert 0.8 < found.slope < 1.25


@pytest.mark.parametrize(
    ("solver", "why"),
    [
        (cf.Exact(damping=10.0), "% of what was solved is damping"),
        (cf.CG(damping=10.0), "% of what was solved is damping"),
        (cf.Identity(), "gradient similarity has no unit"),
        (cf.EKFAC(), "EKFAC leaves out"),
    ],
    ids=repr,
)
def test_sizes_that_a_solver_does_not_have_are_not_promised(solver, why):
    made = ridge(300)
    scores = cf.influence(made.risk(made.train()), ask, solver)
    assert scores.verdict.level == "order"
    assert why in str(scores.verdict)


def test_the_share_of_damping_is_that_of_the_dense_formula():
    made = ridge(300)
    risk = made.risk(made.train())
    hessian = cf.Hessian().product(risk, torch.eye(4, dtype=torch.float64))
    a = torch.cat([POINT, torch.ones(1, dtype=torch.float64)])
    u = torch.linalg.solve(hessian + 3 * torch.eye(4, dtype=torch.float64), a)
    share = float(3 * u @ u / (u @ a))
    assert f"{share:.0%} of what was solved" in str(cf.influence(risk, ask, cf.Exact(damping=3.0)).verdict)


def test_a_gauss_newton_matrix_that_is_the_hessian_leaves_sizes():
    made = replace(ridge(300), loss=cf.OnOutputs(lambda m, b: m(b[0]), lambda z, b: (z - b[1]).square().sum(1)))
    scores = cf.influence(made.risk(made.train()), ask, cf.CG(curvature=cf.GaussNewton()))
    assert scores.verdict.level == "sizes"


def test_a_gauss_newton_matrix_that_is_far_from_the_hessian_leaves_the_order():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))

    # F = mean (w² - y)² / 2: F'' = 3 w² - mean y, and Gauss-Newton has 4 w² / 2.
    y = torch.tensor([-0.5, 0.25, 1.0], dtype=torch.float64)
    loss = cf.OnOutputs(lambda m, b: m.w.square().expand(len(b)).unsqueeze(1), lambda z, b: 2 * (z[:, 0] - b).square())
    risk = cf.Risk(Square(), loss, cf.batches(y))
    true, stands_in = 2 * (6 * 0.5**2 - 2 * 0.25), 4 * 4 * 0.5**2 / 2 * 2
    wrong = cf.influence(risk, lambda m: m.w[0], cf.CG(0.0, curvature=cf.EmpiricalFisher()))
    assert wrong.verdict.level == "order"
    assert "curvature=Hessian()" in str(wrong.verdict)
    assert cf.influence(risk, lambda m: m.w[0], cf.CG()).verdict.level == "sizes"
    assert true > 0
    assert stands_in > 0


@pytest.mark.parametrize("at", [0.25, 0.0])
def test_where_the_curvature_is_not_positive_scores_are_unreliable(at):
    class Double(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([at, 1.0], dtype=torch.float64))

    def loss(model, batch):  # F = (w₀² - 1)² / 4 - w₀ mean x: downwards in between
        return (model.w[0] ** 2 - 1).square() / 4 - batch * model.w[0] + (model.w[1] - 1).square()

    x = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    risk = cf.Risk(Double(), loss, cf.batches(x))
    if at:
        with pytest.warns(UnreliableWarning, match=r"curvature \(its smallest eigenvalue is -0.81\) is not positive"):
            cf.influence(risk, lambda m: m.w[0], cf.Exact())
    else:  # a stationary point: the implicit function theorem holds there, but training does not stay
        assert cf.influence(risk, lambda m: m.w[0], cf.Exact()).verdict.level == "order"


def test_a_solve_that_stopped_early_says_how_far_scores_are_off():
    made = ridge(300)
    risk = made.risk(made.train())
    with pytest.warns(NotConvergedWarning):
        scores = cf.influence(risk, ask, cf.CG(max_steps=1))
    right = cf.influence(risk, ask, cf.Exact()).values
    share = float((scores.values - right).abs().max() / right.abs().max())
    assert scores.verdict.level == "order"
    assert f"scores may be off by {share:.2g}" in str(scores.verdict)


# Kinks.


class Place(nn.Module):
    def __init__(self, at, dtype=torch.float64):
        super().__init__()
        self.at = nn.Parameter(torch.tensor([at], dtype=dtype))


def distance(model, batch):
    return (batch - model.at).abs()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_jump_of_a_median_is_counted(dtype):
    x = torch.tensor([-3.0, -1.0, 0.5, 2.0, 7.0], dtype=dtype)
    assert kinks(cf.Risk(Place(0.5, dtype), distance, cf.batches(x, size=2))) == pytest.approx(2 / 5, rel=1e-3)
    assert kinks(cf.Risk(Place(0.75, dtype), distance, cf.batches(x))) == pytest.approx(0, abs=1e-3)


def test_a_median_is_warned_of_and_its_smooth_relative_is_not():
    x = torch.tensor([-3.0, -1.0, 0.5, 2.0, 7.0], dtype=torch.float64)
    risk = cf.Risk(Place(0.5), lambda m, b: distance(m, b) + 0.3 * b.sign() * m.at, cf.batches(x), l2=1e-2)
    for solver in (cf.Exact(), cf.Auto()):
        with pytest.warns(UnreliableWarning, match="kink of the loss.*Smooth the loss"):
            cf.influence(risk, lambda m: m.at[0], solver)
    smooth = cf.Risk(Place(float(x.mean())), lambda m, b: (b - m.at).square(), cf.batches(x))
    assert cf.influence(smooth, lambda m: m.at[0]).verdict.level == "sizes"


def test_a_support_vector_machine_at_its_minimum_is_warned_of():
    x = torch.tensor([[2.0], [1.0], [0.5], [-1.0], [-3.0]], dtype=torch.float64)
    y = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    start = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        start.weight.fill_(1.0)  # two samples on the margin, one beyond it: between the slopes -.3 - .2 and .1
    risk = cf.Risk(start, lambda m, b: (1 - b[1] * m(b[0])[:, 0]).clamp_min(0), cf.batches(x, y), l2=0.1)
    with pytest.warns(UnreliableWarning, match="kink"):
        cf.influence(risk, lambda m: m.weight[0, 0])
    with pytest.warns(UnreliableWarning, match="kink"):
        scores = cf.influence(risk, lambda m: m.weight[0, 0], cf.Exact())
    assert scores.values.abs().max() > 1  # ten times too large: no sample moves the weight by more than its margin


# Models that were trained on something else.


def sure(kind, seed=0):
    """A stopped training, and its data with other labels or features."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 6, generator=generator)
    y = (x[:, :2].sum(1) + 0.5 * torch.randn(200, generator=generator) > 0).long() + 2 * (x[:, 2] > 0)
    width, loss = 4, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none")
    if kind == "regression":
        width, y = 1, x @ torch.arange(6.0) + torch.randn(200, generator=generator) + 30
        loss = lambda m, b: (m(b[0])[:, 0] - b[1]).square()  # noqa: E731
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, width))
    linear = nn.Linear(6, width)
    rate = 0.003 if kind == "regression" else 0.05
    recipe = cf.Recipe(
        net if kind == "network" else linear, loss, (x, y), optimizer=cf.SGD(rate, 0.9), epochs=60, batch_size=50
    )
    return recipe.train(), loss, (x, y), (x, y[torch.randperm(200, generator=generator)])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["network", "linear", "regression"])
def test_a_model_that_was_trained_on_other_labels_is_warned_of(kind, seed):
    model, loss, own, permuted = sure(kind, seed)
    question = lambda m: m(own[0][:1])[0, 0]  # noqa: E731
    assert stranger(cf.Risk(model, loss, cf.batches(*own))) == 0
    with pytest.warns(UnreliableWarning, match="does not belong to these samples, .*: their mean loss falls by"):
        scores = cf.influence(cf.Risk(model, loss, cf.batches(*permuted)), question)
    assert scores.verdict.level == "unreliable"


def test_the_fall_of_the_loss_is_that_of_smaller_weights():
    model, loss, _, (x, y) = sure("network")
    x, y = x[:120], y[:120]
    found = stranger(cf.Risk(model, loss, cf.batches(x, y, size=64)))
    with torch.no_grad():
        before = loss(model, (x, y)).mean()
        for part in model.parameters():
            part.mul_(0.97 if part.dim() > 1 else 1)
        after = loss(model, (x, y)).mean()
    assert found == pytest.approx(float(1 - after / before), rel=1e-4)


# Trainings that are run to test the answer.


class Rate(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))


def logistic_map(a, epochs):
    """Gradient descent as the logistic map: w becomes w (1 + mean a - w)."""
    return cf.Recipe(
        Rate(), lambda m, b: m.w**3 / 3 - b * m.w**2 / 2, a + torch.linspace(-0.1, 0.1, 50, dtype=torch.float64),
        optimizer=cf.SGD(1.0), epochs=epochs,
    )  # fmt: skip


def test_a_chaotic_training_is_unreliable_and_a_calm_one_is_not():
    with pytest.warns(UnreliableWarning, match="Training is rough.*eps_root=1e-6.*WarmUp"):
        chaos = cf.replay(logistic_map(2.9, 80), lambda m: m.w[0])
    assert chaos.verdict.level == "unreliable"
    calm = logistic_map(0.5, 80)
    scores = cf.replay(calm, lambda m: m.w[0])
    assert scores.verdict.level == "sizes"
    assert cf.compare(scores, cf.leave_out(calm, lambda m: m.w[0], range(0, 50, 5))).slope == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("verb", [cf.replay, cf.tracin, cf.source], ids=lambda verb: verb.__name__)
def test_reports_of_trainings_are_whole(verb):
    made = ridge(10)
    model = made.train()
    report = verb(made, ask, groups=0).report
    risk = made.risk(model)
    assert report.values == pytest.approx([ask(model).item()])
    assert report.gradient_norm == pytest.approx(float(risk.gradient.norm()))
    assert report.fingerprint == risk.fingerprint
    assert "not tested by training again" in report.verdict


def test_without_trainings_sizes_are_not_promised():
    assert cf.replay(ridge(2), ask, groups=0).verdict.level == "order"
    with pytest.raises(ValueError, match="groups=-1"):
        cf.replay(ridge(2), ask, groups=-1)


# Where it stands.


def test_a_verdict_stands_in_report_repr_frame_picture_and_file(tmp_path):
    made = ridge(300)
    scores = cf.influence(made.risk(made.train()), ask)
    assert scores.report.verdict == str(scores.verdict)
    assert repr(scores).endswith("verdict='sizes')")
    assert scores.to_frame().attrs["verdict"] == str(scores.verdict)
    assert list(scores.to_frame().columns) == ["objective"]
    assert "Sizes and order can be believed" in scores.plot().layout.title.text
    assert scores.select([3, 1]).sum_by(["a", "a"]).verdict == scores.verdict
    scores.save(tmp_path / "scores")
    assert cf.Scores.load(tmp_path / "scores").verdict == scores.verdict


def test_files_of_older_versions_have_no_verdict(tmp_path):
    report = {"solver": "Exact()", "drift": [0.0]}
    header = {"format": "crossfluence.scores/1", "ids": "[0]", "objectives": '["m"]', "method": "Exact()"}
    save_file({"values": torch.ones(1, 1)}, tmp_path / "old", metadata=header | {"report": json.dumps(report)})
    found = cf.Scores.load(tmp_path / "old")
    assert (found.verdict, found.report.verdict, found.report.drift) == (None, "", (0.0,))


def test_training_again_is_believed_and_numbers_of_a_hand_are_not_judged():
    assert str(cf.leave_out(ridge(2), ask, [0]).verdict) == "Sizes and order can be believed: trained again."
    by_hand = cf.Scores(torch.ones(1, 1), (0,), ("m",), "by hand")
    assert by_hand.verdict is None
    assert "verdict" not in repr(by_hand)


def test_self_influence_is_judged_too():
    ended, stopped = (ridge(epochs) for epochs in (300, 2))
    assert cf.self_influence(ended.risk(ended.train())).verdict.level == "sizes"
    with pytest.warns(UnreliableWarning, match="training had not ended"):
        cf.self_influence(stopped.risk(stopped.train()), cf.Exact())
    assert cf.self_influence(stopped.risk(stopped.train())).verdict.level == "order"


# The rules.


def test_a_mean_has_the_lowest_verdict_of_its_members():
    sizes, order = cf.Verdict("sizes", ("a",)), cf.Verdict("order", ("b",), ("Do c.",))
    assert merged([sizes, order, order, None]) == cf.Verdict("order", ("2 of 3 members: b",), ("Do c.",))
    assert merged([None]) is None


def test_each_measure_lowers_the_level():
    good = Evidence(drift=(0.01,), strongest=(1.0,))
    levels = {
        "sizes": {},
        "order": {"drift": (0.1,), "errors": (0.2,), "damped": (0.9,), "bend": 3.0, "notes": ("A note.",)},
        "unreliable": {"drift": (0.3,), "errors": (2.0,), "lowest": -1.0, "kinks": 0.1, "stranger": 0.02},
    }
    assert of_influence(good).level == "sizes"
    for level, changes in levels.items():
        for name, value in changes.items():
            assert of_influence(replace(good, **{name: value})).level == level, name
    assert of_influence(Evidence(drift=(float("nan"),), strongest=(1.0,))).level == "unreliable"


def test_trainings_decide_by_correlation_and_slope():
    predicted = [1.0, -1.0, 0.2, -0.1]
    assert of_trainings(predicted, [1.1, -0.9, 0.2, -0.1], "x", "Do y.").level == "sizes"
    assert of_trainings(predicted, [4.0, -4.0, 0.8, -0.4], "x", "Do y.").level == "order"
    assert of_trainings(predicted, [0.01, -0.01, 0.002, -0.001], "x", "Do y.").level == "unreliable"
    assert of_trainings(predicted, [0.1, 1.0, 3.0, 2.0], "x", "Do y.").advice == ("Do y.",)


def test_the_report_says_how_many_solves_each_solver_did():
    inverse = cf.Identity().invert(ridge(2).risk(ridge(2).train()))
    two, one = Solution(torch.ones(2, 4)), Solution(torch.ones(1, 4), solver="GMRES()")
    assert _solvers(inverse, [two]) == "Identity()"
    assert _solvers(inverse, [one]) == "GMRES()"
    assert _solvers(inverse, [two, one]) == "Identity() for 2 of 3 solves, GMRES() for 1 of 3 solves"


def test_a_level_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="level='good'"):
        cf.Verdict("good")
