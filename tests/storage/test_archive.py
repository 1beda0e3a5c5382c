"""Inverses on disk: equal when they come back, refused when the risk is another one."""

import copy
import json

import grid
import pytest
import torch
from grid import leaves
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import crossfluence as cf
from crossfluence import errors
from crossfluence._risk.base import differing, signed
from crossfluence._storage.archive import read_archive, write_archive

PROBLEM = grid.SOFTMAX_ON_OUTPUTS
KEPT = [
    cf.Exact(0.1), cf.LowRank(5, 0.1), cf.Nystrom(5, 0.1, curvature=cf.GaussNewton()), cf.Jacobi(0.1), cf.Identity(),
    cf.Auto(0.1), cf.EKFAC(0.1),
]  # fmt: skip
BOUND = [cf.CG(0.1), cf.GMRES(0.1), cf.LiSSA(0.1), cf.CG(0.1, preconditioner=cf.Jacobi(0.1))]


@pytest.mark.parametrize("solver", KEPT, ids=str)
def test_an_inverse_comes_back_as_it_was(solver, tmp_path):
    inverse = solver.invert(PROBLEM.risk())
    inverse.save(tmp_path / "inverse")
    again = cf.load_inverse(tmp_path / "inverse")
    assert type(again) is type(inverse)
    for before, after in zip(leaves(inverse), leaves(again), strict=True):
        assert torch.equal(before, after) if isinstance(before, Tensor) else before == after
    scores = cf.influence(PROBLEM.risk(), PROBLEM.ask, again)
    assert torch.allclose(scores.values, cf.influence(PROBLEM.risk(), PROBLEM.ask, inverse).values, rtol=1e-12)
    assert scores.report.notes == cf.influence(PROBLEM.risk(), PROBLEM.ask, inverse).report.notes


@pytest.mark.parametrize("solver", BOUND, ids=str)
def test_an_inverse_that_asks_the_data_each_time_says_that_it_cannot_be_saved(solver, tmp_path):
    with pytest.raises(errors.UnsupportedError, match=r"no factors that a file could hold.*invert\(risk\)"):
        solver.invert(PROBLEM.risk()).save(tmp_path / "inverse")
    assert list(tmp_path.iterdir()) == []


def other_model():
    model = copy.deepcopy(PROBLEM.model)
    with torch.no_grad():
        next(model.parameters()).add_(1e-6)
    return cf.Risk(model, PROBLEM.loss, cf.batches(*PROBLEM.tensors), l2=PROBLEM.l2)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (other_model, r"value: model \([0-9a-f]{8}, now [0-9a-f]{8}\)\."),
        (lambda: PROBLEM.permuted(torch.arange(40).flip(0)), r"value: data \("),
        (lambda: PROBLEM.risk(l2=0.2), r"value: l2 \(0\.05, now 0\.2\)\."),
        (lambda: PROBLEM.risk(params="0.*"), r"value: params \("),
        (lambda: PROBLEM.risk().without([3]), r"value: weights \("),
        (lambda: PROBLEM.risk(params="0.*", l2=0.2), r"value: l2 \(0\.05, now 0\.2\), params \("),
        (
            lambda: cf.Risk(PROBLEM.model, lambda m, b: m(b[0])[:, 0], cf.batches(*PROBLEM.tensors), l2=0.05),
            r"value: data \(.*, loss \(|value: loss \(",
        ),
    ],
    ids=["model", "data", "l2", "params", "weights", "two things", "loss"],
)
def test_a_stale_inverse_is_refused_with_what_differs(other, words, tmp_path):
    cf.LowRank(3).invert(PROBLEM.risk()).save(tmp_path / "inverse")
    with pytest.raises(errors.StaleError, match=words):
        cf.influence(other(), PROBLEM.objective, cf.load_inverse(tmp_path / "inverse"))


def test_a_signature_is_taken_apart_as_it_was_put_together():
    before, now = signed(model="a" * 32, l2=0.1), signed(model="a" * 32, l2=0.25, corpus="b" * 32)
    assert differing(before, before) == []
    assert differing(before, now) == ["l2 (0.1, now 0.25)", "corpus (none, now bbbbbbbb)"]


def test_saving_again_replaces_the_whole_file_and_leaves_no_other(tmp_path):
    cf.LowRank(9).invert(PROBLEM.risk()).save(tmp_path / "inverse")
    cf.LowRank(2).invert(PROBLEM.risk()).save(tmp_path / "inverse")
    assert cf.load_inverse(tmp_path / "inverse").solver == repr(cf.LowRank(2))
    assert [file.name for file in tmp_path.iterdir()] == ["inverse"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(errors.ResultFileError, match="does not exist"):
        cf.LowRank(2).invert(PROBLEM.risk()).save(tmp_path / "no" / "inverse")


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(errors.ResultFileError, match="Cannot read"):
        cf.load_inverse(tmp_path / "absent")
    (tmp_path / "text").write_text("not safetensors")
    with pytest.raises(errors.ResultFileError, match="Cannot read"):
        cf.load_inverse(tmp_path / "text")
    cf.influence(PROBLEM.risk(), PROBLEM.objective, cf.Exact()).save(tmp_path / "scores")
    with pytest.raises(errors.ResultFileError, match=r"format 'crossfluence\.scores/1'; needed"):
        cf.load_inverse(tmp_path / "scores")


def test_a_damaged_file_is_refused(tmp_path):
    cf.LowRank(2).invert(PROBLEM.risk()).save(tmp_path / "inverse")
    content = (tmp_path / "inverse").read_bytes()
    (tmp_path / "inverse").write_bytes(content[:-40])
    with pytest.raises(errors.ResultFileError, match="Cannot read"):
        cf.load_inverse(tmp_path / "inverse")


@pytest.mark.parametrize(
    "made",
    [
        {"class": ["os", "system"], "fields": {}},
        {"class": ["crossfluence.app", "main"], "fields": {}},
        {"class": ["crossfluence._solvers.base", "os.system"], "fields": {}},
        {"class": ["crossfluence._solvers.low_rank", "LowRankInverse"], "fields": {"solver": "LowRank"}},
        {"class": ["crossfluence._solvers.gone", "Gone"], "fields": {}},
    ],
)
def test_a_file_makes_nothing_but_values_of_this_package(made, tmp_path):
    header = {"format": "crossfluence.inverse/1", "structure": json.dumps(made)}
    save_file({"0": torch.ones(1)}, tmp_path / "inverse", metadata=header)
    with pytest.raises(errors.ResultFileError, match="another version of crossfluence"):
        cf.load_inverse(tmp_path / "inverse")


def test_values_that_are_no_inverse_are_refused(tmp_path):
    write_archive(tmp_path / "value", cf.Relative(0.1), "crossfluence.inverse/1")
    assert read_archive(tmp_path / "value", "crossfluence.inverse/1") == cf.Relative(0.1)
    with pytest.raises(errors.ResultFileError, match="holds a Relative; needed an inverse"):
        cf.load_inverse(tmp_path / "value")


def test_a_view_is_saved_without_what_it_is_a_view_of(tmp_path):
    from crossfluence._solvers.jacobi import JacobiInverse

    JacobiInverse("x", "model=a", torch.ones(10_000)[::100], 0.0).save(tmp_path / "inverse")
    assert (tmp_path / "inverse").stat().st_size < 2_000
    with safe_open(tmp_path / "inverse", framework="pt") as file:
        assert file.get_tensor("0").shape == (100,)
