"""Results: reading them, adding them up, keeping them."""

import json

import pytest
import torch
from grid import normal

import crossfluence as cf
from crossfluence import errors

VALUES = torch.tensor([[1.0, -4.0], [-2.0, 5.0], [3.0, 0.0], [0.0, 6.0]])
SCORES = cf.Scores(VALUES, ("a", "b", "c", "d"), ("x", "y"), "by hand")


def test_top_lists_each_sign_strongest_first_and_never_a_zero():
    assert SCORES.top(objective="x") == [("c", 3.0), ("a", 1.0)]
    assert SCORES.top(objective="x", effect="lowers") == [("b", -2.0)]
    assert SCORES.top(1, "y") == [("d", 6.0)]
    assert SCORES.top(0, "y") == []


def test_top_is_sorting_by_hand():
    values = normal(50, 1, seed=0)
    scores = cf.Scores(values, range(50), ("m",), "by hand")
    assert [row for row, _ in scores.top(50)] == sorted(
        (k for k in range(50) if values[k] > 0), key=lambda k: -values[k]
    )
    lowered = sorted((k for k in range(50) if values[k] < 0), key=lambda k: values[k])
    assert [row for row, _ in scores.top(50, effect="lowers")] == lowered


def test_ties_keep_the_order_of_the_data():
    assert [row for row, _ in cf.Scores(torch.ones(5, 1), range(5), ("m",), "by hand").top(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SCORES.top(), errors.IdError, r"Got no objective; these scores answer 2: 'x', 'y'\. Pass objective="),
        (lambda: SCORES.top(objective="z"), errors.IdError, "Got 'z'"),
        (lambda: SCORES.top(effect="up", objective="x"), ValueError, "effect='up'; needed 'raises' or 'lowers'"),
        (lambda: SCORES.top(-1, "x"), ValueError, "k=-1"),
        (lambda: SCORES.select(["a", "z"]), errors.IdError, "Unknown id 'z'; there are 4 ids: 'a', 'b'"),
        (lambda: SCORES.select([["a"]]), errors.IdError, r"Unknown id \['a'\]"),
        (lambda: SCORES.sum_by(["g"] * 3), ValueError, "3 group labels for 4 samples"),
        (lambda: SCORES.sum_by({}), ValueError, "no groups"),
        (lambda: SCORES.sum_by({"a": 1, "b": 1}), errors.IdError, "'c' has no group"),
        (lambda: SCORES.sum_by({"g": ["a", "z"]}), errors.IdError, "Unknown id 'z'"),
        (lambda: cf.Scores(VALUES, "abc", ("x", "y"), ""), ValueError, r"\(4, 2\) for 3 ids"),
        (lambda: cf.Scores(VALUES, "abca", ("x", "y"), ""), ValueError, "only 3 differ"),
        (lambda: cf.Scores(VALUES[:, 0], "abcd", ("x",), ""), ValueError, r"needed \(4, 1\)"),
    ],
)
def test_what_is_not_there_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_select_keeps_the_order_asked_for():
    chosen = SCORES.select(["d", "a"])
    assert chosen.ids == ("d", "a")
    assert torch.equal(chosen.values, VALUES[[3, 0]])
    assert len(SCORES.select([])) == 0


def test_the_three_forms_of_groups_mean_the_same():
    labels = ["u", "v", "u", "v"]
    by_label = SCORES.sum_by(labels)
    by_id = SCORES.sum_by(dict(zip("abcd", labels, strict=True)))
    by_name = SCORES.sum_by({"u": ["a", "c"], "v": ["b", "d"]})
    for found in (by_label, by_id, by_name):
        assert found.ids == ("u", "v")
        assert torch.equal(found.values, torch.stack([VALUES[[0, 2]].sum(0), VALUES[[1, 3]].sum(0)]))


def test_named_groups_may_overlap_and_leave_samples_out():
    found = SCORES.sum_by({"all": list("abcd"), "one": {"b"}, "none": []})
    assert torch.equal(found.values, torch.stack([VALUES.sum(0), VALUES[1], torch.zeros(2)]))


def test_groups_of_groups_add_up():
    twice = SCORES.sum_by(["u", "v", "w", "w"]).sum_by(["left", "left", "right"])
    assert torch.equal(twice.values, SCORES.sum_by(["left", "left", "right", "right"]).values)


@pytest.mark.parametrize(
    "ids",
    [(0, 1), ("a", "1"), (1, "1"), (("doc", 3), ("doc", 4)), ((("deep",), 1), None), (0.5, True), ("é", "\n\"'")],
    ids=repr,
)
def test_ids_come_back_from_a_file_as_they_were(ids, tmp_path):
    cf.Scores(VALUES[:2], ids, ("x", "y"), "by hand").save(tmp_path / "kept")
    loaded = cf.Scores.load(tmp_path / "kept").ids
    assert loaded == ids
    assert [type(label) for label in loaded] == [type(label) for label in ids]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_come_back_bitwise_also_from_views(dtype, tmp_path):
    values = normal(3, 6, seed=1).to(dtype).T[::2]
    cf.Scores(values, range(3), tuple("xyz"), "by hand").save(tmp_path / "kept")
    loaded = cf.Scores.load(tmp_path / "kept").values
    assert loaded.dtype == dtype
    assert torch.equal(loaded, values)


def test_a_report_comes_back_with_its_missing_and_undefined_figures(tmp_path):
    report = cf.SolveReport("CG", steps=(3, 4), residuals=(1e-6, float("inf")), notes=("a note",), values=(1.0, 2.0))
    cf.Scores(VALUES, "abcd", ("x", "y"), "by hand", report).save(tmp_path / "kept")
    assert repr(cf.Scores.load(tmp_path / "kept").report) == repr(report)


def test_an_id_that_cannot_be_kept_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"Cannot save the id .* of type frozenset.*ids=\[str\(x\)"):
        cf.Scores(VALUES[:1], (frozenset({1}),), ("x", "y"), "by hand").save(tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    for scale in (1, 2):
        cf.Scores(scale * VALUES, "abcd", ("x", "y"), "by hand").save(tmp_path / "kept")
    assert torch.equal(cf.Scores.load(tmp_path / "kept").values, 2 * VALUES)
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_a_file_that_cannot_be_written_or_read_is_named(tmp_path):
    with pytest.raises(errors.ResultFileError, match=r"no_folder does not exist. Make it first"):
        SCORES.save(tmp_path / "no_folder" / "kept")
    with pytest.raises(errors.ResultFileError, match="nothing_here"):
        cf.Scores.load(tmp_path / "nothing_here")
    with pytest.raises(errors.ResultFileError):
        cf.Scores.load(tmp_path)
    SCORES.save(tmp_path / "kept")
    whole = (tmp_path / "kept").read_bytes()
    for damaged in (b"", whole[:40], whole[:-1], b"text"):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(OSError, match="Cannot read scores"):
            cf.Scores.load(tmp_path / "damaged")


def test_another_kind_of_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"values": VALUES}, tmp_path / "other", metadata={"format": "pt"})
    with pytest.raises(errors.ResultFileError, match=r"format 'pt'; needed 'crossfluence\.scores/1'"):
        cf.Scores.load(tmp_path / "other")
    save_file({"weight": VALUES}, tmp_path / "other")
    with pytest.raises(errors.ResultFileError):
        cf.Scores.load(tmp_path / "other")


def test_the_header_can_be_read_without_the_library(tmp_path):
    SCORES.save(tmp_path / "kept")
    raw = (tmp_path / "kept").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    assert json.loads(header["ids"]) == list("abcd")


def test_a_frame_has_ids_down_and_objectives_across():
    pytest.importorskip("pandas")
    frame = cf.Scores(VALUES[:2], (("doc", 1), ("doc", 2)), ("x", "y"), "by hand").to_frame()
    assert frame.loc[[("doc", 2)], "y"].item() == 5.0
    assert list(frame.columns) == ["x", "y"]


def test_a_picture_shows_both_signs():
    pytest.importorskip("plotly")
    assert list(SCORES.plot("x").data[0].y) == ["c", "a", "b"]
