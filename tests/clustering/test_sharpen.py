"""The fast training of the last stage beside its recipe and beside automatic differentiation."""

import importlib

import pytest
import torch
from grid import normal

from crossfluence.clustering.dec import DEC, encoder, moving_target
from crossfluence.clustering.settle import ClusterSettings, sharpening
from crossfluence.clustering.sharpen import Field, Sharpening, closed_form

sharpen = importlib.import_module("crossfluence.clustering.sharpen")
X = normal(40, 3, seed=1)
WEIGHTS = torch.rand(3, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64).round(decimals=1)


def start(seed=0):
    return DEC(encoder([3, 5, 2], seed=seed), normal(4, 2, seed=3))


@pytest.mark.parametrize("together", [2_048, 40, 17])
def test_the_closed_form_is_the_gradient_by_automatic_differentiation(together, monkeypatch):
    monkeypatch.setattr(sharpen, "ROWS", together)
    model = start()
    field = Field(X, dict(model.named_parameters()))
    for weights in WEIGHTS:
        loss = moving_target(model, X, weights) / len(X)
        theta = dict(model.named_parameters())
        slow = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
        fast = {name: torch.empty_like(tensor) for name, tensor in theta.items()}
        with torch.no_grad():
            field(theta, weights, fast)
        for name, gradient in slow.items():
            torch.testing.assert_close(fast[name], gradient, rtol=1e-11, atol=1e-13)


def test_the_closed_form_trains_the_models_of_the_recipe():
    settings = ClusterSettings(k=4, steps=50)
    recipe = sharpening(start(), X, settings)
    fast = closed_form(recipe, X, settings.anchor)
    assert isinstance(fast, Sharpening)
    for quick, slow in zip(fast.retrain(WEIGHTS), recipe.retrain(WEIGHTS), strict=True):
        for name, tensor in slow.named_parameters():
            torch.testing.assert_close(dict(quick.named_parameters())[name], tensor, rtol=1e-8, atol=1e-10)


def test_another_encoder_is_trained_by_the_recipe():
    deep = DEC(encoder([3, 5, 4, 2], seed=0), normal(4, 2, seed=3))
    recipe = sharpening(deep, X, ClusterSettings(k=4, steps=2))
    assert closed_form(recipe, X, 0.03) is recipe
