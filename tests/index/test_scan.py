"""The strongest of many scores, as they come in pieces."""

import pytest
import torch

from crossfluence._index.scan import Strongest


@pytest.mark.parametrize("pieces", [1, 7, 50])
@pytest.mark.parametrize(("k", "m"), [(1, 1), (3, 2), (10, 1), (500, 3)])
@pytest.mark.parametrize("ties", [False, True], ids=["all differ", "ties"])
def test_the_strongest_in_pieces_are_those_of_all_together(pieces, k, m, ties):
    values = torch.randn(400, m, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    values = values.round() if ties else values
    best = Strongest(k, m)
    for rows in torch.arange(400).chunk(pieces):
        best.add(rows, values[rows])
    rows, found = best.found()
    assert torch.equal(rows, rows.unique())
    assert torch.equal(found, values[rows])
    assert len(rows) <= 2 * k * m
    for largest in (True, False):
        wanted = values.topk(min(k, 400), dim=0, largest=largest).values
        assert torch.equal(found.topk(min(k, 400), dim=0, largest=largest).values, wanted)


def test_few_wait_however_many_are_added():
    best = Strongest(2, 1)
    for start in range(0, 10_000, 10):
        best.add(torch.arange(start, start + 10), torch.arange(start, start + 10.0)[:, None])
        assert sum(len(rows) for rows, _ in best._waiting) <= 4 * 2 + 10
    assert best.found()[0].tolist() == [0, 1, 9_998, 9_999]


def test_nothing_added_is_nothing_found():
    rows, values = Strongest(3, 2).found()
    assert (rows.shape, values.shape) == ((0,), (0, 2))
