"""Batches of every form a user brings."""

from collections import OrderedDict, UserDict, namedtuple
from types import SimpleNamespace

import grid
import pytest
import torch
from grid import normal
from torch.utils.data import DataLoader, Dataset, TensorDataset

import crossfluence as cf

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights

X, Y = normal(20, 3, seed=0), normal(20, seed=1)
Pair = namedtuple("Pair", "x y")


class Rows(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 20

    def __getitem__(self, row):
        return self.make(X[row], Y[row])


def test_batches_put_together_are_the_data():
    for size in (1, 3, 20, 1000):
        parts = list(cf.batches(X, Y, size=size))
        assert len(parts) == len(cf.batches(X, Y, size=size))
        assert torch.equal(torch.cat([x for x, _ in parts]), X)
        assert torch.equal(torch.cat([y for _, y in parts]), Y)


def test_one_tensor_gives_tensors_and_batches_share_its_memory():
    first = next(iter(cf.batches(X, size=4)))
    assert torch.equal(first, X[:4])
    assert first.data_ptr() == X.data_ptr()


def test_a_dataset_is_collated_as_a_loader_does():
    dataset = Rows(lambda x, y: {"x": x, "y": y, "name": "row"})
    for mine, theirs in zip(cf.batches(dataset, size=6), DataLoader(dataset, 6), strict=True):
        assert torch.equal(mine["x"], theirs["x"])
        assert mine["name"] == theirs["name"]


def by_pair(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


def by_name(model, batch):
    return (model(batch["x"])[:, 0] - batch["y"]).square()


def by_attribute(model, batch):
    return (model(batch.x)[:, 0] - batch.y).square()


FORMS = {
    "tensors": (by_pair, cf.batches(X, Y, size=6)),
    "list of tuples": (by_pair, [(X[:7], Y[:7]), (X[7:], Y[7:])]),
    "list of lists": (by_pair, [[X, Y]]),
    "loader": (by_pair, DataLoader(TensorDataset(X, Y), 6)),
    "dataset": (by_pair, cf.batches(TensorDataset(X, Y), size=6)),
    "loader of dicts": (by_name, DataLoader(Rows(lambda x, y: {"x": x, "y": y}), 6)),
    "dict beside text": (by_name, [{"text": ["a"] * 20, "temperature": torch.tensor(1.0), "x": X, "y": Y}]),
    "ordered dict": (by_name, [OrderedDict(x=X, y=Y)]),
    "user dict": (by_name, [UserDict(x=X, y=Y)]),
    "named tuple": (by_attribute, [Pair(X[:5], Y[:5]), Pair(X[5:], Y[5:])]),
    "namespace": (by_attribute, [SimpleNamespace(x=X, y=Y)]),
    "nested": (lambda model, batch: by_pair(model, batch["in"]), [{"in": (X, Y)}]),
}


@pytest.mark.parametrize(("loss", "data"), FORMS.values(), ids=list(FORMS))
def test_the_form_of_a_batch_does_not_matter(loss, data):
    model = grid.seeded(torch.nn.Linear(3, 1))
    found = cf.influence(cf.Risk(model, loss, data, l2=0.1), lambda m: m.weight.sum(), cf.Exact())
    wanted = cf.influence(cf.Risk(model, by_pair, [(X, Y)], l2=0.1), lambda m: m.weight.sum(), cf.Exact())
    assert found.ids == tuple(range(20))
    assert torch.allclose(found.values, wanted.values, rtol=1e-10)


def test_a_loader_that_shuffles_in_the_same_way_every_time_is_allowed():
    class Reshuffled:
        def __iter__(self):
            generator = torch.Generator().manual_seed(5)
            return iter(DataLoader(TensorDataset(X, Y), 6, shuffle=True, generator=generator))

    assert cf.Risk(grid.seeded(torch.nn.Linear(3, 1)), by_pair, Reshuffled()).reading.sizes == (6, 6, 6, 2)


@pytest.mark.parametrize("form", [lambda x, y: (x, y), lambda x, y: {"x": x, "y": y}, lambda x, y: UserDict(x=x, y=y)])
def test_an_augmentation_drawn_anew_is_refused(form):
    class Noisy:
        generator = torch.Generator().manual_seed(0)

        def __iter__(self):
            yield form(X, Y)
            yield form(X + torch.randn(20, 3, generator=self.generator), Y)

    loss = by_pair if isinstance(form(X, Y), tuple) else by_name
    with pytest.raises(cf.CrossfluenceError, match=r"batch 1 differs.*augmentation"):
        cf.Risk(grid.seeded(torch.nn.Linear(3, 1)), loss, Noisy())


@pytest.mark.parametrize("ids", [torch.arange(20) * 10, (torch.arange(20) * 10).numpy(), range(0, 200, 10)])
def test_ids_become_plain_values(ids):
    risk = cf.Risk(grid.seeded(torch.nn.Linear(3, 1)), by_pair, cf.batches(X, Y), ids=ids)
    assert risk.ids == tuple(range(0, 200, 10))
    assert {type(label) for label in risk.ids} == {int}


def test_leaving_samples_out_sets_their_weights_to_zero_and_keeps_n():
    problem = grid.LOGISTIC
    risk = problem.risk(ids=[f"s{k}" for k in range(40)])
    without = risk.without(["s3", "s7"])
    rows = [k for k in range(40) if k not in (3, 7)]
    alone = cf.Risk(
        problem.model, problem.loss, cf.batches(*(t[rows] for t in problem.tensors)), l2=problem.l2 * 40 / 38
    )
    assert torch.allclose(without.gradient, alone.gradient * 38 / 40)
    assert without.n == 40
    assert float(risk.gradient.norm()) < 1e-10
    assert torch.equal(without.without(["s1"]).weights.eq(0).nonzero().flatten(), torch.tensor([1, 3, 7]))


def test_an_unknown_id_is_refused_with_some_that_are_there():
    with pytest.raises(KeyError, match="Unknown id 99; there are 20 ids: 0, 1, 2"):
        cf.Risk(grid.seeded(torch.nn.Linear(3, 1)), by_pair, cf.batches(X, Y)).without([99])


# What batches are made of.


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict])
def test_a_mapping_of_tensors_gives_dictionaries(kind):
    model = grid.seeded(torch.nn.Linear(3, 1))
    data = cf.batches(kind(x=X, y=Y), size=6)
    assert [sorted(batch) for batch in data] == [["x", "y"]] * 4
    found = cf.influence(cf.Risk(model, by_name, data, l2=0.1), lambda m: m.weight.sum(), cf.Exact())
    wanted = cf.influence(cf.Risk(model, by_pair, [(X, Y)], l2=0.1), lambda m: m.weight.sum(), cf.Exact())
    assert torch.allclose(found.values, wanted.values, rtol=1e-10)
    recipe = cf.Recipe(model, by_name, kind(x=X, y=Y), optimizer=cf.SGD(0.1), epochs=3, batch_size=7)
    plain = cf.Recipe(model, by_pair, (X, Y), optimizer=cf.SGD(0.1), epochs=3, batch_size=7)
    assert torch.equal(recipe.train().weight, plain.train().weight)


@pytest.mark.parametrize("source", [[X, 2 * X], (X, X), [X.numpy(), X.numpy()]], ids=["list", "tuple", "arrays"])
def test_a_list_of_tensors_is_no_dataset(source):
    with pytest.raises(cf.CrossfluenceError, match=r"one (list|tuple) of 2 .*batches\(\*tensors\).*torch\.stack"):
        cf.batches(source)
    if isinstance(source, list):
        with pytest.raises(cf.CrossfluenceError, match=r"Recipe\(data=tuple\(tensors\)\)"):
            cf.Recipe(torch.nn.Linear(3, 1), by_pair, source, optimizer=cf.SGD(0.1), epochs=1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DataLoader(TensorDataset(X, Y)), r"type DataLoader.*loader\.dataset"),
        ({"x": [[1, 2], [3]]}, r"\{'x': 'list'\}.*return_tensors='pt'"),
        ({"x": X, "y": Y[:3]}, r"\{'x': 20, 'y': 3\}; needed one length"),
        ({}, "nothing in it"),
        ("rows.csv", "type str"),
    ],
)
def test_what_a_recipe_cannot_batch_is_refused(data, words):
    with pytest.raises(cf.CrossfluenceError, match=words):
        cf.Recipe(torch.nn.Linear(3, 1), by_name, data, optimizer=cf.SGD(0.1), epochs=1)


def lists(*rows):
    dataset = Rows(lambda x, y: None)
    dataset.__class__ = type("Listed", (Rows,), {"__len__": lambda _: len(rows), "__getitem__": lambda _, k: rows[k]})
    return dataset


@pytest.mark.parametrize("rows", [([1, 2], [3]), (torch.ones(2), torch.ones(3))], ids=["lists", "tensors"])
def test_samples_of_many_lengths_need_a_collate_function(rows):
    dataset = lists(*({"x": row} for row in rows))
    with pytest.raises(cf.CrossfluenceError, match=r"collate=fn"):
        list(cf.batches(dataset))

    def padded(samples):
        parts = [torch.as_tensor(sample["x"]) for sample in samples]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)

    longest = max(map(len, rows))
    assert next(iter(cf.batches(dataset, collate=padded))).shape == (2, longest)


def test_lists_of_numbers_are_not_collated_into_columns():
    with pytest.raises(cf.CrossfluenceError, match=r"list of 3 numbers under 'x'.*with_format\('torch'\)"):
        list(cf.batches(lists({"x": [1, 2, 3]}, {"x": [4, 5, 6]})))


# Content, and the size of batches.


@pytest.mark.parametrize("change", ["an alias in NumPy", ".data", "in place", "a part of it"])
@pytest.mark.parametrize("form", ["batches", "list", "loader"])
def test_data_that_changes_behind_our_back_is_refused(form, change):
    x, y = X.clone(), Y.clone()
    forms = {"batches": cf.batches(x, y), "list": [(x, y)], "loader": DataLoader(TensorDataset(x, y), 20)}
    risk = cf.Risk(grid.seeded(torch.nn.Linear(3, 1)), by_pair, forms[form], l2=0.1)
    inverse = cf.Exact().invert(risk)
    cf.influence(risk, lambda m: m.weight.sum(), inverse)
    if change == "an alias in NumPy":
        x.numpy()[3, 1] += 1
    elif change == ".data":
        x.data[3, 1] += 1
    elif change == "in place":
        x.add_(1)
    else:
        x[19, 2].mul_(1 + 1e-15)
    with pytest.raises(cf.CrossfluenceError, match="not what it was"):
        cf.influence(risk, lambda m: m.weight.sum(), inverse)
    with pytest.raises(cf.CrossfluenceError, match="not what it was"):
        cf.Hessian().product(risk, torch.ones(1, 4, dtype=torch.float64))


@pytest.mark.parametrize("solver", [cf.Exact(), cf.Identity(), cf.EKFAC(damping=0.1)], ids=lambda s: type(s).__name__)
def test_batches_of_small_tensors_are_large_and_change_no_score(solver):
    x, y, model = normal(3000, 3, seed=4), normal(3000, seed=5), grid.seeded(torch.nn.Linear(3, 1))
    free, given = cf.batches(x, y), cf.batches(x, y, size=100)
    large, small = (cf.Risk(model, by_pair, data, l2=0.1) for data in (free, given))
    assert large.reading.sizes == (3000,)
    assert small.reading.sizes == (100,) * 30
    assert free.size == 256  # the user's own is left as it is
    found, wanted = (cf.influence(risk, lambda m: m.weight.sum(), solver).values for risk in (large, small))
    assert torch.allclose(found, wanted, rtol=1e-9)


def test_batches_stay_small_where_activations_gradients_or_other_samples_matter():
    x, y = normal(600, 3, seed=4), normal(600, seed=5)
    wide = torch.nn.Sequential(torch.nn.Linear(3, 3000), torch.nn.Tanh(), torch.nn.Linear(3000, 1)).double()
    assert cf.Risk(wide, by_pair, cf.batches(x, y), l2=0.1).reading.sizes == (256, 256, 88)
    coupled = cf.WeightedLoss(lambda model, batch, w: (w * by_pair(model, batch)).sum())
    assert cf.Risk(grid.seeded(torch.nn.Linear(3, 1)), coupled, cf.batches(x, y), l2=0.1).reading.sizes[0] == 256


def test_a_recipe_looks_at_no_larger_batches_than_it_trains_on():
    seen = []

    def loss(model, batch):
        seen.append(len(batch[0]))
        return by_pair(model, batch)

    wide = torch.nn.Sequential(torch.nn.Linear(3, 200_000), torch.nn.Tanh(), torch.nn.Linear(200_000, 1)).double()
    cf.Recipe(wide, loss, (normal(64, 3, seed=4), normal(64, seed=5)), optimizer=cf.SGD(0.1), epochs=1, batch_size=8)
    assert max(seen) == 8
