"""The examples run, at toy size."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # a few epochs

EXAMPLES = Path(__file__).parents[2] / "examples"
TOY = {"own_model": {"samples": 80, "left_out": 4}, "contrastive": {"samples": 20, "epochs": 100}}


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_an_example_runs(name, capsys):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(**TOY[name])
    assert "trained again: Pearson" in capsys.readouterr().out
