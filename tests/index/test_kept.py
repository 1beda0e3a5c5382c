"""Indexes that earlier versions wrote open for ever, and answer as they did."""

import json
import shutil
from pathlib import Path

import make_kept
import pytest
import torch
from torch.testing import assert_close as close

import crossfluence as cf

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")
KEPT = Path(__file__).parent / "kept"
VERSIONS = sorted(path.name for path in KEPT.iterdir())


@pytest.fixture(params=VERSIONS)
def folder(request, tmp_path):
    shutil.copytree(KEPT / request.param, tmp_path / "kept")  # a sketch and a lock are written beside
    return tmp_path / "kept"


@pytest.mark.parametrize("dtype", make_kept.DTYPES)
def test_an_index_of_every_version_opens_and_answers(dtype, folder):
    answers = json.loads((folder / "answers.json").read_text())
    index = make_kept.opened(folder, dtype)
    scores = index.scores(make_kept.question)
    close(scores.values, torch.tensor(answers[dtype]["scores"]), rtol=1e-4, atol=1e-6)
    close(index.self_influence().values[:, 0], torch.tensor(answers[dtype]["own"]), rtol=1e-4, atol=1e-7)
    assert list(index.ids) == answers["ids"]
    if dtype not in {"sign", "int4"}:  # of twelve samples these keep too little
        close(
            scores.values, torch.tensor(answers["influence"]), rtol=0.02, atol=0.02 * float(scores.values.abs().max())
        )


@pytest.mark.parametrize("dtype", make_kept.DTYPES)
def test_samples_are_added_to_an_index_of_every_version(dtype, folder):
    index = make_kept.opened(folder, dtype)
    x, y = make_kept.data()
    index.append(cf.batches(x, y, size=5), ids=[f"again {row}" for row in range(make_kept.N)], loss=make_kept.loss)
    values = index.scores(make_kept.question).values
    close(values[make_kept.N :], values[: make_kept.N], rtol=1e-4, atol=1e-6)


def test_one_of_each_dtype_is_kept():
    assert VERSIONS[0] == "1"
    for version in VERSIONS:
        assert sorted(path.name for path in (KEPT / version).iterdir() if path.is_dir()) == sorted(make_kept.DTYPES)
        assert sum(path.stat().st_size for path in (KEPT / version).rglob("*")) < 100_000
