"""Scores of tokens: they add up to those of their sample, whatever the solver and the batches."""

import pytest
import torch
from grid import integers, seeded
from torch import nn
from torch.nn import functional as F

import crossfluence as cf

TEXT, LENGTHS = integers(6, 12, 5, seed=60), 3 + integers(3, 12, 1, seed=61)
POSITIONS = torch.where(torch.arange(5) < LENGTHS, torch.arange(5), -1)


class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(6, 3), nn.Linear(3, 6)

    def forward(self, text):
        return self.head(self.table(text).tanh())


def each(z, batch):
    return F.pad(F.cross_entropy(z[:, :-1].transpose(1, 2), batch[0][:, 1:], reduction="none"), (1, 0))


def positions(batch):
    return torch.where(torch.arange(5) > 0, batch[1], -1)


BY_TOKEN = cf.OnOutputs.by_token(lambda model, batch: model(batch[0]), each, positions)
MODEL = seeded(Bigram())


def risk(size=5, **changes):
    return cf.Risk(MODEL, BY_TOKEN, cf.batches(TEXT, POSITIONS, size=size), l2=0.1, **changes)


def ask(model):
    return model(torch.tensor([[1, 2]]))[0, -1, :2]


SOLVERS = [
    cf.Exact(0.5), cf.CG(0.5, curvature=cf.GaussNewton()), cf.GMRES(0.5), cf.EKFAC(), cf.Identity(), cf.LowRank(4, 0.5)
]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_scores_of_tokens_add_up_to_those_of_their_sample(solver):
    whole = cf.influence(risk(), ask, solver)
    tokens = cf.influence(risk(), ask, solver, unit="token")
    assert len(tokens) == int((positions((TEXT, POSITIONS)) >= 0).sum())
    summed = tokens.sum_by([sample for sample, _ in tokens.ids])
    torch.testing.assert_close(summed.values, whole.values)
    assert summed.ids == whole.ids
    assert tokens.verdict.level == whole.verdict.level


def test_the_score_of_a_token_is_that_of_a_sample_whose_loss_it_is():
    inverse = cf.Exact(0.5).invert(risk())
    tokens = cf.influence(risk(), ask, inverse, unit="token")
    for sample, place in [(0, 1), (3, 2), (11, 1)]:
        alone = torch.full_like(POSITIONS[sample : sample + 1], -1)
        alone[0, place] = place
        only = cf.influence(risk(), ask, inverse, candidates=[(TEXT[sample : sample + 1], alone)])
        torch.testing.assert_close(tokens.select([(sample, place)]).values, only.values)


def test_scores_of_tokens_do_not_depend_on_the_batches():
    one, other = (cf.influence(risk(size), ask, cf.Exact(0.5), unit="token") for size in (3, 12))
    assert one.ids == other.ids
    torch.testing.assert_close(one.values, other.values)


def test_each_of_many_questions_has_scores_of_tokens():
    questions = cf.each_of(cf.batches(TEXT[:4], POSITIONS[:4]), lambda model, batch: BY_TOKEN.losses(model, batch))
    found = cf.influence(risk(), questions, cf.EKFAC(), unit="token")
    whole = cf.influence(risk(), questions, cf.EKFAC(tolerance=0.0))
    torch.testing.assert_close(found.sum_by([sample for sample, _ in found.ids]).values, whole.values)


def test_candidates_have_tokens_too():
    new = [(TEXT[:3], POSITIONS[:3])]
    found = cf.influence(risk(), ask, cf.Exact(0.5), candidates=new, unit="token")
    trained = cf.influence(risk(), ask, cf.Exact(0.5), unit="token")
    torch.testing.assert_close(found.values, trained.values[: len(found)])
    assert found.ids == trained.ids[: len(found)]


def test_ids_of_samples_come_before_positions():
    names = [f"text {row}" for row in range(12)]
    assert cf.influence(risk(ids=names), ask, cf.Identity(), unit="token").ids[0] == ("text 0", 1)


def test_a_loss_without_tokens_is_refused_with_advice():
    plain = cf.Risk(MODEL, BY_TOKEN.losses, cf.batches(TEXT, POSITIONS))
    with pytest.raises(cf.CrossfluenceError, match="by_token"):
        cf.influence(plain, ask, cf.Identity(), unit="token")
    with pytest.raises(ValueError, match="'sample' or 'token'"):
        cf.influence(risk(), ask, cf.Identity(), unit="word")


def test_two_tokens_of_one_position_are_refused():
    same = cf.OnOutputs.by_token(BY_TOKEN.outputs, each, lambda batch: (positions(batch) >= 0).long() - 1)
    with pytest.raises(cf.CrossfluenceError, match="twice in sample 0"):
        cf.influence(cf.Risk(MODEL, same, cf.batches(TEXT, POSITIONS)), ask, cf.Identity(), unit="token")


def test_losses_of_tokens_of_another_shape_are_refused():
    wrong = cf.OnOutputs.by_token(BY_TOKEN.outputs, lambda z, batch: each(z, batch)[:, 1:], positions)
    with pytest.raises(cf.CrossfluenceError, match=r"\(12, 4\), their positions \(12, 5\)"):
        cf.Risk(MODEL, wrong, cf.batches(TEXT, POSITIONS))
