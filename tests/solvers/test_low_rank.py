"""The strongest directions of the curvature, against its dense spectrum."""

import grid
import pytest
import torch
from grid import normal
from reference import Dense

import crossfluence as cf
from crossfluence._solvers.krylov import arnoldi, extreme_eigenvalues

PROBLEMS = [pytest.param(problem, id=problem.name) for problem in grid.PROBLEMS if problem.converges]


def dense_of(problem):
    return Dense(problem.model, problem.loss, problem.tensors, problem.l2)


def dominant(J, rank):
    """The span of the `rank` eigenvectors largest in size, as a projector, and the smallest of their sizes."""
    values, vectors = torch.linalg.eigh(J)
    order = values.abs().argsort(descending=True)[:rank]
    return vectors[:, order], values[order]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_krylov_basis_is_orthonormal_and_holds_the_matrix(problem):
    J, p = dense_of(problem).J, problem.risk().p
    basis, core = arnoldi(lambda v: v @ J.T, J[0], p, seed=0)
    assert torch.allclose(basis @ basis.T, torch.eye(p, dtype=J.dtype), atol=1e-12)
    assert torch.allclose(basis @ J @ basis.T, core, atol=1e-10)


def test_eigenvalues_that_are_equal_are_all_found():
    J = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    _, core = arnoldi(lambda v: v @ J, J[0], 6, seed=0)
    assert torch.allclose(torch.linalg.eigvalsh((core + core.T) / 2).flip(0), J.diagonal(), atol=1e-12)


@pytest.mark.parametrize("problem", [case for case in PROBLEMS if case.values[0].symmetric])
def test_the_ends_of_the_spectrum_are_found(problem):
    values = torch.linalg.eigvalsh(dense_of(problem).J)
    found = extreme_eigenvalues(cf.Hessian(), problem.risk(), steps=100)
    assert found == pytest.approx((float(values[0]), float(values[-1])), abs=1e-9)


@pytest.mark.parametrize("problem", [grid.SOFTMAX_ON_OUTPUTS, grid.SKIP_GRAM, grid.CONTRASTIVE], ids=lambda p: p.name)
def test_solutions_are_those_of_the_strongest_eigenvectors_and_one_number_for_the_rest(problem):
    risk, damping = problem.risk(), 0.01
    rank = risk.p // 2 + 1  # twice that many steps span everything: the eigenvectors have converged
    vectors, values = dominant(dense_of(problem).J, rank)
    questions = normal(3, risk.p, seed=0)
    inside = questions @ vectors
    wanted = inside / (values + damping) @ vectors.T + (questions - inside @ vectors.T) / (
        float(values.abs().min()) + damping
    )
    inverse = cf.LowRank(rank, damping).invert(risk)
    assert inverse.basis.shape == (rank, risk.p)
    assert torch.allclose(inverse.solve(questions).vectors, wanted, rtol=1e-6)


def test_arnoldi_keeps_an_invariant_subspace_of_a_matrix_that_is_not_symmetric():
    problem = grid.DEC_MOVING
    J = dense_of(problem).J
    inverse = cf.LowRank(27, 0.1).invert(problem.risk())  # all Krylov steps, one direction or pair less
    image = inverse.basis @ J.T
    inside = image @ inverse.basis.T @ inverse.basis
    assert len(inverse.basis) in (27, 28)
    assert (image - inside).norm() < 1e-6 * image.norm()


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("problem", [grid.AUTOENCODER, grid.DEC_MOVING], ids=lambda p: p.name)
def test_a_rank_of_p_is_exact(problem, transposed):
    risk = problem.risk()
    questions = normal(3, risk.p, seed=0)
    found = cf.LowRank(risk.p, 0.1).invert(risk).solve(questions, transposed=transposed)
    exact = cf.Exact(0.1).invert(risk).solve(questions, transposed=transposed)
    assert torch.allclose(found.vectors, exact.vectors, rtol=1e-8)
    assert found.notes == ()


def test_more_directions_are_nearer_to_the_exact_scores():
    problem = grid.SOFTMAX_ON_OUTPUTS
    exact = cf.influence(problem.risk(), problem.objective, cf.Exact()).values
    errors = [
        float((cf.influence(problem.risk(), problem.objective, cf.LowRank(rank)).values - exact).norm() / exact.norm())
        for rank in (2, 8, 20, 31)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_dividing_the_rest_by_the_smallest_eigenvalue_kept_beats_leaving_it_out_and_blowing_it_up():
    problem = grid.SOFTMAX_ON_OUTPUTS
    dense, rank = dense_of(problem), 6
    vectors, values = dominant(dense.J, rank)
    question, exact = dense.slope(problem.objective), dense.scores(problem.objective)
    inside = question @ vectors

    def error(outside):
        u = inside / values @ vectors.T + (question - inside @ vectors.T) / outside
        return float((-u @ dense.K - exact).norm() / exact.norm())

    chosen = error(float(values.min()))
    assert chosen < error(float("inf"))
    assert chosen < error(problem.l2)


def test_the_report_tells_the_ends_of_the_spectrum_and_what_lies_outside():
    problem = grid.SOFTMAX_ON_OUTPUTS
    report = cf.influence(problem.risk(), problem.objective, cf.LowRank(4)).report
    values = torch.linalg.eigvalsh(dense_of(problem).J)
    assert f"to {float(values[-1]):.3g}; 4 directions of 31 kept" in report.notes[0]
    assert "of a question's gradient lies outside" in report.notes[1]
    assert report.smallest_eigenvalue >= float(values[0]) - 1e-12


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # no minimum
def test_a_singular_direction_that_is_kept_is_refused_with_advice():
    x = normal(20, 4, seed=0) * torch.tensor([1.0, 1.0, 1.0, 0.0])
    model = grid.seeded(torch.nn.Linear(4, 1))
    flat = cf.Risk(model, lambda m, b: m(b[0])[:, 0].square(), cf.batches(x, x))
    with pytest.raises(cf.CrossfluenceError, match=r"singular along a direction that was kept.*Relative\(1e-3\)"):
        cf.influence(flat, lambda m: m.weight.sum(), cf.LowRank(10))
    assert cf.influence(flat, lambda m: m.weight.sum(), cf.LowRank(10, 0.01)).values.isfinite().all()


@pytest.mark.parametrize("rank", [0, -3])
def test_a_rank_is_positive(rank):
    with pytest.raises(ValueError, match=rf"Got rank={rank}; needed at least 1"):
        cf.LowRank(rank)


def test_the_seed_decides_the_start_and_nothing_else_does():
    problem = grid.SOFTMAX_ON_OUTPUTS
    first, again, other = (
        cf.influence(problem.risk(), problem.objective, cf.LowRank(4, seed=seed)).values for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
