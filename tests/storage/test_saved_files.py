"""Files on disk: those of commit 31222c6 open and hold their values; torn, strange and newer ones are refused."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import is_dataclass, replace
from pathlib import Path

import pytest
import torch
from fixtures import make
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close as close

import crossfluence as cf
from crossfluence._evaluation import model_cache as banks
from crossfluence._storage import archive as _archive
from crossfluence._storage import partial as _checkpoint
from crossfluence._storage.archive import fitting, read_archive, read_tensors, write_archive, write_tensors
from crossfluence._storage.hashing import content_hash
from crossfluence.errors import NewerFileError, ResultFileError, StaleError
from crossfluence.words import resume as kept
from crossfluence.words.corpus.corpus import Corpus
from crossfluence.words.corpus.pairs import Pairs
from crossfluence.words.corpus.vocabulary import corpus_of
from crossfluence.words.skipgram import ExpectedTraining
from crossfluence.words.skipgram.expected import _Checkpoint

OLD = Path(make.__file__).parent
VALUES = load_file(OLD / "values.safetensors")
SOLVERS = make.solvers()
NAMES_IN_FILES = {
    "EKFACInverse", "Eigenblock", "ExactInverse", "IdentityInverse", "JacobiInverse", "Layout", "LowRankInverse",
    "Relative", "Slot", "Sums", "Unfinished",
}  # fmt: skip


def old(name):
    return OLD / f"{name}.safetensors"


def changed(name, path, **texts):
    """A file of the first format with other texts."""
    with safe_open(old(name), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file(tensors, path, metadata={**file.metadata(), **texts})
    return path


def structure(name):
    with safe_open(old(name), framework="pt") as file:
        return file.metadata()["structure"]


# Files of commit 31222c6


@pytest.mark.parametrize("name", SOLVERS)
def test_an_old_inverse_solves_as_it_did_and_as_one_that_is_made_now(name):
    inverse, asked = cf.load_inverse(old(name)), make.questions()
    close(inverse.solve(asked).vectors, VALUES[name], rtol=1e-12, atol=1e-13)
    close(inverse.solve(asked).vectors, SOLVERS[name].invert(make.risk()).solve(asked).vectors, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_old_inverse_is_written_again_in_the_present_format(name, tmp_path):
    cf.load_inverse(old(name)).save(tmp_path / "again")
    content = (tmp_path / "again").read_bytes()
    assert content.count(b"crossfluence") == content.count(b"crossfluence.inverse/2") == 1
    close(cf.load_inverse(tmp_path / "again").solve(make.questions()).vectors, VALUES[name], rtol=1e-12, atol=1e-13)


def test_old_inverses_open_where_nothing_but_the_package_was_imported():
    script = "import sys, crossfluence\nfor file in sys.argv[1:]: print(type(crossfluence.load_inverse(file)).__name__)"
    files = [str(old(name)) for name in SOLVERS]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *files], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(cf.__file__).parents[1])},
    )  # fmt: skip
    assert done.stdout.split() == [type(cf.load_inverse(file)).__name__ for file in files]


def test_an_old_inverse_is_of_another_risk_and_the_error_says_what_may_be_the_reason():
    with pytest.raises(StaleError, match=r"No hash agrees: it may be of an earlier version"):
        cf.influence(make.risk(), lambda net: net[0].weight.sum(), cf.load_inverse(old("exact")))
    inverse = cf.Exact(0.5).invert(make.risk())
    with pytest.raises(StaleError, match=r"invert\(risk\)\.$"):
        cf.influence(replace(make.risk(), l2=0.5), lambda net: net[0].weight.sum(), inverse)


def test_an_old_singular_inverse_is_refused():
    found = read_tensors(old("exact"), "crossfluence.inverse/1")
    whole = json.loads(found.texts["structure"])
    whole["fields"]["singular"] = True
    with pytest.raises(ResultFileError, match="inverse of a singular curvature was kept in another form"), fitting("f"):
        _archive._unpacked(whole, found)


def resigned(name, path):
    """A stopped fit of the first format, as if signatures had not changed since."""
    content = json.loads(structure(name))
    content["fields"]["signature"] = make.risk().signature
    return changed(name, path, structure=json.dumps(content))


def test_an_old_fit_that_was_stopped_goes_on_to_the_inverse_of_one_that_was_not(tmp_path, monkeypatch):
    solver, read = SOLVERS["ekfac-corrected"], []
    file = resigned("stopped-ekfac-corrected", tmp_path / "fit")
    monkeypatch.setattr(_checkpoint.Checkpoint, "maybe_save", lambda kept, state: read.append(state()))
    made = solver.invert(make.risk(), checkpoint=file)
    assert 0 < len(read) < 7  # of three batches, twice, and the bases between
    close(made.solve(make.questions()).vectors, VALUES["ekfac-corrected"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["low-rank", "nystrom"])
def test_old_fits_in_other_units_are_refused_and_left_alone(name, tmp_path):
    file = resigned(f"stopped-{name}", tmp_path / "fit")
    before = file.read_bytes()
    with pytest.raises(ResultFileError, match=r"a fit of (LowRank|Nystrom)\(.*other units\. Delete the file"):
        SOLVERS[name].invert(make.risk(), checkpoint=file)
    assert file.read_bytes() == before


def test_old_scores_are_those_that_were_saved():
    scores = cf.Scores.load(old("scores"))
    assert torch.equal(scores.values, VALUES["scores"])
    assert torch.equal(scores.errors, VALUES["scores"].square())
    assert (scores.ids, scores.objectives) == (("a", 2, ("b", None), True), ("margin", "norm"))
    assert (scores.method, scores.members, scores.verdict) == ("by hand", 3, None)
    assert (scores.report.steps, scores.report.residuals) == ((3, 4), (1e-9, 2e-9))


@pytest.fixture
def bank(tmp_path):
    """A bank, and the name of its one model."""
    made = cf.Bank(make.recipe(), tmp_path / "bank")
    made(torch.ones(12, dtype=torch.float64))
    (file,) = (tmp_path / "bank").iterdir()
    return made, file


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_an_old_model_of_a_bank_is_read_and_is_what_training_gives(bank, monkeypatch):
    made, file = bank
    close(flat(made(torch.ones(12, dtype=torch.float64))), VALUES["bank"], rtol=1e-12, atol=1e-14)
    shutil.copy(old("bank"), file)
    monkeypatch.setattr(cf.Recipe, "_fit", None)  # trains nothing
    assert torch.equal(flat(made(torch.ones(12, dtype=torch.float64))), VALUES["bank"])


def test_an_old_model_whose_numbers_changed_is_trained_again(bank):
    made, file = bank
    content = bytearray(old("bank").read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    close(flat(made(torch.ones(12, dtype=torch.float64))), VALUES["bank"], rtol=1e-12, atol=1e-14)
    assert read_tensors(file, banks.FORMAT).form == banks.FORMAT


def test_an_old_corpus_is_the_one_that_its_texts_make(tmp_path):
    corpus = Corpus.load(OLD / "corpus.npz")
    assert corpus.digest == corpus_of(make.TEXTS).digest
    corpus.save(tmp_path / "again")
    assert Corpus.load(tmp_path / "again").digest == corpus.digest


def test_an_old_training_that_was_stopped_goes_on(tmp_path):
    def training():
        return ExpectedTraining(Pairs(corpus_of(make.TEXTS)), dimensions=2, seed=0, tolerance=1e-12)

    tensors = load_file(old("stopped-training"))
    (what,) = set(tensors) - {"steps"}
    steps, point = _Checkpoint(old("stopped-training"), what).read()
    assert (steps, point.shape) == (4, (2 * len(training().pairs.corpus.words) * 2,))
    assert _Checkpoint(old("stopped-training"), "another").read() is None
    now = content_hash(training()._settings, None)
    save_file({now: point, "steps": tensors["steps"]}, tmp_path / "training")
    whole, (model, ended) = training().fit(), training().fit(checkpoint=tmp_path / "training")
    assert ended.evaluations < whole[1].evaluations
    products = [found.word_vectors @ found.context_vectors.T for found in (model, whole[0])]
    close(*products, rtol=0, atol=1e-5)


# Files of now


def test_names_in_files_are_never_given_up():
    assert set(_archive._BY_NAME) >= NAMES_IN_FILES
    assert all(is_dataclass(known.made) for known in _archive._BY_NAME.values())
    with pytest.raises(AssertionError, match="Slot stands for"):
        _archive.stored("Slot")(cf.Relative)


def test_equal_content_makes_equal_bytes_and_long_texts_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(_archive, "LONGEST_TEXT", 10)
    texts = {"z": "short", "b": "é" * 11, "a": '"\\\n\x01'}
    for name in ("one", "two", "three"):
        write_tensors(tmp_path / name, "x/1", {"t": torch.eye(3).T[1:]}, **texts)
    assert len({(tmp_path / name).read_bytes() for name in ("one", "two", "three")}) == 1
    found = read_tensors(tmp_path / "one", "x/1")
    assert {name: found.texts[name] for name in texts} == texts
    assert list(found.tensors) == ["t"]
    assert torch.equal(found.tensors["t"], torch.eye(3)[1:])


def test_more_labels_than_a_header_may_hold_are_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(_archive, "LONGEST_TEXT", 10)
    scores = cf.Scores(torch.ones(30, 1), tuple(map(str, range(30))), ("m",), "by hand")
    scores.save(tmp_path / "scores")
    assert cf.Scores.load(tmp_path / "scores").ids == scores.ids


def newer(form, path):
    kind, _, version = form.rpartition("/")
    write_tensors(path, f"{kind}/{int(version) + 1}", {"new": torch.ones(1)})
    return path


KINDS = {
    "crossfluence.scores/1": cf.Scores.load,
    "crossfluence.inverse/2": cf.load_inverse,
    "crossfluence.corpus/2": Corpus.load,
    "crossfluence.model/2": banks._read,
    "crossfluence.training/2": lambda path: _Checkpoint(path, "any").read(),
    "crossfluence.skipgram/2": lambda path: kept._read(path, "any"),
}


@pytest.mark.parametrize("form", KINDS)
def test_a_file_of_a_newer_version_is_refused_with_what_to_type(form, tmp_path):
    with pytest.raises(NewerFileError, match=r"needed '.*/\d'\. A newer crossfluence wrote it\. Type: pip install"):
        KINDS[form](newer(form, tmp_path / "newer"))


def test_a_bank_leaves_a_model_of_a_newer_version_alone(bank):
    made, file = bank
    content = newer(banks.FORMAT, file).read_bytes()
    with pytest.raises(NewerFileError, match="newer"):
        made(torch.ones(12, dtype=torch.float64))
    assert file.read_bytes() == content


@pytest.mark.parametrize("form", KINDS)
@pytest.mark.parametrize("content", ["torn", "another kind", "without content", "bad texts"])
def test_files_that_cannot_be_read_are_errors_or_nothing(form, content, tmp_path):
    file, texts = tmp_path / "file", dict.fromkeys(["structure", "ids", "texts", "method", "what"], "{")
    write_tensors(file, "other/1" if content == "another kind" else form, {"0": torch.ones(9)},
                  **(texts if content == "bad texts" else {}))  # fmt: skip
    if content == "torn":
        file.write_bytes(file.read_bytes()[:-9])
    if list(KINDS).index(form) > 2:  # can be computed again
        assert KINDS[form](file) is None
        return
    with pytest.raises(ResultFileError, match=str(file)):
        KINDS[form](file)


@pytest.mark.parametrize("name", [*SOLVERS, "scores", "stopped-low-rank"])
def test_torn_old_files_are_refused(name, tmp_path):
    content = old(name).read_bytes()
    for length in (0, 7, 40, len(content) // 2, len(content) - 1):
        (tmp_path / "torn").write_bytes(content[:length])
        with pytest.raises(ResultFileError, match=r"Cannot read .* from .*torn"):
            (cf.Scores.load if name == "scores" else cf.load_inverse)(tmp_path / "torn")


def test_a_torn_old_corpus_is_refused(tmp_path):
    content = (OLD / "corpus.npz").read_bytes()
    for length in (0, 7, 40, len(content) // 2, len(content) - 1):
        (tmp_path / "torn").write_bytes(content[:length])
        with pytest.raises(ResultFileError, match=r"torn is not a corpus that Corpus\.save wrote"):
            Corpus.load(tmp_path / "torn")


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        ({"class": "Gone", "fields": {}}, "it holds a Gone, which is no class"),
        ({"class": ["crossfluence.solvers.gone", "Gone"], "fields": {}}, "it holds a Gone"),
        ({"class": ["os", "system"], "fields": {}}, "it holds a system"),
        ({"class": "Relative", "fields": {"other": 1}}, "argument"),
        ({"class": "Relative", "fields": {"factor": -1}}, "needed zero or more"),
        ({"class": 3, "fields": {}}, "not subscriptable"),
        ({"class": "Relative"}, "no 'fields'"),
        ({"tensor": "9"}, "no '9'"),
        ({"dtype": "ones"}, "ones is no type of numbers"),
        ({}, "values to unpack"),
    ],
    ids=str,
)
def test_content_that_does_not_fit_is_named(packed, words, tmp_path):
    write_tensors(tmp_path / "file", "x/1", {"0": torch.ones(1)}, structure=json.dumps(packed))
    with pytest.raises(ResultFileError, match=f"file is damaged, or was written by another version.*{words}.*again"):
        read_archive(tmp_path / "file", "x/1")


def test_the_class_named_by_the_first_format_is_found_wherever_it_lies_now(tmp_path):
    whole = structure("ekfac-corrected").replace("crossfluence.curvature.blocks", "crossfluence.no.such.module")
    assert "no.such.module" in whole
    inverse = cf.load_inverse(changed("ekfac-corrected", tmp_path / "moved", structure=whole))
    assert torch.equal(inverse.solve(make.questions()).vectors, VALUES["ekfac-corrected"])


def test_an_unregistered_class_is_not_written(tmp_path):
    with pytest.raises(TypeError, match="a SGD"):
        write_archive(tmp_path / "file", (cf.SGD(0.1),), "x/1")
    assert list(tmp_path.iterdir()) == []


def test_hashes_of_content_do_not_depend_on_where_this_library_keeps_its_code(monkeypatch):
    def hashes():
        return [content_hash(value) for value in (cf.SGD(0.1), cf.SGD, cf.leave_out, make.loss())]

    before = hashes()
    for moved in (cf.SGD, cf.leave_out, cf.OnOutputs):
        monkeypatch.setattr(moved, "__module__", "crossfluence.elsewhere")
    assert hashes() == before
