"""First lines of docstrings say what comes out: they begin with a verb or a noun phrase, not with a question word."""

import ast
import re
from pathlib import Path

import crossfluence

FILES = sorted(Path(crossfluence.__file__).parent.rglob("*.py"))
QUESTION = re.compile(r"(What|How|Whether|Which|Where|When|Why)\b")
MOST = 10  # the identity's own sentence begins with one


def first_lines():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            named = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            if named and (text := ast.get_docstring(node)):
                yield f"{file.name}:{getattr(node, 'name', '')}", text.partition("\n")[0]


def test_few_first_lines_are_questions():
    found = [f"{place}: {line}" for place, line in first_lines() if QUESTION.match(line)]
    assert len(found) <= MOST, "\n".join(found)
