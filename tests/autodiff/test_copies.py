"""Ordinary modules are hashed, copied and put back, whatever they keep beside plain parameters."""

import warnings

import pytest
import torch
from grid import normal, seeded
from torch import nn
from torch.nn.utils import prune

import crossfluence as cf
from crossfluence import errors
from crossfluence._autodiff.copies import copied, frozen_copy
from crossfluence._autodiff.params import digest_tensors, fingerprint

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights

X, Y = normal(20, 4, seed=0), normal(20, seed=1)


def squared(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


def asked(model):
    return model(X[:1])[0, 0]


class Keeps(nn.Module):
    """Keeps what it computed last, alone and in a container."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.seen = nn.Linear(4, 3), nn.Linear(3, 1), {}

    def forward(self, x):
        self.last = self.first(x).tanh()
        self.seen["last"] = [self.last]
        return self.second(self.last)


class Extra(nn.Sequential):
    def get_extra_state(self):
        return {"step": 3}

    def set_extra_state(self, state):
        pass


class Bag(nn.Module):
    """Parameters without modules, and buffers of many kinds."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(normal(4, 1, seed=3)), nn.Parameter(normal(1, seed=4))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("mask", torch.ones(4, 1, dtype=torch.bool))
        self.register_buffer("links", torch.eye(4).to_sparse(), persistent=False)
        self.register_buffer("table", torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8))

    def forward(self, x):
        return x @ (self.w * self.mask) + self.b


def pruned():
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    prune.l1_unstructured(net[0], "weight", 0.5)
    return net


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 1))


def used(make):
    """A model after a step of training, as a user has it."""
    model = seeded(make()) if make is not Bag else make()
    squared(model.double(), (X, Y)).mean().backward()
    model.zero_grad()
    return model


MODELS = {"keeps activations": Keeps, "pruned": pruned, "extra state": lambda: Extra(nn.Linear(4, 1)), "bag": Bag}


@pytest.mark.parametrize("make", [*MODELS.values(), old_weight_norm], ids=[*MODELS, "old weight norm"])
def test_a_copy_is_equal_and_its_own(make):
    model = used(make)
    twin = copied(model)
    assert fingerprint(twin) == fingerprint(model)
    assert torch.equal(asked(twin), asked(model))
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in model.parameters()]
    before = fingerprint(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert fingerprint(model) == before != fingerprint(twin)


def test_copies_keep_ties_and_frozen_parameters():
    net = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)})
    net["two"].weight = net["one"].weight
    net["two"].bias.requires_grad_(False)
    net["one"].kept = net["one"].weight * 2
    net["two"].kept = net["one"].kept
    twin = copied(net)
    assert twin["one"].weight is twin["two"].weight is not net["one"].weight
    assert not twin["two"].bias.requires_grad
    assert twin["one"].kept is twin["two"].kept
    assert not twin["one"].kept.requires_grad
    held = frozen_copy(net)
    assert held["one"].weight.data_ptr() == net["one"].weight.data_ptr()
    assert not any(parameter.requires_grad for parameter in held.parameters())


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_verb_takes_such_models(make, tmp_path):
    data, model = cf.batches(X, Y), used(make)
    plain = used(lambda: nn.Linear(4, 1))
    risk = cf.Risk(model, squared, data, l2=0.1)
    assert len(cf.influence(risk, asked, cf.Identity())) == 20
    stopped = cf.FieldLoss(lambda m, f, b, w: (w * (m(b[0]) - 0.5 * f(b[0]) - b[1][:, None]).square().sum(1)).sum())
    moved = cf.Risk(used(make), stopped, data, l2=0.1)
    assert moved.gradient.isfinite().all()
    recipe = cf.Recipe(used(make), squared, (X, Y), optimizer=cf.SGD(0.01), epochs=2)
    trained = recipe.train()
    assert trained.state_dict().keys() == model.state_dict().keys()
    bank = cf.Bank(recipe, tmp_path)
    first = cf.leave_out(bank, asked, [0, 1])
    assert torch.equal(cf.leave_out(bank, asked, [0, 1]).values, first.values)
    assert cf.undo(risk, [0], steps=1, lr=0.01, watch=asked).history.shape[0] == 2
    assert isinstance(plain, nn.Module)


def test_a_stored_activation_does_not_matter_to_the_answer():
    plain = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    keeps = used(Keeps)
    with torch.no_grad():
        for target, source in zip(plain.parameters(), keeps.parameters(), strict=True):
            target.copy_(source)
    found, wanted = (
        cf.unlearn(cf.Risk(model, squared, cf.batches(X, Y), l2=1.0), [0, 3], cf.Exact(1.0), watch=asked)
        for model in (keeps, plain)
    )
    assert torch.allclose(found.after, wanted.after, rtol=1e-12)


def test_what_is_not_finite_is_named_in_a_bag_of_parameters():
    y = Y.clone()
    y[2] = torch.nan
    with pytest.raises(errors.NonFiniteError, match="sample 2"):
        cf.influence(cf.Risk(Bag(), squared, cf.batches(X, y), l2=0.1), asked, cf.Exact())
    steep = cf.Risk(Bag(), lambda model, batch: (model.w.sum() * 0 + batch[1] * 0).abs().sqrt(), [(X, Y)], l2=0.1)
    with pytest.raises(errors.NonFiniteError, match="the losses are finite; it begins in the loss"):
        cf.influence(steep, asked, cf.Exact())


def test_a_model_that_its_loss_changes_is_put_back_with_all_its_buffers():
    model = Bag()

    def counting(module, batch):
        module.steps += 1
        return squared(module, batch)

    with pytest.raises(errors.NondeterministicError, match="changes the model itself"):
        cf.Risk(model, counting, [(X, Y)])
    assert model.steps == 7


# Hashes.

BASE = torch.arange(12.0).reshape(3, 4)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # several layouts call themselves a beta
    KINDS = {
        "float32": BASE, "float64": BASE.double(), "bfloat16": BASE.bfloat16(), "float16": BASE.half(),
        "float8": BASE.to(torch.float8_e4m3fn), "bool": BASE > 3, "int8": BASE.to(torch.int8), "int64": BASE.long(),
        "complex": torch.complex(BASE, BASE), "conjugate": torch.complex(BASE, BASE).conj(),
        "negative": torch.complex(BASE, BASE).conj().imag, "empty": BASE[:0], "empty columns": BASE[:, :0],
        "number": torch.tensor(3.0), "transposed": BASE.T, "strided": BASE[:, ::2], "coo": BASE.to_sparse(),
        "csr": BASE.to_sparse_csr(), "csc": BASE.to_sparse_csc(),
        "quantised": torch.quantize_per_tensor(BASE, 0.5, 1, torch.qint8), "meta": BASE.to("meta"),
        "by channel": torch.quantize_per_channel(BASE, torch.ones(3), torch.zeros(3).long(), 0, torch.quint8),
        "nested": torch.nested.nested_tensor([BASE, BASE[:2]]), "tracked": BASE.clone().requires_grad_(),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_every_kind_are_hashed_by_their_content(kind):
    tensor = KINDS[kind]
    assert digest_tensors([("x", tensor)]) == digest_tensors([("x", tensor.detach().clone())])
    others = [digest_tensors([("x", other)]) for name, other in KINDS.items() if name not in {kind, "tracked"}]
    assert kind == "tracked" or digest_tensors([("x", tensor)]) not in others
    assert digest_tensors([("x", tensor)]) != digest_tensors([("y", tensor)])


@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.half])
def test_one_other_number_is_another_hash(make):
    moved = BASE.clone()
    moved[1, 2] += 1
    assert digest_tensors([("x", make(BASE))]) != digest_tensors([("x", make(moved))])


def test_layout_of_memory_is_no_content():
    assert digest_tensors([("x", BASE.T)]) == digest_tensors([("x", BASE.T.contiguous())])
    assert digest_tensors([("x", BASE[:, :1])]) == digest_tensors([("x", BASE[:, :1].clone())])
