"""The script for a GPU runs on the CPU at toy size, and says so."""

import csv

import pytest
import torch

from benchmarks import gpu
from benchmarks.common import results

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")


def test_at_toy_size_every_part_has_its_rows(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["gpu", "--device", "cpu", "--parts", "peers", "index"])
    gpu.main()
    assert capsys.readouterr().out.startswith("CPU, toy size: no figure\n")
    with (tmp_path / "gpu-toy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["card"] for row in rows} == {"CPU, toy size: no figure"}
    single = [row for row in rows if row["dtype"] == "float32" and row["case"] == "crossfluence"]
    assert [row["problem"] for row in single] == ["perceptron", "transformer"]
    assert all(float(row["correlation"]) > 0.9999 for row in single)
    assert sum(row["dtype"] == "bfloat16" for row in rows) == 6
    assert [row["case"] for row in rows if row["part"] == "index"] == list(gpu.CODES)
    assert all(row["seconds"] or row["note"] for row in rows)


def test_what_has_no_time_is_left_out_with_a_row(monkeypatch):
    run = gpu.Run(torch.device("cpu"), 0.0)
    assert {row["note"] for row in gpu.index(run)} == {"no time left"}
