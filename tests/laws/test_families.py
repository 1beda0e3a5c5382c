"""Ordinary models are answered rightly or refused in a sentence: scores beside differences of plain gradients."""

import warnings

import pytest
import torch
from families import FAMILIES, Family, right_scores

import crossfluence as cf

DAMPING = 1.5  # enough for every curvature of the table to be positive
CASES = [pytest.param(case, id=case.name) for case in FAMILIES]
ONCE = {"once differentiable", "keeps its derivative", "embedding bag", "prototypes", "transcription"}

pytestmark = [
    pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning"),  # nothing here was trained to its end
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),  # PyTorch's own word on a left-over hook
    pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*is deprecated"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]


def coarse(case: Family) -> bool:
    return case.name == "float32 inside"


@pytest.mark.parametrize("solver", [cf.Exact(DAMPING), cf.CG(DAMPING), cf.GMRES(DAMPING)], ids=["Exact", "CG", "GMRES"])
@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_plain_gradients(case, solver):
    right = right_scores(case, 0.1, DAMPING, 1e-3 if coarse(case) else 1e-5)
    found = cf.influence(case.risk(), case.ask, solver).values[:, 0]
    assert float((found - right).abs().max() / right.abs().max()) < (1e-3 if coarse(case) else 2e-4)


@pytest.mark.parametrize("case", CASES)
def test_gradient_similarity_needs_one_derivative(case):
    found = cf.influence(case.risk(), case.ask, cf.Identity()).values[:, 0]
    assert found.isfinite().all()
    assert found.any()


@pytest.mark.parametrize("case", CASES)
def test_replay_is_the_difference_of_trainings_or_is_refused(case):
    recipe = case.recipe(epochs=2)
    if case.name in ONCE:
        with pytest.raises(cf.CrossfluenceError, match="second derivatives"):
            cf.replay(recipe, case.ask)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cf.replay(recipe, case.ask).values[:2, 0]
    eps, wanted = 1e-2 if coarse(case) else 1e-4, []
    for sample in range(2):
        weights = torch.ones(2, recipe.n, dtype=torch.float64)
        weights[:, sample] += torch.tensor([eps, -eps], dtype=torch.float64)
        ahead, behind = (float(case.ask(model).detach()) for model in recipe.retrain(weights))
        wanted.append((ahead - behind) / (2 * eps))
    assert torch.allclose(
        found, torch.tensor(wanted, dtype=found.dtype), rtol=1e-2 if coarse(case) else 1e-5, atol=1e-9
    )
