"""The number of clusters, if none is given."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from torch import Tensor

MOST_CLUSTERS, LOOKED_AT, SHARE = 10, 2_000, 5  # clusters; rows; rows that the smallest cluster needs at least
WEAK = 0.25  # mean silhouette, below which clusters overlap (Kaufman and Rousseeuw, Finding groups in data, 1990)


def suggested_k(x: Float[Tensor, "n f"], seed: int) -> tuple[int, str]:
    """The number of clusters from 2 to 10 with the largest mean silhouette of k-means.

    Args:
        x: Features of comparable size.
        seed: Of k-means and of the rows that are looked at, if there are more than 2,000.

    Returns:
        The number, and a sentence that gives the reason.

    References:
        Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis", Journal of
        Computational and Applied Mathematics 20, 1987.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import silhouette_score

    rows = np.random.default_rng(seed).permutation(len(x))[:LOOKED_AT]
    seen = x.numpy()[np.sort(rows)]
    most = min(MOST_CLUSTERS, len(np.unique(seen, axis=0)), len(seen) // SHARE)
    found: dict[int, float] = {}
    for k in range(2, most + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters: not compared
            labels = KMeans(k, n_init=4, random_state=seed).fit_predict(seen)  # pyright: ignore[reportArgumentType]
        if len(set(labels)) == k:
            found[k] = float(silhouette_score(seen, labels))
    if not found:
        return 2, "Clusters: 2, as there are too few different rows to compare. Another number: --k."
    best = max(found, key=lambda k: found[k])
    weak = " That is little: the rows hardly fall into groups." if found[best] < WEAK else ""
    compared = ", ".join(f"{k}: {value:.2f}" for k, value in found.items())
    return best, (
        f"Clusters: {best}, with the clearest gaps between them (mean silhouette by number of clusters: {compared}; 1 "
        f"is the most).{weak} Another number: --k."
    )
