"""The split of a plain loss at its model's outputs: as OnOutputs where it is found, a reason where it is not."""

import grid
import pytest
import torch
from grid import integers, normal
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors

X, Y = normal(12, 3, seed=1), integers(3, 12, seed=2)


def network():
    return grid.seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))


def entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


SPLIT = cf.OnOutputs(lambda m, b: m(b[0]), lambda z, b: F.cross_entropy(z, b[1], reduction="none"))


def risk(loss, model=None, size=5, **options):
    return cf.Risk(model or network(), loss, cf.batches(X, Y, size=size), **options)


class Coder(nn.Module):
    """Returns what it is told to, of a reconstruction, a code and its spread."""

    def __init__(self, form):
        super().__init__()
        self.code, self.back, self.form = nn.Linear(3, 2), nn.Linear(2, 3), (form,)

    def forward(self, x):
        code = self.code(x)
        return self.form[0](self.back(code.tanh()), code, code.argmax(1))

    def error(self, x):
        return (self(x)[0] - x).square().sum(1)


@pytest.mark.parametrize("curvature", [cf.GaussNewton(), cf.Fisher(), cf.Fisher(None)], ids=str)
@pytest.mark.parametrize("options", [{}, {"l2": 0.1}, {"params": "2.*"}, {"l2": {"*weight": 0.1}}], ids=str)
def test_products_with_a_plain_loss_are_those_of_the_loss_split_by_hand(curvature, options):
    found, wanted = risk(entropy, **options), risk(SPLIT, **options)
    vectors = normal(3, found.p, seed=3)
    assert torch.equal(curvature.product(found, vectors), curvature.product(wanted, vectors))


FORMS = {
    "tuple": lambda back, code, top: (back, code, top),
    "list in a tuple": lambda back, code, top: ([back], code),
    "dictionary": lambda back, code, top: {0: back, 1: code, "top": top},
}


@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_several_parts_are_put_together_again(form):
    def loss(model, batch):
        out = model(batch[0])
        back = out[0][0] if form == "list in a tuple" else out[0]
        return (back - batch[0]).square().sum(1) + 0.1 * out[1].square().sum(1)

    model = grid.seeded(Coder(FORMS[form]))
    plain = risk(loss, model)
    vectors = normal(2, plain.p, seed=4)

    def outputs(model, batch):
        out = model(batch[0])
        return torch.cat([out[0][0] if form == "list in a tuple" else out[0], out[1]], 1)

    by_hand = cf.OnOutputs(outputs, lambda z, b: (z[:, :3] - b[0]).square().sum(1) + 0.1 * z[:, 3:].square().sum(1))
    wanted = cf.GaussNewton().product(risk(by_hand, model), vectors)
    assert torch.allclose(cf.GaussNewton().product(plain, vectors), wanted, rtol=1e-12)


def test_parts_that_the_loss_does_not_use_are_left_out():
    model = grid.seeded(Coder(FORMS["tuple"]))
    found = risk(lambda m, b: (m(b[0])[0] - b[0]).square().sum(1), model).split
    assert found.outputs(model, (X, Y)).shape == (12, 3)


def test_an_output_object_of_transformers_is_split():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    tokens = integers(11, 6, 7, seed=5)

    def loss(model, ids):
        logits = model(input_ids=ids).logits[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(1)

    plain = cf.Risk(model, loss, cf.batches(tokens, size=4))
    by_hand = cf.Risk(model, cf.OnOutputs(
        lambda m, ids: m(input_ids=ids).logits,
        lambda z, ids: F.cross_entropy(z[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").sum(1),
    ), cf.batches(tokens, size=4))  # fmt: skip
    vectors = normal(1, plain.p, seed=6)
    for curvature in (cf.GaussNewton(), cf.Fisher()):
        assert torch.allclose(curvature.product(plain, vectors), curvature.product(by_hand, vectors), rtol=1e-10)


def test_hooks_and_the_forward_of_the_model_are_left_as_they_were():
    model = network()
    model.register_forward_hook(lambda module, args, out: 2 * out)
    before = dict(vars(model))
    by_hand = cf.OnOutputs(lambda m, b: m(b[0]), SPLIT.criterion)
    vectors = normal(1, 31, seed=7)
    found, wanted = (cf.GaussNewton().product(risk(loss, model), vectors) for loss in (entropy, by_hand))
    assert torch.allclose(found, wanted, rtol=1e-12)
    assert vars(model) == before


REFUSED = {
    "two calls": (lambda m, b: entropy(m, b) + entropy(m, b), "calls model.* 2 times"),
    "a method": (lambda m, b: m[2](m[1](m[0](b[0]))).square().sum(1), "never calls model"),
    "weights beside": (lambda m, b: entropy(m, b) + m[0].weight.square().sum(), r"uses '0\.weight' beside"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_losses_that_cannot_be_split_are_refused_with_the_reason(name):
    loss, reason = REFUSED[name]
    plain = risk(loss)
    with pytest.raises(errors.UnsupportedError, match=rf"{reason}.*OnOutputs\(outputs, criterion\).*Hessian"):
        cf.GaussNewton().product(plain, torch.ones(1, plain.p).double())


def test_whole_numbers_among_the_outputs_are_refused_where_the_loss_uses_them():
    model = grid.seeded(Coder(FORMS["tuple"]))

    def loss(model, batch):
        back, _, top = model(batch[0])
        return (back - batch[0]).square().sum(1) * (1 + top)

    assert "it fails (TypeError" in risk(loss, model).split


def test_outputs_whose_rows_are_no_samples_are_refused():
    class Turned(nn.Linear):
        def forward(self, x):
            return super().forward(x).T

    model = grid.seeded(Turned(3, 2))
    assert "rows are no samples" in risk(lambda m, b: m(b[0]).square().sum(0), model).split


def test_a_loss_that_couples_samples_has_no_split():
    with pytest.raises(errors.UnsupportedError, match=r"no loss for each sample alone.*Hessian"):
        cf.GaussNewton().product(grid.COX.risk(), torch.ones(1, grid.COX.risk().p).double())
