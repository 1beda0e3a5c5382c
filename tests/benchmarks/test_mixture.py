"""The paper's mixture of Gaussians at toy size: each estimate beside its own retraining, a table and a figure."""

from dataclasses import replace

import pandas as pd
import pytest

from benchmarks.paper.mixture import CONVERGED, PAPER, estimates, gaussians, mixture_study

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # two steps of training


def test_every_estimate_of_the_mixture_stands_beside_its_own_retraining(tmp_path):
    toy = replace(CONVERGED, pretraining=20, steps=30, damping=1.0)
    for setting in (toy, PAPER):
        found = list(estimates(setting, 0, left_out=4))
        assert [name for name, _, _ in found] == [
            "cross-loss, moving target", "cross-loss, fixed target", "gradient similarity", "matched",
        ]  # fmt: skip
        truths = [agreement.actual for _, agreement, _ in found]
        assert (truths[0] == truths[1]).all()
        assert (truths[0] != truths[3]).any()


def test_the_mixture_study_writes_a_table_and_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.paper.mixture.CONVERGED", replace(CONVERGED, pretraining=5, steps=5, damping=1.0))
    rows = mixture_study(tmp_path / "out", seeds=1, left_out=4)
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert len(table) == len(rows) == 8
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["figure.html", "results.csv"]
    assert gaussians(0)[0].shape == (150, 2)
