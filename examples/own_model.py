"""Explain a prediction of a model that you trained yourself, and check it. Run: python examples/own_model.py."""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import crossfluence as cf


def main(samples: int = 569, left_out: int = 40) -> None:
    x, y = (torch.as_tensor(array[:samples]) for array in load_breast_cancer(return_X_y=True))
    x, y = (x - x.mean(0)) / x.std(0), y.double()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model(batch[0])[:, 0], batch[1], reduction="none")

    def train(weights: Tensor) -> nn.Module:
        model = nn.Linear(x.shape[1], 1, dtype=torch.float64)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        optimiser = torch.optim.LBFGS(
            model.parameters(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
        )

        def risk() -> Tensor:
            optimiser.zero_grad()
            squares = model.weight.square().sum() + model.bias.square().sum()
            value = (weights * loss(model, (x, y))).mean() + 1e-2 / 2 * squares
            value.backward()
            return value

        optimiser.step(risk)
        return model

    model = train(torch.ones(samples))
    doubtful = int(model(x)[:, 0].abs().argmin())

    def question(model: nn.Module) -> Tensor:
        return model(x[doubtful : doubtful + 1])[0, 0]

    scores = cf.influence(cf.Risk(model, loss, cf.batches(x, y), l2=1e-2), question)
    print(f"Patient {doubtful} is the most doubtful: log odds {question(model):+.3f}.")
    print("made it more benign:   ", [(i, round(value, 3)) for i, value in scores.top(5)])
    print("made it more malignant:", [(i, round(value, 3)) for i, value in scores.top(5, effect="lowers")])
    drop = torch.linspace(0, samples - 1, left_out).long().tolist()
    agreement = cf.compare(scores, cf.leave_out(train, question, drop, n=samples))
    print(f"{left_out} trained again: Pearson {agreement.pearson}, slope {agreement.slope}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=569)
    parser.add_argument("--left-out", type=int, default=40)
    main(**vars(parser.parse_args()))
