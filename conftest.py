"""Every test and every example in a docstring begins with the same global random state, whatever ran before it."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def same_random_state() -> Iterator[None]:
    """Seeds the global generator, and puts it back."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
