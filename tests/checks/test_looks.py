"""What first looks at losses and questions find: coupled samples, state that moved, detached or random questions."""

import copy

import pytest
import torch
from families import Net, OldSignature, Once
from grid import integers, normal, seeded
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm

import crossfluence as cf
from crossfluence import errors

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # nothing was trained

X, Y = normal(24, 4, seed=0), normal(24, seed=1)


def squared(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


def ask(model):
    return model(X[:1])[0, 0]


def risk(model, loss=squared, data=None, **options):
    return cf.Risk(model, loss, data or cf.batches(X, Y), l2=0.1, **options)


# Losses of single samples that depend on the batch around them.


def centred(model, batch):
    return (model(batch[0])[:, 0] - model(batch[0])[:, 0].mean() - batch[1]).square()


def contrastive(model, batch):
    similar = model(batch[0]) @ model(batch[0] + 0.1).T
    return F.cross_entropy(similar, torch.arange(len(similar)), reduction="none")


def over_tokens(model, batch):
    mask = (batch[0] > -1).double()
    return (batch[0] * model(batch[0])[:, :1]).square().mul(mask).sum(1) / mask.sum()


def normalised(model, batch):
    return F.batch_norm(model(batch[0]), None, None, training=True)[:, 0].square()


def over_batch(model, batch):
    return squared(model, batch) / len(batch[0])


@pytest.mark.parametrize("size", [24, 6, 3])
@pytest.mark.parametrize("loss", [centred, contrastive, over_tokens, normalised, over_batch])
def test_a_loss_that_depends_on_its_batch_is_refused(loss, size):
    with pytest.raises(
        errors.CoupledLossError, match=r"in a batch of \d+: it depends on the samples beside it.*Weighted"
    ):
        risk(seeded(nn.Linear(4, 3)), loss, cf.batches(X, Y, size=size))


def test_a_recipe_refuses_it_too():
    with pytest.raises(errors.CoupledLossError):
        cf.Recipe(seeded(nn.Linear(4, 3)), contrastive, (X, Y), optimizer=cf.SGD(0.1), epochs=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rounding_is_not_taken_for_coupling(dtype, scale):
    model = seeded(nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 1))).to(dtype)
    exact = (X.to(dtype), model(X.to(dtype))[:, 0].detach() + 1e-7)
    assert risk(model, lambda m, b: scale * squared(m, b), cf.batches(*exact)).n == 24


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sure", [1.0, 5.0, 12.0, 40.0])
def test_a_confident_classifier_is_a_loss_and_a_question_like_any_other(dtype, sure):
    y = integers(4, 24, seed=2)
    x = (3 * torch.eye(4, 6)[y] + 0.1 * normal(24, 6, seed=3)).to(dtype)
    model = nn.Linear(6, 4, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(sure * torch.eye(4, 6)), model.bias.zero_()

    def loss(m, b):
        return F.cross_entropy(m(b[0]), b[1], reduction="none")

    made = cf.Risk(model, loss, cf.batches(x, y), l2=1e-3)
    questions = cf.each_of(cf.batches(x, y), loss)
    if sure == 40 and dtype == torch.float32:  # every gradient is exactly zero
        with pytest.raises(errors.ObjectiveError, match="float64"):
            cf.influence(made, questions, cf.Identity())
        return
    assert cf.influence(made, questions, cf.Identity()).values.isfinite().all()


# State that training moved.


class OwnSpectralNorm(nn.Module):
    """As many repositories write it: one step of power iteration for each training pass."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.empty(3, 4)), nn.Linear(3, 1)
        self.register_buffer("u", F.normalize(normal(3, seed=5), dim=0))

    def forward(self, x):
        with torch.no_grad():
            v = F.normalize(self.weight.T @ self.u, dim=0)
            if self.training:
                self.u.copy_(F.normalize(self.weight @ v, dim=0))
        return self.head((x @ (self.weight / (self.u @ self.weight @ v)).T).tanh())


def test_a_buffer_that_follows_the_parameters_is_refused():
    model = seeded(OwnSpectralNorm())
    model.u.copy_(F.normalize(model.u, dim=0))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(errors.UnsupportedError, match=r"buffer 'u'.*follows the parameters"):
        risk(model)
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert not model.training


class Standardised(nn.Module):
    """Inputs divided by a running spread of the data."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.register_buffer("spread", torch.ones(4, dtype=torch.float64))

    def forward(self, x):
        if self.training:
            self.spread.mul_(0.9).add_(0.1 * x.std(0))
        return self.layer(x / self.spread)


def test_statistics_of_the_data_are_noted():
    assert risk(seeded(Standardised())).examined.moved == ("buffer 'spread'",)
    norm = seeded(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)))
    assert risk(norm).examined.moved == ("BatchNorm1d '1'",)
    assert any("Running statistics" in note for note in cf.influence(risk(norm), ask, cf.Identity()).report.notes)


class ExactNorm(nn.Module):
    def __init__(self, weight, bias, head):
        super().__init__()
        self.weight, self.bias, self.head = nn.Parameter(weight), nn.Parameter(bias), copy.deepcopy(head)

    def forward(self, x):
        return self.head((x @ (self.weight / torch.linalg.svdvals(self.weight)[0]).T + self.bias).tanh())


@pytest.mark.parametrize("way", ["parametrization", "hook"])
def test_spectral_norm_in_evaluation_mode_is_the_exact_norm(way):
    layer = seeded(nn.Linear(4, 3))
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    wrap = parametrizations.spectral_norm if way == "parametrization" else spectral_norm
    model = nn.Sequential(wrap(layer, n_power_iterations=200), nn.Tanh(), seeded(nn.Linear(3, 1))).train()
    model(X)
    exact = ExactNorm(weight, bias, model[2])
    order = {"parametrization": ["0.bias", "0.parametrizations.weight.original", "2.weight", "2.bias"]}
    found = cf.influence(risk(model.eval()), ask, cf.Exact(0.3)).values
    assert torch.allclose(found, cf.influence(risk(exact), ask, cf.Exact(0.3)).values, atol=1e-9), order


def test_a_spectral_norm_that_was_never_iterated_is_refused():
    model = nn.Sequential(parametrizations.spectral_norm(seeded(nn.Linear(4, 3))), seeded(nn.Linear(3, 1))).double()
    with torch.no_grad():
        model[0].parametrizations.weight.original.add_(5 * torch.eye(3, 4))
    with pytest.raises(errors.UnsupportedError, match="power iteration converge"):
        risk(model.eval())


# Questions get the probes of losses.


def test_a_question_with_features_under_no_grad_is_refused():
    model = seeded(Net(torch.tanh))

    def half(m):
        with torch.no_grad():
            hidden = m.a(X[:1]).tanh()
        return m.b(hidden)[0, 0]

    for verb in (lambda: cf.influence(risk(model), half, cf.Exact()), lambda: cf.unlearn(risk(model), [0], watch=half)):
        with pytest.raises(errors.ObjectiveError, match=r"does not belong to its value.*no_grad"):
            verb()


@pytest.mark.parametrize("solver", [cf.Exact(), cf.EKFAC(), cf.Identity()], ids=["Exact", "EKFAC", "Identity"])
def test_a_question_that_draws_noise_is_refused(solver):
    model = seeded(Net(torch.tanh))
    noisy = [
        lambda m: m(X[:1] + torch.randn(1, 4, dtype=torch.float64))[0, 0],
        cf.each_of(cf.batches(X, Y), lambda m, b: squared(m, (b[0] + torch.randn_like(b[0]), b[1]))),
        cf.mean_over(cf.batches(X, Y), lambda m, b: squared(m, (b[0] + torch.randn_like(b[0]), b[1]))),
    ]
    for question in noisy:
        with pytest.raises(errors.NondeterministicError, match="random"):
            cf.influence(risk(model), question, solver)


def test_each_of_refuses_batches_that_do_not_come_back():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 8, shuffle=True)
    for maker in (cf.each_of, cf.mean_over):
        with pytest.raises(errors.DataError, match="shuffle=False"):
            maker(loader, squared)
        with pytest.raises(errors.DataError, match="read only once"):
            maker(iter([(X, Y)]), squared)


def test_a_loss_of_another_model_is_refused():
    model = seeded(Net(torch.tanh))
    other = copy.deepcopy(model)
    with pytest.raises(errors.UnsupportedError, match="does not depend on the trained parameters"):
        risk(model, lambda m, b: squared(other, b))


def test_a_question_in_inference_mode_is_refused():
    with pytest.raises(errors.ObjectiveError, match=r"inference_mode|no_grad"):
        cf.influence(risk(seeded(Net(torch.tanh))), torch.inference_mode()(ask), cf.Exact())


# Which derivatives are believed.


def test_the_report_names_the_function_whose_second_derivative_is_missing():
    found = cf.influence(risk(seeded(Net(Once.apply))), ask, cf.CG(3.0))
    assert any("differences of gradients" in note and "Once" in note for note in found.report.notes)
    assert not cf.influence(risk(seeded(Net(OldSignature.apply))), ask, cf.CG(3.0)).report.notes


def test_a_gradient_of_its_own_is_refused_with_its_name():
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    with pytest.raises(errors.UnsupportedError, match=r"Straight.*FieldLoss"):
        risk(seeded(Net(lambda x: Straight.apply(3 * x))))


def test_the_precision_is_that_of_the_computation():
    assert risk(seeded(Net(lambda x: x.float().tanh().double()))).precision == torch.finfo(torch.float32).eps
    assert risk(seeded(Net(torch.tanh))).precision == torch.finfo(torch.float64).eps


def test_a_risk_calls_the_loss_a_few_times_on_a_few_samples():
    calls = []

    def counted(model, batch):
        calls.append(len(batch[0]))
        return squared(model, batch)

    risk(seeded(Net(torch.tanh)), counted)
    assert calls.count(24) == 1
    assert len(calls) <= 8
    assert sum(calls) <= 3 * 24


def test_a_kink_is_no_reason_to_take_differences():
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    targets = (X @ model.weight[0]).detach()  # every sample lies in the kink
    targets[8:] += normal(16, seed=4)

    def absolute(m, b):
        return (m(b[0])[:, 0] - b[1]).abs()

    made = risk(model, absolute, cf.batches(X, targets))
    assert type(made.second).__name__ == "Forward"
    assert cf.Exact().invert(made).smallest_eigenvalue == pytest.approx(0.1)
