"""Derivatives without PyTorch's compiler are those that it has no part in, and it is not loaded for them."""

import subprocess
import sys

import pytest
import torch
from grid import normal
from torch.func import grad, jvp, vjp, vmap
from torch.nn import functional as F

from crossfluence._autodiff import uncompiled
from crossfluence._autodiff.functional import isolated

SHIFT, KEPT = normal(5, 1, seed=1), torch.ones(6, 6).tril().bool()
FRESH = """
import sys
import torch
import crossfluence as cf
from torch.nn import functional as F
torch.manual_seed(0)
model = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True).double().eval()
mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf")).double()
loss = lambda m, x: m(x, src_mask=mask).square().sum((1, 2)) + (m(x) * mask.exp()[0, 0]).sum((1, 2))
x = torch.randn(12, 5, 8, dtype=torch.float64)
risk = cf.Risk(model, loss, cf.batches(x, size=4), l2=0.1)
solvers = cf.EKFAC(0.1, pilot=None), cf.Identity(), cf.CG(100.0, rtol=0.1)
for solver in solvers:
    cf.influence(risk, cf.each_of(cf.batches(x[:3]), loss), solver)
print(sorted({"torch._dynamo", "sympy"} & set(sys.modules)))
"""


def values(x):
    return (x + SHIFT) * SHIFT - (x.T @ x).tanh().sum() * SHIFT.exp().square()


def attention(x):
    return F.scaled_dot_product_attention(x, x, x, is_causal=True).sum()


def derivatives():
    x, v = normal(5, 3, seed=2), normal(5, 3, seed=3)
    q = normal(2, 6, 4, seed=4)
    yield jvp(values, (x,), (v,))[1]
    yield jvp(grad(lambda at: values(at).sum()), (x,), (v,))[1]
    yield vjp(values, x)[1](v[:, :1].expand(5, 3) * 1)[0]
    yield vmap(lambda each: jvp(lambda at: values(at) * SHIFT, (x,), (each,))[1])(torch.stack([v, x]))
    yield jvp(attention, (q,), (q.cos(),))[1]
    live = x.clone().requires_grad_()
    with torch.enable_grad():
        out = values(live)
    yield torch.autograd.grad(out, live, torch.stack([v, 2 * v]), is_grads_batched=True, retain_graph=True)[0]
    yield torch.autograd.grad(out, live, v)[0]


def test_derivatives_are_the_same_beside_the_compiler_and_without_it(monkeypatch):
    import torch._dynamo

    with isolated():
        wanted = list(derivatives())
    monkeypatch.delitem(sys.modules, "torch._dynamo")
    before = torch.autograd._make_grads, uncompiled.transforms._autograd_grad  # pyright: ignore[reportPrivateUsage]
    with isolated():
        assert before != (torch.autograd._make_grads, uncompiled.transforms._autograd_grad)  # pyright: ignore
        found = list(derivatives())
    assert before == (torch.autograd._make_grads, uncompiled.transforms._autograd_grad)  # pyright: ignore
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2,), (3, 1)])
def test_a_cotangent_of_another_shape_is_still_refused(shape):
    live = torch.ones(3, requires_grad=True)
    with isolated(), torch.enable_grad(), pytest.raises(RuntimeError, match="Mismatch"):
        torch.autograd.grad(live * 2, live, torch.ones(shape))


def test_a_question_in_a_fresh_process_does_not_load_the_compiler():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FRESH], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout
