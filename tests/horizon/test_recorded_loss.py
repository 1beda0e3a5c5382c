"""A record of a training with another loss than the risk's: its gradients are shorter or longer."""

import pytest
import torch
from torch import nn

import crossfluence as cf
from crossfluence._horizon.recorded_loss import gradient_ratio, other_loss

X = torch.randn(90, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, 0] > 0).long()


def cross_entropy(factor=1.0):
    return cf.OnOutputs(
        lambda model, batch: model(batch[0]),
        lambda z, batch: factor * nn.functional.cross_entropy(z, batch[1], reduction="none"),
    )


def recipe(optimizer, batch_size=10, epochs=4, **settings):
    net = nn.Linear(4, 2, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.linspace(-0.3, 0.3, 8).reshape(2, 4))
        net.bias.zero_()
    return cf.Recipe(
        net, cross_entropy(), (X, Y), optimizer=optimizer, batch_size=batch_size, epochs=epochs, **settings
    )


@pytest.mark.parametrize("optimizer", [cf.SGD(0.1, momentum=0.9), cf.Adam(1e-2), cf.AdamW(1e-2)],
                         ids=lambda optimizer: type(optimizer).__name__)  # fmt: skip
@pytest.mark.parametrize("settings", [{}, {"clipping": 0.05}, {"l2": 0.01}, {"batch_size": 1}, {"batch_size": 90}],
                         ids=["plain", "clipped", "l2", "one by one", "all at once"])  # fmt: skip
def test_the_last_gradients_of_a_training_are_as_long_as_those_of_its_loss(optimizer, settings):
    made = recipe(optimizer, **settings)
    risk = made.risk(made.train(), record=made.record())
    assert 0.6 < gradient_ratio(risk) < 1.6
    assert not other_loss(risk)


@pytest.mark.parametrize("factor", [12.0, 1 / 12], ids=["a sum for a mean", "a mean for a sum"])
@pytest.mark.parametrize("segments", [None, 2])
def test_sizes_are_not_believed_where_the_training_had_another_loss(factor, segments):
    made = recipe(cf.AdamW(1e-2))
    record = made.record(segments=segments or 0)
    risk = cf.Risk(made.train(), cross_entropy(factor), cf.batches(X, Y), record=record)
    assert gradient_ratio(risk) == pytest.approx(1 / factor, rel=0.5)
    scores = cf.influence(risk, lambda model: model(X[:1])[0, 1], cf.Horizon(segments=segments))
    assert scores.verdict is not None
    assert scores.verdict.level != "sizes"
    assert "trained on another one" in str(scores.verdict)


def test_batches_of_unknown_size_may_have_any_longer_gradients():
    made = recipe(cf.SGD(0.1), batch_size=1)
    record = made.record()
    unknown = cf.TrainingRecord(record.rule, record.parts, record.steps, "made up", length=record.length)
    risk = made.risk(made.train(), record=unknown)
    assert gradient_ratio(risk) > 2
    assert not other_loss(risk)


def test_a_recorder_in_a_loop_knows_the_length_of_its_gradients():
    net = nn.Linear(4, 2, dtype=torch.float64)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    recorder, loss = cf.Recorder(optimizer, batch_size=30), cross_entropy()
    for step in range(12):
        rows = slice(30 * (step % 3), 30 * (step % 3) + 30)
        optimizer.zero_grad()
        loss.losses(net, (X[rows], Y[rows])).mean().backward()
        recorder.before_step()
        nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        optimizer.step()
        recorder.after_step()
    right, wrong = (
        cf.Risk(net, cross_entropy(factor), cf.batches(X, Y), record=recorder.record()) for factor in (1, 30)
    )
    assert not other_loss(right)
    assert other_loss(wrong)
