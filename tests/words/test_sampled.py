"""Skip-gram by samples: one step, what is drawn, and that both trainers follow one loss."""

import pytest
import torch
from grid import normal
from torch.func import grad
from torch.nn.functional import softplus
from walks import D, flat, pairs, tables, texts

from crossfluence.errors import DataError, NonFiniteError
from crossfluence.words.corpus.pairs import Pairs, Sampling
from crossfluence.words.corpus.vocabulary import corpus_of
from crossfluence.words.skipgram import SampledTraining, SkipGram
from crossfluence.words.skipgram import sampled as sampled_module
from crossfluence.words.skipgram.loss import ExpectedLoss
from crossfluence.words.skipgram.sampled import step

close = torch.testing.assert_close


def sampled(given=None, **options):
    settings = {"epochs": 2, "dtype": torch.float64, "batch_size": 50, **options}
    return SampledTraining(given or pairs(), D, **settings)


@pytest.fixture
def steps_of(monkeypatch):
    """The arguments of every step that training takes, the tables left alone."""

    def steps(weights=None, **options):
        found = []
        with monkeypatch.context() as patch:
            patch.setattr(sampled_module, "step", lambda *given: found.append(given[2:]))
            sampled(**options).train(weights)
        return found

    return steps


def same(one, other):
    return torch.equal(one.word_vectors, other.word_vectors) and torch.equal(one.context_vectors, other.context_vectors)


def test_a_step_is_minus_the_rate_times_the_gradient_of_the_summed_loss():
    generator = torch.Generator().manual_seed(15)
    words, contexts = tables(16, size=6)  # few words, so that rows repeat within the batch
    centres, seen = torch.randint(6, (2, 20), generator=generator)
    noise = torch.randint(6, (20, 3), generator=generator)
    weights = normal(20, seed=17).abs()

    def summed(w, c):
        near = softplus(-(w[centres] * c[seen]).sum(1))
        far = softplus((w[centres][:, None] * c[noise]).sum(2)).sum(1)
        return (weights * (near + far)).sum()

    of_words, of_contexts = grad(summed, argnums=(0, 1))(words, contexts)
    wanted = words - 0.1 * of_words, contexts - 0.1 * of_contexts
    step(words, contexts, centres, seen, noise, weights, 0.1)
    close((words, contexts), wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "sampling", [Sampling(3, 2, subsample=0), Sampling(2, 1, subsample=0, power=0.0), Sampling(3, 2, subsample=0.02)]
)
def test_the_gradient_in_expectation_is_the_mean_of_the_steps_by_samples(steps_of, sampling):
    seeds = 250
    given, (words, contexts) = Pairs(corpus_of(texts()[:90]), sampling), tables(35)
    loss = ExpectedLoss.of(given, 0.0, torch.float64)
    wanted = flat(loss.value_and_gradient(words, contexts)[1:]) * loss.total
    found = []
    for seed in range(seeds):
        new = words.clone(), contexts.clone()
        for centres, *others, _ in steps_of(given=given, epochs=1, seed=seed, batch_size=10**6):
            step(*new, centres, *others, 1.0)
        found.append(flat([words, contexts]) - flat(new))
    mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / seeds**0.5
    assert float(((mean - wanted) / error).abs().max()) < 4.5


def test_training_follows_the_expected_loss():
    loss = ExpectedLoss.of(pairs(), 0.0, torch.float64)
    before, after = sampled(lr=1e-9, lr_end=0.0).train(), sampled(epochs=30).train()
    values = [loss.value(model.word_vectors.detach(), model.context_vectors.detach()) for model in (before, after)]
    assert values[1] < values[0] - 0.01


def test_the_rate_falls_in_a_line_whatever_is_held_at_once(steps_of, monkeypatch):
    rates = [given[-1] for given in steps_of(epochs=5, lr=0.1, lr_end=0.02)]
    assert rates[0] == 0.1
    wanted = torch.linspace(0.1, 0.02, len(rates) + 1)[:-1]
    close(torch.tensor(rates), wanted, rtol=0, atol=0.002)  # sentences of some epochs have a few pairs more
    monkeypatch.setattr(sampled_module, "TOKENS_AT_ONCE", 50)
    parts = [given[-1] for given in steps_of(epochs=5, lr=0.1, lr_end=0.02)]
    assert parts == sorted(parts, reverse=True)
    assert parts[-1] == pytest.approx(rates[-1], abs=0.002)


def test_what_is_drawn_does_not_depend_on_how_much_is_held_at_once(steps_of, monkeypatch):
    def drawn():
        return [torch.cat(part) for part in list(zip(*steps_of(), strict=True))[:3]]

    whole = drawn()
    monkeypatch.setattr(sampled_module, "TOKENS_AT_ONCE", 11)
    assert all(torch.equal(a, b) for a, b in zip(drawn(), whole, strict=True))


def test_training_is_fixed_by_its_seed_and_weights():
    assert same(sampled(seed=3).train(), sampled(seed=3)(torch.ones(pairs().corpus.n)))
    assert not same(sampled(seed=3).train(), sampled(seed=4).train())


def test_a_sentence_left_out_draws_as_before_and_pulls_at_nothing(steps_of):
    given = Pairs(corpus_of([*texts()[:40], "vole wasp vole"]), Sampling(2, 2, subsample=0))
    weights = torch.ones(41)
    weights[-1] = 0
    for one, other in zip(steps_of(given=given), steps_of(weights, given=given), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    model = sampled(given=given).train(weights)
    start = SkipGram.initial(given.corpus.words, D, seed=0).word_vectors.detach() * D**-0.5
    for word in ("vole", "wasp"):
        row = given.corpus.index[word]
        assert torch.equal(model.word_vectors[row], start[row])  # as a centre it stands in no other sentence
    assert not torch.equal(model.word_vectors[0], start[0])


def test_no_weight_at_all_leaves_the_tables_where_they_began():
    model = sampled().train(torch.zeros(pairs().corpus.n))
    close(model.word_vectors, SkipGram.initial(pairs().corpus.words, D, seed=0).word_vectors * D**-0.5)
    assert not model.context_vectors.any()


def test_training_that_diverges_is_refused_with_its_rate():
    with pytest.raises(NonFiniteError, match="lr=1e"):
        sampled(lr=1e200).train()


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.1, "lr_end": 0.2}, {"lr_end": -1.0}], ids=str
)
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="needed"):
        sampled(**wrong)


@pytest.mark.parametrize("weights", [torch.ones(3), torch.ones(240, 1), torch.full((240,), torch.nan)])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(DataError, match="needed"):
        sampled().train(weights)
