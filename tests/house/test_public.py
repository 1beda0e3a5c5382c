"""What users see: the names, their documentation, and what an import costs."""

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import crossfluence as cf
from crossfluence import errors as _errors

PUBLIC = [pytest.param(getattr(cf, name), id=name) for name in cf.__all__]
RESULTS = {  # nobody makes one by hand
    "Agreement", "Batches", "LDS", "Outcome", "Plan", "QLD", "RemovalCurve", "SolveReport",
}  # fmt: skip
ERRORS = [kind for kind in vars(_errors).values() if inspect.isclass(kind) and issubclass(kind, Exception)]


def test_all_is_sorted():
    assert cf.__all__ == sorted(cf.__all__)


def test_all_is_complete():
    bound = {name for name, value in vars(cf).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert bound == set(cf.__all__)


@pytest.mark.parametrize("thing", [case for case in PUBLIC if case.id not in RESULTS | {"CrossfluenceError"}])
def test_every_name_is_documented_with_an_example_that_runs(thing):
    text = inspect.getdoc(thing) or ""
    assert re.search(r"^Example:", text, re.MULTILINE)
    assert doctest.DocTestParser().get_examples(text)


@pytest.mark.parametrize("thing", [case for case in PUBLIC if inspect.isfunction(case.values[0])])
def test_every_argument_of_a_function_is_documented(thing):
    text = inspect.getdoc(thing) or ""
    missing = [
        name for name in inspect.signature(thing).parameters if not re.search(rf"^ +{name}: ", text, re.MULTILINE)
    ]
    assert missing == []


@pytest.mark.parametrize("thing", [case for case in PUBLIC if hasattr(case.values[0], "__dataclass_fields__")])
def test_every_field_of_a_value_is_documented_and_frozen(thing):
    fields = {
        name for name, f in thing.__dataclass_fields__.items() if f.init and name in inspect.signature(thing).parameters
    }
    text = inspect.getdoc(thing) or ""
    assert [name for name in fields if not re.search(rf"^ +{name}: ", text, re.MULTILINE)] == []
    assert thing.__dataclass_params__.frozen


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_ours_and_a_built_in(error):
    if issubclass(error, Warning):
        assert issubclass(error, UserWarning)
        return
    assert issubclass(error, cf.CrossfluenceError)
    strangers = [
        base
        for base in error.__mro__
        if base.__module__ == "builtins" and base not in (Exception, BaseException, object)
    ]
    assert strangers or error is cf.CrossfluenceError


def test_a_missing_package_is_named_with_what_to_type():
    error = _errors.MissingExtraError("Scores.to_frame", "pandas", "frame")
    assert "pip install 'crossfluence[frame]'" in str(error)
    assert isinstance(error, ImportError)


def test_an_unknown_id_prints_as_a_sentence():
    assert str(_errors.IdError("Unknown id 3.")) == "Unknown id 3."


def test_importing_loads_no_optional_package_and_warns_of_nothing():
    heavy = {"pandas", "plotly", "sklearn", "typer", "jinja2", "rich", "pyarrow", "scipy", "matplotlib", "beartype"}
    script = "import sys, crossfluence; crossfluence.Risk; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert heavy & set(done.stdout.split()) == set()
    assert done.stderr == ""


def test_importing_waits_for_nothing_until_a_name_is_used():
    script = "import sys, crossfluence, crossfluence.words, crossfluence.clustering; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert set(dir(cf)) >= set(cf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'risk'"):
        cf.risk  # noqa: B018


@pytest.mark.parametrize("package", ["", "clustering", "language", "words"])
def test_a_type_checker_sees_no_module_that_answers_to_any_name(package):
    tree = ast.parse((Path(cf.__file__).parent / package / "__init__.py").read_text())
    assert "__getattr__" not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    checks = [node for node in tree.body if isinstance(node, ast.If)]
    assert [ast.unparse(node.body[0]) for node in checks] == ["from ._public import *"]


def test_importing_leaves_the_settings_of_torch_alone():
    script = (
        "import torch\n"
        "see = lambda: (torch.get_rng_state().sum().item(), torch.get_default_dtype(), torch.is_grad_enabled(),"
        " torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled(), torch.get_printoptions()"
        " if hasattr(torch, 'get_printoptions') else 0)\n"
        "before = see(); import crossfluence; crossfluence.Risk; assert see() == before"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_reference_has_every_public_name_once():
    pages = (Path(__file__).parents[2] / "docs" / "api").glob("*.md")
    text = "\n".join(page.read_text() for page in pages)
    names = re.findall(r"^::: crossfluence\.(\w+)$", text, re.MULTILINE)
    assert sorted(set(names) - {"errors"}) == cf.__all__
    assert len(names) == len(set(names))


@pytest.mark.parametrize("package", ["language"])
def test_the_reference_has_every_name_of_a_package_once(package):
    names = importlib.import_module(f"crossfluence.{package}").__all__
    text = (Path(__file__).parents[2] / "docs" / "api" / f"{package}.md").read_text()
    assert names == sorted(names)
    assert sorted(re.findall(rf"^::: crossfluence\.{package}\.(\w+)$", text, re.MULTILINE)) == names


def test_the_version_stands_in_one_place():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in text
    assert not re.search(r"^version\s*=", text, re.MULTILINE)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", cf.__version__)
