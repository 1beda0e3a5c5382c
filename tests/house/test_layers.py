"""Imports go down only, heavy packages load late, files stay short: read from the source, not from what runs."""

import ast
import importlib
from pathlib import Path

import pytest

import crossfluence

ROOT = Path(crossfluence.__file__).parent
FILES = sorted(file for file in ROOT.rglob("*.py") if file.stat().st_size)
FLOORS = [  # from the top; what begins with an underscore is ours
    {"app"},
    {"clustering", "language", "tabular", "words"},
    {"extend", "_public"},
    {"_actions"},
    {"_index"},
    {"_attribution"},
    {"_evaluation"},
    {"_training"},
    {"_default"},
    {"_horizon"},
    {"_kronecker"},
    {"_solvers"},
    {"_curvature"},
    {"_risk"},
    {"_checks"},
    {"_losses"},
    {"_data"},
    {"_results"},
    {"_storage"},
    {"_autodiff"},
    {"_require", "_types"},
    {"errors"},
]
DOMAINS = {"clustering", "language", "tabular", "words"}  # they stand on what anybody may import
OPEN = {"crossfluence", "crossfluence.errors", "crossfluence.extend"}
HEAVY = {"pandas", "plotly", "sklearn", "jinja2", "rich", "typer", "pyarrow", "scipy"} | {
    "matplotlib",
    "transformers",
    "peft",
    "datasets",
    "starlette",
    "uvicorn",
}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(file): file for file in FILES}
MODULES = [pytest.param(name, id=name or "__init__") for name in NAMES]


def imports(name: str, *, late: bool = True, typed: bool = True) -> set[str]:
    """Absolute names of all that a module imports, without those inside functions or for types alone if it is said."""
    file, found = NAMES[name], set()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typed:
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not late:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            if node.level:
                parts = ["crossfluence", *filter(None, package.split("."))]
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            else:
                base = node.module or ""
            found.update({base} | {f"{base}.{alias.name}" for alias in node.names})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text()))
    return found


def inner(name: str, *, late: bool = True) -> set[str]:
    """The modules of this package that a module imports."""
    ours = {
        found.removeprefix("crossfluence.") for found in imports(name, late=late) if found.startswith("crossfluence.")
    }
    return (ours & set(NAMES)) - {name}


def floor(name: str) -> int:
    top = name.split(".")[0]
    found = [depth for depth, members in enumerate(FLOORS) if top in members]
    assert found, f"{name} stands on no floor"
    return found[0]


@pytest.mark.parametrize("name", [case for case in MODULES if case.values[0]])
def test_imports_go_down(name):
    for target in inner(name):
        same = target.split(".")[0] == name.split(".")[0]
        assert same or floor(target) > floor(name), f"{name} imports {target}, which stands above it or beside it"


def bases(name: str) -> set[str]:
    """Absolute names of the modules of this package that a module imports from."""
    found = {each for each in imports(name) if each.partition(".")[0] == "crossfluence"}
    return {each for each in found if each in OPEN or each.removeprefix("crossfluence.") in NAMES}


@pytest.mark.parametrize("name", [case for case in MODULES if case.values[0].split(".")[0] in DOMAINS])
def test_a_domain_package_stands_on_public_names_alone(name):
    own = name.split(".")[0]
    private = {found for found in bases(name) - OPEN if found.split(".")[1] != own}
    assert private == set()


@pytest.mark.parametrize("name", [case for case in MODULES if case.values[0].split(".")[0] not in DOMAINS | {"app"}])
def test_the_core_names_no_domain_package(name):
    assert {found for found in bases(name) if found.split(".")[1:2] and found.split(".")[1] in DOMAINS} == set()


def test_only_domain_packages_and_the_app_import_the_package_itself():
    own = {name for name in NAMES if name and name.split(".")[0] not in DOMAINS | {"app"}}
    assert [name for name in own if "crossfluence" in imports(name)] == []


@pytest.mark.parametrize("name", ["", "clustering", "extend", "language", "tabular", "words"])
def test_the_public_names_of_a_package_are_sorted_and_there(name):
    module = importlib.import_module(".".join(filter(None, ["crossfluence", name])))
    assert module.__all__ == sorted(set(module.__all__))
    assert [each for each in module.__all__ if not hasattr(module, each)] == []


def test_imports_form_no_cycle():
    graph = {name: inner(name) for name in NAMES if name}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", [case for case in MODULES if case.values[0].split(".")[0] != "app"])
def test_optional_packages_load_in_the_function_that_needs_them(name):
    assert {found.split(".")[0] for found in imports(name, late=False, typed=False)} & HEAVY == set()


@pytest.mark.parametrize("name", MODULES)
def test_the_global_random_state_is_seeded_only_where_it_is_put_back(name):
    tree = ast.parse(NAMES[name].read_text())
    seeds = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in {
        "torch.manual_seed", "torch.random.manual_seed", "random.seed", "np.random.seed", "torch.seed",
    }]  # fmt: skip
    guarded = [
        call
        for block in ast.walk(tree)
        if isinstance(block, ast.With) and any(
            guard in ast.unparse(item.context_expr) for item in block.items for guard in ("fork_rng", "isolated")
        )
        for call in ast.walk(block)
    ]  # fmt: skip
    assert [f"{name}:{call.lineno}" for call in seeds if call not in guarded] == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_at_most_400_lines_and_says_what_it_is(name):
    text = NAMES[name].read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", MODULES)
def test_comments_and_strings_name_no_folder_of_a_machine(name):
    text = NAMES[name].read_text()
    assert not [word for word in ("/home/", "/work/", "/tmp/", "C:\\\\") if word in text]
