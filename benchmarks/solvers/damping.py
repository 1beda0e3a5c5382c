"""How much damping: agreement with training again, for damping from none to far too much, on four ways to train.

Run: OMP_NUM_THREADS=1 python -m benchmarks.solvers.damping  (prints a table and writes benchmarks/results/damping.csv)
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
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.losses import Pair, classification
from benchmarks.common.models import perceptron, zeroed
from benchmarks.common.options import options
from benchmarks.common.results import line, save
from benchmarks.data.digits import digits

FACTORS = (0.0, 1e-2, 1e-1, 1.0, 10.0)
RATE, MOMENTUM = 0.5, 0.9
N, ALONE, TEST = 400, 40, 20


def network() -> nn.Module:
    torch.manual_seed(0)
    return perceptron(64, 8, 10)


def trainings(x: Tensor, y: Tensor) -> dict[str, cf.Recipe]:
    def recipe(model: nn.Module, epochs: int, l2: float) -> cf.Recipe:
        return cf.Recipe(
            model.double(), classification, (x, y), optimizer=cf.SGD(RATE, MOMENTUM), epochs=epochs, l2=l2, at_once=41
        )

    return {
        "linear, l2 1e-2, converged": recipe(zeroed(nn.Linear(64, 10)), 600, 1e-2),
        "linear, no l2, 200 steps": recipe(zeroed(nn.Linear(64, 10)), 200, 0.0),
        "network, l2 1e-2, converged": recipe(network(), 1500, 1e-2),
        "network, l2 1e-3, 600 steps": recipe(network(), 600, 1e-3),
        "network, no l2, 200 steps": recipe(network(), 200, 0.0),
    }


def spectrum(risk: cf.Risk, test: Pair) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the Hessian `(p,)`, and along its eigenvectors the samples' times the questions' energy `(m, p)`.

    The samples' is that of their second moment, for which the Hessian stands.
    """
    losses, parameters = classification(risk.model, test), list(risk.model.parameters())
    each = [torch.autograd.grad(one, parameters, retain_graph=True) for one in losses]
    gradients = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in each])
    hessian = cf.Hessian().product(risk, torch.eye(risk.p, dtype=gradients.dtype))
    values, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
    return values, (values - risk.l2).clamp_min(0) * (gradients @ vectors).square()


def indicator(values: Tensor, energy: Tensor, damping: float) -> float:
    """Correlation of scores with their derivative by the damping, mean over questions."""
    one, both, other = ((energy / (values + damping) ** k).nan_to_num(posinf=0).sum(1) for k in (2, 3, 4))
    return float((both / (one * other).sqrt()).mean())


def main() -> None:
    options(__doc__).parse_args()
    torch.set_num_threads(1)
    pixels, labels = digits()
    x, y, test = pixels[:N], labels[:N], (pixels[1000 : 1000 + TEST], labels[1000 : 1000 + TEST])
    question = cf.each_of(cf.batches(*test), classification)
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
            print(line(row), flush=True)
    save("damping", rows)


if __name__ == "__main__":
    main()
