"""Modules of this folder that run in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_module(
    name: str, *arguments: str, python: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m NAME ARGUMENTS` from the root of the repository, and keeps its output and its return code."""
    command, variables = [python, "-m", name, *arguments], os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a module's output, which holds its result.

    Raises:
        ChildProcessError: If it failed; with the last line of its errors.
    """
    if done.returncode:  # -9 where memory ran out
        said = done.stderr.strip().splitlines() or ["no message"]
        raise ChildProcessError(f"{' '.join(done.args[2:4])} ended with {done.returncode}: {said[-1]}")
    return done.stdout.splitlines()[-1]
