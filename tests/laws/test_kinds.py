"""Every verb given the wrong kind of thing says what came, what it needs and what to type."""

import pickle
import re
from pathlib import Path

import grid
import numpy as np
import pytest
import torch
from grid import normal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from walks import risk as skip_gram

import crossfluence as cf
from crossfluence import errors
from crossfluence.words.skipgram import WordBlocks

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights

X, Y = normal(12, 3, seed=0), normal(12, seed=1)
NET = grid.seeded(nn.Linear(3, 1))
SPREAD = torch.eye(12, dtype=torch.float64)


def squared(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


def recipe(**changes):
    options = {"optimizer": cf.SGD(0.1), "epochs": 3, "batch_size": 4, "l2": 0.1, **changes}
    return cf.Recipe(NET, squared, (X, Y), **options)


def ask(model):
    return model.weight.sum()


RECIPE = recipe()
BANK = cf.Bank(RECIPE, "never made")
RISK = RECIPE.risk(NET)
SCORES = cf.Scores(normal(12, 1, seed=3), range(12), ("objective",), "by hand")
WRONG = {
    "model": NET,
    "recipe": RECIPE,
    "bank": BANK,
    "loader": DataLoader(TensorDataset(X, Y)),
    "scores": SCORES,
    "risk": RISK,
    "none": None,
    "text": "cora",
    "class": cf.CG,
    "number": 3,
    "tensor": X,
    "loss": squared,
    "weighted": cf.WeightedLoss(lambda model, batch, weights: weights @ squared(model, batch)),
    "solver": cf.CG(1.0),
}
STEP = {"steps": 1, "lr": 0.1}
VERBS = [  # what is called, and the kinds that it takes
    ("influence", lambda it: cf.influence(it, ask), "risk"),
    ("influence, question", lambda it: cf.influence(RISK, it), ""),
    ("influence, solver", lambda it: cf.influence(RISK, ask, it), "solver"),
    ("self_influence", cf.self_influence, "risk"),
    ("self_influence, solver", lambda it: cf.self_influence(RISK, it), "solver"),
    ("plan", cf.plan, "risk"),
    ("plan, solver", lambda it: cf.plan(RISK, it), "solver"),
    ("invert", lambda it: cf.Exact().invert(it), "risk"),
    ("undo", lambda it: cf.undo(it, [1], **STEP), "risk"),
    ("undo, watch", lambda it: cf.undo(RISK, [1], watch=it, **STEP), "none"),
    ("undo, guard", lambda it: cf.undo(RISK, [1], guard=it, **STEP), "none"),
    ("undo, ids", lambda it: cf.undo(RISK, it, **STEP), "loader tensor"),  # what they hold is no id
    ("amplify", lambda it: cf.amplify(it, [1], **STEP), "risk"),
    ("unlearn", lambda it: cf.unlearn(it, [1]), "risk"),
    ("unlearn, solver", lambda it: cf.unlearn(RISK, [1], it), "solver"),
    ("remove", lambda it: cf.remove(it, [1], ask, n=12), "recipe bank"),
    ("remove, question", lambda it: cf.remove(RECIPE, [1], it), ""),
    ("remove, scores", lambda it: cf.remove(RECIPE, [1], ask, scores=it), "scores none"),
    ("leave_out", lambda it: cf.leave_out(it, ask, [1], n=12), "recipe bank"),
    ("leave_out, question", lambda it: cf.leave_out(RECIPE, it, [1]), ""),
    ("leave_out, store", lambda it: cf.leave_out(RECIPE, ask, [1], store=it), "none text"),
    ("replay", lambda it: cf.replay(it, ask), "recipe"),
    ("replay, question", lambda it: cf.replay(RECIPE, it), ""),
    ("source", lambda it: cf.source(it, ask), "recipe"),
    ("source, curvature", lambda it: cf.source(RECIPE, ask, curvature=it), "none"),
    ("tracin", lambda it: cf.tracin(it, ask), "recipe"),
    ("tracin, question", lambda it: cf.tracin(RECIPE, it), ""),
    ("data_gradient", lambda it: cf.data_gradient(it, ask), "recipe"),
    ("lds", lambda it: cf.lds(SCORES, it, ask, subsets=3), "recipe bank"),
    ("lds, scores", lambda it: cf.lds(it, RECIPE, ask, subsets=3), "scores"),
    ("lds, question", lambda it: cf.lds(SCORES, RECIPE, it, subsets=3), ""),
    ("smoothness", lambda it: cf.smoothness(it, ask, groups=3), "recipe bank"),
    ("removal_curve", lambda it: cf.removal_curve(SCORES, it, ask, [1], draws=1), "recipe bank"),
    ("removal_curve, scores", lambda it: cf.removal_curve(it, RECIPE, ask, [1], draws=1), "scores"),
    ("compare", lambda it: cf.compare(it, SCORES), "scores"),
    ("compare, actual", lambda it: cf.compare(SCORES, it), "scores"),
    ("ensemble", lambda it: cf.ensemble([it, it]), "scores"),
    ("Bank", lambda it: cf.Bank(it, "folder"), "recipe"),
    ("Bank, folder", lambda it: cf.Bank(RECIPE, it), "text"),
    ("Risk, model", lambda it: cf.Risk(it, squared, cf.batches(X, Y)), "model"),
    ("Risk, loss", lambda it: cf.Risk(NET, it, cf.batches(X, Y)), "loss weighted"),
    ("Recipe, model", lambda it: cf.Recipe(it, squared, (X, Y), optimizer=cf.SGD(0.1), epochs=1), "model"),
    ("Recipe, optimizer", lambda it: recipe(optimizer=it), ""),
    ("Recipe, schedule", lambda it: recipe(schedule=it), "model recipe bank class"),
    ("train", RECIPE.train, "none tensor"),
    ("WeightedLoss", cf.WeightedLoss, "weighted class"),
    ("OnOutputs", lambda it: cf.OnOutputs(it, it), "loss class"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "thing"),
    [
        pytest.param(call, thing, id=f"{name} of {kind}")
        for name, call, right in VERBS
        for kind, thing in WRONG.items()
        if kind not in right.split()
    ],
)
def test_the_wrong_kind_of_thing_is_refused_with_what_to_type(call, thing):
    with pytest.raises(errors.UnsupportedError, match=r"^Got .*needed|^Got .* needs "):
        call(thing)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: cf.influence(NET, ask), "Got Linear; influence needs a Risk: .*Type: influence(crossfluence.Risk("),
        (lambda: cf.influence(RECIPE, ask), "Type: influence(recipe.risk(recipe.train()), ...)."),
        (lambda: cf.self_influence(BANK), "Type: self_influence(bank.recipe.risk(bank.recipe.train()), ...)."),
        (lambda: cf.tracin(BANK, ask), "Got Bank; tracin needs a crossfluence.Recipe.*Type: tracin(bank.recipe, "),
        (lambda: cf.replay(BANK, ask), "Type: replay(bank.recipe, objective)"),
        (lambda: cf.influence(RISK, squared), "function of the model alone.*mean_over(batches, loss)"),
        (lambda: cf.influence(RISK, ask, cf.CG), "Got the class CG for the solver; needed one such as crossfluence."),
        (lambda: cf.undo(RISK, 3, **STEP), "Got 3 for the samples of undo; needed a list. Type: [3]."),
        (lambda: cf.leave_out(RECIPE, ask, "cora"), "the string 'cora' for the samples of leave_out.*Type: ['cora']"),
        (lambda: cf.CG(1.0, curvature="Hessian").invert(RISK), "the string 'Hessian'; curvature= needs a curvature"),
        (lambda: cf.CG(1.0, preconditioner="Jacobi").invert(RISK), "Type: preconditioner=crossfluence.Jacobi()."),
        (lambda: cf.EKFAC(curvature=cf.Hessian()).invert(RISK), "Got Hessian; EKFAC needs a Fisher matrix, made of"),
    ],
)  # fmt: skip
def test_the_line_to_type_fits_what_came(call, line):
    with pytest.raises(errors.UnsupportedError, match=re.escape(line).replace(r"\.\*", ".*")):
        call()


# One protocol for what trains again.


def test_a_bank_removes_as_its_recipe_does(tmp_path):
    by_bank = cf.remove(cf.Bank(RECIPE, tmp_path), [1, 5], ask)
    by_recipe = cf.remove(RECIPE, [1, 5], ask)
    assert by_bank.predicted == by_recipe.predicted
    assert by_bank.achieved == by_recipe.achieved
    assert len(list(tmp_path.iterdir())) == 2
    assert cf.Bank(RECIPE, tmp_path)(torch.ones(12)).weight.equal(RECIPE(torch.ones(12)).weight)


def test_how_many_train_together_changes_no_key(tmp_path):
    for at_once in (32, 2):
        cf.leave_out(recipe(at_once=at_once), ask, [0, 1], store=tmp_path / "answers")
        cf.leave_out(cf.Bank(recipe(at_once=at_once), tmp_path / "models"), ask, [0, 1], store=tmp_path / "answers")
        cf.leave_out(cf.Bank(recipe(at_once=at_once), tmp_path / "models"), ask, [0, 1])
    assert len(list((tmp_path / "answers").iterdir())) == len(list((tmp_path / "models").iterdir())) == 3
    keys = {recipe(**change).content for change in ({}, {"seed": 1}, {"l2": {"weight": 0.1}}, {"epochs": 4})}
    assert len(keys) == 4
    assert pickle.loads(pickle.dumps(cf.SGD(0.1))) == cf.SGD(0.1)


# Seeds that are trained are read.


@pytest.mark.parametrize("protocol", ["half", "leave out"])
def test_every_seed_counts_in_the_score_or_the_ceiling(protocol):
    made = recipe(optimizer=cf.SGD(0.3), batch_size=2)
    scores = cf.Scores(normal(12, 1, seed=3), range(12), ("objective",), "by hand")
    found = cf.lds(scores, made, ask, protocol=protocol, drop=0.25, subsets=6, seeds=4)
    assert found.answers.shape == (4, 6, 1)

    def rank(values):
        return np.argsort(np.argsort(values[:, 0]))

    def spearman(x, y):
        return np.corrcoef(rank(x), rank(y))[0, 1]

    rounds = found.answers if protocol == "half" else found.answers[:1]
    assert found.score == pytest.approx(np.mean([spearman(found.predicted, one) for one in rounds]))
    pairs = [(one, two) for one in range(4) for two in range(one + 1, 4)]
    assert found.ceiling == pytest.approx(np.mean([spearman(found.answers[i], found.answers[j]) for i, j in pairs]))
    assert found.ceiling != cf.lds(scores, made, ask, protocol=protocol, drop=0.25, subsets=6).ceiling


# Ids that stand twice, and what a file keeps.


def test_an_id_that_stands_twice_is_undone_once():
    for verb in (cf.undo, cf.amplify):
        once, twice = (verb(RISK, ids, steps=3, lr=0.01).model for ids in ([1, 4], [1, 4, 1, np.int64(4)]))
        assert once.weight.equal(twice.weight)
    both = cf.undo(RISK, [1, 1, 2], amplify=[3], steps=3, lr=0.01).model
    assert both.weight.equal(cf.undo(RISK, [1, 2], amplify=[3, 3], steps=3, lr=0.01).model.weight)
    with pytest.raises(ValueError, match="Sample 1 is both"):
        cf.undo(RISK, [1], amplify=[torch.tensor(1)], steps=1, lr=0.01)


def test_a_size_that_stands_twice_is_refused():
    scores = cf.Scores(torch.arange(1.0, 13).unsqueeze(1), range(12), ("objective",), "by hand")
    with pytest.raises(errors.DataError, match=r"sizes=\[3, 3\] and draws=2; needed each size once"):
        cf.removal_curve(scores, RECIPE, ask, [3, 3], draws=2)
    with pytest.raises(errors.DataError, match="at least one draw"):
        cf.removal_curve(scores, RECIPE, ask, [3], draws=0)
    assert cf.removal_curve(scores, RECIPE, ask, np.array([1, 2]), draws=1).sizes == (1, 2)


def test_auto_keeps_its_note_with_a_checkpoint(tmp_path):
    plain, kept = cf.Auto(0.1).invert(RISK), cf.Auto(0.1).invert(RISK, checkpoint=tmp_path / "file")
    again = cf.Auto(0.1).invert(RISK, checkpoint=tmp_path / "file")
    assert plain.notes == kept.notes == again.notes
    assert sum("Auto chose Exact" in note for note in again.notes) == 1
    assert type(cf.load_inverse(tmp_path / "file")).__name__ == "ExactInverse"


def test_word_blocks_are_saved_and_kept(tmp_path: Path):
    made = skip_gram()
    inverse, vectors = WordBlocks(0.1).invert(made), normal(2, made.p, seed=4)
    inverse.save(tmp_path / "blocks")
    assert torch.equal(cf.load_inverse(tmp_path / "blocks").solve(vectors).vectors, inverse.solve(vectors).vectors)
    for _ in range(2):
        kept = WordBlocks(0.1).invert(made, checkpoint=tmp_path / "kept")
        assert torch.equal(kept.solve(vectors).vectors, inverse.solve(vectors).vectors)
    with pytest.raises(errors.UnsupportedError, match=r"EKFAC needs a Risk.*a SkipGramRisk has a structure.*Auto\(\)"):
        cf.EKFAC().invert(made)
