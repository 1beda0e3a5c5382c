"""The user's model, its mode, its gradients and the global state are bitwise unchanged after every verb."""

from collections.abc import Iterator

import grid
import numpy as np
import pytest
import torch

import crossfluence as cf

PROBLEMS = [pytest.param(problem, id=problem.name) for problem in grid.PROBLEMS]


def everything(model) -> Iterator[object]:
    """All that a verb could disturb, as comparable values."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        yield name, tensor.data_ptr(), tensor.detach().clone().numpy().tobytes(), tensor.requires_grad
        yield None if tensor.grad is None else tensor.grad.numpy().tobytes()
    yield [(name, module.training, list(module._forward_hooks)) for name, module in model.named_modules()]
    yield torch.random.get_rng_state().numpy().tobytes()
    yield repr(np.random.get_state())  # noqa: NPY002  # the global state is what is watched
    yield torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()
    yield torch.backends.mha.get_fastpath_enabled(), torch.are_deterministic_algorithms_enabled()
    yield torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    yield torch.backends.cuda.math_sdp_enabled(), torch.get_num_threads()


VERBS = {
    "Risk": lambda risk, problem: None,
    "influence, Auto": lambda risk, problem: cf.influence(risk, problem.ask, cf.Auto(problem.damping)),
    "influence, GMRES": lambda risk, problem: cf.influence(risk, problem.ask, cf.GMRES(problem.damping + 1)),
    "influence, Identity": lambda risk, problem: cf.influence(risk, problem.ask, cf.Identity()),
    "self_influence": lambda risk, problem: problem.symmetric and cf.self_influence(risk, cf.Exact(problem.damping)),
    "without": lambda risk, problem: risk.without([0, 1]).gradient,
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))
@pytest.mark.parametrize("problem", PROBLEMS)
def test_nothing_is_left_changed(problem, verb):
    for parameter in problem.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = list(everything(problem.model))
    verb(problem.risk(), problem)
    after = list(everything(problem.model))
    for parameter in problem.model.parameters():
        parameter.grad = None
    assert after == before


def test_nothing_is_left_changed_after_an_error():
    problem = grid.AUTOENCODER
    risk = problem.risk()
    before = list(everything(problem.model))
    with pytest.raises(cf.CrossfluenceError):
        cf.influence(risk, lambda model: torch.zeros(()))
    assert list(everything(problem.model)) == before


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad], ids=["no_grad", "enable_grad"])
def test_the_surrounding_grad_mode_does_not_matter(outside):
    problem = grid.DEC_MOVING
    wanted = cf.influence(problem.risk(), problem.ask, cf.Exact(problem.damping))
    with outside():
        found = cf.influence(problem.risk(), problem.ask, cf.Exact(problem.damping))
    assert torch.equal(found.values, wanted.values)
    assert not found.values.requires_grad


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights
def test_frozen_parameters_stay_frozen_and_are_not_counted():
    model = grid.AUTOENCODER.build()
    model.decoder.requires_grad_(False)
    risk = cf.Risk(model, grid.AUTOENCODER.loss, cf.batches(grid.MANIFOLD), l2=0.1)
    assert list(risk.theta) == ["encoder.weight", "encoder.bias"]
    scores = cf.influence(risk, grid.AUTOENCODER.objective, cf.Exact(1.0))
    assert not scores.values.requires_grad
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]
