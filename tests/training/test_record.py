"""Records of trainings: the recipe's, the recorder's and the optimizer's agree; wrong ones are refused."""

import pytest
import torch
from grid import integers, normal, seeded
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors
from crossfluence._training.optimizer_rule import ParameterRecord, Rule
from crossfluence._training.record import TrainingRecord

X, Y = normal(40, 3, seed=1), integers(3, 40, seed=2)
STEPS, SIZE = 24, 10


def network():
    return seeded(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)))


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def recipe(optimizer, **options):
    options = {"schedule": cf.linear, "clipping": 0.3, "epochs": 6, "batch_size": SIZE, **options}
    return cf.Recipe(network(), loss, (X, Y), optimizer=optimizer, **options)


def by_hand(made, torch_optimizer, clipping=0.3, accumulate=False, segments=0):
    """The same training in a loop of one's own, with a recorder."""
    model = network()
    optimizer = torch_optimizer(model.parameters())
    recorder = cf.Recorder(optimizer, segments=segments, steps=STEPS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    generator = torch.Generator().manual_seed(made.seed)
    for rows in (part for _ in range(6) for part in torch.randperm(40, generator=generator).split(SIZE)):
        optimizer.zero_grad()
        for part in rows.split(5) if accumulate else [rows]:
            (loss(model, (X[part], Y[part])).sum() / SIZE).backward()
        recorder.before_step()
        if clipping:
            nn.utils.clip_grad_norm_(model.parameters(), clipping)
        optimizer.step()
        recorder.after_step()
        schedule.step()
    return model, recorder, optimizer


PAIRS = {
    "AdamW": (cf.AdamW(0.05, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1)),
    "Adam": (cf.Adam(0.05), lambda p: torch.optim.Adam(p, 0.05)),
    "SGD": (cf.SGD(0.5, 0.9), lambda p: torch.optim.SGD(p, 0.5, momentum=0.9)),
}


def values(record, model):
    theta = {name: part.detach() for name, part in model.named_parameters()}
    return torch.cat([
        part.flatten() for each in (record.scaling(theta), record.decay(theta)) for part in each.values()
    ])


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_recorder_in_the_users_loop_and_the_recipe_agree(name, accumulate):
    ours, theirs = PAIRS[name]
    made = recipe(ours)
    model, recorder, _ = by_hand(made, theirs, accumulate=accumulate)
    trained = made.train()
    for (_, found), (_, wanted) in zip(model.named_parameters(), trained.named_parameters(), strict=True):
        assert torch.allclose(found, wanted, atol=1e-9)
    found, wanted = values(recorder.record(), model), values(made.record(), trained)
    assert torch.allclose(found, wanted, rtol=1e-6)
    rate = recorder.record().parts[0].rate
    assert 0 < rate < ours.lr * sum(1 - step / STEPS for step in range(STEPS))  # clipped


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_segments_end_where_the_training_does_and_add_up(name):
    ours, theirs = PAIRS[name]
    made, (model, recorder, _) = recipe(ours), by_hand(recipe(ours), theirs, segments=3)
    kept, found = made.record(segments=3), recorder.record()
    assert len(kept.segments) == len(found.segments) == 3
    for record in (kept, found):
        assert sum(part[0].rate for part in record.segments) == pytest.approx(record.parts[0].rate)
    theta = {name: part.detach() for name, part in model.named_parameters()}
    at, scaling, _ = next(iter(found.earlier(theta, 3)))
    assert all(torch.equal(at[name], theta[name]) for name in theta)
    assert all((scaling[name] <= 1.001 * found.scaling(theta)[name]).all() for name in theta)


def test_the_formula_is_the_derivative_of_adam_under_a_lasting_gradient():
    """Gradients are constant here, so the parameters' derivative by the gradient is known without a curvature."""
    ours = cf.Adam(0.01, betas=(0.0, 0.9))
    for gradient in (0.5, 2.0):

        def moved(shift, gradient=gradient):
            generator, theta = torch.Generator().manual_seed(0), {"w": torch.zeros(1).double()}
            state = ours.start(theta)
            for step in range(400):
                noise = torch.randn(1, generator=generator, dtype=torch.float64)
                theta, state = ours.step(theta, {"w": gradient + noise + shift}, state, step + 1, 1.0)
            return float(theta["w"])

        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        square = gradient**2 + 1  # of the noise, in the mean
        part = ParameterRecord("", 0.01 * 400, torch.tensor([square]).double(), torch.tensor([gradient]).double())
        assert -slope == pytest.approx(float(Rule("Adam").scaling(part)), rel=0.35)


@pytest.mark.parametrize("name", PAIRS)
def test_settings_alone_come_near_to_the_record(name):
    ours = PAIRS[name][0]
    made = recipe(ours, clipping=None, epochs=30)
    model = made.train()
    risk, kept = made.risk(model), made.record()
    found = TrainingRecord.from_settings(risk, optimizer=ours, steps=120, batch_size=SIZE, schedule=cf.linear)
    assert found.parts[0].rate == pytest.approx(kept.parts[0].rate)
    ratio = (values(found, model) / values(kept, model)).nan_to_num(1.0)
    assert 0.3 < float(ratio.median()) < 3
    if name == "SGD":
        assert torch.allclose(ratio, torch.ones_like(ratio))


def test_second_moments_from_settings_are_those_of_random_batches():
    made = recipe(PAIRS["AdamW"][0])
    risk = made.risk(made.train())
    found = TrainingRecord.from_settings(risk, optimizer=cf.AdamW(0.1), steps=5, batch_size=SIZE, clipping=1e9)
    generator, squares = torch.Generator().manual_seed(0), []
    for _ in range(3000):
        rows = torch.randperm(40, generator=generator)[:SIZE]
        live = {name: part.clone().requires_grad_() for name, part in risk.theta.items()}
        mean = loss(lambda x, live=live: torch.func.functional_call(risk.model, live, (x,)), (X[rows], Y[rows])).mean()
        squares.append(torch.cat([part.flatten() for part in torch.autograd.grad(mean, list(live.values()))]).square())
    wanted = torch.stack(squares).mean(0)
    assert torch.allclose(torch.cat([part.square.flatten() for part in found.parts]), wanted, rtol=0.15)


def test_a_checkpoint_s_optimizer_gives_a_record_that_says_what_it_lacks():
    _, theirs = PAIRS["AdamW"]
    model, recorder, optimizer = by_hand(recipe(PAIRS["AdamW"][0]), theirs, clipping=None)
    found = TrainingRecord.from_optimizer(optimizer, STEPS, 0.05 * (STEPS + 1) / 2 / STEPS)
    kept = recorder.record()
    assert found.parts[0].rate == pytest.approx(kept.parts[0].rate)
    assert torch.allclose(found.parts[0].square, kept.parts[0].square)
    assert found.parts[0].mean is None
    assert any("slow mean" in note for note in found.notes)
    cf.Risk(model, loss, cf.batches(X, Y), record=found)


def test_records_come_back_from_their_file(tmp_path):
    record = recipe(PAIRS["AdamW"][0]).record(segments=2)
    record.save(tmp_path / "record")
    again = TrainingRecord.load(tmp_path / "record")
    assert again.content == record.content
    assert again.notes == record.notes
    with pytest.raises(errors.ResultFileError, match="Cannot read"):
        TrainingRecord.load(tmp_path / "none")


def test_a_record_of_another_model_is_refused():
    made = recipe(PAIRS["AdamW"][0])
    record, model = made.record(), made.train()
    made.risk(model, record=record)
    with torch.no_grad():
        model[0].weight.add_(1e-6)
    with pytest.raises(errors.StaleError, match=r"another model.*'0\.weight'.*from_settings"):
        made.risk(model, record=record)
    part = TrainingRecord(record.rule, record.parts[1:], record.steps, record.origin)
    with pytest.raises(errors.StaleError, match="another model"):
        made.risk(made.train()).with_record(part)
    with pytest.raises(errors.UnsupportedError, match=r"Got AdamW; Risk\(record=\) needs a TrainingRecord"):
        made.risk(made.train(), record=cf.AdamW(0.1))


def test_parameters_that_do_not_count_as_trained_need_no_record_and_names_do_not_matter():
    made = recipe(PAIRS["AdamW"][0])
    record, model = made.record(), made.train()
    whole = nn.Sequential(nn.Linear(2, 2).double(), model)
    x = F.pad(X, (0, 0))
    risk = cf.Risk(whole, lambda m, b: loss(m[1], b), cf.batches(x, Y), params="1.2.*", record=record)
    assert torch.equal(
        risk.record.scaling(risk.theta)["1.2.weight"], record.scaling(dict(model.named_parameters()))["2.weight"]
    )


def stepped(recorder, model, optimizer, *, step=True):
    optimizer.zero_grad()
    loss(model, (X, Y)).mean().backward()
    recorder.before_step()
    if step:
        optimizer.step()
    recorder.after_step()


def test_steps_that_a_scaler_leaves_out_are_not_counted():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    recorder = cf.Recorder(optimizer)
    for step in (True, False, True):
        stepped(recorder, model, optimizer, step=step)
    assert recorder.record().steps == 2
    assert recorder.record().parts[0].rate == pytest.approx(0.2)


def test_groups_have_learning_rates_and_decays_of_their_own():
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.1, "weight_decay": 0.0}, {"params": model[2].parameters()}]
    optimizer = torch.optim.AdamW(groups, 0.01, weight_decay=0.5)
    recorder = cf.Recorder(optimizer)
    stepped(recorder, model, optimizer)
    record = recorder.record()
    assert [part.rate for part in record.parts] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert [part.decay for part in record.parts] == pytest.approx([0, 0, 0.005, 0.005])


def test_wrong_use_is_refused_with_a_sentence():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    with pytest.raises(errors.DataError, match=r"without steps.*before_step\(\)"):
        cf.Recorder(optimizer).record()
    with pytest.raises(errors.DataError, match=r"after_step\(\) without before_step"):
        cf.Recorder(optimizer).after_step()
    with pytest.raises(errors.UnsupportedError, match=r"Got LBFGS.*leave_out"):
        cf.Recorder(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(errors.UnsupportedError, match="amsgrad"):
        cf.Recorder(torch.optim.Adam(model.parameters(), amsgrad=True))
    with pytest.raises(errors.DataError, match="has no state"):
        TrainingRecord.from_optimizer(optimizer, 10, 0.1)
    with pytest.raises(ValueError, match="segments=2 without steps"):
        cf.Recorder(optimizer, segments=2)
    recorder, schedule = cf.Recorder(optimizer), torch.optim.lr_scheduler.StepLR(optimizer, 1)
    loss(model, (X, Y)).mean().backward()
    recorder.before_step()
    optimizer.step()
    schedule.step()
    with pytest.raises(errors.DataError, match=r"changed between.*scheduler.step\(\) after"):
        recorder.after_step()


class Lion(torch.optim.Optimizer):
    """Steps by signs, which no formula here describes."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})


def test_optimizers_that_no_formula_describes_are_refused_with_what_to_use():
    model = network()
    for optimizer in (Lion(model.parameters(), 0.1), torch.optim.RMSprop(model.parameters())):
        name = type(optimizer).__name__
        match = rf"Got {name} for the optimizer; the formulas describe .*SGD, Adam and AdamW.*leave_out.*influence"
        with pytest.raises(errors.UnsupportedError, match=match):
            cf.Recorder(optimizer)
        with pytest.raises(errors.UnsupportedError, match=match):
            TrainingRecord.from_optimizer(optimizer, 10, 0.1)


def test_a_record_of_another_optimizer_than_it_claims_is_refused():
    record = recipe(PAIRS["AdamW"][0]).record()
    bare = tuple(ParameterRecord(part.digest, part.rate) for part in record.parts)
    with pytest.raises(errors.DataError, match=r"record of AdamW with a parameter without a second moment.*record\(\)"):
        TrainingRecord(record.rule, bare, 3, "made up")
    with pytest.raises(errors.DataError, match="record of SGD with a parameter with a second moment"):
        TrainingRecord(Rule("SGD"), record.parts, 3, "made up")
    with pytest.raises(errors.DataError, match="without a second moment"):
        TrainingRecord(record.rule, record.parts, 3, "made up", segments=(bare,))


def test_the_state_of_another_optimizer_is_refused():
    model = network()
    trained, claimed = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), torch.optim.AdamW(model.parameters())
    loss(model, (X, Y)).mean().backward()
    trained.step()
    claimed.state.update(trained.state)
    with pytest.raises(errors.DataError, match=r"AdamW whose state holds momentum_buffer and no exp_avg_sq.*from_sett"):
        TrainingRecord.from_optimizer(claimed, 10, 0.1)
    adam = torch.optim.AdamW(model.parameters())
    adam.step()
    groups = trained.state_dict()["param_groups"]
    trained.load_state_dict({"state": adam.state_dict()["state"], "param_groups": groups})
    with pytest.raises(errors.DataError, match="SGD whose state holds exp_avg, exp_avg_sq and no momentum_buffer"):
        TrainingRecord.from_optimizer(trained, 10, 0.1)


def test_another_optimizer_than_the_one_that_steps_is_found_out():
    model = network()
    recorder = cf.Recorder(torch.optim.AdamW(model.parameters(), 0.1))
    stepped(recorder, model, torch.optim.AdamW(model.parameters(), 0.1))
    with pytest.raises(errors.DataError, match=r"AdamW that the recorder watches took none of 1 steps"):
        recorder.record()


@pytest.mark.parametrize("floor", [-1.0, 0.0])
def test_a_scheduler_that_is_called_twice_is_found_out(floor):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    recorder = cf.Recorder(optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(floor, 1 - step / 6))

    def train():
        for _ in range(6):
            stepped(recorder, model, optimizer)
            schedule.step()
            schedule.step()

    if floor:
        with pytest.raises(
            errors.DataError, match=r"learning rates of \[-0.0333.* in step 5; .*scheduler.step\(\) twice"
        ):
            train()
        return
    train()
    record = recorder.record()
    assert record.parts[0].rate == pytest.approx(0.1 * (1 + 4 / 6 + 2 / 6))
    assert any("zero in 3 of 6 steps" in note and "called twice" in note for note in record.notes)


def test_settings_that_cannot_be_are_refused():
    risk = cf.Risk(network(), loss, cf.batches(X, Y))
    with pytest.raises(ValueError, match="steps=0"):
        TrainingRecord.from_settings(risk, optimizer=cf.AdamW(0.1), steps=0, batch_size=10)
    with pytest.raises(errors.UnsupportedError, match=r"all the data leave no trace.*recipe.record"):
        TrainingRecord.from_settings(risk, optimizer=cf.AdamW(0.1), steps=3, batch_size=40)
    with pytest.raises(errors.UnsupportedError, match="Got AdamW; TrainingRecord needs"):
        TrainingRecord.from_settings(risk, optimizer=torch.optim.AdamW(risk.model.parameters()), steps=3, batch_size=4)


# Clipping.


def test_clipped_trainings_are_those_of_torch_also_many_at_once():
    made = recipe(cf.SGD(0.5, 0.9))
    model, *_ = by_hand(made, PAIRS["SGD"][1])
    weights = torch.ones(3, 40).double()
    weights[1, :5] = 0
    together = list(made.retrain(weights))
    for found, row in zip(together, weights, strict=True):
        for one, other, hand in zip(found.parameters(), made.train(row).parameters(), model.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-12)
            assert torch.allclose(one, hand, atol=1e-9) or not row.all()
    with pytest.raises(ValueError, match="clipping=0"):
        recipe(cf.SGD(0.5), clipping=0)


def test_replay_goes_through_clipping():
    made = recipe(cf.SGD(0.5), epochs=2, clipping=0.2)
    ask = lambda model: model(X[:1])[0, 0]  # noqa: E731
    found = cf.replay(made, ask, groups=0).values[:, 0]
    step = 1e-5
    for sample in (0, 7):
        w = torch.ones(40).double()
        ahead, behind = (ask(made.train(w + sign * step * (torch.arange(40) == sample))).item() for sign in (1, -1))
        assert float(found[sample]) == pytest.approx((ahead - behind) / (2 * step), rel=1e-4, abs=1e-8)
