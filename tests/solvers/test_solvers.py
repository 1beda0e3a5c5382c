"""Curvatures and solvers, one by one, against dense matrices."""

import copy

import grid
import pytest
import torch
from grid import normal
from reference import Dense

import crossfluence as cf
from crossfluence._curvature.base import mean_eigenvalue
from crossfluence._default import auto
from crossfluence._risk import objectives as _objective
from crossfluence._solvers import gmres
from crossfluence._solvers.base import AbstractInverse
from crossfluence._solvers.exact import dense as written_out
from crossfluence.errors import NotConvergedWarning

PROBLEMS = [pytest.param(problem, id=problem.name) for problem in grid.PROBLEMS if problem.converges]
SPLIT = [pytest.param(problem, id=problem.name) for problem in (grid.ON_OUTPUTS, grid.SOFTMAX_ON_OUTPUTS)]


def dense_of(problem):
    return Dense(problem.model, problem.loss, problem.tensors, problem.l2)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_products_are_those_of_the_dense_matrix_and_its_transpose(problem):
    J, risk = dense_of(problem).J, problem.risk()
    vectors = normal(3, risk.p, seed=0)
    assert torch.allclose(cf.FieldJacobian().product(risk, vectors), vectors @ J.T, atol=1e-9)
    assert torch.allclose(cf.FieldJacobian().transposed_product(risk, vectors), vectors @ J, atol=1e-9)
    assert torch.allclose(written_out(cf.FieldJacobian(), risk), J, atol=1e-9)


def test_a_moving_target_has_a_jacobian_that_is_not_symmetric():
    J = dense_of(grid.DEC_MOVING).J
    assert (J - J.T).norm() > 0.01 * J.norm()


@pytest.mark.parametrize("problem", SPLIT)
def test_gauss_newton_is_the_hessian_of_the_linearised_model(problem):
    dense, risk = dense_of(problem), problem.risk()

    def outputs(theta):
        return dense.call(theta, theta, lambda live, _: problem.loss.outputs(live, dense.batch))

    z, slope = outputs(dense.theta), torch.func.jacfwd(outputs)(dense.theta).reshape(-1, risk.p)
    bend = torch.func.hessian(lambda flat: problem.loss.criterion(flat.reshape(z.shape), dense.batch).sum())(
        z.flatten()
    )
    wanted = slope.T @ bend @ slope / problem.n + problem.l2 * torch.eye(risk.p)
    assert torch.allclose(written_out(cf.GaussNewton(), risk), wanted, atol=1e-10)
    assert float(torch.linalg.eigvalsh(wanted)[0]) > problem.l2 - 1e-9


def test_gauss_newton_is_the_hessian_of_a_linear_model():
    risk = grid.ON_OUTPUTS.risk()
    assert torch.allclose(written_out(cf.GaussNewton(), risk), written_out(cf.Hessian(), risk), atol=1e-12)


@pytest.mark.parametrize("curvature", [cf.Hessian(), cf.GaussNewton()], ids=str)
def test_curvature_forgets_samples_of_weight_zero(curvature):
    problem = grid.SOFTMAX_ON_OUTPUTS
    rows = [k for k in range(problem.n) if k not in (2, 5)]
    rest = cf.batches(*(tensor[rows] for tensor in problem.tensors))
    alone = cf.Risk(problem.model, problem.loss, rest, l2=problem.l2 * problem.n / len(rows))
    left = written_out(curvature, problem.risk().without([2, 5])) * problem.n / len(rows)
    assert torch.allclose(left, written_out(curvature, alone), atol=1e-12)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_mean_eigenvalue_is_the_trace_over_p(problem):
    risk = problem.risk()
    share = 1e-9 if risk.p <= 64 else 0.2
    assert mean_eigenvalue(cf.FieldJacobian(), risk) == pytest.approx(
        float(dense_of(problem).J.diagonal().mean()), rel=share
    )


def test_relative_damping_is_the_same_number_for_every_solver():
    problem = grid.AUTOENCODER
    found = [
        cf.influence(problem.risk(), problem.objective, kind(cf.Relative(0.5))) for kind in (cf.Exact, cf.CG, cf.GMRES)
    ]
    assert [scores.report.damping for scores in found] == pytest.approx([found[0].report.damping] * 3)
    for scores in found[1:]:
        assert torch.allclose(scores.values, found[0].values, rtol=1e-3)


@pytest.mark.parametrize("p", [201, 600], ids=lambda p: f"{p}_parameters")
def test_relative_damping_is_the_same_number_whether_the_trace_is_exact_or_estimated(p):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, p - 1, dtype=torch.float64, generator=generator)
    model = torch.nn.Linear(p - 1, 1).double()
    damping = cf.Relative(0.5)
    found = {
        str(solver): solver.invert(cf.Risk(model, lambda m, b: m(b)[:, 0].square(), cf.batches(x), l2=1e-2)).damping
        for solver in (
            cf.Exact(damping), cf.CG(damping), cf.GMRES(damping), cf.LiSSA(damping), cf.LowRank(20, damping),
            cf.Nystrom(20, damping), cf.Jacobi(damping),
        )
    }  # fmt: skip
    wanted = next(iter(found.values()))
    mean = 2 * float(x.square().sum(1).add(1).mean()) / p + 1e-2
    assert wanted == pytest.approx(0.5 * mean, rel=1e-9 if p <= 512 else 0.05)
    assert found == pytest.approx(dict.fromkeys(found, wanted), rel=1e-9)


def test_relative_damping_of_a_hill_is_refused():
    hill = cf.Risk(grid.LOGISTIC.model, lambda m, b: -grid.LOGISTIC.loss(m, b), cf.batches(*grid.LOGISTIC.tensors))
    with pytest.raises(ArithmeticError, match="needs a positive mean eigenvalue"):
        cf.influence(hill, grid.LOGISTIC.objective, cf.CG(cf.Relative(0.1)))


@pytest.mark.parametrize("solver", [cf.Exact, cf.GMRES], ids=["Exact", "GMRES"])
@pytest.mark.parametrize("transposed", [True, False])
def test_solutions_solve_the_damped_system_or_its_transpose(solver, transposed):
    problem = grid.DEC_MOVING
    J = dense_of(problem).J + 0.1 * torch.eye(28)
    vectors = normal(4, 28, seed=1)
    options = {} if solver is cf.Exact else {"rtol": 1e-12}
    found = solver(0.1, **options).invert(problem.risk()).solve(vectors, transposed=transposed)
    assert torch.allclose(found.vectors @ (J if transposed else J.T), vectors, atol=1e-9)
    assert max(found.residuals) < 1e-9


@pytest.mark.parametrize("solver", [cf.CG, cf.GMRES], ids=["CG", "GMRES"])
def test_a_question_of_zero_has_the_answer_zero(solver):
    vectors = normal(3, 22, seed=2)
    vectors[1] = 0
    found = solver(rtol=1e-10).invert(grid.AUTOENCODER.risk()).solve(vectors)
    assert torch.equal(found.vectors[1], torch.zeros_like(vectors[1]))
    assert found.steps[1] == 0
    assert all(found.vectors[0].isfinite())


@pytest.mark.parametrize("solver", [cf.CG, cf.GMRES], ids=["CG", "GMRES"])
def test_many_right_hand_sides_are_as_many_times_one(solver):
    inverse = solver(rtol=1e-11).invert(grid.AUTOENCODER.risk())
    vectors = normal(5, 22, seed=3) * torch.logspace(-3, 3, 5, dtype=torch.float64)[:, None]
    together = inverse.solve(vectors)
    for row, vector in enumerate(vectors):
        assert torch.allclose(together.vectors[row], inverse.solve(vector[None]).vectors[0], rtol=1e-6)


@pytest.mark.parametrize("solver", [cf.CG, cf.GMRES], ids=["CG", "GMRES"])
def test_a_perfect_preconditioner_leaves_hardly_a_step(solver):
    problem = grid.AUTOENCODER
    plain = cf.influence(problem.risk(), problem.objective, solver(rtol=1e-8))
    helped = cf.influence(problem.risk(), problem.objective, solver(rtol=1e-8, preconditioner=cf.Exact()))
    assert helped.report.steps[0] <= 2 < plain.report.steps[0]
    assert torch.allclose(helped.values, plain.values, rtol=1e-5)


def test_restarts_cost_steps_but_not_accuracy():
    problem = grid.DEC_MOVING
    whole = cf.influence(problem.risk(), problem.objective, cf.GMRES(0.01, rtol=1e-9))
    short = cf.influence(problem.risk(), problem.objective, cf.GMRES(0.01, rtol=1e-9, restart=3, max_steps=5000))
    assert short.report.steps[0] > whole.report.steps[0]
    assert torch.allclose(short.values, whole.values, rtol=1e-5, atol=1e-9)


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # no minimum
def test_gmres_solves_an_indefinite_system_that_stops_conjugate_gradients():
    problem = grid.LANGUAGE
    exact = cf.influence(problem.risk(), problem.objective, cf.Exact(0.5))
    assert exact.report.smallest_eigenvalue < -0.5
    found = cf.influence(problem.risk(), problem.objective, cf.GMRES(0.5, rtol=1e-10))
    assert torch.allclose(found.values, exact.values, rtol=1e-5, atol=1e-7)
    with pytest.raises(ArithmeticError, match="negative curvature"):
        cf.influence(problem.risk(), problem.objective, cf.CG(0.5, max_steps=2000))


@pytest.mark.parametrize(
    ("problem", "small", "chosen", "words"),
    [
        (grid.AUTOENCODER, True, "Exact", "few enough"),
        (grid.AUTOENCODER, False, "CG", "too many"),
        (grid.ON_OUTPUTS, False, "CG.*GaussNewton", "too many"),
        (grid.DEC_MOVING, False, "GMRES", "not symmetric"),
    ],
)
def test_auto_chooses_by_its_rule_and_says_so(problem, small, chosen, words, monkeypatch):
    if not small:
        monkeypatch.setattr(auto, "DENSE_PARAMETERS", 0)
    scores = cf.influence(problem.risk(), problem.objective, cf.Auto(problem.damping))
    exact = cf.influence(problem.risk(), problem.objective, cf.Exact(problem.damping))
    assert torch.allclose(scores.values, exact.values, rtol=1e-3, atol=1e-3 * float(exact.values.abs().max()))
    assert any(f"Auto chose {chosen.split('.')[0]}" in note and words in note for note in scores.report.notes)


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # no minimum
def test_auto_falls_back_to_gmres_on_negative_curvature(monkeypatch):
    problem = grid.LANGUAGE
    exact = cf.influence(problem.risk(), problem.objective, cf.Exact(0.5))
    monkeypatch.setattr(auto, "DENSE_PARAMETERS", 0)
    scores = cf.influence(problem.risk(), problem.objective, cf.Auto(0.5))
    assert torch.allclose(scores.values, exact.values, rtol=1e-2, atol=1e-4 * float(exact.values.abs().max()))
    assert any("negative curvature" in note and "GMRES took over" in note for note in scores.report.notes)


@pytest.mark.parametrize(
    "solver", [cf.Exact(0.1), cf.CG(0.1), cf.GMRES(0.1), cf.EKFAC(0.1), cf.Identity(), cf.Auto(0.1)], ids=str
)
def test_an_inverse_answers_any_number_of_questions(solver):
    problem = grid.AUTOENCODER
    inverse = solver.invert(problem.risk())
    for question in problem.objectives.values():
        again = cf.influence(problem.risk(), question, inverse)
        assert torch.allclose(again.values, cf.influence(problem.risk(), question, solver).values, rtol=1e-9)


def test_a_copy_of_the_model_is_the_same_model():
    problem = grid.AUTOENCODER
    twin = cf.Risk(copy.deepcopy(problem.model), problem.loss, cf.batches(*problem.tensors), l2=problem.l2)
    assert cf.influence(twin, problem.objective, cf.Exact().invert(problem.risk())).values.isfinite().all()


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # no minimum
@pytest.mark.parametrize("count", [300])
def test_hundreds_of_questions_are_hundreds_of_times_one(count):
    problem, points = grid.AUTOENCODER, normal(count, 4, seed=4)
    each = cf.influence(problem.risk(), cf.each_of(cf.batches(points, size=70), lambda m, x: m.error(x)), cf.Exact())
    assert each.objectives == tuple(str(k) for k in range(count))
    for k in (0, 71, 299):
        one = cf.influence(problem.risk(), lambda m, k=k: m.error(points[k : k + 1])[0], cf.Exact())
        assert torch.allclose(each.values[:, [k]], one.values, atol=1e-12)
    mean = cf.influence(problem.risk(), cf.mean_over(cf.batches(points, size=70), lambda m, x: m.error(x)), cf.Exact())
    assert torch.allclose(mean.values, each.values.mean(1, keepdim=True), atol=1e-12)
    assert mean.report.values == pytest.approx([sum(each.report.values) / count])


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # no minimum
def test_chunks_of_questions_shrink_as_the_model_grows(monkeypatch):
    problem, points, held = grid.AUTOENCODER, normal(40, 4, seed=4), []
    each = cf.each_of(cf.batches(points), lambda m, x: m.error(x))
    whole = cf.influence(problem.risk(), each, cf.CG(rtol=1e-10))
    monkeypatch.setattr(_objective, "NUMBERS_AT_ONCE", 7 * problem.risk().p)
    solve = AbstractInverse.solve
    monkeypatch.setattr(AbstractInverse, "solve", lambda self, v: held.append(len(v)) or solve(self, v))
    chunks = cf.influence(problem.risk(), each, cf.CG(rtol=1e-10))
    assert held == [7, 7, 7, 7, 7, 5]
    assert chunks.objectives == whole.objectives
    assert torch.allclose(chunks.values, whole.values, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # stopped early
def test_a_solve_that_stops_early_warns_with_its_residual():
    problem = grid.AUTOENCODER
    for solver in (cf.CG(max_steps=2), cf.GMRES(max_steps=2)):
        with pytest.warns(NotConvergedWarning, match="after 2 steps with a residual of"):
            scores = cf.influence(problem.risk(), problem.objective, solver)
        assert scores.report.residuals[0] > 1e-5


@pytest.mark.parametrize("numbers", [1, 4_000])
def test_gmres_solves_in_parts_where_the_bases_of_all_questions_have_no_room(numbers, monkeypatch):
    vectors = normal(5, 28, seed=4)
    inverse = cf.GMRES(0.1, rtol=1e-11, restart=40).invert(grid.DEC_MOVING.risk())
    together = inverse.solve(vectors)
    monkeypatch.setattr(gmres, "NUMBERS_AT_ONCE", numbers)
    parts = inverse.solve(vectors)
    assert torch.allclose(parts.vectors, together.vectors, rtol=1e-7)
    assert parts.steps == together.steps


def test_questions_that_are_solved_together_share_passes_over_the_data():
    problem, passes = grid.AUTOENCODER, []
    risk = cf.Risk(problem.model, problem.loss, Counted(problem.tensors[0], passes), l2=problem.l2)
    for solver in (cf.GMRES(0.1), cf.CG(0.1)):
        inverse = solver.invert(risk)
        passes.clear()
        found = inverse.solve(normal(20, risk.p, seed=0))
        assert len(passes) <= max(found.steps) + 3


class Counted:
    """One batch, and a list that grows whenever it is read."""

    def __init__(self, batch, passes):
        self.batch, self.passes = batch, passes

    def __iter__(self):
        self.passes.append(1)
        yield self.batch


# Negative curvature


def bent(*curvatures):
    """A risk with these second derivatives, at a point where its gradient vanishes."""
    at = torch.nn.ParameterList([torch.zeros(len(curvatures), dtype=torch.float64)])
    batches = cf.batches(torch.tensor([curvatures], dtype=torch.float64))
    return cf.Risk(at, lambda model, batch: (batch * model[0] ** 2).sum(1) / 2, batches)


def test_negative_curvature_ends_a_truncated_solve_with_a_note_and_stops_another():
    right = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.5]], dtype=torch.float64)
    found = cf.CG(truncate=True).invert(bent(2.0, 1.0, -1.0)).solve(right)
    assert found.vectors[0].tolist() == [0, 0, 0]
    assert torch.allclose(found.vectors[1], torch.tensor([0.5, 0, 0], dtype=torch.float64))
    assert any("negative curvature" in note and "2 of 3" in note for note in found.notes)
    scores = cf.influence(bent(2.0, -1.0), lambda model: model[0].sum(), cf.CG(truncate=True))
    assert any("negative curvature" in note for note in scores.report.notes)
    with pytest.raises(ArithmeticError, match="negative curvature"):
        cf.CG().invert(bent(2.0, 1.0, -1.0)).solve(right)


def test_truncating_changes_nothing_where_the_curvature_is_positive():
    vectors, risk = normal(2, 3, seed=25), bent(2.0, 1.0, -1.0)
    plain, truncated = (cf.CG(2.0, truncate=truncate).invert(risk).solve(vectors) for truncate in (False, True))
    assert torch.equal(plain.vectors, truncated.vectors)
    assert plain.notes == truncated.notes == ()


def test_truncated_solves_do_not_see_each_other_end():
    vectors = torch.cat([normal(6, 3, seed=40) * torch.tensor([1.0, 1.0, s]) for s in (0.0, 0.1, 3.0)])
    together = cf.CG(truncate=True).invert(bent(2.0, 1.0, -1.0)).solve(vectors)
    for row, vector in enumerate(vectors):
        alone = cf.CG(truncate=True).invert(bent(2.0, 1.0, -1.0)).solve(vector[None])
        assert torch.allclose(together.vectors[row], alone.vectors[0])
        assert together.steps[row] == alone.steps[0]


@pytest.mark.parametrize("preconditioner", [None, cf.Identity()])
def test_a_truncated_solve_never_points_against_its_right_hand_side(preconditioner):
    vectors = normal(30, 3, seed=41)
    solver = cf.CG(truncate=True, preconditioner=preconditioner)
    assert ((solver.invert(bent(2.0, 1.0, -1.0)).solve(vectors).vectors * vectors).sum(1) >= 0).all()


def test_a_solve_that_did_not_converge_says_so_beside_a_truncated_one():
    eye, turn = torch.eye(10, dtype=torch.float64), torch.eye(10, dtype=torch.float64)
    turn[1:, 1:] = torch.linalg.qr(normal(9, 9, seed=42)).Q  # no units of single parameters make these nine equal
    at = torch.nn.ParameterList([torch.zeros(10, dtype=torch.float64)])
    curvatures = cf.batches(torch.tensor([[-1.0, *torch.logspace(0, 6, 9).tolist()]], dtype=torch.float64))
    risk = cf.Risk(at, lambda model, batch: (batch * (turn @ model[0]) ** 2).sum(1) / 2, curvatures)
    solver = cf.CG(truncate=True, max_steps=3)
    with pytest.warns(NotConvergedWarning):
        found = solver.invert(risk).solve(torch.stack([eye[0], 1 - eye[0]]))
    assert "1 of 2" in found.notes[0]
    solver.invert(risk).solve(eye[:1])  # truncated alone: its residual is what was asked for
