"""A loss that couples samples: which pairs shaped a contrastive embedding? Run: python examples/contrastive.py."""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import crossfluence as cf


def info_nce(model: nn.Module, batch: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    """Every image must find its own noisy copy in the batch; a weight counts wherever its sample appears."""
    first, second = (model(view) for view in batch)
    alike = first @ second.T  # (b, b); not normalised: l2 would shrink weights that only set a direction for ever
    among = (weights * alike.exp()).sum(1).log()
    return (weights * (among - alike.diagonal())).sum()


def main(samples: int = 200, epochs: int = 800) -> None:
    pixels, _ = load_digits(return_X_y=True)
    x = torch.as_tensor(pixels[:samples], dtype=torch.float64) / 16
    x = x - x.mean(0)
    noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    model = nn.Linear(64, 8, dtype=torch.float64)
    with torch.no_grad():
        model.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        model.bias.zero_()

    def question(model: nn.Module) -> Tensor:
        """How alike the embedding finds the first two images."""
        return nn.functional.cosine_similarity(*model(x[:2]), dim=0)

    recipe = cf.Recipe(model, cf.WeightedLoss(info_nce), (x, noisy), optimizer=cf.SGD(0.5, 0.9), epochs=epochs, l2=0.2)
    trained = recipe.train()
    scores = cf.influence(recipe.risk(trained), question)
    print(f"Images 0 and 1 are alike by {question(trained):+.3f}.")
    print("made them more alike:", [(i, round(value, 4)) for i, value in scores.top(5)])
    print("drew them apart:     ", [(i, round(value, 4)) for i, value in scores.top(5, effect="lowers")])
    truth = cf.leave_out(recipe, question, range(0, samples, max(1, samples // 20)))
    agreement = cf.compare(scores, truth)
    print(f"{len(truth)} trained again: Pearson {agreement.pearson}, slope {agreement.slope}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=800)
    main(**vars(parser.parse_args()))
