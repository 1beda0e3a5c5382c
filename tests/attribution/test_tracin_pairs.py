"""Gradient similarity along a training, for many test samples in one pass for each point."""

import pytest
import torch
from grid import integers, normal, seeded
from torch import nn
from torch.nn import functional as F

import crossfluence as cf

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")


@pytest.mark.parametrize("preconditioned", [False, True])
def test_all_pairs_score_as_one_question_after_another(preconditioned):
    x, y = normal(20, 3, 4, seed=1), integers(3, 20, 3, seed=2)
    loss = lambda m, b: F.cross_entropy(m(b[0]).mT, b[1], reduction="none").sum(1)  # noqa: E731
    start = seeded(nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)))
    recipe = cf.Recipe(start, loss, (x, y), optimizer=cf.AdamW(1e-2, eps_root=1e-6), epochs=2, batch_size=5)
    settings = {"checkpoints": 2, "preconditioned": preconditioned, "groups": 0}
    pairs = cf.tracin(recipe, cf.each_of(cf.batches(x[:7], y[:7], size=3), loss), **settings)
    plain = cf.tracin(recipe, lambda m: loss(m, (x[:7], y[:7])), **settings)
    torch.testing.assert_close(pairs.values, plain.values)
    assert pairs.objectives == plain.objectives
