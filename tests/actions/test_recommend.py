"""Actions as predictions: their effects are exact to first order, and training again agrees."""

import numpy as np
import pytest
import torch
from torch import nn

import crossfluence as cf
from crossfluence import tabular
from crossfluence.errors import DataError, IdError, ObjectiveError, UnsupportedError

N, F, L2 = 120, 3, 0.02
GEN = torch.Generator().manual_seed(0)
X = torch.randn(N, F, generator=GEN, dtype=torch.float64)
Y = (X[:, 0] + torch.randn(N, generator=GEN, dtype=torch.float64) > 0).double()
POOL = (torch.randn(40, F, generator=GEN, dtype=torch.float64), torch.ones(40, dtype=torch.float64))
HELD = torch.randn(60, F, generator=GEN, dtype=torch.float64)


def loss(model, batch):
    z = model(batch[0])[:, 0]
    return nn.functional.softplus(z) - batch[1] * z


def flip(batch):
    return batch[0], 1 - batch[1]


def fitted(x, y, weights, l2=L2 * N):
    """Newton steps on the sum of weighted losses, written out."""
    theta = torch.zeros(F + 1, dtype=torch.float64)
    rows = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    for _ in range(30):
        p = (rows @ theta).sigmoid()
        gradient = rows.T @ (weights * (p - y)) + l2 * theta
        hessian = (rows * (weights * p * (1 - p)).unsqueeze(1)).T @ rows + l2 * torch.eye(F + 1)
        theta = theta - torch.linalg.solve(hessian, gradient)
    model = nn.Linear(F, 1).double()
    with torch.no_grad():
        model.weight.copy_(theta[:F]), model.bias.copy_(theta[F:])
    return model


def train(weights, data=None):
    x, y = (X, Y) if data is None else (torch.cat(part) for part in zip(*data, strict=True))
    return fitted(x, y, weights.double())


def question(model):
    """A gap between halves of the held-out rows, in size."""
    p = model(HELD)[:, 0].sigmoid()
    return (p[HELD[:, 1] > 0].mean() - p[HELD[:, 1] <= 0].mean()).abs()


def worsening(model):
    return loss(model, (X, Y)).mean()


def risk(**changed):
    return cf.Risk(fitted(X, Y, torch.ones(N)), loss, cf.batches(X, Y, size=50), **({"l2": L2} | changed))


def truth(x, y, weights):
    model = fitted(x, y, weights)
    return question(model).item() - question(train(torch.ones(N))).item()


def test_the_table_holds_the_scores_of_influence():
    here = risk(ids=[f"row {i}" for i in range(N)])
    found = cf.recommend(here, question, labels=flip, pool=cf.batches(*POOL), budget=5, keep=worsening)
    scores = cf.influence(here, question).values
    flipped = cf.influence(here, question, candidates=cf.batches(X, 1 - Y)).values
    added = cf.influence(here, question, candidates=cf.batches(*POOL)).values
    kept = cf.influence(here, worsening).values
    table = {kind: [] for kind in ("remove", "relabel", "duplicate", "add")}
    for (kind, _), row in zip(found.table.ids, found.table.values.tolist(), strict=True):
        table[kind].append(row)
    for kind, wanted in (("remove", -scores), ("relabel", flipped - scores), ("duplicate", scores), ("add", added)):
        found_here = torch.tensor(table[kind], dtype=torch.float64)[:, :1]
        assert torch.allclose(found_here, wanted, rtol=1e-8, atol=1e-14)
    kept_here = torch.tensor(table["remove"], dtype=torch.float64)[:, 1:]
    assert torch.allclose(kept_here, -kept, rtol=1e-8, atol=1e-14)
    assert found.table.ids[3] == ("remove", "row 3")


@pytest.mark.parametrize("kind", ["remove", "relabel", "duplicate", "add"])
def test_effects_of_single_actions_are_those_of_training_again(kind):
    found = cf.recommend(risk(), question, labels=flip, pool=cf.batches(*POOL), budget=1)
    rows = range(0, 40, 2)
    ones = torch.ones(N, dtype=torch.float64)
    again = []
    for row in rows:
        if kind == "add":
            x, y = torch.cat([X, POOL[0][row : row + 1]]), torch.cat([Y, POOL[1][row : row + 1]])
            again.append(truth(x, y, torch.ones(N + 1, dtype=torch.float64)))
        elif kind == "relabel":
            y = Y.clone()
            y[row] = 1 - y[row]
            again.append(truth(X, y, ones))
        else:
            again.append(truth(X, Y, ones.index_fill(0, torch.tensor([row]), 0 if kind == "remove" else 2)))
    predicted = found.table.select([(kind, row) for row in rows]).values[:, 0].numpy()
    again = np.array(again)
    assert np.corrcoef(predicted, again)[0, 1] > 0.99
    assert 0.9 < (predicted @ again) / (predicted @ predicted) < 1.1


def test_the_newton_step_is_that_of_unlearn():
    here = risk()
    found = cf.recommend(here, question, ("remove",), budget=10)
    step = cf.unlearn(here, [action.id for action in found.chosen], watch=question)
    assert found.predicted.item() == pytest.approx(step.achieved.item(), rel=1e-9)
    scores = cf.influence(here, question).select([action.id for action in found.chosen])
    assert found.linear.item() == pytest.approx(-scores.values.sum().item(), rel=1e-9)
    assert question(found.model).item() - question(here.model).item() == pytest.approx(found.predicted.item())


@pytest.mark.parametrize("actions", [("remove",), ("relabel",), ("add",), ("remove", "relabel", "duplicate", "add")])
def test_carried_out_it_does_what_was_predicted_and_random_choices_do_not(actions):
    found = cf.recommend(risk(), question, actions, labels=flip, pool=cf.batches(*POOL), budget=6, keep=worsening)
    outcome = found.carry_out(train, against_random=10)
    assert outcome.achieved[0].item() == pytest.approx(outcome.predicted[0].item(), rel=0.1)
    assert outcome.achieved[1].item() == pytest.approx(outcome.predicted[1].item(), rel=0.2, abs=1e-4)
    assert outcome.random.shape == (10, 2)
    assert outcome.achieved[0] < outcome.random[:, 0].min()
    assert question(outcome.model).item() == outcome.after[0].item()


def test_a_recipe_carries_out_what_a_training_function_does():
    recipe = cf.Recipe(nn.Linear(F, 1).double(), loss, (X, Y), optimizer=cf.SGD(2.0, momentum=0.9), epochs=400, l2=L2)
    here = recipe.risk(recipe.train())
    found = cf.recommend(here, question, labels=flip, pool=cf.batches(*POOL), budget=6)
    assert len({action.kind for action in found.chosen} | {"add"}) >= 2
    first, second = found.carry_out(recipe, against_random=2), found.carry_out(train, against_random=2)
    assert first.achieved.item() == pytest.approx(second.achieved.item(), rel=1e-4)
    assert torch.allclose(first.random, second.random, atol=1e-5)


def test_seeds_of_a_recipe_are_averaged_and_their_noise_is_said():
    recipe = cf.Recipe(nn.Linear(F, 1).double(), loss, (X, Y), optimizer=cf.SGD(0.2), epochs=20, l2=L2, batch_size=20)
    found = cf.recommend(recipe.risk(recipe.train()), question, ("remove",), budget=6)
    outcome = found.carry_out(recipe, seeds=3, against_random=0)
    alone = [found.carry_out(recipe.with_seed(seed) if seed else recipe, against_random=0) for seed in range(3)]
    assert outcome.achieved.item() == pytest.approx(np.mean([one.achieved.item() for one in alone]))
    assert outcome.noise.item() == pytest.approx(np.std([one.achieved.item() for one in alone], ddof=1) / 3**0.5)
    assert outcome.random is None


def test_rounds_solve_again_and_end_nearer_to_the_prediction():
    once = cf.recommend(risk(), question, ("relabel",), labels=flip, budget=20)
    often = cf.recommend(risk(), question, ("relabel",), labels=flip, budget=20, rounds=5)
    assert len(often.rounds) > 1
    after = [found.carry_out(train, against_random=0).after.item() for found in (once, often)]
    assert after[1] <= after[0] + 1e-3
    found = sum(each.found for each in often.rounds if not each.undone)
    assert found == pytest.approx(often.carry_out(train, against_random=0).achieved.item(), abs=2e-3)


def test_a_choice_ends_where_the_question_does():
    found = cf.recommend(risk(), question, ("remove",), budget=N, rounds=5)
    assert found.stopped in {
        "The question reached its end.",
        "No other action was predicted to lower the question at its price, or it reached its end.",
    }
    assert len(found.chosen) < N
    assert question(found.model) < 0.3 * question(risk().model)


def test_a_round_that_does_not_fall_as_predicted_is_undone():
    here = risk()

    def wavy(model):  # a fast wave on a slow slope: its gradient says nothing about larger steps
        return 1 + question(model) + 0.01 * torch.sin(3000 * question(model))

    found = cf.recommend(here, wavy, ("remove",), budget=40, rounds=2)
    assert any(each.undone for each in found.rounds)
    kept = sum(each.actions for each in found.rounds if not each.undone)
    assert kept == len(found.chosen)


def test_no_sample_is_acted_on_twice_and_some_are_left_alone():
    left = list(range(0, N, 2))
    found = cf.recommend(risk(), question, labels=flip, pool=cf.batches(*POOL), budget=20, rounds=3, leave_alone=left)
    own = [action.id for action in found.chosen if action.kind != "add"]
    assert len(own) == len(set(own))
    assert not set(own) & set(left)


def test_what_is_kept_costs_its_price():
    free = cf.recommend(risk(), question, budget=12, keep=worsening, price=0)
    dear = cf.recommend(risk(), question, budget=12, keep=worsening, price=100)
    assert dear.linear[1] < free.linear[1]
    assert all(action.change + 100 * action.keep < 0 for action in dear.chosen)


def test_several_labels_have_names():
    labels = {"one": lambda batch: (batch[0], torch.ones_like(batch[1])), "zero": lambda b: (b[0], 0 * b[1])}
    found = cf.recommend(risk(), question, ("relabel",), labels=labels, budget=4)
    assert {action.label for action in found.chosen} <= {"one", "zero"}
    assert found.table.select([("relabel", 0, "one" if Y[0] else "zero")]).values.abs().max() < 1e-15


def test_coupled_losses_can_be_weighed_but_not_relabelled():
    coupled = cf.WeightedLoss(lambda model, batch, weights: (weights * loss(model, batch)).sum())
    here = cf.Risk(fitted(X, Y, torch.ones(N)), coupled, cf.batches(X, Y, size=N), l2=L2)
    alone = cf.recommend(risk(), question, ("remove", "duplicate"), budget=5)
    assert cf.recommend(here, question, budget=5).chosen[0].id == alone.chosen[0].id
    with pytest.raises(UnsupportedError, match=r"actions=\('remove', 'duplicate'\)"):
        cf.recommend(here, question, ("relabel",), labels=flip, budget=5)


def test_scikit_learn_models_are_recommended_for_and_fitted_again():
    linear_model = pytest.importorskip("sklearn.linear_model")
    estimator = linear_model.LogisticRegression(tol=1e-10).fit(X.numpy(), Y.numpy())
    here = tabular.risk_of(estimator, X.numpy(), Y.numpy())
    found = cf.recommend(here, question, ("remove", "relabel"), labels=tabular.flipped, budget=5)
    outcome = found.carry_out(tabular.training_of(estimator, X.numpy(), Y.numpy()), against_random=3)
    assert outcome.achieved.item() == pytest.approx(outcome.predicted.item(), rel=0.1)


def test_the_frame_lists_what_to_do():
    frame = cf.recommend(risk(), question, ("remove",), budget=3).to_frame()
    assert list(frame.columns) == ["action", "id", "label", "change", "keep"]
    assert len(frame) == 3


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"budget": N + 1}, DataError, "The budget of 121 actions is larger than the data of 120"),
        ({"budget": 0.001}, DataError, "less than one"),
        ({"budget": -1}, DataError, "needed a number of actions"),
        ({"budget": 2.5}, DataError, "needed a number of actions"),
        ({"actions": ("erase",)}, UnsupportedError, "There is no action 'erase'"),
        ({"actions": ("relabel",)}, UnsupportedError, "labels=lambda batch"),
        ({"actions": ("remove", "add")}, UnsupportedError, "pool=crossfluence.batches"),
        ({"actions": ()}, UnsupportedError, "Got no actions"),
        ({"until": 5.0}, ObjectiveError, "nothing to lower"),
        ({"keep": lambda model: model.weight[0]}, ObjectiveError, "The keep has 3 values"),
        ({"labels": lambda batch: batch}, DataError, "those that the samples have already"),
        ({"labels": lambda batch: (batch[0][:3], batch[1][:3])}, DataError, "batch 0 has 3 samples; it had 50"),
        ({"pool": cf.batches(torch.zeros(3, 2).double(), torch.zeros(3).double())}, DataError, "with the same columns"),
        ({"rounds": 0}, UnsupportedError, "rounds=0"),
        ({"price": float("nan")}, UnsupportedError, "price=nan"),
        ({"leave_alone": [999]}, IdError, "Unknown id 999"),
        ({"solver": 3}, UnsupportedError, "it needs a solver"),
    ],
)
def test_what_cannot_be_recommended_is_refused(given, error, words):
    with pytest.raises(error, match=words):
        cf.recommend(risk(), question, **({"budget": 3} | given))


def test_no_question_is_refused():
    with pytest.raises(UnsupportedError, match="Got None for the objective of recommend"):
        cf.recommend(risk(), None, budget=3)


def test_what_cannot_be_carried_out_is_refused():
    relabelling = cf.recommend(risk(), question, ("relabel",), labels=flip, budget=2)
    with pytest.raises(UnsupportedError, match="needs a second argument"):
        relabelling.carry_out(lambda weights: train(weights))
    with pytest.raises(UnsupportedError, match="has no seed"):
        relabelling.carry_out(train, seeds=2)
    nothing = cf.recommend(risk(), question, ("remove",), budget=2, leave_alone=range(N))
    with pytest.raises(DataError, match="There is nothing to carry out"):
        nothing.carry_out(train)
    other = cf.Recipe(nn.Linear(F, 1).double(), loss, (X[:50], Y[:50]), optimizer=cf.SGD(0.1), epochs=1)
    with pytest.raises(DataError, match="The recipe has 50 samples"):
        cf.recommend(risk(), question, ("remove",), budget=2).carry_out(other)


def test_the_model_is_untouched():
    here = risk()
    before = {name: tensor.clone() for name, tensor in here.model.state_dict().items()}
    state = torch.get_rng_state()
    cf.recommend(here, question, labels=flip, budget=6, rounds=3).carry_out(train, against_random=2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in here.model.state_dict().items())


# By a recipe: a training that did not converge.


def gap(model):
    """The same with its sign, and something above zero to lower."""
    p = model(HELD)[:, 0].sigmoid()
    return 1 + p[HELD[:, 1] > 0].mean() - p[HELD[:, 1] <= 0].mean()


def short(**changed):
    start = nn.Linear(F, 1).double()
    nn.init.zeros_(start.weight), nn.init.zeros_(start.bias)
    given = {"optimizer": cf.SGD(0.1, 0.9), "epochs": 3, "batch_size": 20, "l2": L2} | changed
    return cf.Recipe(start, loss, (X, Y), **given)


def achieved(recipe, choice, labels=flip):
    """The change of the gap by training again, with rows removed, doubled or relabelled by hand."""
    weights, y = torch.ones(N), Y.clone()
    for kind, row in choice:
        weights[row] = {"remove": 0.0, "duplicate": 2.0, "relabel": 1.0}[kind]
        y[row] = 1 - Y[row] if kind == "relabel" else Y[row]
    changed = cf.Recipe(recipe.init, loss, (X, y), optimizer=recipe.optimizer, epochs=3, batch_size=20, l2=L2)
    return gap(changed.train(weights)).item() - gap(recipe.train()).item()


def test_effects_by_a_recipe_are_those_of_training_again_in_its_order():
    recipe = short()
    found = cf.recommend(recipe, gap, ("remove", "relabel", "duplicate"), labels=flip, budget=3)
    table = dict(zip(found.table.ids, found.table.values[:, 0].tolist(), strict=True))
    replayed = cf.replay(recipe, gap, groups=0).values[:, 0]
    assert [table["remove", row] for row in range(N)] == pytest.approx((-replayed).tolist())
    assert [table["duplicate", row] for row in range(N)] == pytest.approx(replayed.tolist())
    for kind in ("remove", "relabel", "duplicate"):
        pairs = torch.tensor([(table[kind, row], achieved(recipe, [(kind, row)])) for row in range(0, N, 8)]).T
        assert torch.corrcoef(pairs)[0, 1] > 0.98
        assert 0.8 < (pairs[0] @ pairs[1]) / pairs[0].square().sum() < 1.25
    assert found.table.method == "recommend(replay)"
    assert found.verdict is not None


@pytest.mark.parametrize("actions", [("remove",), ("relabel",), ("remove", "relabel", "duplicate")])
def test_a_recipe_carries_out_what_its_steps_foretell(actions):
    recipe = short()
    found = cf.recommend(recipe, gap, actions, labels=flip, budget=4, keep=worsening)
    outcome = found.carry_out(recipe, against_random=3)
    wanted = achieved(recipe, [(one.kind, one.id) for one in found.chosen])
    assert outcome.achieved[0].item() == pytest.approx(wanted, abs=1e-6)
    assert outcome.achieved[0] < 0
    assert outcome.predicted[0].item() == pytest.approx(outcome.achieved[0].item(), rel=0.4)
    assert (gap(found.model) - gap(recipe.train())).item() == pytest.approx(found.predicted[0].item())
    assert found.linear[0].item() == pytest.approx(found.table.select(
        [(one.kind, one.id) for one in found.chosen]).values[:, 0].sum().item())  # fmt: skip


def test_several_labels_and_a_mapping_go_through_the_steps_of_a_recipe():
    def of_mapping(model, batch):
        return loss(model, (batch["x"], batch["y"]))

    plain = short()
    mapping = cf.Recipe(
        plain.init, of_mapping, {"x": X, "y": Y}, optimizer=plain.optimizer, epochs=3, batch_size=20, l2=L2
    )
    labels = {"other": lambda b: {"x": b["x"], "y": 1 - b["y"]}, "half": lambda b: {"x": b["x"], "y": 0 * b["y"] + 0.5}}
    found = cf.recommend(mapping, gap, ("relabel",), labels=labels, budget=3)
    wanted = cf.recommend(plain, gap, ("relabel",), labels=flip, budget=3)
    table = dict(zip(found.table.ids, found.table.values[:, 0].tolist(), strict=True))
    for row in range(N):
        assert table["relabel", row, "other"] == pytest.approx(wanted.table.values[row, 0].item(), abs=1e-9)
    outcome = found.carry_out(mapping, against_random=0)
    assert outcome.predicted.item() == pytest.approx(outcome.achieved.item(), rel=0.4)


def test_what_a_recipe_has_no_effect_for_is_refused():
    with pytest.raises(UnsupportedError, match=r"no step that sees the pool"):
        cf.recommend(short(), gap, ("add",), pool=cf.batches(*POOL), budget=2)
    with pytest.raises(UnsupportedError, match="rounds=2 solves between rounds"):
        cf.recommend(short(), gap, ("remove",), budget=2, rounds=2)
    dataset = torch.utils.data.TensorDataset(X, Y)
    recipe = cf.Recipe(short().init, loss, dataset, optimizer=cf.SGD(0.1), epochs=1)
    with pytest.raises(UnsupportedError, match="its data must be tensors"):
        cf.recommend(recipe, gap, ("relabel",), labels=flip, budget=2)
    with pytest.raises(DataError, match="larger than the data"):
        cf.recommend(short(), gap, ("remove",), budget=N + 1)
