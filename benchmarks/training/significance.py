"""How often a list of significant samples holds a false name, where the noise is that of real seeds.

Run: python -m benchmarks.training.significance
Logistic regression on digits (200 images, 3 epochs of momentum in batches of 20), one question, scores by `replay`
under 256 seeds. Their mean over all seeds is taken away, so that no sample has an effect; then a few seeds are drawn
2,000 times, and each draw is an ensemble. Prints the share of draws with a significant sample beside the stated
probability, and how many standard errors the limit is. Half a minute on one core.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.losses import classification
from benchmarks.common.models import zeroed
from benchmarks.common.options import options
from benchmarks.common.results import save
from benchmarks.data.digits import digits
from crossfluence._results.significance import student_limit

SEEDS, DRAWS, N = 256, 2_000, 200


def seeds() -> Tensor:
    """Scores under each seed, shape `(seeds, n)`."""
    pixels, labels = digits()
    start = zeroed(nn.Linear(64, 10).double())
    data, rate = (pixels[:N], labels[:N]), cf.SGD(0.2, momentum=0.9)
    recipe = cf.Recipe(start, classification, data, optimizer=rate, epochs=3, batch_size=20)

    def question(model: nn.Module) -> Tensor:
        logits = model(pixels[1000])
        return logits[2] - logits[1]

    return torch.stack([cf.replay(recipe.with_seed(seed), question, groups=0).values[:, 0] for seed in range(SEEDS)])


def main() -> None:
    options(__doc__).parse_args()
    torch.set_num_threads(1)
    found = seeds()
    noise, generator = found - found.mean(0), torch.Generator().manual_seed(0)
    rows = []
    for members in (3, 4, 8):
        draws = [torch.randperm(SEEDS, generator=generator)[:members].tolist() for _ in range(DRAWS)]
        names = tuple(map(str, range(DRAWS)))
        drawn = (noise[[draw[place] for draw in draws]].T for place in range(members))  # (n, draws) each
        scores = cf.ensemble(cf.Scores(values, tuple(range(N)), names, "replay") for values in drawn)
        for level in (0.05, 0.2):
            false = sum(
                any(scores.top(1, name, effect=effect, significance=level) for effect in ("raises", "lowers"))
                for name in names
            )
            limit = student_limit(level / N, members - 1)
            rows.append({"members": members, "stated": level, "found": false / DRAWS, "limit": round(limit, 1)})
            print(
                f"{members} members, stated {level:.2f}: found {false / DRAWS:.3f}, limit {limit:.1f} standard errors"
            )
    save("significance", rows)


if __name__ == "__main__":
    main()
