"""A risk of one's own, written with the names of `crossfluence.extend` alone: the mean of some points."""

import pytest
import torch
from torch import nn

import crossfluence as cf
from crossfluence import errors
from crossfluence.extend import (
    AbstractRisk,
    Layout,
    fingerprint,
    numbered,
    preferred,
    signed,
    trained_parameters,
    training_modes,
)

X = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Point(nn.Module):
    """A position in space."""

    def __init__(self, at):
        super().__init__()
        self.at = nn.Parameter(at)


class MeanRisk(AbstractRisk):
    """Half the squared distance of a position from some points; J is the mean weight."""

    l2 = 0.0

    def __init__(self, points):
        self.points, self.model = points, Point(points.mean(0))
        self.theta = trained_parameters(self.model)
        self.layout = Layout.of(self.theta)
        self.weights = torch.ones(len(points), dtype=points.dtype)
        self.rows = numbered(range(len(points)))
        self.fingerprint, self.modes = fingerprint(self.model), training_modes(self.model)

    @property
    def symmetric(self):
        return True

    @property
    def signature(self):
        return signed(model=self.fingerprint)

    def field(self, theta):
        return (self.weights[:, None] * (theta["at"] - self.points)).sum(0) / self.n

    def jacobian_product(self, vectors):
        return vectors * self.weights.mean()

    def derivatives_along(self, directions):
        return (self.theta["at"] - self.points) @ directions.T / self.n

    def derivatives_along_of(self, candidates, directions):
        return torch.cat([(self.theta["at"] - batch) @ directions.T for batch in candidates]) / self.n

    def sample_gradients(self):
        yield (self.theta["at"] - self.points) / self.n


def first(model):
    return model.at[0]


SOLVERS = [cf.Exact(), cf.CG(), cf.GMRES(), cf.LiSSA(rtol=1e-10), cf.LowRank(3), cf.Auto()]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_every_verb_works_on_a_risk_of_ones_own(solver):
    risk = MeanRisk(X)
    wanted = (X - X.mean(0)) / len(X)
    close = {"rtol": 1e-8, "atol": 1e-12}
    torch.testing.assert_close(cf.influence(risk, first, solver).values[:, 0], wanted[:, 0], **close)
    added = cf.influence(risk, first, solver, candidates=[X[:2]]).values[:, 0]
    torch.testing.assert_close(added, wanted[:2, 0], **close)
    own = cf.self_influence(risk, solver).values[:, 0]
    torch.testing.assert_close(own, -len(X) * wanted.square().sum(1), **close)


def test_what_auto_takes_for_a_risk_is_registered():
    class Own(MeanRisk):
        """With a solver of its own."""

    preferred.register(Own, lambda risk, damping: (cf.GMRES(damping), "it was said so"))
    report = cf.influence(Own(X), first).report
    assert report.solver.startswith("GMRES")
    assert "Auto chose GMRES: it was said so." in report.notes
    assert cf.influence(MeanRisk(X), first).report.solver.startswith("Exact")


@pytest.mark.parametrize("curvature", [cf.GaussNewton(), cf.Fisher(), cf.EmpiricalFisher()], ids=str)
def test_products_that_a_risk_does_not_have_are_refused(curvature):
    with pytest.raises(errors.UnsupportedError, match=r"MeanRisk has no product with .*Hessian\(\)"):
        cf.influence(MeanRisk(X), first, cf.CG(curvature=curvature))


def test_names_of_one_release_ago_warn_with_the_new_one():
    risk = MeanRisk(X)
    with pytest.warns(DeprecationWarning, match="field_at is field now"):
        assert torch.equal(risk.field_at(risk.theta), risk.field(risk.theta))
    with pytest.warns(DeprecationWarning, match="sensitivity is derivatives_along now"):
        risk.sensitivity(X[:1])
    with pytest.raises(AttributeError, match="'MeanRisk' object has no attribute 'nothing'"):
        _ = risk.nothing
