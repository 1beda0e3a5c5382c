"""Losses that are not their samples' own: by neighbours, places, ranks, hidden parameters, or changes to the batch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import crossfluence as cf
from crossfluence import errors

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(16, 3, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(16, generator=GENERATOR, dtype=torch.float64)


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 1).double()


def squares(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


def risk(loss, data=None, model=None):
    return cf.Risk(model or linear(), loss, data or cf.batches(X, Y, size=8), l2=0.1)


def of_rows(change):
    return lambda model, batch: change(squares(model, batch))


COUPLED = {
    "the sample before": of_rows(lambda z: z + torch.cat([z[:1], z[:-1]])),
    "the sample after": of_rows(lambda z: z + torch.cat([z[1:], z[-1:]])),
    "place": of_rows(lambda z: z * (1 + torch.arange(len(z)))),
    "sorted": of_rows(lambda z: z.sort()[0]),
    "backwards": of_rows(lambda z: z.flip(0)),
    "hard examples": of_rows(lambda z: z * (z >= z.median())),
    "easy examples": of_rows(lambda z: z * (z <= z.median())),
    "the two worst": of_rows(lambda z: z * (z >= z.topk(2)[0][-1])),
    "divided by the batch": of_rows(lambda z: z / len(z)),
    "noise with a seed": lambda model, batch: (
        model(batch[0])[:, 0] - batch[1] + torch.randn(len(batch[1]), generator=torch.Generator().manual_seed(1))
    ).square(),
}


@pytest.mark.parametrize("name", COUPLED)
def test_a_loss_that_depends_on_the_rest_of_its_batch_is_refused(name):
    with pytest.raises(errors.CoupledLossError, match="depends on the samples beside it"):
        risk(COUPLED[name])


def test_batches_that_must_be_sorted_are_still_taken_apart():
    lengths = torch.tensor([4, 4, 3, 2, 2, 1])
    torch.manual_seed(0)
    model = nn.LSTM(2, 2, batch_first=True).double()
    x = torch.randn(6, 4, 2, dtype=torch.float64)

    def packed(model, batch):
        rows = nn.utils.rnn.pack_padded_sequence(batch[0], batch[1], batch_first=True)  # refuses another order
        return model(rows)[1][0][0].square().sum(1)

    assert risk(packed, cf.batches(x, lengths), model).n == 6
    with pytest.raises(errors.CoupledLossError):
        risk(lambda m, b: packed(m, b) / len(b[1]), cf.batches(x, lengths), model)


def test_random_draws_that_seldom_matter_are_found():
    torch.manual_seed(0)

    def seldom(model):
        return model(X)[:, 0].sum() * (1 + 0.3 * (torch.rand(()) < 0.4))

    for seed in range(4):
        torch.manual_seed(seed)
        with pytest.raises(errors.NondeterministicError, match="random"):
            cf.influence(risk(squares), seldom, cf.Exact())
        torch.manual_seed(seed)
        with pytest.raises(errors.NondeterministicError, match="random"):
            risk(lambda m, b: squares(m, b) * (1 + 0.3 * (torch.rand(()) < 0.4)))


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")
def test_draws_that_are_the_same_each_time_are_none():
    def seeded(model):
        torch.manual_seed(3)
        return (model(X)[:, 0] * torch.rand(16, dtype=torch.float64)).sum()

    assert cf.influence(risk(squares), seeded, cf.Exact()).values.isfinite().all()


@pytest.mark.parametrize("loss", [
    lambda model, batch: (model(batch["x"].sub_(0.1))[:, 0] - batch["y"]).square(),
    lambda model, batch: (model(batch.pop("x"))[:, 0] - batch["y"]).square(),
], ids=["in place", "pop"])  # fmt: skip
def test_a_loss_that_changes_its_batch_is_refused(loss):
    with pytest.raises(errors.DataError, match=r"changes its batch.*clone"):
        risk(loss, [{"x": X.clone(), "y": Y}])


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts, self.head = [nn.Linear(3, 3).double(), nn.Tanh()], nn.Linear(3, 1).double()

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return self.head(x)


def test_layers_in_a_plain_list_are_refused_by_name():
    with pytest.raises(errors.ParameterError, match=r"Hidden\.parts is a plain list: make it an nn\.ModuleList"):
        risk(squares, model=Hidden())


def test_a_parameter_beside_the_model_is_refused_unless_it_is_frozen():
    scale = nn.Parameter(torch.tensor(1.3).double())

    def scaled(model, batch):
        return (model(batch[0])[:, 0] * scale - batch[1]).square()

    with pytest.raises(errors.ParameterError, match=r"not list.*ModuleDict.*requires_grad_"):
        risk(scaled)
    scale.requires_grad_(False)
    assert risk(scaled).n == 16


def test_a_tensor_beside_the_model_that_asks_for_gradients_is_noted():
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    noted = risk(lambda m, b: (m(b[0])[:, 0] * scale - b[1]).square())
    assert "no parameter of the model" in noted.notes[0]
    assert "sizes may be off" in noted.notes[0]

    def physical(model, batch):  # a tensor that the loss makes, to differentiate by it
        x = batch[0].detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return slope.square().sum(1)

    assert not risk(physical).notes


def test_parameters_without_values_are_refused():
    with pytest.raises(errors.ParameterError, match=r"lazy.*model\(x\)"):
        risk(squares, model=nn.LazyLinear(1))
    with pytest.raises(errors.ParameterError, match="meta device"):
        risk(squares, model=nn.Linear(3, 1, device="meta"))


def test_arrays_are_to_be_made_tensors():
    with pytest.raises(errors.DataError, match="from_numpy"):
        cf.batches(X.numpy(), Y.numpy())
    with pytest.raises(errors.DataError, match="from_numpy"):
        risk(lambda m, b: squares(m, (torch.from_numpy(b["x"]), torch.from_numpy(b["y"]))), [
            {"x": X.numpy(), "y": Y.numpy()}
        ])  # fmt: skip


@pytest.mark.parametrize("loss", [
    lambda model, batch: squares(model, batch) > 1,
    lambda model, batch: (squares(model, batch) > 1).long(),
    lambda model, batch: squares(model, batch) + 0j,
], ids=["bool", "int", "complex"])  # fmt: skip
def test_losses_are_real_numbers(loss):
    with pytest.raises(errors.LossShapeError, match="needed real ones"):
        risk(loss)


def test_questions_are_real_numbers():
    with pytest.raises(errors.ObjectiveError, match=r"complex.*\.real"):
        cf.influence(risk(squares), lambda model: model(X)[0, 0] * (1 + 2j), cf.Exact())


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")
@pytest.mark.parametrize("solver", [cf.Exact(), cf.CG(), cf.Identity()], ids=repr)
def test_an_empty_batch_is_none(solver):
    def ask(model):
        return model(X[:1])[0, 0]

    whole = cf.influence(risk(squares, [(X[:5], Y[:5]), (X[5:], Y[5:])]), ask, solver)
    for parts in ([0, 5, 5, 16], [0, 0, 5, 16], [0, 5, 16, 16]):
        data = [(X[a:b], Y[a:b]) for a, b in pairwise(parts)]
        assert torch.allclose(cf.influence(risk(squares, data), ask, solver).values, whole.values)


def test_ekfac_says_that_a_batch_is_empty():
    with pytest.raises(errors.UnsupportedError, match="no samples"):
        cf.EKFAC(0.1).invert(risk(squares, [(X, Y), (X[:0], Y[:0])]))


def test_columns_are_not_taken_for_batches():
    with pytest.raises(errors.DataError, match=r"batches\(\*tensors\)"):
        risk(squares, (X, Y))
    with pytest.raises(errors.DataError, match=r"batches\(\*tensors\)"):
        cf.influence(risk(squares), lambda model: model(X[:1])[0, 0], cf.Exact(), candidates=(X[:3], Y[:3]))


@pytest.mark.parametrize("make", [
    lambda: cf.CG(rtol=float("nan")), lambda: cf.CG(rtol=-1.0), lambda: cf.GMRES(rtol=5.0), lambda: cf.LiSSA(rtol=2.0),
    lambda: cf.CG(max_steps=0), lambda: cf.GMRES(max_steps=0), lambda: cf.LiSSA(max_steps=0),
    lambda: cf.LowRank(2.5), lambda: cf.Nystrom(0.5),
])  # fmt: skip
def test_solves_that_could_not_be_judged_are_refused(make):
    with pytest.raises(ValueError, match="needed a"):
        make()
