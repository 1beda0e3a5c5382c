"""A loss that changes under a risk: refused where it is asked again, however the change came about."""

import importlib.util
from dataclasses import dataclass, field

import grid
import pytest
import torch
from grid import normal
from torch import nn

import crossfluence as cf
from crossfluence.errors import StaleError

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # nothing is trained
X, Y = normal(20, 3, seed=1), normal(20, seed=2)
NET = grid.seeded(nn.Linear(3, 1))


def residuals(model, batch):
    return model(batch[0])[:, 0] - batch[1]


def ask(model):
    return model.weight.square().sum()


def of_a_list(_):
    scales = [1.0, 2.0]
    return (lambda model, batch: scales[0] * residuals(model, batch).square()), lambda: scales.__setitem__(0, 3.0)


def of_a_tensor(_):
    scale = torch.ones((), dtype=X.dtype)
    return (lambda model, batch: scale * residuals(model, batch).square()), lambda: scale.mul_(3)


@dataclass
class Scaled:
    """A loss with a field that can be set."""

    scales: list[float] = field(default_factory=lambda: [1.0])

    def __call__(self, model, batch):
        return self.scales[0] * residuals(model, batch).square()


def of_a_field(_):
    loss = Scaled()
    return loss, lambda: loss.scales.__setitem__(0, 3.0)


def of_a_module(folder):
    (folder / "own_settings.py").write_text("scale = 1.0\n")
    spec = importlib.util.spec_from_file_location("own_settings", folder / "own_settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scope = {"own_settings": module, "residuals": residuals}
    exec("def loss(model, batch): return own_settings.scale * residuals(model, batch).square()", scope)
    return scope["loss"], lambda: setattr(module, "scale", 3.0)


def of_another_network(_):
    teacher = grid.seeded(nn.Linear(3, 1), seed=4).requires_grad_(False)

    def change():
        with torch.no_grad():
            teacher.weight.mul_(3)

    return (lambda model, batch: (model(batch[0]) - teacher(batch[0])).square()[:, 0]), change


def coupled(_):
    scales = [1.0]
    loss = cf.WeightedLoss(lambda model, batch, w: scales[0] * (w * residuals(model, batch).square()).sum())
    return loss, lambda: scales.__setitem__(0, 3.0)


CHANGES = [of_a_list, of_a_tensor, of_a_field, of_a_module, of_another_network, coupled]


def risk(loss):
    return cf.Risk(NET, loss, cf.batches(X, Y, size=8), l2=0.1)


@pytest.mark.parametrize("make", CHANGES)
def test_an_inverse_of_a_loss_that_changed_is_refused(make, tmp_path):
    loss, change = make(tmp_path)
    made = risk(loss)
    inverse = cf.Exact().invert(made)
    cf.influence(made, ask, inverse)
    change()
    with pytest.raises(StaleError, match=r"The loss is not what it was.*make a new Risk"):
        cf.influence(made, ask, inverse)
    with pytest.raises(StaleError, match=r"another risk.*loss"):
        cf.influence(risk(loss), ask, inverse)


@pytest.mark.parametrize("make", CHANGES)
def test_a_loss_that_changed_before_the_inverse_is_refused_too(make, tmp_path):
    loss, change = make(tmp_path)
    made = risk(loss)
    change()
    for verb in (lambda: cf.Exact().invert(made), lambda: cf.undo(made, [0], steps=1, lr=0.1)):
        with pytest.raises(StaleError, match="The loss is not what it was"):
            verb()


def test_the_error_names_a_sample_and_its_two_losses():
    scales = [1.0]

    def loss(model, batch):
        return torch.where(batch[1] == Y[5], scales[0], 1.0) * residuals(model, batch).square()

    names = [f"row {k}" for k in range(20)]
    made = cf.Risk(NET, loss, cf.batches(X, Y, size=8), ids=names)
    own = float(residuals(NET, (X, Y))[5].detach().square())
    scales[0] = 3.0
    with pytest.raises(StaleError, match=rf"that of sample 'row 5' was {own:.6g} and is {3 * own:.6g}"):
        cf.influence(made, ask)


def test_a_loss_that_keeps_a_log_of_its_calls_is_the_same_loss():
    calls = []

    def loss(model, batch):
        calls.append(len(batch[0]))
        return residuals(model, batch).square()

    made = risk(loss)
    inverse = cf.Exact().invert(made)
    first = cf.influence(made, ask, inverse)
    assert torch.equal(cf.influence(made, ask, inverse).values, first.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_of_a_perfect_fit_is_no_change(dtype):
    order = [slice(None)]

    def loss(model, batch):
        """The same sum in another order."""
        x, y = batch
        return ((x[:, order[0]] * model.weight[0, order[0]]).sum(1) + model.bias - y).square()

    x = normal(20, 300, seed=1).to(dtype)
    net = grid.seeded(nn.Linear(300, 1)).to(dtype)
    made = cf.Risk(net, loss, cf.batches(x, net(x)[:, 0].detach()), l2=0.1)
    before = loss(net, (x, net(x)[:, 0]))
    order[0] = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    after = loss(net, (x, net(x)[:, 0]))
    assert not torch.equal(before, after)
    made.check()


def test_a_risk_of_some_samples_and_one_at_other_parameters_are_no_changed_losses():
    loss = cf.WeightedLoss(lambda model, batch, w: (w * residuals(model, batch).square()).sum())
    for kind in (loss, lambda model, batch: residuals(model, batch).square()):
        made = risk(kind)
        made.only([0, 9]).check()
        made.without([0, 9]).check()
