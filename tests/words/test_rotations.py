"""What training of skip-gram leaves undetermined: rotations, also of an embedding with more axes than it uses."""

from functools import cache

import pytest
import torch
from grid import normal
from walks import PRECISE, WORDS, D, flat, likenesses, pairs, products, risk, split, tables, trained, training, turned

import crossfluence as cf
from crossfluence.words.skipgram import ExpectedTraining
from crossfluence.words.skipgram.loss import ExpectedLoss
from crossfluence.words.skipgram.rotations import Rotations

close = torch.testing.assert_close


def slow(words, contexts, along):
    """The projection from all rotations written out, those without length left out."""
    both, d = torch.cat([words, contexts]), words.shape[1]
    turns = []
    for row in range(d):
        for column in range(row):
            turn = torch.zeros(d, d, dtype=torch.float64)
            turn[row, column], turn[column, row] = 1, -1
            turns.append((both @ turn).flatten())
    basis, sizes, _ = torch.linalg.svd(torch.stack(turns).T, full_matrices=False)
    basis = basis[:, sizes > 1e-12 * sizes[0]]
    return along - basis @ (basis.T @ along)


@pytest.mark.parametrize(("size", "d", "rank"), [(9, 4, 4), (9, 4, 2), (3, 10, 6), (3, 10, 2), (5, 10, 7)])
def test_rotations_are_taken_out_by_the_projection_that_is_written_out(size, d, rank):
    given = (normal(2 * size, rank, seed=1) @ normal(rank, d, seed=2)).view(2, size, d)
    along = normal(3 * 2 * size, d, seed=3).view(3, 2, size, d)
    for left, direction in zip(Rotations.of(given).project_out(along), along, strict=True):
        close(left.flatten(), slow(*given, direction.flatten()), rtol=0, atol=1e-12)


def test_a_pure_rotation_leaves_nothing_and_the_gradient_is_left_as_it_is():
    given, turn = torch.stack(tables(11)), normal(D, D, seed=12)
    rotations = Rotations.of(given)
    turning = rotations.project_out((given @ (turn - turn.T))[None])
    close(turning, torch.zeros_like(turning))
    gradient = torch.stack(ExpectedLoss.of(pairs(), 0.02, torch.float64).value_and_gradient(*given)[1:])[None]
    close(rotations.project_out(gradient), gradient, rtol=1e-9, atol=1e-13)


def test_one_newton_step_does_not_rotate():
    stepped = cf.unlearn(risk(), risk().labels[:12], PRECISE).model
    before, after = (torch.stack(split(flat(model.parameters()))) for model in (trained(), stepped))
    moved = (after - before)[None]
    close(Rotations.of(before).project_out(moved), moved)


def test_a_rotated_model_has_the_same_scores_and_trains_to_the_same_products():
    other = turned(trained(), seed=34)
    scores = cf.influence(training().risk(other), likenesses, PRECISE).values
    close(scores, cf.influence(risk(), likenesses, PRECISE).values, rtol=1e-6, atol=1e-10)
    close(products(training().starting_from(other).train()), products(trained()), rtol=0, atol=1e-7)


# Questions that a rotation changes


def aligned(model):
    """The model, turned to the trained one as near as a rotation can."""
    one, other = (torch.cat(list(part.parameters())).detach() for part in (model, trained()))
    left, _, right = torch.linalg.svd(one.T @ other)
    return one @ left @ right


@pytest.mark.parametrize("solver", [cf.Auto(), cf.Exact(), PRECISE], ids=["Auto", "Exact", "CG"])
def test_a_question_that_a_rotation_changes_is_answered_for_the_model_turned_back(solver):
    start = normal(D, seed=37)

    def moved(model):
        return (model.word_vectors[0] - start).square().sum()

    def moved_when_turned_back(model):
        return (aligned(model)[0] - start).square().sum()

    found = cf.influence(risk(), moved, solver)
    assert any("undetermined (rotations" in note for note in found.report.notes)
    ids = pairs().corpus.ids
    again = training().starting_from(trained())
    truth = cf.leave_out(again, moved_when_turned_back, ids[::12], n=len(ids), ids=ids)
    agreement = cf.compare(found, truth)
    assert agreement.pearson > 0.98
    assert 0.9 < agreement.slope < 1.1


def test_a_question_that_no_rotation_changes_gets_no_note():
    assert not any("rotations" in note for note in cf.influence(risk(), likenesses).report.notes)


# Embeddings that use fewer axes than they have: strong l2 is a nuclear norm of the scores


@cache
def wide(dimensions, dtype=torch.float64):
    own = ExpectedTraining(pairs(), dimensions, prior=20.0, dtype=dtype)
    return own, own.risk(own.train())


def lengths(model):
    sizes = torch.linalg.svdvals(torch.cat(list(model.parameters())).detach())
    return sizes / sizes[0]


@pytest.mark.parametrize(("dimensions", "dtype"), [(20, torch.float64), (14, torch.float32), (20, torch.float32)])
def test_taking_rotations_out_twice_is_taking_them_out_once(dimensions, dtype):
    own = wide(dimensions, dtype)[1]
    along = normal(1, 2 * len(WORDS) * dimensions, seed=36).to(dtype)
    once = own.project(along)
    assert 0.5 < float(once.norm() / along.norm()) <= 1 + 1e-5
    close(own.project(once), once, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(
    ("dtype", "solver", "share"), [(torch.float64, PRECISE, 1e-3), (torch.float32, cf.Auto(), 0.1)]
)
def test_longer_vectors_than_training_uses_do_not_change_the_scores(dtype, solver, share):
    rank = int((lengths(wide(20)[1].model) > 1e-4).sum())
    assert 2 < rank < 14
    narrow, long = wide(rank)[1], wide(20, dtype)[1]
    close(products(long.model).double(), products(narrow.model), rtol=0, atol=1e-2)
    wanted = cf.influence(narrow, likenesses, PRECISE).values
    found = cf.influence(long, likenesses, solver).values.double()
    assert float((found - wanted).norm() / wanted.norm()) < share
