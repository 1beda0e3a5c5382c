"""Wrong input is refused with a sentence that says what came, what was needed and what to type."""

import copy
import itertools

import grid
import pytest
import torch
from grid import normal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crossfluence as cf
from crossfluence import errors

X, Y = normal(20, 3, seed=0), normal(20, seed=1)
MODEL = grid.seeded(nn.Linear(3, 1))
DATA = cf.batches(X, Y, size=8)


def squared(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


def objective(model):
    return model.weight.sum()


def risk(model=MODEL, loss=squared, data=DATA, **options):
    return cf.Risk(model, loss, data, **options)


# Losses.


def test_a_reduced_loss_is_refused_with_both_ways_out():
    with pytest.raises(errors.LossShapeError, match=r"scalar.*\(b,\).*reduction='none'.*WeightedLoss"):
        risk(loss=lambda model, batch: squared(model, batch).mean())


def test_a_column_of_losses_is_refused():
    with pytest.raises(errors.LossShapeError, match=r"\(8, 1\).*\(b,\).*flatten\(1\)\.sum\(1\)"):
        risk(loss=lambda model, batch: squared(model, batch)[:, None])


def test_one_loss_per_token_is_refused():
    with pytest.raises(errors.LossShapeError, match="16 values for a batch of 8 samples"):
        risk(loss=lambda model, batch: squared(model, batch).repeat(2))


@pytest.mark.parametrize("came", [1.0, None, [1.0] * 8], ids=["float", "None", "list"])
def test_a_loss_that_is_no_tensor_is_refused(came):
    with pytest.raises(errors.LossShapeError, match=f"returned {type(came).__name__}; needed a tensor"):
        risk(loss=lambda model, batch: came)


def test_a_loss_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"type str; needed a callable"):
        risk(loss="mse")


@pytest.mark.parametrize("kind", ["WeightedLoss", "FieldLoss"])
def test_a_coupled_loss_must_return_its_sum(kind):
    vector = {
        "WeightedLoss": cf.WeightedLoss(lambda model, batch, w: w * squared(model, batch)),
        "FieldLoss": cf.FieldLoss(lambda model, still, batch, w: w * squared(model, batch)),
    }[kind]
    with pytest.raises(errors.LossShapeError, match=rf"{kind} returned shape \(8,\) for 8 weights; needed a scalar"):
        risk(loss=vector)


@pytest.mark.parametrize("kind", ["WeightedLoss", "FieldLoss"])
def test_a_coupled_loss_must_use_its_weights(kind):
    deaf = {
        "WeightedLoss": cf.WeightedLoss(lambda model, batch, w: squared(model, batch).sum()),
        "FieldLoss": cf.FieldLoss(lambda model, still, batch, w: squared(model, batch).sum()),
    }[kind]
    with pytest.raises(errors.LossShapeError, match=f"{kind} does not depend on its weights.*Multiply"):
        risk(loss=deaf)


# Data.


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (X, r"crossfluence\.batches\(tensor"),
        ((batch for batch in DATA), "generator that can be read only once"),
        (iter([(X, Y)]), "list_iterator that can be read only once"),
        ([], "holds no samples"),
        (cf.batches(X[:0], Y[:0]), "holds no samples"),
        ([{"text": ["a", "b"]}], "type dict holds no tensor"),
        (DataLoader(TensorDataset(X, Y), 8, shuffle=True), r"batch 0 differs.*shuffle=False.*crossfluence\.batches"),
    ],
    ids=["tensor", "generator", "iterator", "empty list", "empty tensors", "no tensor", "shuffled"],
)
def test_unusable_data_is_refused(data, words):
    with pytest.raises(errors.DataError, match=words):
        risk(data=data)


def test_data_that_grows_is_refused():
    class Growing:
        reads = itertools.count(1)

        def __iter__(self):
            return iter([(X, Y)] * next(self.reads))

    with pytest.raises(errors.DataError, match=r"gave \d batches at first and \d the second time"):
        risk(data=Growing())


def test_data_that_changes_length_later_is_refused():
    data = [(X, Y)]
    made = risk(data=data)
    data.append((X, Y))
    with pytest.raises(errors.DataError, match="Batch 1 of the data is not what it was"):
        cf.influence(made, objective, cf.Exact(1.0))


@pytest.mark.parametrize(
    ("ids", "words"),
    [(range(19), "19 ids for 20 samples"), ([0] * 20, "20 ids of which only 1 differ"), ([*range(19), 0.0], "only 19")],
)
def test_ids_must_name_every_sample_once(ids, words):
    with pytest.raises(errors.DataError, match=words):
        risk(ids=ids)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cf.batches(), "no tensors"),
        (lambda: cf.batches(X, Y[:3]), r"lengths \[20, 3\]"),
        (lambda: cf.batches(X, size=0), "size=0; needed at least 1"),
        (lambda: cf.batches([1, 2], X), r"\['list', 'Tensor'\]"),
        (lambda: cf.batches(iter([1])), r"\['list_iterator'\]"),
    ],
)  # fmt: skip
def test_batches_need_tensors_of_one_length(make, words):
    with pytest.raises(errors.DataError, match=words):
        make()


def test_a_nan_is_found_with_its_batch_and_sample():
    x = X.clone()
    x[13, 1] = float("nan")
    made = risk(data=cf.batches(x, Y, size=8), ids=[f"row {k}" for k in range(20)])
    with pytest.raises(
        errors.NonFiniteError, match=r"batch 1 \(samples 'row 8' to 'row 15'; the loss of sample 'row 13'"
    ):
        cf.influence(made, objective, cf.Exact(1.0))


def test_a_gradient_of_nan_is_told_from_a_loss_of_nan():
    made = risk(loss=lambda model, batch: squared(model, batch) + (0 * model(batch[0])[:, 0]).abs().sqrt())
    with pytest.raises(errors.NonFiniteError, match="the losses are finite"):
        cf.influence(made, objective, cf.Exact(1.0))


# Models.


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.BatchNorm1d(3)], ids=lambda layer: type(layer).__name__)
def test_a_model_in_training_mode_is_refused(layer):
    with pytest.raises(errors.NondeterministicError, match=r"model\.eval\(\)"):
        risk(nn.Sequential(layer, nn.Linear(3, 1)).double())
    assert risk(nn.Sequential(layer, nn.Linear(3, 1)).double().eval()).n == 20


def test_a_random_loss_is_refused():
    with pytest.raises(errors.NondeterministicError, match="random"):
        risk(loss=lambda model, batch: squared(model, (batch[0] + torch.randn_like(batch[0]), batch[1])))


@pytest.mark.parametrize("glob", ["encoder.*", "Weight", [], ["x", "y"]], ids=str)
def test_a_glob_that_matches_nothing_is_refused_with_the_names_there_are(glob):
    with pytest.raises(errors.ParameterError, match=r"\['weight', 'bias'\], of which 0 have requires_grad=False"):
        risk(params=glob)


def test_a_frozen_model_is_refused():
    frozen = copy.deepcopy(MODEL).requires_grad_(False)
    with pytest.raises(errors.ParameterError, match=r"2 have requires_grad=False.*requires_grad_\(True\)"):
        risk(frozen)


@pytest.mark.parametrize("verb", [cf.influence, lambda made, _, solver: cf.self_influence(made, solver)])
def test_a_model_that_changed_is_refused(verb):
    model = copy.deepcopy(MODEL)
    made = risk(model)
    with torch.no_grad():
        model.bias.add_(1e-9)
    with pytest.raises(errors.StaleError, match=r"changed after the risk was made.*copy\.deepcopy\(model\)"):
        verb(made, objective, cf.Exact(1.0))


def test_an_inverse_of_another_model_is_refused():
    other = cf.Exact(1.0).invert(risk(grid.seeded(nn.Linear(3, 1), seed=1)))
    with pytest.raises(errors.StaleError, match=r"Make it again: solver\.invert\(risk\)"):
        cf.influence(risk(), objective, other)


# Questions.


@pytest.mark.parametrize(
    "question",
    [
        lambda model: torch.ones(()),
        lambda model: model.weight.detach().sum(),
        lambda model: nn.Linear(3, 1).weight.sum(),
        lambda model: model(X).sign().sum() * model.weight.round().sum(),
        lambda model: {"a": torch.ones(()), "b": torch.zeros(())},
        cf.mean_over(cf.batches(X), lambda model, x: x.sum(1)),
        cf.each_of(cf.batches(X), lambda model, x: x.sum(1)),
    ],
)
def test_a_question_that_does_not_depend_on_the_parameters_is_refused(question):
    with pytest.raises(errors.ObjectiveError, match=r"does not depend on the trained parameters \['weight', 'bias'\]"):
        cf.influence(risk(), question, cf.Exact(1.0))


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (lambda model: model.weight, r"shape \(1, 3\); needed a scalar, \(m,\)"),
        (lambda model: model.weight[0, :0], r"shape \(0,\)"),
        (lambda model: model.weight.sum().item(), "returned float"),
        (lambda model: None, "returned NoneType"),
        (lambda model: {}, "returned dict"),
        (lambda model: {"a": model.bias.sum(), "w": model.weight}, r"\{'w': \(1, 3\)\} are not scalars"),
        (cf.mean_over([], squared), "mean_over got no batches"),
        (cf.each_of([], squared), "each_of got no batches"),
    ],
)
def test_a_question_of_another_form_is_refused(question, words):
    with pytest.raises(errors.ObjectiveError, match=words):
        cf.influence(risk(), question, cf.Exact(1.0))


def test_a_question_that_is_nan_is_refused_by_name():
    with pytest.raises(errors.NonFiniteError, match="objective 'bad'"):
        cf.influence(risk(), lambda m: {"bad": (m.bias - m.bias).sqrt().sum()}, cf.Exact(1.0))


# Solvers.


@pytest.mark.parametrize("damping", [-1.0, float("nan")])
@pytest.mark.parametrize("solver", [cf.Exact, cf.CG, cf.GMRES, cf.Auto, cf.Relative])
def test_damping_is_never_negative(solver, damping):
    with pytest.raises(ValueError, match="needed zero or more"):
        cf.influence(risk(), objective, solver(damping))


def test_l2_is_never_negative():
    with pytest.raises(ValueError, match=r"l2=-1.*needed a number, zero or more"):
        risk(l2=-1)
    with pytest.raises(ValueError, match=r"l2=nan.*needed a number, zero or more"):
        risk(l2=float("nan"))


def test_conjugate_gradients_refuse_what_they_cannot_solve():
    field = grid.DEC_MOVING.risk()
    with pytest.raises(errors.UnsupportedError, match=r"CG needs a symmetric curvature.*GMRES"):
        cf.influence(field, grid.DEC_MOVING.objective, cf.CG(1.0))
    with pytest.raises(errors.UnsupportedError, match=r"no Hessian.*FieldJacobian"):
        cf.influence(field, grid.DEC_MOVING.objective, cf.GMRES(1.0, curvature=cf.Hessian()))
    hill = risk(loss=lambda model, batch: -squared(model, batch))
    with pytest.raises(
        errors.NegativeCurvatureError, match=r"negative curvature at step 0.*Raise damping above.*GMRES"
    ):
        cf.influence(hill, objective, cf.CG(0.1))


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # a damping that is all
def test_a_question_about_directions_that_training_leaves_open_is_refused():
    flat = risk(data=cf.batches(X * torch.tensor([1.0, 1.0, 0.0]), Y))
    with pytest.raises(errors.SingularCurvatureError, match=r"singular.*Exact\(damping=.*Risk\(\.\.\., l2="):
        cf.influence(flat, objective, cf.Exact())
    assert cf.influence(flat, objective, cf.Exact(cf.Relative(1e-3))).values.isfinite().all()
    assert cf.influence(flat, lambda model: model.weight[0, :2].sum(), cf.Exact()).values.isfinite().all()


def test_gauss_newton_needs_to_know_the_outputs():
    twice = risk(loss=lambda m, b: squared(m, b) + squared(m, b))
    with pytest.raises(errors.UnsupportedError, match=r"has a PerSample: it calls.*OnOutputs\(outputs, criterion\)"):
        cf.influence(twice, objective, cf.Exact(1.0, curvature=cf.GaussNewton()))


def test_candidates_need_a_per_sample_loss():
    problem = grid.CONTRASTIVE
    with pytest.raises(errors.UnsupportedError, match=r"candidates= needs a per-sample loss.*WeightedLoss"):
        cf.influence(problem.risk(), problem.objective, cf.Exact(1.0), candidates=cf.batches(*problem.tensors))
    with pytest.raises(errors.DataError, match="candidates holds no samples"):
        cf.influence(risk(), objective, cf.Exact(1.0), candidates=[])


def test_a_field_has_no_loss_of_its_own():
    with pytest.raises(errors.UnsupportedError, match="self_influence needs every sample to have a loss of its own"):
        cf.self_influence(grid.DEC_MOVING.risk(), cf.Exact(1.0))
