"""Explanations of a clustering and the clustering itself, at toy size."""

from dataclasses import replace

import pytest
import torch
from grid import normal

from crossfluence.clustering.dec import DEC, anchored_target, encoder, moving_target, rescaled, start_centres, target
from crossfluence.clustering.explain import KEPT, ClusterSettings, between_clusters, checked_ids, explain, settled

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # two steps of training

NOISE = normal(60, 3, seed=0)
QUICK = ClusterSettings(k=3, pretraining=50, steps=150, check=12, draws=2)


def test_the_anchor_is_raised_until_the_smallest_eigenvalue_keeps_its_share():
    found = settled(NOISE, range(60), replace(QUICK, anchor=0.01))
    assert found.settings.anchor > 0.01
    assert found.inverse.smallest_eigenvalue >= KEPT * found.settings.anchor


def test_an_explanation_predicts_what_retraining_finds_and_names_the_users_ids():
    ids = [f"row {number}" for number in range(60)]
    found = explain(NOISE, ids, QUICK, query=7)
    assert found.agreement.pearson > 0.95
    assert len(found.agreement.ids) == 12
    assert [removal.name for removal in found.removals] == ["top 3", "random 3, draw 1", "random 3, draw 2"]
    top = found.removals[0]
    assert ids[7] not in top.ids
    assert set(top.ids) <= set(ids)
    assert abs(top.newton - top.achieved) < 0.3 * abs(top.achieved)
    assert found.margin >= 0


def test_what_is_checked_holds_the_strongest_and_the_weakest():
    found = explain(NOISE, range(60), QUICK)
    sizes = dict(zip(found.scores.ids, found.scores.values[:, 0].abs().tolist(), strict=True))
    by_size = sorted(sizes, key=sizes.get, reverse=True)
    chosen = checked_ids(found.scores, 12)
    assert chosen[:4] == by_size[:4]
    assert by_size[-1] in chosen
    assert len(set(chosen)) == 12


def test_a_question_without_an_ambiguous_sample_takes_the_nearest():
    assert between_clusters(torch.tensor([[0.99, 0.01], [0.9, 0.1]])) == 1


def test_rescaling_centres_the_embedding_and_sets_its_size():
    network = encoder([3, 5, 4], seed=1)
    z = rescaled(network, NOISE)(NOISE)
    assert torch.allclose(z.mean(0), torch.zeros(4).double(), atol=1e-12)
    assert torch.isclose(z.square().sum(1).mean(), torch.tensor(4.0).double())


def test_targets_are_distributions_and_weight_zero_is_absence():
    q = torch.softmax(normal(6, 3, seed=2), dim=1)
    weights = torch.tensor([1.0, 1, 0, 1, 1, 1], dtype=torch.float64)
    kept = weights > 0
    assert torch.allclose(target(q, weights).sum(1), torch.ones(6).double())
    assert torch.allclose(target(q, weights)[kept], target(q[kept], weights[kept]))


def test_the_anchor_adds_half_the_squared_distance_for_every_sample():
    network = encoder([3, 4, 2], seed=0)
    start = DEC(network, start_centres(network, NOISE, 3))
    moved = DEC(network, start.centres + 1)
    ones = torch.ones(60, dtype=torch.float64)
    added = anchored_target(start, 0.5)(moved, NOISE, ones) - moving_target(moved, NOISE, ones)
    assert torch.isclose(added, torch.tensor(60 * 0.5 / 2 * 6).double())
