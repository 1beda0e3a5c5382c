"""Fits that are stopped anywhere: they go on where they were, and end bitwise as if nothing had happened."""

import contextlib
import copy

import grid
import pytest
import torch
from grid import leaves, normal
from torch import Tensor

import crossfluence as cf
from crossfluence import errors
from crossfluence._kronecker.layers import Layers
from crossfluence._solvers import nystrom
from crossfluence._storage import partial as _checkpoint

PROBLEM = grid.SOFTMAX_ON_OUTPUTS
FITS = [
    cf.EKFAC(0.1), cf.EKFAC(0.1, curvature=cf.Fisher(samples=2, seed=3)), cf.EKFAC(0.1, curvature=cf.EmpiricalFisher()),
    cf.KFAC(0.1), cf.Diagonal(0.1),
    cf.LowRank(5, cf.Relative(0.1)), cf.Nystrom(9, 0.1, curvature=cf.GaussNewton()),
]  # fmt: skip


class Stopped(BaseException):
    """As a KeyboardInterrupt, or the end of the process."""


@pytest.fixture
def work(monkeypatch):
    """Counts pieces of work, and stops before one; every state that is offered is written."""

    class Cost:
        count, stop = 0, -1

    def note():
        if Cost.count == Cost.stop:
            raise Stopped
        Cost.count += 1

    def counted(function):
        def call(self, *arguments):
            note()
            return function(self, *arguments)

        return call

    def each_counted(function):
        def call(self, *arguments):
            for found in function(self, *arguments):
                note()
                yield found

        return call

    monkeypatch.setattr(Layers, "along", each_counted(Layers.along))  # once for each batch and draw
    monkeypatch.setattr(cf.Risk, "jacobian_product", counted(cf.Risk.jacobian_product))
    monkeypatch.setattr(cf.Risk, "gauss_newton_product", counted(cf.Risk.gauss_newton_product))
    monkeypatch.setattr(_checkpoint, "SHARE", float("inf"))
    monkeypatch.setattr(nystrom, "VECTORS_AT_ONCE", 2)
    return Cost


def equal(first, second):
    pairs = zip(leaves(first), leaves(second), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("solver", FITS, ids=str)
def test_a_fit_that_is_stopped_anywhere_ends_bitwise_as_one_that_is_not(solver, work, tmp_path):
    whole = solver.invert(PROBLEM.risk(size=7))
    pieces, draws = work.count, getattr(solver.curvature, "samples", 1)
    for stop in range(0, pieces, 3):
        file = tmp_path / str(stop)
        work.count, work.stop = 0, stop
        with pytest.raises(Stopped):
            solver.invert(PROBLEM.risk(size=7), checkpoint=file)
        work.count, work.stop = stop // draws * draws, -1  # a batch is done when all its draws are
        assert equal(solver.invert(PROBLEM.risk(size=7), checkpoint=file), whole)
        assert work.count == pieces  # nothing twice
        assert [path.name for path in tmp_path.iterdir()] == [file.name]
        file.unlink()


def test_a_fit_may_be_stopped_again_and_again(work, tmp_path):
    whole, risk = cf.EKFAC(0.1).invert(PROBLEM.risk(size=7)), PROBLEM.risk(size=7)
    found, count = None, 0
    while found is None:
        work.count, work.stop = 0, 1
        count += 1
        with contextlib.suppress(Stopped):
            found = cf.EKFAC(0.1).invert(risk, checkpoint=tmp_path / "fit")
    assert count == 12  # six batches, twice
    assert equal(found, whole)


@pytest.mark.parametrize("solver", [*FITS, cf.Exact(0.1), cf.Jacobi(0.1), cf.Auto(0.1)], ids=str)
def test_a_finished_fit_comes_back_at_once_and_is_an_inverse(solver, work, tmp_path):
    made = solver.invert(PROBLEM.risk(), checkpoint=tmp_path / "fit")
    work.stop = work.count
    assert equal(solver.invert(PROBLEM.risk(), checkpoint=tmp_path / "fit"), made)
    assert equal(cf.load_inverse(tmp_path / "fit"), made)


def test_a_fit_that_was_stopped_is_no_inverse(work, tmp_path):
    work.stop = 3
    with pytest.raises(Stopped):
        cf.EKFAC(0.1).invert(PROBLEM.risk(size=7), checkpoint=tmp_path / "fit")
    with pytest.raises(errors.ResultFileError, match="holds a PartialFit; needed an inverse"):
        cf.load_inverse(tmp_path / "fit")


def moved():
    model = copy.deepcopy(PROBLEM.model)
    with torch.no_grad():
        next(model.parameters()).add_(1e-9)
    return cf.Risk(model, PROBLEM.loss, cf.batches(*PROBLEM.tensors, size=7), l2=PROBLEM.l2)


@pytest.mark.parametrize("stop", [3, -1], ids=["unfinished", "finished"])
@pytest.mark.parametrize(
    ("solver", "other", "words"),
    [
        (cf.EKFAC(0.1), moved, r"differs, by content hash or value: model \("),
        (cf.EKFAC(0.1), lambda: PROBLEM.risk(size=8), r"value: data \("),
        (
            cf.EKFAC(0.2),
            lambda: PROBLEM.risk(size=7),
            r"value: solver \(EKFAC\(damping=0\.1.*, now EKFAC\(damping=0\.2",
        ),
        (
            cf.LowRank(3),
            lambda: PROBLEM.risk(size=7, l2=0.3),
            r"solver \(EKFAC.*, now LowRank.*, l2 \(0\.05, now 0\.3\)",
        ),
    ],
    ids=["model", "data", "damping", "solver and l2"],
)
def test_a_fit_of_something_else_is_refused_with_what_differs(solver, other, words, stop, work, tmp_path):
    work.stop = stop
    try:
        cf.EKFAC(0.1).invert(PROBLEM.risk(size=7), checkpoint=tmp_path / "fit")
    except Stopped:
        assert stop > 0
    before = (tmp_path / "fit").read_bytes()
    with pytest.raises(errors.StaleError, match=words):
        solver.invert(other(), checkpoint=tmp_path / "fit")
    assert (tmp_path / "fit").read_bytes() == before


def test_solvers_that_fit_nothing_say_so_before_they_begin(work, tmp_path):
    work.stop = 0
    for solver in (cf.CG(0.1, preconditioner=cf.EKFAC(0.1)), cf.GMRES(0.1), cf.LiSSA(0.1)):
        with pytest.raises(errors.UnsupportedError, match="fits nothing that a file could keep"):
            solver.invert(PROBLEM.risk(), checkpoint=tmp_path / "fit")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "text").write_text("mine")
    with pytest.raises(errors.ResultFileError, match="Cannot read"):
        cf.EKFAC(0.1).invert(PROBLEM.risk(), checkpoint=tmp_path / "text")
    assert (tmp_path / "text").read_text() == "mine"


def test_writing_takes_at_most_a_twentieth_of_the_time(tmp_path, monkeypatch):
    clock, written = [0.0], []

    def slow(*arguments):
        clock[0] += 2.0
        written.append(clock[0])

    monkeypatch.setattr(_checkpoint.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(_checkpoint, "write_archive", slow)
    kept = _checkpoint.Checkpoint(tmp_path / "fit")
    for _ in range(1000):
        clock[0] += 1.0
        kept.maybe_save(lambda: (normal(2, seed=0),))
    assert len(written) * 2.0 <= 0.06 * clock[0]
    assert len(written) > 20
