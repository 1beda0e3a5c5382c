"""Every benchmark can be imported and says how it is run."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in (ROOT / "benchmarks").rglob("*.py")
    if file.name not in {"__init__.py", "__main__.py"}
)
SCRIPTS = [name for name in MODULES if "def main(" in (ROOT / f"{name.replace('.', '/')}.py").read_text()]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_imported(name):
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "benchmarks.peers.libraries"])
def test_a_script_starts_and_its_help_holds_its_own_command(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main()
    assert not stop.value.code
    assert f"python -m {name}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["mixture", "planted", "weat", "scifi"])
def test_an_experiment_of_the_paper_starts(command):
    found = CliRunner().invoke(importlib.import_module("benchmarks.paper.__main__").app, [command, "--help"])
    assert found.exit_code == 0, found.output
    assert "--out" in found.output


def test_the_adapter_of_other_libraries_needs_no_crossfluence():
    script = (
        "import sys; sys.modules['crossfluence'] = None; import benchmarks.peers.libraries, benchmarks.common.models"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
