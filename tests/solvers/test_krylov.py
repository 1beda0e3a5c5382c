"""Functions of a matrix from a few products, against the matrix's own eigenvectors."""

import pytest
import torch
from grid import normal

from crossfluence._solvers.krylov import lanczos_functions

ROOT = normal(30, 30, seed=0)
MATRIX = ROOT @ ROOT.T / 10
VALUES, TURN = torch.linalg.eigh(MATRIX)
FUNCTIONS = (lambda x: (-x).exp(), lambda x: 1 / (1 + x))


def written_out(vectors):
    return [vectors @ TURN @ torch.diag(function(VALUES)) @ TURN.T for function in FUNCTIONS]


@pytest.mark.parametrize("rtol", [1e-3, 1e-8, 1e-14])
def test_they_are_those_of_the_eigenvalues(rtol):
    vectors, products = normal(3, 30, seed=1), []

    def product(v):
        products.append(v)
        return v @ MATRIX

    found, lowest, share = lanczos_functions(product, vectors, FUNCTIONS, rtol=rtol, max_steps=50)
    for values, wanted in zip(found, written_out(vectors), strict=True):
        assert (values - wanted).norm() <= max(rtol, 1e-13) * wanted.norm()
    assert share <= rtol
    assert lowest >= VALUES[0] - 1e-12
    assert (len(products) < 20) == (rtol > 1e-4)


def test_invariant_subspaces_and_zeros_end_early():
    vectors = torch.stack([TURN[:, 3], TURN[:, 4] - TURN[:, 9], torch.zeros(30, dtype=torch.float64)])
    found, _, _ = lanczos_functions(lambda v: v @ MATRIX, vectors, FUNCTIONS, rtol=1e-12, max_steps=50)
    for values, wanted in zip(found, written_out(vectors), strict=True):
        assert (values - wanted).norm() <= 1e-12 * wanted.norm()


def test_vectors_are_each_alone_however_many_share_the_memory(monkeypatch):
    vectors = normal(5, 30, seed=2)
    together, _, _ = lanczos_functions(lambda v: v @ MATRIX, vectors, FUNCTIONS, rtol=1e-13, max_steps=30)
    monkeypatch.setattr("crossfluence._solvers.krylov.NUMBERS_AT_ONCE", 2 * 30 * 30)
    split, _, _ = lanczos_functions(lambda v: v @ MATRIX, vectors, FUNCTIONS, rtol=1e-13, max_steps=30)
    assert all(torch.allclose(one, two, rtol=0, atol=1e-12) for one, two in zip(together, split, strict=True))


def test_too_few_products_leave_a_share():
    _, _, share = lanczos_functions(lambda v: v @ MATRIX, normal(2, 30, seed=3), FUNCTIONS, rtol=1e-12, max_steps=5)
    assert 1e-6 < share < 1
