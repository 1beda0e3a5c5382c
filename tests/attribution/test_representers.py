"""Representers: parts sum to outputs where the theorem says so, and are those written out by hand."""

import pytest
import torch
from torch import nn

import crossfluence as cf
from crossfluence.errors import ObjectiveError, ParameterError, StaleError, UnsupportedError

GEN = torch.Generator().manual_seed(0)
X = torch.randn(40, 5, dtype=torch.float64, generator=GEN)
Y = torch.randint(3, (40,), generator=GEN)
Q = torch.randn(7, 5, dtype=torch.float64, generator=GEN), torch.zeros(7, dtype=torch.long)
L2 = 0.05


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def recipe(init, epochs=400, **changed):
    options = {"optimizer": cf.SGD(0.5, 0.9), "l2": L2} | changed
    return cf.Recipe(init, loss, (X, Y), epochs=epochs, **options)


def linear(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(5, 3).double()


def trained(init, **changed):
    made = recipe(init, **changed)
    return made, made.risk(made.train())


@pytest.mark.parametrize("make", [linear, network])
def test_parts_of_a_regularised_last_layer_sum_to_the_output(make):
    _, risk = trained(make(), epochs=6000)
    found = cf.representers(risk, cf.batches(*Q, size=3), cf.LastLayer())
    assert found.efficiency_gap.abs().max() < 1e-6
    torch.testing.assert_close(found.values, risk.model(Q[0]).max(1).values)
    assert found.baseline.abs().max() == 0


def test_parts_are_importance_times_products_of_features():
    _, risk = trained(network())
    features = nn.Sequential(*list(risk.model)[:2])
    kernel = features(X) @ features(Q[0]).T + 1  # the bias
    found = cf.representers(risk, cf.batches(*Q), cf.LastLayer("2"))
    slopes = risk.model(X).softmax(1) - nn.functional.one_hot(Y, 3)
    torch.testing.assert_close(found.importance, -slopes / 40)
    torch.testing.assert_close(found.parts, found.importance[:, list(found.targets)] * kernel / L2)


def test_a_bias_without_l2_is_the_baseline():
    _, risk = trained(linear(), epochs=6000, l2={"*weight": L2})
    found = cf.representers(risk, cf.batches(*Q), cf.LastLayer())
    assert found.efficiency_gap.abs().max() < 1e-6
    torch.testing.assert_close(found.baseline, risk.model.bias.detach()[list(found.targets)])


def test_the_influence_kernel_gives_the_scores_of_influence():
    _, risk = trained(network())
    found = cf.representers(risk, cf.batches(*Q, size=2), cf.InfluenceKernel(cf.Exact(damping=1e-3)), targets=1)
    wanted = cf.influence(risk, lambda model: model(Q[0])[:, 1], cf.Exact(damping=1e-3))
    torch.testing.assert_close(found.scores().values, wanted.values)
    assert found.verdict.level == wanted.verdict.level
    by_hand = cf.representers(risk, cf.batches(*Q), cf.NTK(), targets=1)
    assert not torch.allclose(by_hand.parts, wanted.values)


def test_the_tangent_kernel_is_that_of_gradients_written_out():
    _, risk = trained(network())
    found = cf.representers(risk, cf.batches(*Q), cf.NTK(), targets=[0, 1, 2, 0, 1, 2, 0])

    def flat(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(risk.model.parameters()))])

    for row in (0, 13):
        for place in (0, 4):
            of_loss = flat(loss(risk.model, (X[row : row + 1], Y[row : row + 1])).sum())
            of_query = flat(risk.model(Q[0][place])[found.targets[place]])
            torch.testing.assert_close(found.parts[row, place], -(of_loss @ of_query) / (40 * L2))


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": cf.SGD(0.3)},
        {"optimizer": cf.SGD(0.3, 0.9), "batch_size": 7},
        {"optimizer": cf.SGD(0.3, 0.9), "batch_size": 7, "l2": 0.0, "schedule": cf.linear},
    ],
    ids=["plain", "momentum and batches", "schedule without l2"],
)
def test_parts_along_a_path_and_the_start_sum_to_a_linear_models_output_converged_or_not(changed):
    made, risk = trained(linear(), epochs=5, **changed)
    found = cf.representers(risk, cf.batches(*Q), cf.NTK(), "path", recipe=made)
    assert found.efficiency_gap.abs().max() < 1e-9
    assert found.baseline.abs().max() > 1e-3
    torch.testing.assert_close(found.parts, cf.representers(
        risk, cf.batches(*Q, size=2), cf.LastLayer(), "path", recipe=made
    ).parts)  # fmt: skip


def test_the_gap_of_a_network_that_has_not_converged_is_shown():
    _, risk = trained(network(), epochs=3)
    found = cf.representers(risk, cf.batches(*Q), cf.LastLayer())
    assert found.efficiency_gap.abs().max() > 1e-3
    assert found.verdict.level == "order"


def test_what_cannot_be_explained_is_refused_with_a_sentence():
    made, risk = trained(network(), epochs=3)
    batches = cf.batches(*Q)
    with pytest.raises(UnsupportedError, match=r"follows the training\. Type recipe=recipe"):
        cf.representers(risk, batches, cf.NTK(), "path")
    with pytest.raises(ValueError, match="importance='size'; needed 'derivative' or 'path'"):
        cf.representers(risk, batches, cf.NTK(), "size")
    with pytest.raises(UnsupportedError, match="needs a kernel: LastLayer"):
        cf.representers(risk, batches, cf.Exact())
    with pytest.raises(ParameterError, match=r"LastLayer\('head'\) has no parameter among"):
        cf.representers(risk, batches, cf.LastLayer("head"))
    with pytest.raises(ObjectiveError, match="targets=3; needed one of the outputs 0 to 2 for each of 7"):
        cf.representers(risk, batches, targets=3)
    _, bare = trained(network(), epochs=3, l2=0.0)
    with pytest.raises(UnsupportedError, match="divides by the l2 coefficient"):
        cf.representers(bare, batches, cf.NTK())
    with pytest.raises(StaleError, match="not where the recipe ends"):
        cf.representers(risk, batches, cf.NTK(), "path", recipe=recipe(network(), epochs=4))
    with pytest.raises(UnsupportedError, match=r"needs optimizer=SGD\(...\)"):
        cf.representers(risk, batches, cf.NTK(), "path", recipe=recipe(network(), epochs=3, optimizer=cf.Adam(0.1)))
    with pytest.raises(UnsupportedError, match="goes with NTK"):
        cf.representers(risk, batches, cf.InfluenceKernel(), "path", recipe=made)
