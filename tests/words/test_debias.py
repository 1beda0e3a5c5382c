"""Hard debiasing by wefe: what it takes out, what it leaves, and what is refused. Needs the extra `debias`."""

import sys

import pytest
import torch
from grid import normal

from crossfluence.errors import MissingExtraError, WordError
from crossfluence.words.skipgram import SkipGram, hard_debiased

PAIRS = (("she", "he"), ("woman", "man"), ("gal", "guy"))
WORDS = ("she", "he", "woman", "man", "queen", "nurse", "doctor", "table")


@pytest.fixture
def model():
    table = normal(8, 5, seed=0)
    table[[0, 2]] += torch.tensor([3.0, 0, 0, 0, 0], dtype=torch.float64)  # women on one side, men on the other
    table[[1, 3]] -= torch.tensor([3.0, 0, 0, 0, 0], dtype=torch.float64)
    return SkipGram(WORDS, table, normal(8, 5, seed=1))


def unit(table):
    return table / table.norm(dim=1, keepdim=True)


def direction(model):
    """The first principal axis of the pairs' halves, from vectors of length one."""
    v = unit(model.word_vectors.detach())
    halves = torch.cat([(v[i] - v[j])[None] / 2 * sign for i, j in ((0, 1), (2, 3)) for sign in (1, -1)])
    return torch.linalg.svd(halves, full_matrices=False).Vh[0]


def test_the_direction_is_taken_out_of_neutral_words_only(model):
    pytest.importorskip("wefe")
    found, axis = hard_debiased(model, PAIRS, specific=["queen"]), direction(model)
    before, after = unit(model.word_vectors.detach()), unit(found.word_vectors.detach())
    neutral = unit(before - torch.outer(before @ axis, axis))
    assert torch.allclose(after[5:], neutral[5:], atol=1e-5)
    assert torch.allclose(after[4], before[4], atol=1e-5)
    for one, other in ((0, 1), (2, 3)):  # the pairs stand on both sides of the neutral words, equally far
        assert (after[one] @ axis).item() == pytest.approx(-(after[other] @ axis).item(), abs=1e-5)
        assert torch.allclose(after[5:] @ after[one], after[5:] @ after[other], atol=1e-5)


def test_lengths_contexts_and_the_users_model_stay(model, capfd):
    pytest.importorskip("wefe")
    before = model.word_vectors.detach().clone()
    found = hard_debiased(model, PAIRS)
    assert torch.allclose(found.word_vectors.norm(dim=1), model.word_vectors.norm(dim=1), rtol=1e-5)
    assert torch.equal(found.context_vectors, model.context_vectors)
    assert torch.equal(model.word_vectors, before)
    assert found.word_vectors.dtype == before.dtype
    assert capfd.readouterr() == ("", "")


def test_a_model_without_the_pairs_is_refused(model):
    pytest.importorskip("wefe")
    with pytest.raises(WordError, match="1 of the 2 pairs"):
        hard_debiased(model, [("she", "he"), ("gal", "guy")])


def test_without_the_package_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "wefe", None)
    monkeypatch.setitem(sys.modules, "wefe.word_embedding_model", None)
    with pytest.raises(MissingExtraError, match=r"wefe.*crossfluence\[debias\]"):
        hard_debiased(model, PAIRS)
