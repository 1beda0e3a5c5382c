"""Layers of tiny models of `transformers`: which are recognised, that gradients are right, and what a fit costs."""

import architectures
import pytest
import torch

import crossfluence as cf
from crossfluence._autodiff.functional import isolated
from crossfluence._kronecker.factors import layers_of_risk

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
EVERY = [pytest.param(each, id=each.name) for each in architectures.QUICK]
EVERY += [pytest.param(each, id=each.name, marks=pytest.mark.slow) for each in architectures.OTHERS]
MOST = {"XLNet": 0.7, "DebertaV2": 0.3}  # share of parameters that no layer explains; of others, at most this
FEW = 0.05


@pytest.mark.parametrize("architecture", EVERY)
def test_layers_are_recognised_or_the_report_says_what_they_cost(architecture):
    model, generator = architecture.model(), torch.Generator().manual_seed(0)
    whole = architecture.data(24, generator)
    data = [{name: part[start : start + 12] for name, part in whole.items()} for start in (0, 12)]
    risk = cf.Risk(model, architectures.losses, data)
    with isolated():
        layers = layers_of_risk(risk)
        found = layers.gradients(architectures.losses, data[1])
        wanted = architectures.by_sample(model, data[1])
    for slot, part in found.items():
        each = slot.gather(wanted)
        assert (part.dense().movedim(0, 1) - each).norm() <= 1e-3 * each.norm() + 1e-5
    assert sum(part.numel() for part in layers.outside.values()) <= MOST.get(architecture.name, FEW) * risk.p
    if layers.outside:
        assert "lie outside of layers" in cf.EKFAC().invert(risk).notes[-1]


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("architecture", EVERY)
def test_a_fit_takes_eight_epochs_or_says_why(architecture, size):
    model = architecture.model()
    whole = architecture.data(128, torch.Generator().manual_seed(0))
    data = [{name: part[start : start + size] for name, part in whole.items()} for start in range(0, 128, size)]
    epoch = min(architectures.seconds(lambda: architectures.epoch(model, data)) for _ in range(3))
    risk = cf.Risk(model, architectures.losses, data)
    inverses = []
    took = architectures.seconds(lambda: inverses.append(cf.EKFAC().invert(risk)))
    said = "layer_gradients registers" in inverses[0].notes[-1]
    assert took <= 8 * epoch or said
