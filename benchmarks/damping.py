"""How much damping: agreement with training again, for damping from none to far too much, on four ways to train.

Run: OMP_NUM_THREADS=1 python benchmarks/damping.py    (prints a table and writes benchmarks/results/damping.csv)
Digits, 400 samples, 40 of them left out one by one; the questions are the losses of 20 test images. Damping is in mean
eigenvalues of the Hessian; the last line of each is a rule that needs no retraining: descent that stops after T steps
of size r acts about as if it had an l2 term of 1 / (r T) (Ali, Kolter and Tibshirani, "A continuous-time view of early
stopping for least squares regression", AISTATS 2019); with momentum b, r is the rate divided by 1 - b.
The column "indicator" is another way to do without retraining: how much the scores and their derivative by the damping
correlate, which says whether more of it would turn the ranking (after Wang, Deng et al., "Taming hyperparameter
sensitivity in data attribution: practical selection without costly retraining", 2025).
"""

from __future__ import annotations

import torch
from results import save
from sklearn.datasets import load_digits
from torch import Tensor, nn

import crossfluence as cf

FACTORS = (0.0, 1e-2, 1e-1, 1.0, 10.0)
RATE, MOMENTUM = 0.5, 0.9
N, ALONE, TEST = 400, 40, 20


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def linear() -> nn.Module:
    model = nn.Linear(64, 10)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    return model


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))


def trainings(x: Tensor, y: Tensor) -> dict[str, cf.Recipe]:
    def recipe(model: nn.Module, epochs: int, l2: float) -> cf.Recipe:
        return cf.Recipe(
            model.double(), loss, (x, y), optimizer=cf.SGD(RATE, MOMENTUM), epochs=epochs, l2=l2, at_once=41
        )

    return {
        "linear, l2 1e-2, converged": recipe(linear(), 600, 1e-2),
        "linear, no l2, 200 steps": recipe(linear(), 200, 0.0),
        "network, l2 1e-2, converged": recipe(network(), 1500, 1e-2),
        "network, l2 1e-3, 600 steps": recipe(network(), 600, 1e-3),
        "network, no l2, 200 steps": recipe(network(), 200, 0.0),
    }


def spectrum(risk: cf.Risk, test: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the Hessian `(p,)`, and along its eigenvectors the samples' times the questions' energy `(m, p)`.

    The samples' is that of their second moment, for which the Hessian stands.
    """
    each = [
        torch.autograd.grad(one, list(risk.model.parameters()), retain_graph=True) for one in loss(risk.model, test)
    ]
    gradients = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in each])
    hessian = cf.Hessian().product(risk, torch.eye(risk.p, dtype=gradients.dtype))
    values, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
    return values, (values - risk.l2).clamp_min(0) * (gradients @ vectors).square()


def indicator(values: Tensor, energy: Tensor, damping: float) -> float:
    """Correlation of scores with their derivative by the damping, mean over questions."""
    one, both, other = ((energy / (values + damping) ** k).nan_to_num(posinf=0).sum(1) for k in (2, 3, 4))
    return float((both / (one * other).sqrt()).mean())


def main() -> None:
    torch.set_num_threads(1)
    pixels, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    x, y, test = pixels[:N] / 16, labels[:N], (pixels[1000 : 1000 + TEST] / 16, labels[1000 : 1000 + TEST])
    question = cf.each_of(cf.batches(*test), loss)
    drop, rows = range(0, N, N // ALONE), []
    for name, recipe in trainings(x, y).items():
        risk = recipe.risk(recipe.train())
        truth = cf.leave_out(recipe, question, drop)
        values, energy = spectrum(risk, test)
        rule = (1 - MOMENTUM) / (RATE * recipe.epochs)
        for damping in (*(cf.Relative(factor) for factor in FACTORS), rule):
            try:
                scores = cf.influence(risk, question, cf.Exact(damping))
            except cf.CrossfluenceError:
                print(f"training {name}  damping {damping}: singular")
                continue
            report, found = scores.report, cf.compare(scores, truth)
            assert report is not None
            row = {
                "training": name,
                "damping": damping.factor if isinstance(damping, cf.Relative) else "rule",
                "pearson": f"{float(found.pearson):.3f}",
                "slope": f"{float(found.slope):.3g}",
                "absolute": f"{report.damping:.2g}",
                "smallest eigenvalue": f"{report.smallest_eigenvalue:.2g}",
                "indicator": f"{indicator(values, energy, report.damping):.2f}",
                "gradient norm": f"{report.gradient_norm:.1g}",
            }
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    save("damping", rows)


if __name__ == "__main__":
    main()
