"""Checks every shape annotation of the package while the tests run: the hook must stand before the first import."""

from jaxtyping import install_import_hook

install_import_hook("crossfluence", "shapes.check")

import torch  # noqa: E402

torch.set_num_threads(1)  # the problems are tiny: threads would only wait for each other
