"""Content hashes: equal for equal content in any process, different for anything that decides a training."""

import copy
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import crossfluence as cf
from crossfluence._storage import hashing as _contents
from crossfluence._storage.hashing import content_hash
from crossfluence.errors import StoreWarning

SOURCE = """
import functools, math
import numpy as np
import torch
from dataclasses import dataclass
from torch import nn

RATE, WORDS = 0.1, {"a", "b", "c", "d", "e"}

def scaled(x):
    return RATE * x

def closed(k):
    def inner(x, *, power=2):
        return [scaled(y) * k ** power for y in x if y in WORDS]
    return inner

@dataclass
class Setting:
    lr: float = 0.1
    words: frozenset = frozenset(WORDS)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.depth = nn.Linear(2, 2, dtype=torch.float64), 3
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x):
        return self.layer(x).tanh() * RATE

net = Net()
ALL = (closed(3), functools.partial(closed(2), power=3), Setting(), net, net.forward, nn.Tanh(), Setting, math.log,
       torch.relu, torch.arange(3), np.arange(3), {"x": WORDS, 2: None}, slice, torch.float64, lambda: closed)
"""


MINE = ModuleType("typed_by_a_user")
MINE.__file__ = "/somewhere/typed_by_a_user.py"


@pytest.fixture(autouse=True)
def _a_module_of_the_user(monkeypatch):
    monkeypatch.setitem(sys.modules, MINE.__name__, MINE)


def made(source, name):
    """Something from a script, as if the user had typed it."""
    space = {"__name__": MINE.__name__}
    exec(source, space)
    return space[name]


def hashed(source, name="f"):
    return content_hash(made(source, name))


# The same everywhere.


def test_two_processes_agree_whatever_their_hash_seed():
    script = f"{SOURCE}\nfrom crossfluence._storage.hashing import content_hash\nfor x in ALL: print(content_hash(x))"
    found = [
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert len(set(found[0])) == 15


def test_the_same_script_typed_twice_has_the_same_content():
    one, two = (made(SOURCE, "ALL") for _ in range(2))
    assert [content_hash(part) for part in one] == [content_hash(part) for part in two]


def test_hashing_twice_gives_the_same_and_changes_nothing():
    net = made(SOURCE, "net")
    before = copy.deepcopy(net.state_dict())
    assert content_hash(net) == content_hash(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


# Code.


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x + 1", "x + 2"),  # constants
        ("x + 1", "x - 1"),  # operations
        ("RATE * x", "SIZE * x"),  # the global named
        ("x.mean()", "x.sum()"),  # the attribute named
        ("x[0]", "x[1]"),
        ("[y + 1 for y in x]", "[y + 2 for y in x]"),  # nested code
        ("(lambda y: y)(x)", "(lambda y: -y)(x)"),
        ("x + 1", "x + 1.0"),
        ("x in {1, 2}", "x in {1, 3}"),
        ("'a'", "b'a'"),
    ],
)
def test_changed_code_is_seen(before, after):
    source = "RATE = SIZE = 2\ndef f(x):\n    return {}"
    assert hashed(source.format(before)) != hashed(source.format(after))
    assert hashed(source.format(before)) == hashed("# moved\n\n" + source.format(before))


@pytest.mark.parametrize(
    ("source", "before", "after"),
    [
        ("RATE = {}\ndef f(x): return RATE * x", "0.1", "0.2"),
        ("RATE = {}\ndef g(x): return RATE * x\ndef f(x): return g(x)", "0.1", "0.2"),  # through another function
        ("RATE = {}\ndef f(x): return [RATE * y for y in x]", "0.1", "0.2"),
        ("RATE = {}\ndef f(x):\n  def g(): return RATE\n  return g()", "0.1", "0.2"),
        ("def f(x, power={}): return x ** power", "2", "3"),
        ("def f(x, *, power={}): return x ** power", "2", "3"),
        ("def g(k):\n  def h(x): return k * x\n  return h\nf = g({})", "2", "3"),
        ("import functools\ndef g(x, k): return k * x\nf = functools.partial(g, k={})", "2", "3"),
        ("class A:\n  def __init__(self, k): self.k = k\n  def g(self): return self.k\nf = A({}).g", "2", "3"),
        ("class A:\n  def __call__(self): return {}\nf = A()", "2", "3"),
        ("class A:\n  def g(self): return {}\n  def __call__(self): return self.g()\nf = A()", "2", "3"),
        ("from torch import nn\nf = nn.Sequential(nn.Linear(2, 2), {})", "nn.Tanh()", "nn.ReLU()"),
        ("from torch import nn\nf = {}", "nn.Softmax(0)", "nn.Softmax(1)"),
        ("import torch\nf = lambda x: {}(x)", "torch.sin", "torch.cos"),
    ],
)
def test_what_code_refers_to_is_seen(source, before, after):
    if "Linear" in source:
        source = "import torch; torch.manual_seed(0)\n" + source
    with torch.random.fork_rng():
        assert hashed(source.format(before)) == hashed(source.format(before))
        assert hashed(source.format(before)) != hashed(source.format(after))


def test_a_module_imported_by_path_is_hashed_by_its_text(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for text in ("rate = 1", "rate = 2", "rate = 1"):
        (tmp_path / "my_settings.py").write_text(text)
        importlib.invalidate_caches()
        found.append(hashed("import my_settings\ndef f(x): return my_settings.rate"))
        monkeypatch.delitem(sys.modules, "my_settings")
    assert found[0] == found[2] != found[1]


# Values.


@dataclass
class Setting:
    lr: float = 0.1
    layers: tuple = (3, 4)


def test_values_of_every_kind_are_told_apart():
    net, generator = nn.Linear(2, 2), torch.Generator()
    moved = copy.deepcopy(net)
    with torch.no_grad():
        moved.weight[0, 0] += 1e-6
    values = [
        0, 1, True, 1.0, -0.0, 0.0, float("nan"), "1", b"1", None, ..., 1j, range(3), range(4), [0, 1], (0, 1), {0, 1},
        frozenset({0, 1}), {0: 1}, {1: 0}, [[0], 1], [0, [1]], [], {}, (), "", torch.float32, torch.device("cpu"),
        torch.zeros(2), torch.zeros(3), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float64), torch.tensor(1),
        np.zeros(2), np.zeros((2, 1)), np.zeros(2, dtype=np.int64), np.float32(1), np.arange(6).reshape(2, 3).T,
        Setting(), Setting(lr=0.2), replace(Setting(), layers=(4, 3)), Setting, net, moved, copy.deepcopy(net).eval(),
        nn.Tanh(), generator, torch.Generator().manual_seed(1), torch.relu, torch.sigmoid, len, print,
        functools.partial(max, 1), functools.partial(min, 1), functools.partial(max, 2), np.mean, np.add,
    ]  # fmt: skip
    assert len({content_hash(value) for value in values}) == len(values)
    assert [content_hash(value) for value in values] == [content_hash(copy.deepcopy(value)) for value in values]


def test_compiled_expressions_are_content_by_their_text():
    one, same, other = (re.compile(text) for text in ("a+", "a+", "b+"))
    assert content_hash(one) == content_hash(same) != content_hash(other)
    assert content_hash(re.compile("a", re.IGNORECASE)) != content_hash(re.compile("a"))


def test_sets_have_no_order_and_lists_have_one():
    words = [f"word {number}" for number in range(50)]
    reverse = words[::-1]
    assert content_hash(set(words)) == content_hash(set(reverse))
    assert content_hash(words) != content_hash(reverse)


def test_views_and_strides_are_no_content():
    x = torch.arange(12.0).reshape(3, 4)
    assert content_hash(x.T) == content_hash(x.T.contiguous()) != content_hash(x)
    assert content_hash(x[:, 1]) == content_hash(x[:, 1].clone())
    assert content_hash(x.numpy().T) == content_hash(np.ascontiguousarray(x.numpy().T))


def test_a_cycle_ends():
    ring = [1]
    ring.append(ring)
    other = [2]
    other.append(other)
    assert content_hash(ring) != content_hash(other)
    even = "def even(n): return n == 0 or odd(n - {0})\ndef odd(n): return n != 0 and even(n - 1)"
    assert hashed(even.format(1), "even") == hashed(even.format(1), "even") != hashed(even.format(2), "even")
    assert hashed(even.format(1), "odd") != hashed(even.format(2), "odd")


def test_shared_parts_count_as_copies_do():
    part = [1, 2]
    assert content_hash([part, part]) == content_hash([[1, 2], [1, 2]])


# What has no content.


@pytest.mark.parametrize("kind", ["lock", "generator"])
def test_what_has_no_content_is_refused_with_advice(kind):
    thing = {
        "lock": threading.Lock(),
        "generator": (i for i in [1]),
    }[kind]
    with pytest.raises(TypeError, match=rf"a {type(thing).__name__} changed.*inside the training function.*store=None"):
        content_hash({"deep": [lambda: thing]})


# Versions of packages.


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("torch", "def f(x): return x"),
        ("crossfluence", "def f(x): return x"),
        ("numpy", "import numpy as np\ndef f(x): return np.mean(x)"),
        ("numpy", "from numpy import mean\ndef f(x): return mean(x)"),
        ("numpy", "def f(x):\n  import numpy.linalg\n  return numpy.linalg.norm(x)"),
        ("numpy", "import numpy\nclass A:\n  def g(self): return numpy.pi\nf = A()"),
    ],
)
def test_another_version_of_a_package_is_another_content(package, source, monkeypatch):
    before, plain = hashed(source), content_hash(made(source, "f"), versions=False)
    monkeypatch.setattr(_contents, "_version", lambda name: "next" if name == package else "")
    elsewhere = hashed(source)
    monkeypatch.setattr(_contents, "_version", lambda name: "")
    assert hashed(source) not in {before, elsewhere}
    assert content_hash(made(source, "f"), versions=False) == plain


def test_versions_are_those_of_the_distributions():
    assert _contents._version("torch") == torch.__version__
    assert _contents._version("sklearn").startswith("scikit-learn ")
    assert _contents._version("crossfluence")
    assert _contents._version("json") == _contents._version("no_such_package") == ""


def test_a_store_of_another_version_is_trained_anew(tmp_path, monkeypatch):
    trained = tmp_path / "trained"
    trained.touch()

    def train(weights):
        with trained.open("a") as file:
            file.write("x")
        return nn.Linear(1, 1)

    def stored():
        cf.leave_out(train, lambda model: model.weight.sum(), [0], n=2, store=tmp_path / "store")
        return len(trained.read_text())

    assert [stored(), stored()] == [2, 2]
    monkeypatch.setattr(_contents, "_version", lambda name: "next")
    assert stored() == 4


def test_a_module_imported_inside_a_function_is_content(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source, found = "def f(x):\n  import my_inside\n  return my_inside.rate", []
    for text in ("rate = 1", "rate = 2 ", "rate = 1"):
        (tmp_path / "my_inside.py").write_text(text)
        importlib.invalidate_caches()
        found.append(hashed(source))
        made(source, "f")(0)
        assert hashed(source) == found[-1]  # before and after it was imported
        monkeypatch.delitem(sys.modules, "my_inside")
    assert found[0] == found[2] != found[1]


# What a call changes.


class FastTokenizer:
    """As in transformers: each call sets padding and truncation anew."""

    class Rules:
        def __init__(self):
            self.state = {"padding": None, "truncation": None, "model": 1}

        def to_str(self):
            return json.dumps(self.state)

    def __init__(self):
        self._tokenizer, self.deprecation_warnings, self.side = self.Rules(), {}, "right"

    def set_truncation_and_padding(self, length):
        self._tokenizer.state = {**self._tokenizer.state, "padding": {"length": length}, "truncation": length}
        self.deprecation_warnings["long"] = True


def test_padding_of_a_fast_tokenizer_is_no_content_and_its_words_are():
    tokenizer, other = FastTokenizer(), FastTokenizer()
    before = content_hash(tokenizer)
    tokenizer.set_truncation_and_padding(8)
    assert content_hash(tokenizer) == before
    other._tokenizer.state = {**other._tokenizer.state, "model": 2}
    assert content_hash(other) != before
    tokenizer.side = "left"
    assert content_hash(tokenizer) != before


def test_a_store_that_will_not_be_found_again_says_so(tmp_path):
    calls = []

    def train(weights):
        calls.append(1)
        return nn.Linear(1, 1)

    with pytest.warns(StoreWarning, match="will not be found again.*inside the function"):
        cf.leave_out(train, lambda model: model.weight.sum(), [0], n=2, store=tmp_path)
