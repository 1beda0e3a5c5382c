"""The training's horizon in blocks: phi written out in the scaled eigenbases, and what is refused."""

import grid
import pytest
import torch
from grid import integers, normal
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors
from crossfluence._training.optimizer_rule import ParameterRecord, Rule, digest_of
from crossfluence._training.record import TrainingRecord

UNRELIABLE = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")
X, Y = normal(30, 3, seed=1), normal(30, 2, seed=2)
FISHER = cf.EmpiricalFisher()
TRAINED = cf.Trained()


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1)


def record_of(risk, *, rate=3.0, decay=0.0):
    parts = []
    for seed, part in enumerate(risk.theta.values()):
        square, mean = normal(*part.shape, seed=seed).square() + 0.1, 0.3 * normal(*part.shape, seed=50 + seed)
        parts.append(ParameterRecord(digest_of(part), rate, square, mean, decay))
    return TrainingRecord(Rule("AdamW"), tuple(parts), 10, "made up")


def risk(model=None, l2=0.0, **options):
    model = model or grid.seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    made = cf.Risk(model, loss, cf.batches(X, Y, size=7), l2=l2)
    return made.with_record(record_of(made, **options))


def of_block(risk, layer):
    """A sample's gradient of a layer as a matrix, weight and bias side by side; A of the same, and D."""
    rows = torch.cat(list(risk.sample_gradients())) * risk.n
    gradients, scaling = risk.layout.split(rows), risk.record.scaling(risk.theta)
    whole = torch.cat([gradients[f"{layer}.weight"], gradients[f"{layer}.bias"].unsqueeze(2)], 2)
    pace = torch.cat([scaling[f"{layer}.weight"], scaling[f"{layer}.bias"].unsqueeze(1)], 1)
    return whole, pace, float(risk.record.decay(risk.theta)[f"{layer}.weight"].flatten()[0])


def phi(x):
    return torch.where(x > 0, -torch.expm1(-x) / x, 1.0)


def of_one_rank(pace):
    return pace.mean(1), pace.mean(0) / pace.mean()


def written_out(risk, layer, *, squares=True):
    """The block's matrix: single gradients are outer products, whose factors are the moments of both sides."""
    whole, pace, decay = of_block(risk, layer)
    rows, columns = of_one_rank(pace)
    u, s, v = torch.linalg.svd(whole, full_matrices=False)
    left, right = u[:, :, 0] * s[:, :1], v[:, 0]  # up to how the length is shared: as the library has it, below
    inputs = 1 / right[:, -1]  # a layer's last input is one
    left, right = left / inputs.unsqueeze(1), right * inputs.unsqueeze(1)
    sides = []
    for side, scale in ((left, rows), (right, columns)):
        moment = scale.sqrt()[:, None] * (side.T @ side) * scale.sqrt() / len(side)
        values, vectors = torch.linalg.eigh(moment)
        sides.append((values, scale.sqrt()[:, None] * vectors))
    (ahead, one), (behind, other) = sides
    basis = torch.kron(one, other)
    values = (whole.flatten(1) @ basis).square().mean(0) if squares else torch.kron(ahead, behind)
    exponents = values + risk.l2 * basis.square().sum(0) + decay
    return basis @ torch.diag(phi(exponents)) @ basis.T


def matrix_of(inverse, risk, layer):
    """A layer's block of an inverse, weight and bias side by side."""
    places = risk.layout.split(torch.arange(risk.p).unsqueeze(0))
    order = torch.cat([places[f"{layer}.weight"][0], places[f"{layer}.bias"][0].unsqueeze(1)], 1).flatten()
    return inverse.solve(torch.eye(risk.p).double()).vectors[order][:, order]


@pytest.mark.parametrize("options", [{}, {"l2": 0.3}, {"decay": 0.4}, {"rate": 1e-3}], ids=str)
@pytest.mark.parametrize("solver", [cf.EKFAC(TRAINED, FISHER), cf.KFAC(TRAINED, FISHER)], ids=repr)
def test_it_is_phi_in_the_scaled_eigenbases(solver, options):
    made = risk(**options)
    inverse = solver.invert(made)
    for layer in ("0", "2"):
        wanted = written_out(made, layer, squares=isinstance(solver, cf.EKFAC))
        found = matrix_of(inverse, made, layer)
        assert torch.allclose(found, wanted, rtol=0, atol=1e-8 * float(wanted.abs().max()))


@pytest.mark.parametrize("solver", [cf.EKFAC(TRAINED, FISHER), cf.BlockDiagonal(TRAINED, FISHER)], ids=repr)
def test_a_block_with_one_row_is_phi_of_the_dense_matrix(solver):
    made = risk(grid.seeded(nn.Linear(3, 1)), decay=0.2)
    rows, scaling = torch.cat(list(made.sample_gradients())) * made.n, made.record.scaling(made.theta)
    root = made.layout.flatten(scaling).sqrt()
    x = root[:, None] * (rows.T @ rows / made.n) * root + 0.2 * torch.eye(made.p).double()
    values, vectors = torch.linalg.eigh(x)
    wanted = root[:, None] * (vectors @ torch.diag(phi(values)) @ vectors.T) * root
    found = solver.invert(made).solve(torch.eye(made.p).double()).vectors
    assert torch.allclose(found, wanted, rtol=0, atol=1e-8 * float(wanted.max()))


def test_a_whole_layer_keeps_the_scaling_of_each_parameter():
    made = risk()
    inverse = cf.BlockDiagonal(TRAINED, FISHER).invert(made)
    for layer in ("0", "2"):
        whole, pace, _ = of_block(made, layer)
        root, rows = pace.flatten().sqrt(), whole.flatten(1)
        values, vectors = torch.linalg.eigh(root[:, None] * (rows.T @ rows / made.n) * root)
        wanted = root[:, None] * (vectors @ torch.diag(phi(values.clamp_min(0))) @ vectors.T) * root
        assert torch.allclose(matrix_of(inverse, made, layer), wanted, rtol=0, atol=1e-8 * float(wanted.max()))


def test_a_diagonal_needs_no_rank():
    made = risk(l2=0.2, decay=0.1)
    scaling = made.layout.flatten(made.record.scaling(made.theta))
    squares = (torch.cat(list(made.sample_gradients())) * made.n).square().mean(0)
    wanted = scaling * phi(scaling * (squares + 0.2) + 0.1)
    found = cf.Diagonal(TRAINED, FISHER).invert(made).solve(torch.eye(made.p).double()).vectors
    assert torch.allclose(found, torch.diag(wanted), atol=1e-10)


class Words(nn.Module):
    """A table, whose rows keep their own coordinates, and a layer."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(6, 3), nn.Linear(3, 2)

    def forward(self, ids):
        return self.head(self.table(ids).sum(1))


def words():
    ids = integers(5, 30, 4, seed=3)  # the last row is never read
    made = cf.Risk(grid.seeded(Words()), loss, cf.batches(ids, Y, size=7))
    return made.with_record(record_of(made)), ids


@UNRELIABLE
def test_tables_are_scaled_row_by_row():
    made, _ = words()
    inverse = cf.EKFAC(TRAINED, FISHER).invert(made)
    rows, columns = of_one_rank(made.record.scaling(made.theta)["table.weight"])
    gradients = made.layout.split(torch.cat(list(made.sample_gradients())) * made.n)["table.weight"]
    basis = next(block.right[0] for block in inverse.blocks if block.slot.names == ("table.weight",))
    unit = basis / columns.sqrt()[:, None]
    assert torch.allclose(unit.T @ unit, torch.eye(3).double(), atol=1e-10)
    scaled = rows.sqrt()[:, None] * (gradients @ basis)
    values = phi(scaled.square().mean(0))
    ask = normal(6, 3, seed=4)
    wanted = rows[:, None] * ((ask @ basis) * values) @ basis.T
    a = made.layout.flatten({name: torch.zeros_like(part) for name, part in made.theta.items()} | {"table.weight": ask})
    found = made.layout.split(inverse.solve(a.unsqueeze(0)).vectors)["table.weight"][0]
    assert torch.allclose(found, wanted, atol=1e-10)


@UNRELIABLE
@pytest.mark.parametrize("solver", [cf.EKFAC, cf.KFAC, cf.BlockDiagonal, cf.Diagonal], ids=lambda kind: kind.__name__)
def test_all_pairs_own_losses_and_files_agree_with_single_solves(solver, tmp_path):
    made = risk(decay=0.1)
    inverse = solver(TRAINED, tolerance=0.0).invert(made)
    losses = cf.each_of(cf.batches(X[:5], Y[:5], size=3), loss)
    found = cf.influence(made, losses, inverse)
    wanted = cf.influence(made, lambda model: loss(model, (X[:5], Y[:5])), inverse)
    assert torch.allclose(found.values, wanted.values, rtol=1e-9)
    assert found.report.drift == (0.0,) * 5
    assert found.verdict.level == "order"
    assert "training's own record" not in str(found.verdict)
    assert "layers do to each other" in str(found.verdict)
    assert any("made up" in note for note in found.report.notes)
    own = cf.self_influence(made, inverse).values[:5, 0]
    assert torch.allclose(own, found.values.diagonal(), rtol=1e-8)
    inverse.save(tmp_path / "inverse")
    again = cf.load_inverse(tmp_path / "inverse")
    assert not again.at_minimum
    assert torch.allclose(cf.influence(made, losses, again).values, found.values)


@UNRELIABLE
def test_sizes_come_near_to_replay_where_a_damping_is_far_off():
    x, y = normal(80, 4, seed=5), integers(3, 80, seed=6)
    net = grid.seeded(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))

    def entropy(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    recipe = cf.Recipe(net, entropy, (x, y), optimizer=cf.AdamW(0.02, eps_root=1e-6), epochs=3, batch_size=10)
    ask = lambda model: entropy(model, (x[:20].roll(1, 0), y[:20]))  # noqa: E731
    made, exact = recipe.risk(recipe.train(), record=recipe.record()), cf.replay(recipe, ask, groups=0)
    found, damped = (cf.compare(cf.influence(made, ask, cf.EKFAC(damping)), exact) for damping in (
        TRAINED, cf.Relative(0.1)))  # fmt: skip
    assert found.pearson > max(0.9, damped.pearson)
    assert 0.6 < found.slope < 1.5
    assert damped.slope < 0.5


@UNRELIABLE
def test_outputs_are_split_for_it_and_pilots_and_layers_are_taken():
    made = risk()
    assert any("Fisher(samples=1" in note for note in cf.EKFAC(TRAINED).invert(made).notes)
    some = cf.EKFAC(TRAINED, layers="0").invert(made)
    assert any("Only layers='0'" in note for note in some.notes)
    many = cf.Risk(made.model, loss, cf.batches(normal(200, 3, seed=7), normal(200, 2, seed=8), size=50))
    inverse = cf.EKFAC(TRAINED, FISHER, pilot=100).invert(many.with_record(record_of(many)))
    whole = cf.EKFAC(TRAINED, FISHER).invert(many.with_record(record_of(many)))
    one, other = (each.solve(torch.eye(made.p).double()).vectors.flatten() for each in (inverse, whole))
    assert float(torch.corrcoef(torch.stack([one, other]))[0, 1]) > 0.95


def test_what_it_cannot_do_is_refused(tmp_path):
    plain = cf.Risk(nn.Linear(3, 2).double(), loss, cf.batches(X, Y))
    with pytest.raises(errors.UnsupportedError, match=r"needs a record.*from_settings.*type Horizon\(\)"):
        cf.EKFAC(TRAINED).invert(plain)
    for solver in (cf.CG, cf.Exact, cf.GMRES, cf.LiSSA, cf.Jacobi, cf.Auto):
        with pytest.raises(errors.DampingError, match=r"Got damping=Trained\(\).*Use Horizon\(\)"):
            solver(damping=TRAINED)
    with pytest.raises(errors.DampingError, match=r"EKFAC\(damping=Trained\(\)\)"):
        cf.LowRank(2, damping=TRAINED)
    for solver in (cf.EKFAC(TRAINED), cf.EKFAC(TRAINED).invert(risk())):
        with pytest.raises(errors.UnsupportedError, match="An index judges its scores as those of a minimum"):
            cf.Index.build(risk(), solver, tmp_path / "index")
