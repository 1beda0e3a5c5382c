"""Clusterings kept in a folder, and trained again without some samples."""

import pytest
import torch
from grid import normal

from crossfluence import influence, leave_out
from crossfluence.clustering import ClusterSettings, Settled, margin, settled
from crossfluence.errors import ResultFileError, StaleError

X = 0.5 * normal(40, 2, seed=0) + torch.tensor([[0.0, 0.0], [4.0, 4.0], [4.0, -4.0]])[torch.arange(40) % 3]
IDS = tuple(f"r{row}" for row in range(40))
SETTINGS = ClusterSettings(3, pretraining=30, steps=60, sizes=(2, 3))


@pytest.fixture(scope="module")
def found():
    return settled(X, IDS, SETTINGS)


@pytest.fixture(scope="module")
def folder(found, tmp_path_factory):
    made = tmp_path_factory.mktemp("kept") / "a.result"
    found.save(made)
    return made


def test_a_kept_clustering_comes_back_to_the_last_bit(found, folder):
    again = Settled.load(folder)
    assert again.settings == found.settings
    assert again.risk.labels == IDS
    assert torch.equal(again.x, X)
    assert again.seconds == found.seconds
    question = margin(X[3], 0, 1)
    scores = [influence(one.risk, question, one.inverse).values for one in (found, again)]
    assert torch.equal(*scores)
    assert torch.equal(again.trained_again([1, 2]).centres, found.trained_again([1, 2]).centres)


def test_training_again_is_what_leave_out_does_and_tells_every_step(found):
    question, steps = margin(X[3], 0, 1), []
    model = found.trained_again([1, 5], lambda done, total: steps.append((done, total)))
    assert steps == [(done, 60) for done in range(1, 61)]
    truth = leave_out(found.recipe, question, {"both": ["r1", "r5"]}, ids=IDS)
    with torch.no_grad():
        change = float(question(found.model) - question(model))
    assert change == pytest.approx(float(truth.values[0, 0]), abs=1e-12)
    assert change != 0


def test_what_a_listener_raises_ends_the_training(found):
    def stop(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        found.trained_again([1], stop)


def test_a_damaged_or_mixed_folder_is_refused(found, folder, tmp_path):
    with pytest.raises(ResultFileError, match="clustering"):
        Settled.load(tmp_path)
    other = settled(X + 1, IDS, SETTINGS)
    other.save(tmp_path)
    (tmp_path / "inverse.safetensors").write_bytes((folder / "inverse.safetensors").read_bytes())
    mixed = Settled.load(tmp_path)
    with pytest.raises(StaleError):
        influence(mixed.risk, margin(X[3], 0, 1), mixed.inverse)
    (tmp_path / "clustering.safetensors").write_bytes(b"nothing")
    with pytest.raises(ResultFileError):
        Settled.load(tmp_path)


def test_small_networks_keep_to_one_thread_and_the_number_comes_back():
    from crossfluence.clustering.processes import one_thread

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
