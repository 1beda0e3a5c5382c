"""How many samples a batch has: the loss says so, whatever the batch is made of, and mistakes are refused."""

from types import SimpleNamespace

import pytest
import torch
from grid import normal, seeded
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import crossfluence as cf
from crossfluence import errors
from crossfluence._data.batch import leaves, length_of

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights

LENGTHS = [4, 2, 5, 3, 3, 6, 2, 4]
SEQUENCES = [normal(length, 3, seed=number) for number, length in enumerate(LENGTHS)]
Y = normal(8, seed=99)
NET = seeded(nn.Linear(3, 1))
PADDED = nn.utils.rnn.pad_sequence(SEQUENCES, batch_first=True)  # (8, 6, 3)
SHARE = torch.stack([(torch.arange(6) < length).double() / length for length in LENGTHS])


def padded(model, batch):
    """What every other loss here is, written for one entry per sample in every tensor."""
    x, share, y = batch
    return ((model(x)[..., 0].tanh() * share).sum(1) - y).square()


def by_group(model, x, group, y):
    """The mean over each group of rows, whatever belongs to the rows' samples."""
    total = torch.zeros(len(y), dtype=x.dtype).index_add(0, group, model(x)[:, 0].tanh())
    return (total / torch.bincount(group, minlength=len(y)) - y).square()


class Graph:
    """As a graph library makes it: nodes first, and a store that refers back."""

    def __init__(self, rows, **more):
        self.x = torch.cat([SEQUENCES[row] for row in rows])
        self.batch = torch.repeat_interleave(torch.tensor([LENGTHS[row] for row in rows]))
        self.store = SimpleNamespace(parent=self, edge_index=torch.zeros(2, 7, dtype=torch.long))
        self.__dict__.update(more)


def of_graph(model, graph):
    return by_group(model, graph.x, graph.batch, graph.y)


def packed(rows):
    order = sorted(rows, key=lambda row: -LENGTHS[row])
    return pack_sequence([SEQUENCES[row] for row in order]), Y[order], order


def of_packed(model, batch):
    sequences, y = batch
    group = torch.cat([torch.arange(int(size)) for size in sequences.batch_sizes])
    return by_group(model, sequences.data, group, y)


def of_list(model, batch):
    return torch.stack([(model(s)[:, 0].tanh().mean() - y).square() for s, y in zip(batch[0], batch[1], strict=True)])


def of_labelled(model, batch):
    x, known, y = batch
    return ((model(x)[:, 0].tanh() - y).square())[known]


HALVES = [list(range(5)), list(range(5, 8))]
BATCHES = {
    "graphs, nodes first": (of_graph, [Graph(rows, y=Y[rows]) for rows in HALVES]),
    "graphs without targets": (
        lambda model, graph: by_group(model, graph.x, graph.batch, Y[graph.first : graph.last]),
        [Graph(rows, first=rows[0], last=rows[-1] + 1) for rows in HALVES],
    ),
    "nodes, groups and targets": (
        lambda model, batch: by_group(model, *batch),
        [(Graph(rows).x, Graph(rows).batch, Y[rows]) for rows in HALVES],
    ),
    "lists of sequences": (of_list, [([SEQUENCES[row] for row in rows], Y[rows]) for rows in HALVES]),
    "lists in a dictionary": (
        lambda model, batch: of_list(model, (batch["x"], batch["y"])),
        [{"x": [SEQUENCES[row] for row in rows], "y": Y[rows]} for rows in HALVES],
    ),
    "sequences alone": (
        lambda model, batch: torch.stack([model(s)[:, 0].tanh().mean() for s in batch]).square(),
        [[SEQUENCES[row] for row in rows] for rows in HALVES],
    ),
    "one sequence in a batch": (
        lambda model, batch: (model(batch[0])[:, 0].tanh().mean() - batch[1]).square().reshape(1),
        [(SEQUENCES[row], Y[row]) for row in range(8)],
    ),
}


def asked(model):
    return {"first": model.weight[0, 0], "square": model.weight.square().sum() + model.bias[0]}


def reference(y=Y):
    return cf.Risk(NET, padded, [(PADDED, SHARE, y)], l2=0.1)


def risk_of(name):
    loss, data = BATCHES[name]
    return cf.Risk(NET, loss, data, l2=0.1, n=(lambda batch: 1) if name.startswith("one") else None)


@pytest.mark.parametrize("solver", [cf.Exact(), cf.CG(damping=1.0, rtol=1e-10), cf.Identity()], ids=repr)
@pytest.mark.parametrize("name", BATCHES)
def test_scores_are_those_of_one_entry_per_sample(name, solver):
    found = cf.influence(risk_of(name), asked, solver)
    wanted = cf.influence(reference(0 * Y if "alone" in name else Y), asked, solver)
    assert found.ids == tuple(range(8))
    assert torch.allclose(found.values, wanted.values, rtol=1e-7, atol=1e-12)


def test_packed_sequences_are_as_many_as_their_first_step():
    data = [packed(rows) for rows in HALVES]
    risk = cf.Risk(NET, of_packed, [batch[:2] for batch in data], l2=0.1)
    found = cf.influence(risk, asked, cf.Exact())
    order = [row for *_, rows in data for row in rows]
    wanted = cf.influence(reference(), asked, cf.Exact()).values[order]
    assert isinstance(data[0][0], PackedSequence)
    assert torch.allclose(found.values, wanted, rtol=1e-9)
    coupled = cf.WeightedLoss(lambda model, batch, w: (w * of_packed(model, batch)).sum())
    again = cf.influence(cf.Risk(NET, coupled, [batch[:2] for batch in data], l2=0.1), asked, cf.Exact())
    assert torch.allclose(again.values, wanted, rtol=1e-9)


@pytest.mark.parametrize("form", ["mask", "rows", "minus ones"])
def test_a_loss_over_labelled_nodes_counts_these(form):
    x, y = normal(20, 3, seed=1), normal(20, seed=2)
    mask = normal(20, seed=3) > 0
    labels = torch.where(mask, 1, -1)
    known = {"mask": mask, "rows": mask.nonzero().flatten(), "minus ones": labels}[form]
    loss = of_labelled if form != "minus ones" else lambda model, b: of_labelled(model, (b[0], b[1] >= 0, b[2]))
    found = cf.influence(cf.Risk(NET, loss, [(x, known, y)], l2=0.1), asked, cf.Exact())
    alone = cf.Risk(NET, lambda m, b: (m(b[0])[:, 0].tanh() - b[1]).square(), [(x[mask], y[mask])], l2=0.1)
    assert torch.allclose(found.values, cf.influence(alone, asked, cf.Exact()).values, rtol=1e-10)


def test_groups_of_a_coupled_loss_are_said_by_n():
    data = [Graph(rows, y=Y[rows]) for rows in HALVES]
    coupled = cf.WeightedLoss(lambda model, graph, w: (w * of_graph(model, graph)).sum())
    wanted = cf.influence(reference(), asked, cf.Exact())
    for n in ([5, 3], lambda graph: len(graph.y), torch.tensor([5, 3]).tolist()):
        risk = cf.Risk(NET, coupled, data, l2=0.1, n=n)
        assert risk.n == 8
        assert torch.allclose(cf.influence(risk, asked, cf.Exact()).values, wanted.values, rtol=1e-9)
    whole = cf.Risk(NET, coupled, [Graph(range(8), y=Y)], l2=0.1, n=8)
    assert torch.allclose(cf.influence(whole, asked, cf.Exact()).values, wanted.values, rtol=1e-9)
    with pytest.raises(errors.LossShapeError, match=r"17 weights.*Risk\(\.\.\., n="):
        cf.Risk(NET, coupled, data, l2=0.1)


def test_candidates_and_questions_count_as_the_loss_does():
    loss, data = BATCHES["graphs, nodes first"]
    risk, plain = risk_of("graphs, nodes first"), reference()
    found = cf.influence(risk, cf.each_of(data, loss), cf.Exact(), candidates=data)
    same = [(PADDED, SHARE, Y)]
    wanted = cf.influence(plain, cf.each_of(same, padded), cf.Exact(), candidates=same)
    assert found.values.shape == (8, 8)
    assert torch.allclose(found.values, wanted.values, rtol=1e-9)
    mean = cf.influence(risk, cf.mean_over(data, loss), cf.Exact())
    assert torch.allclose(mean.values, wanted.values.mean(1, keepdim=True), rtol=1e-9)
    assert torch.allclose(cf.mean_over(data, loss)(NET), padded(NET, same[0]).mean())


@pytest.mark.parametrize("question", ["one", "all pairs"])
def test_ekfac_takes_graphs(question):
    net, (loss, data), same = seeded(nn.Linear(3, 1, bias=False)), BATCHES["graphs, nodes first"], [(PADDED, SHARE, Y)]
    one = lambda model: model.weight.square().sum()  # noqa: E731
    here, there = (one, one) if question == "one" else (cf.each_of(data, loss), cf.each_of(same, padded))
    found = cf.influence(cf.Risk(net, loss, data, l2=0.1), here, cf.EKFAC(damping=0.1))
    wanted = cf.influence(cf.Risk(net, padded, same, l2=0.1), there, cf.EKFAC(damping=0.1))
    assert torch.allclose(found.values, wanted.values, rtol=1e-9)  # a block of one row is exact, however it came about


# Mistakes.


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda model, b: (model(b[0]) - b[1][:, None]).square().mean(0), "1 values for a batch of 12 samples"),
        (lambda model, b: (b[0] * model.weight).square().sum(0), "3 values for a batch of 12 samples"),
        (lambda model, b: (model(b[0])[:, 0] - b[1]).square()[:5], r"5 values.*labelled nodes.*Risk\(\.\.\., n="),
        (lambda model, b: (model(b[0])[:, 0] - b[1]).square().repeat(2), r"24 values.*reshape\(b, -1\)"),
    ],
    ids=["mean kept", "sum over samples", "first five", "two terms each"],
)
def test_another_number_of_losses_than_anything_counts_is_refused(loss, words):
    x, y = normal(12, 3, seed=5), normal(12, seed=6)
    for data in ([(x, y)], cf.batches(x, y)):
        with pytest.raises(errors.LossShapeError, match=words):
            cf.Risk(NET, loss, data)


def test_a_number_that_nothing_counts_can_be_said():
    x, y = normal(12, 3, seed=5), normal(12, seed=6)
    first = lambda model, b: (model(b[0])[:, 0] - b[1]).square()[:5]  # noqa: E731
    found = cf.influence(cf.Risk(NET, first, [(x, y)], l2=0.1, n=5), asked, cf.Exact())
    wanted = cf.influence(cf.Risk(NET, first, [(x[:5], y[:5])], l2=0.1), asked, cf.Exact())
    assert torch.allclose(found.values, wanted.values)


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (9, "n=9, but the batches have 8 samples"),
        ([5, 2, 1], "3 numbers for 2 batches"),
        ([5, 4], "3 values for a batch of 4 samples"),
        (lambda batch: "many", "n='many' for a batch"),
    ],
)
def test_a_wrong_n_is_refused(n, words):
    loss, data = BATCHES["graphs, nodes first"]
    with pytest.raises(cf.CrossfluenceError, match=words):
        cf.influence(cf.Risk(NET, loss, data, n=n), asked, cf.Exact(1.0))


def test_a_question_of_another_length_is_refused_with_a_way_out():
    question = cf.each_of([PADDED], lambda model, x: model(x).sum((0, 1)))
    with pytest.raises(errors.LossShapeError, match=r"1 values for a batch of 8.*function of the model"):
        cf.influence(reference(), question, cf.Exact())


# What a batch holds.


def test_guesses_of_a_length():
    listed = [torch.zeros(5, 2), torch.zeros(3, 2)]
    assert length_of((torch.tensor(1.0), torch.zeros(4, 2))) == 4
    assert length_of(listed) == 2
    assert length_of(tuple(listed)) == 5
    assert length_of([torch.zeros(4, 2), torch.zeros(4)]) == 4
    assert length_of(([torch.zeros(4, 2), torch.zeros(4)], torch.zeros(4))) == 4  # as default_collate nests
    assert length_of(([torch.zeros(5, 2)] * 3, torch.zeros(3))) == 3
    assert length_of(SimpleNamespace(x=torch.zeros(9, 2), num_graphs=4)) == 4
    assert length_of(torch.eye(3).to_sparse()) == 3


def test_everything_in_a_batch_is_its_content():
    class Slotted:
        __slots__ = ("inside",)

    slotted = Slotted()
    slotted.inside = {"x": torch.ones(2), "y": ["a", 3, None]}
    found = list(leaves((slotted, torch.zeros(1).numpy())))
    assert [type(leaf).__name__ for leaf in found] == ["Tensor", "str", "int", "NoneType", "ndarray"]
    ring = {"x": torch.ones(2)}
    ring["self"] = ring
    assert len(list(leaves(ring))) == 1


@pytest.mark.parametrize("form", ["text", "array", "number"])
def test_data_that_changes_beside_its_tensors_is_refused(form):
    class Moving:
        reads = 0

        def __iter__(self):
            self.reads += 1
            now = {"text": [f"row {self.reads}"], "array": torch.full((3,), self.reads).numpy(), "number": self.reads}
            return iter([(PADDED, SHARE, Y, now[form])])

    with pytest.raises(errors.DataError, match="batch 0 differs"):
        cf.Risk(NET, lambda model, batch: padded(model, batch[:3]), Moving())
