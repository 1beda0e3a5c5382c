"""Checks every shape annotation of the package while the tests run: the hook must stand before the first import."""

from jaxtyping import install_import_hook

install_import_hook("crossfluence", "shapes.check")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # the problems are tiny: threads would only wait for each other

UNRELIABLE = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")


def pytest_collection_modifyitems(items):
    """Scores of a problem without a minimum come with a warning, as they should; laws hold there too."""
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(getattr(value, "converges", True) is False for value in values):
            item.add_marker(UNRELIABLE)
