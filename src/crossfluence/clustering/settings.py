"""Settings of a clustering and its check; they need no PyTorch, so that a time is foretold at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckSettings:
    """Everything that decides the check of a clustering.

    Attributes:
        k: Clusters.
        check: Samples that are left out one by one.
        group: Samples that are removed together; at most a twentieth of all.
        draws: Random groups that stand beside it.
        sizes: Samples of further groups of the strongest that are removed together.
        seed: Of k-means and random groups.
    """

    k: int
    check: int = 100
    group: int = 20
    draws: int = 5
    sizes: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class ClusterSettings(CheckSettings):
    """Everything that decides a deep embedded clustering and its check.

    Attributes:
        k: Clusters.
        hidden: Units of the encoder's hidden layer.
        embedding: Size of the space in which clusters are found.
        anchor: Strength with which sharpening is held near its start, see `anchored_target`; raised if that is
            too weak, see `settled`.
        pretraining: Full-batch steps of the autoencoder.
        pretraining_l2: Its l2 term.
        steps: Full-batch steps of the clustering.
        lr: Adam's learning rate, falling along a cosine.
        hold: Steps for which the target is held.
        check: Samples that are left out one by one.
        group: Samples that are removed together; at most a twentieth of all.
        draws: Random groups that stand beside it.
        sizes: Samples of further groups of the strongest that are removed together.
        seed: Of the weights, k-means and random groups.
    """

    k: int
    hidden: int = 24
    embedding: int = 16
    anchor: float = 0.03
    pretraining: int = 300
    pretraining_l2: float = 0.02
    steps: int = 300
    lr: float = 1e-2
    hold: int = 1
