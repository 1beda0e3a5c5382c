"""An index gives the scores of `influence`; what is stopped goes on to the same bytes; what does not fit is refused."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close as close

import crossfluence as cf
from crossfluence._index import row_code, shards, sketch
from crossfluence._index.codes import CODES
from crossfluence._storage import atomic
from crossfluence.errors import (
    DataError,
    NewerFileError,
    NonFiniteError,
    ObjectiveError,
    ParameterError,
    ResultFileError,
    StaleError,
    UnsupportedError,
)

# Small networks whose training was not run to its end: numbers are compared, not believed.
pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")

N = 40


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class DataManifest(nn.Module):
    """A table, attention over three words, a normalisation, and a parameter that belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.words, self.mixed = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.norm, self.out, self.scale = nn.LayerNorm(4), nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, text):
        x = self.words(text)
        x = x + F.scaled_dot_product_attention(self.mixed(x), x, x)
        return self.out(self.norm(x).mean(1)) * self.scale


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def reader():
    torch.manual_seed(0)
    return DataManifest().double()


def numbers(n, seed):
    x = drawn(n, 5, seed=seed)
    return x, x[:, :3].argmax(1)


def text(n, seed):
    x = torch.randint(7, (n, 3), generator=torch.Generator().manual_seed(seed))
    return x, x[:, 0] % 3


PROBLEMS = {"network": (network, numbers), "reader": (reader, text)}


def risk_of(name="network", n=N, **settings):
    model, data = PROBLEMS[name]
    with torch.random.fork_rng():
        return cf.Risk(model(), loss, cf.batches(*data(n, 1), size=16), **settings)


def each(name="network", m=9):
    return cf.each_of(cf.batches(*PROBLEMS[name][1](m, 2), size=5), loss)


QUESTIONS = {
    "each": each,
    "mean": lambda name: cf.mean_over(cf.batches(*PROBLEMS[name][1](9, 2), size=5), loss),
    "named": lambda name: lambda model: {
        "a": next(model.parameters()).square().sum(), "b": sum(part.sum() for part in model.parameters())
    },
}  # fmt: skip
SOLVERS = [cf.EKFAC(tolerance=0.0), cf.KFAC(0.1, tolerance=0.0), cf.BlockDiagonal(0.1), cf.Diagonal(0.1)]


def correlation(first, second):
    return float(torch.corrcoef(torch.stack([first.values.flatten().double(), second.values.flatten()]))[0, 1])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1_000)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_in_single_precision_scores_are_those_of_influence(name, question, folder):
    risk, asked = risk_of(name), QUESTIONS[question](name)
    inverse = cf.EKFAC(tolerance=0.0).invert(risk)
    wanted = cf.influence(risk, asked, inverse)
    cf.Index.build(risk, inverse, folder, dtype="float32")
    found = cf.Index.open(folder, risk.model).scores(asked)
    close(found.values.double(), wanted.values, rtol=1e-5, atol=1e-5 * float(wanted.values.abs().max()))
    close(torch.tensor(found.report.drift), torch.tensor(wanted.report.drift), rtol=1e-5, atol=1e-7)
    assert (found.ids, found.objectives) == (wanted.ids, wanted.objectives)
    assert found.report.fingerprint == wanted.report.fingerprint
    assert found.verdict.level == wanted.verdict.level


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_every_solver_with_blocks_makes_an_index(solver, folder):
    risk = risk_of(l2={"*weight": 0.1})
    index = cf.Index.build(risk, solver, folder, dtype="float32")
    inverse = solver.invert(risk)
    wanted = cf.influence(risk, QUESTIONS["mean"]("network"), inverse).values
    close(
        index.scores(QUESTIONS["mean"]("network")).values.double(), wanted, rtol=1e-5, atol=1e-6 * float(wanted.max())
    )
    close(index.self_influence().values.double(), cf.self_influence(risk, inverse).values, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("dtype", "least"), [("float16", 0.999999), ("int8", 0.9999), ("int4", 0.99), ("sign", 0.75)])
def test_every_code_is_near_and_says_how_near_it_is(dtype, least, folder):
    risk = risk_of("reader")
    index = cf.Index.build(risk, cf.EKFAC(), folder, dtype=dtype, tolerance=0.0)
    wanted = cf.influence(risk, each("reader"), cf.EKFAC(tolerance=0.0))
    found = index.scores(each("reader"))
    assert correlation(found, wanted) > least
    assert abs(index.info()["agreement"] - correlation(found, wanted)) < 0.2 * (1 - least) + 1e-6
    assert f"correlation of {index.info()['agreement']:.4f}" in found.report.notes[0]
    assert ("correlation" in str(found.verdict)) == (dtype == "sign")


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_tolerance_is_the_share_of_the_scores_that_may_be_missed(dtype, folder):
    risk, seen = risk_of(n=200), []
    inverse = cf.EKFAC(tolerance=0.0).invert(risk)
    wanted = cf.influence(risk, each(m=60), inverse)
    for tolerance in (0.0, 0.1, 0.4):
        index = cf.Index.build(risk, inverse, f"{folder}-{tolerance}", dtype=dtype, tolerance=tolerance)
        scores = index.scores(each(m=60))
        missed = float((scores.values - wanted.values).norm() / wanted.values.norm())
        assert missed < 1.6 * tolerance + 0.01
        seen.append((index.info()["bytes a sample"], index.info()["coordinates"]))
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 3


def test_planes_and_codes_multiply_as_numbers_do():
    rows, questions = drawn(70, 133, seed=3), drawn(5, 133, seed=4)
    energy = drawn(133, seed=5).abs()
    for code in CODES.values():
        parts = code.encoded(rows, energy)
        wanted = code.decoded(parts, 133).double() @ questions.T
        for m in (1, 5):
            found = code.products(parts, code.prepared(questions[:m].float()))
            close(found.double(), wanted[:, :m], rtol=0, atol=2e-4 * float(wanted.abs().max()))
        assert sum(part[0].nbytes for part in parts.values()) == code.bytes_of(133)
    parts = CODES["sign"].encoded(rows, energy)  # a row's product with itself is exact
    close((CODES["sign"].decoded(parts, 133).double() * rows) @ energy, rows.square() @ energy, rtol=1e-5, atol=0)


def test_the_strongest_samples_are_those_of_all_scores(folder, small_shards):
    risk = risk_of(n=200)
    index = cf.Index.build(risk, cf.EKFAC(), folder, dtype="int8")
    scores, found = index.scores(each()), index.search(each(), 3)
    for name in scores.objectives:
        for effect in ("raises", "lowers"):
            assert found.top(3, name, effect=effect) == scores.top(3, name, effect=effect)
    close(found.values, scores.select(found.ids).values)
    assert len(found) <= 6 * len(scores.objectives)


@pytest.mark.parametrize("far", [1, 512])
def test_a_sketch_finds_most_of_the_strongest_and_follows_what_is_appended(far, folder, small_shards, monkeypatch):
    monkeypatch.setattr(shards, "FAR", far)  # rows of so many bytes are read one by one
    monkeypatch.setattr(sketch, "RANK", (8, 8))
    risk = risk_of(n=300)
    index = cf.Index.build(risk, cf.EKFAC(), folder, dtype="int8")
    question = QUESTIONS["mean"]("network")
    wanted = {label for label, _ in index.scores(question).top(10)}
    assert len({label for label, _ in index.search(question, 10, share=0.3).top(10)} & wanted) >= 6
    directions = sketch.read_if_whole(folder / sketch.FILE, sketch.FORM).tensors["0"]
    index.append(cf.batches(*numbers(50, 7), size=20))
    assert index.search(question, 400, share=1.0).ids == index.search(question, 400, share=0.99999).ids
    scores = index.scores(question)
    found = index.search(question, 40, share=0.5)
    close(found.values, scores.select(found.ids).values)
    assert torch.equal(sketch.read_if_whole(folder / sketch.FILE, sketch.FORM).tensors["0"], directions)
    assert len(sketch.read_if_whole(folder / sketch.FILE, sketch.FORM).tensors["rows"]) == 350


@pytest.mark.parametrize("dtype", CODES)
def test_appended_samples_are_those_that_one_call_would_add(dtype, folder, small_shards):
    risk = risk_of()
    inverse = cf.EKFAC(tolerance=0.0).invert(risk)
    x, y = numbers(30, 7)
    whole = cf.Index.build(risk, inverse, f"{folder}-whole", dtype=dtype)
    whole.append(cf.batches(x, y, size=10))
    parts = cf.Index.build(risk, inverse, folder, dtype=dtype)
    parts.append(cf.batches(x[:10], y[:10], size=10))
    parts = cf.Index.open(folder, risk.model)
    parts.append(cf.batches(x[10:], y[10:], size=10), loss=loss)
    found = parts.scores(each())
    close(found.values, whole.scores(each()).values)  # files end elsewhere, and sums are taken in another order
    assert found.ids == tuple(range(70))
    assert torch.equal(cf.Index.open(folder, risk.model).scores(each()).values, found.values)
    if dtype == "float32":
        wanted = cf.influence(risk, each(), inverse, candidates=cf.batches(x, y, size=10)).values
        close(found.values[N:].double(), wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))


def test_an_index_of_a_part_to_which_the_rest_is_added_is_that_of_all(folder, small_shards):
    """With one fit: samples weigh the same whether they were there from the beginning or came later."""
    whole, x, y = risk_of(n=48), *numbers(48, 1)
    inverse = cf.EKFAC(tolerance=0.0).invert(whole)
    index = cf.Index.build(whole, inverse, folder, dtype="int8")
    index.append(cf.batches(x, y, size=16), ids=[f"again {row}" for row in range(48)])
    values = index.scores(each()).values
    close(values[:48], values[48:])


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != shards.LOCK}


class Killed(BaseException):
    """As a KeyboardInterrupt."""


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_killed_at_any_file_and_run_again_the_bytes_are_the_same(dtype, folder, small_shards, monkeypatch):
    risk, write = risk_of(), atomic.os.replace
    cf.Index.build(risk, cf.EKFAC(), f"{folder}-whole", dtype=dtype)
    wanted = contents(f"{folder}-whole")
    assert sum(name.startswith("rows") for name in wanted) > 2
    for stop in range(40):
        place, count = Path(f"{folder}-{stop}"), iter(range(100))

        def killing(source, target, stop=stop, count=count):
            if next(count) == stop:
                raise Killed
            write(source, target)

        monkeypatch.setattr(atomic.os, "replace", killing)
        try:
            cf.Index.build(risk, cf.EKFAC(), place, dtype=dtype)
        except Killed:
            monkeypatch.setattr(atomic.os, "replace", write)
            cf.Index.build(risk, cf.EKFAC(), place, dtype=dtype)
            assert contents(place) == wanted
        else:
            break
    assert stop > 4


def test_a_build_that_was_stopped_is_refused_when_opened_and_appending_goes_on(folder, small_shards, monkeypatch):
    risk, write = risk_of(), shards.write_tensors
    left = [2]

    def full(path, *args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise ResultFileError(f"Cannot write {path}: No space left on device.")
        write(path, *args, **kwargs)

    monkeypatch.setattr(shards, "write_tensors", full)
    with pytest.raises(ResultFileError, match=r"No space left on device\. 8 of 40 samples .*run the same line again"):
        cf.Index.build(risk, cf.EKFAC(), folder, dtype="float32")
    with pytest.raises(DataError, match=r"is not finished: 8 of 40 samples are in it\. Run the same"):
        cf.Index.open(folder, risk.model)
    left[0] = 100
    index = cf.Index.build(risk, cf.EKFAC(), folder, dtype="float32")
    before = index.scores(each()).values
    left[0] = 1
    with pytest.raises(ResultFileError, match="nothing of them is lost"):
        index.append(cf.batches(*numbers(30, 7), size=10))
    assert torch.equal(cf.Index.open(folder, risk.model).scores(each()).values, before)
    left[0] = 100
    index = cf.Index.open(folder, risk.model)
    index.append(cf.batches(*numbers(30, 7), size=10), loss=loss)
    other = cf.Index.build(risk, cf.EKFAC(), f"{folder}-other", dtype="float32")
    other.append(cf.batches(*numbers(30, 7), size=10))
    assert contents(folder) == contents(f"{folder}-other")


def test_a_disk_that_is_full_is_named_with_what_is_kept(folder, small_shards, monkeypatch):
    risk, write, left = risk_of(), atomic.os.fsync, [8]

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        write(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(ResultFileError, match=r"rows-0000\d.*No space left.*samples are in whole files, and nothing"):
        cf.Index.build(risk, cf.EKFAC(), folder, dtype="float32")
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []


# What does not fit


def test_a_folder_that_is_no_index_is_refused(tmp_path):
    with pytest.raises(ResultFileError, match=r"is no index: it has no manifest\.json\. Make one: crossfluence\.Index"):
        cf.Index.open(tmp_path)
    with pytest.raises(ResultFileError, match="is no index: it does not exist"):
        cf.Index.open(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ResultFileError, match=r"holds other files \(notes\.txt\) and no index"):
        cf.Index.build(risk_of(), cf.EKFAC(), tmp_path)
    with pytest.raises(ResultFileError, match=r"Cannot make the folder .*Make its parent first"):
        cf.Index.build(risk_of(), cf.EKFAC(), tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_index_of_another_model_is_refused(folder):
    risk = risk_of()
    cf.Index.build(risk, cf.EKFAC(), folder)
    with pytest.raises(StaleError, match=r"of another model, one with 0\.weight \(6, 5\) \(the model has \(2, 5\)\)"):
        cf.Index.open(folder, nn.Sequential(nn.Linear(5, 2)).double())
    other = network()
    with torch.no_grad():
        other[0].weight.add_(1)
    with pytest.raises(StaleError, match=r"other weights or buffers .*content hash \w{8}, now \w{8}"):
        cf.Index.open(folder, other)
    with pytest.raises(StaleError, match=r"other modes, training or evaluation"):
        cf.Index.open(folder, network().eval())
    with pytest.raises(UnsupportedError, match=r"needed the trained torch\.nn\.Module"):
        cf.Index.open(folder, risk)
    index = cf.Index.open(folder, risk.model)
    with torch.no_grad():
        risk.model[0].weight.add_(1)
    with pytest.raises(StaleError, match="other weights"):
        index.scores(each())


def test_a_folder_with_an_index_of_something_else_is_not_written_to(folder):
    cf.Index.build(risk_of(), cf.EKFAC(), folder)
    before = contents(folder)
    for risk, solver, settings, words in [
        (risk_of(l2=0.5), cf.EKFAC(), {}, r"l2 \(0\.0, now 0\.5\)"),
        (risk_of(n=30), cf.EKFAC(), {}, r"data \(\w{8}, now \w{8}\)"),
        (risk_of(), cf.EKFAC(0.5), {}, r"solver \(EKFAC.*, now EKFAC\(damping=0\.5"),
        (risk_of(), cf.EKFAC(), {"dtype": "sign"}, r"dtype \(float16, now sign\)"),
        (risk_of(), cf.EKFAC(), {"tolerance": 0.2}, r"tolerance \(0\.05, now 0\.2\)"),
    ]:
        with pytest.raises(StaleError, match=f"holds an index of something else. What differs.*{words}"):
            cf.Index.build(risk, solver, folder, **settings)
    assert contents(folder) == before
    assert cf.Index.build(risk_of(), cf.EKFAC(), folder).info()["samples"] == N
    assert contents(folder) == before


def test_a_question_about_parameters_that_were_left_out_is_refused(folder):
    risk = risk_of(params="2.*")
    index = cf.Index.build(risk, cf.EKFAC(), folder)
    with pytest.raises(ObjectiveError, match=r"does not depend on the trained parameters \['2\.weight', '2\.bias'\]"):
        index.scores(lambda model: model[0].weight.sum())
    with torch.no_grad():
        model = network()
        model[2].weight.mul_(1e-3)
    risk = cf.Risk(model, loss, cf.batches(*numbers(N, 1), size=16))
    index = cf.Index.build(risk, cf.EKFAC(1.0), f"{folder}-2", tolerance=0.1)
    with pytest.raises(ParameterError, match=r"parameters that the index left out: .*It stores 2\..*lower tolerance"):
        index.scores(lambda model: model[0].weight.sum())
    assert index.scores(lambda model: model[2].bias[0]).values.any()


def test_an_id_that_is_there_twice_is_refused(folder):
    index = cf.Index.build(risk_of(ids=[f"s{row}" for row in range(N)]), cf.EKFAC(), folder)
    data, before = cf.batches(*numbers(2, 7)), contents(folder)
    with pytest.raises(DataError, match=r"1 of the 2 new ids are in the index already: 's3'\. Give others"):
        index.append(data, ids=["new", "s3"])
    with pytest.raises(DataError, match="2 ids of which only 1 differ"):
        index.append(data, ids=["new", "new"])
    with pytest.raises(DataError, match="Got 1 ids for 2 new samples"):
        index.append(data, ids=["new"])
    assert contents(folder) == before
    index.append(data)
    assert index.ids[-3:] == ("s39", 40, 41)


def test_two_builders_in_one_folder_are_refused(folder):
    index = cf.Index.build(risk_of(), cf.EKFAC(), folder)
    script = (
        "import sys, crossfluence._index.shards as s, pathlib\n"
        "with s.building(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cf.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=-1, stdout=-1, env=environment, text=True
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        for write in (
            lambda: cf.Index.build(risk_of(), cf.EKFAC(), folder), lambda: index.append(cf.batches(*numbers(2, 7)))
        ):  # fmt: skip
            with pytest.raises(ResultFileError, match=r"Another process or thread is writing the index in .*Wait"):
                write()
        other.kill()
        other.wait()
    index.append(cf.batches(*numbers(2, 7)))  # a builder that died holds nothing
    assert index.info()["samples"] == N + 2


def test_an_index_that_another_one_wrote_to_has_to_be_opened_again(folder):
    index = cf.Index.build(risk_of(), cf.EKFAC(), folder)
    other = cf.Index.open(folder, network())
    other.append(cf.batches(*numbers(2, 7)), loss=loss)
    assert len(index.scores(each())) == N
    with pytest.raises(StaleError, match="was written to since it was opened"):
        index.append(cf.batches(*numbers(2, 8)))


@pytest.mark.parametrize("name", ["rows-00001.safetensors", "fit.safetensors", "start.safetensors"])
def test_torn_missing_and_foreign_files_are_refused(name, folder, small_shards):
    cf.Index.build(risk_of(), cf.EKFAC(), folder, dtype="float32")
    file = folder / name
    content = bytearray(file.read_bytes())

    def ask():
        cf.Index.open(folder, network()).scores(each())

    ask()
    file.write_bytes(content[:-9])
    with pytest.raises(ResultFileError, match=rf"{name} has [\d,]+ bytes; the index lists [\d,]+ bytes"):
        ask()
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ResultFileError, match=rf"{name} is damaged or of another index: its content hash is \w{{8}}"):
        ask()
    file.unlink()
    with pytest.raises(ResultFileError, match=rf"{name} is missing"):
        ask()


def test_a_damaged_or_newer_list_is_refused(folder):
    cf.Index.build(risk_of(), cf.EKFAC(), folder)
    file = folder / "manifest.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "format": "crossfluence.index/2"}))
    with pytest.raises(NewerFileError, match=r"A newer crossfluence wrote it"):
        cf.Index.open(folder)
    for wrong in ("{", json.dumps({**content, "parts": 3}), json.dumps({"format": content["format"]})):
        file.write_text(wrong)
        with pytest.raises(ResultFileError, match=r"manifest\.json is damaged"):
            cf.Index.open(folder)
    file.write_text(json.dumps({**content, "added later": 1}))
    assert cf.Index.open(folder).info()["samples"] == N


def test_wrong_settings_are_refused(folder):
    risk = risk_of()
    with pytest.raises(
        ValueError, match=r"Got dtype='int2'; needed one of 'float32', 'float16', 'int8', 'int4', 'sign'"
    ):
        cf.Index.build(risk, cf.EKFAC(), folder, dtype="int2")
    with pytest.raises(ValueError, match=r"Got tolerance=1\.5"):
        cf.Index.build(risk, cf.EKFAC(), folder, tolerance=1.5)
    with pytest.raises(UnsupportedError, match=r"a solver with blocks.*EKFAC\(\)"):
        cf.Index.build(risk, cf.CG(0.1), folder)
    coupled = cf.Risk(network(), cf.WeightedLoss(lambda net, batch, w: (w * loss(net, batch)).sum() ** 2),
                      cf.batches(*numbers(N, 1), size=16))  # fmt: skip
    with pytest.raises(UnsupportedError, match="gradient for each sample alone"):
        cf.Index.build(coupled, cf.EKFAC(), folder)
    index = cf.Index.build(risk, cf.EKFAC(), folder)
    for k, share in ((0, 1.0), (3, 0.0), (3, 1.5)):
        with pytest.raises(ValueError, match="needed at least 1, and a share"):
            index.search(each(), k, share=share)
    with pytest.raises(UnsupportedError, match=r"for the objective of Index\.scores"):
        index.scores(3)
    alone = cf.Index.open(folder)
    assert alone.self_influence().values.shape == (N, 1)
    with pytest.raises(UnsupportedError, match=r"opened without the model.*Index\.open\('.*', model\)"):
        alone.scores(each())
    with pytest.raises(UnsupportedError, match=r"hold no loss\. Type: index\.append\(data, loss=loss\)"):
        cf.Index.open(folder, network()).append(cf.batches(*numbers(2, 7)))
    with pytest.raises(StaleError, match="The loss is another one"):
        cf.Index.open(folder, network()).append(
            cf.batches(*numbers(2, 7)), loss=lambda model, batch: 2 * loss(model, batch)
        )
    x, y = numbers(4, 7)
    x[3] = float("nan")
    with pytest.raises(NonFiniteError, match="Batch 1 of the new data gives a NaN"):
        index.append(cf.batches(x, y, size=2))


def test_a_scan_holds_one_file_and_small_pieces(folder, small_shards, monkeypatch):
    monkeypatch.setattr(row_code, "CHUNK_BYTES", 1)
    risk, sizes = risk_of("reader", n=300), []
    index = cf.Index.build(risk, cf.EKFAC(), folder, dtype="int8")
    products = CODES["int8"].products

    def counted(code, parts, prepared):
        sizes.append(len(parts["rows"]))
        return products(parts, prepared)

    monkeypatch.setattr(type(CODES["int8"]), "products", counted)
    wanted = index.scores(each("reader")).values
    assert max(sizes) <= 64
    monkeypatch.setattr(row_code, "CHUNK_BYTES", 2**22)
    close(index.scores(each("reader")).values, wanted)


def test_everything_is_as_it_was(folder):
    risk = risk_of()
    state, before = torch.get_rng_state(), [part.clone() for part in risk.model.parameters()]
    index = cf.Index.build(risk, cf.EKFAC(), folder)
    index.scores(each()), index.search(each(), 2, share=0.5), index.append(cf.batches(*numbers(2, 7)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, risk.model.parameters(), before))
    assert all(part.grad is None for part in risk.model.parameters())
    assert repr(index).startswith(f"Index('{folder}': 42 samples as float16, EKFAC(")


def test_without_agreement_nothing_is_promised(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = cf.Index.build(risk_of(n=1), cf.EKFAC(0.1), folder)
    assert index.info()["agreement"] is None
    assert "correlation" not in index.scores(each()).report.notes[0]
    shutil.rmtree(folder)
