"""Questions to word vectors: agreement with wefe and gensim, the laws of the test, and what is refused."""

import copy
import dataclasses
import itertools
import json
import math
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from grid import normal
from torch import nn

import crossfluence as cf
from crossfluence._autodiff.functional import bind
from crossfluence.errors import NonFiniteError, ObjectiveError, WordError, WordSetError
from crossfluence.words import objectives as ask
from crossfluence.words.word_sets import WordSets, rows_of, word_sets

WORDS = [f"w{row}" for row in range(30)]
INDEX = {word: row for row, word in enumerate(WORDS)}


class Vectors(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.word_vectors = nn.Parameter(table.clone())


MODEL = Vectors(normal(30, 6, seed=60))


def sets_of(x, y, a=4, b=3, name="test"):
    """The first words of the vocabulary, in sets of these sizes."""
    ends = list(itertools.accumulate((x, y, a, b), initial=0))
    return WordSets(name, *(tuple(WORDS[i:j]) for i, j in itertools.pairwise(ends)))


UNEQUAL = sets_of(3, 5)


def associations(sets, table):
    """One cosine at a time."""
    v = {word: table[INDEX[word]].double().numpy() for word in WORDS}

    def cosine(p, q):
        return float(v[p] @ v[q] / math.sqrt((v[p] @ v[p]) * (v[q] @ v[q])))

    return {w: np.mean([cosine(w, a) for a in sets.A]) - np.mean([cosine(w, b) for b in sets.B])
            for w in sets.X + sets.Y}  # fmt: skip


QUESTIONS = {
    "weat": ask.weat(UNEQUAL, INDEX),
    "statistic": ask.weat(UNEQUAL, INDEX).statistic,
    "analogy": ask.analogy_margin("w0", "w1", "w2", "w3", INDEX),
    "analogy with a rival": ask.analogy_margin("w0", "w1", "w2", "w3", INDEX, rival="w4"),
    "cosine distance": ask.distance("w0", "w1", INDEX),
    "distance": ask.distance("w0", "w1", INDEX, metric="euclidean"),
    "cluster margin": ask.cluster_margin("w0", [["w1", "w2", "w0"], ["w3"], ["w4", "w5"]], 0, 2, INDEX),
    "fixed centres": ask.cluster_margin("w0", normal(3, 6, seed=61), 0, 2, INDEX, length_one=False),
    "log cluster": ask.log_cluster("w0", [["w1", "w2"], ["w3"], ["w4", "w5"]], 1, INDEX),
    "moved": ask.moved("w0", normal(30, 6, seed=62), INDEX),
}
EACH = pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
ONLY_DIRECTIONS = (
    "weat",
    "statistic",
    "analogy",
    "analogy with a rival",
    "cosine distance",
    "cluster margin",
    "log cluster",
)


# Derivatives.


@EACH
def test_the_gradient_equals_finite_differences_and_touches_only_the_words_asked_for(question):
    value, theta = bind(question, MODEL), dict(MODEL.named_parameters())
    gradient = torch.func.grad(value)(theta)["word_vectors"]
    direction, step = normal(30, 6, seed=63), 1e-6
    ahead, behind = (value({"word_vectors": MODEL.word_vectors + sign * step * direction}) for sign in (1, -1))
    assert torch.allclose((gradient * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-9)
    assert 0 < int(gradient.any(1).sum()) <= 15
    forward = torch.func.jvp(value, (theta,), ({"word_vectors": direction},))[1]
    assert torch.allclose(forward, (gradient * direction).sum())


@EACH
def test_questions_can_be_asked_of_many_models_at_once(question):
    tables = torch.stack([MODEL.word_vectors.detach(), normal(30, 6, seed=64)])
    together = torch.func.vmap(bind(question, MODEL))({"word_vectors": tables})
    assert torch.allclose(together, torch.stack([question(Vectors(table)) for table in tables]))


def test_influence_on_a_question_follows_from_its_gradient():
    data = cf.batches(torch.arange(30), normal(30, 6, seed=65))

    def loss(model, batch):
        return (model.word_vectors[batch[0]] - batch[1]).square().sum(1)

    model = Vectors(normal(30, 6, seed=65))  # every sample is where it wants to be
    with torch.no_grad():
        model.word_vectors /= 2  # a half: the optimum with l2 = 2/30
    scores = cf.influence(cf.Risk(model, loss, data, l2=2 / 30), QUESTIONS["weat"], cf.Exact())
    gradient = torch.func.grad(bind(QUESTIONS["weat"], model))(dict(model.named_parameters()))["word_vectors"]
    expected = (gradient * model.word_vectors.detach()).sum(1) / 2  # J = (2/30 + 2/30) I, dg/dw = -2 v / 30
    assert torch.allclose(scores.values[:, 0], expected, atol=1e-8)


@pytest.mark.parametrize("name", ONLY_DIRECTIONS)
def test_only_directions_count_and_turning_the_space_changes_nothing(name):
    turn = torch.linalg.qr(normal(6, 6, seed=66))[0]
    lengths = normal(30, 1, seed=67).exp()
    moved = Vectors(lengths * MODEL.word_vectors.detach() @ turn)
    assert torch.allclose(QUESTIONS[name](moved), QUESTIONS[name](MODEL))


def test_another_place_for_the_table():
    model = nn.Sequential(nn.Embedding(30, 6).double())
    with torch.no_grad():
        model[0].weight.copy_(MODEL.word_vectors)
    elsewhere = ask.weat(UNEQUAL, INDEX, table=lambda found: found[0].weight)
    assert torch.equal(elsewhere(model), QUESTIONS["weat"](MODEL))
    with pytest.raises(ObjectiveError, match=r"no tensor word_vectors.*\['0\.weight'\].*table=lambda model"):
        QUESTIONS["weat"](model)


# The association test.


@pytest.mark.parametrize("sets", [sets_of(4, 4), UNEQUAL, sets_of(7, 2)], ids=["equal", "unequal", "larger first"])
def test_the_effect_size_equals_one_cosine_at_a_time(sets):
    test, slow = ask.weat(sets, INDEX), associations(sets, MODEL.word_vectors.detach())
    x, y = [slow[w] for w in sets.X], [slow[w] for w in sets.Y]
    assert test(MODEL).item() == pytest.approx((np.mean(x) - np.mean(y)) / np.std(x + y), abs=1e-12)
    assert test.statistic(MODEL).item() == pytest.approx(sum(x) - sum(y), abs=1e-12)
    assert test.associations(MODEL) == pytest.approx(slow, abs=1e-12)


def test_swapping_the_targets_or_the_attributes_changes_the_sign():
    x, y, a, b = UNEQUAL.X, UNEQUAL.Y, UNEQUAL.A, UNEQUAL.B
    for swapped in (WordSets("", y, x, a, b), WordSets("", x, y, b, a)):
        for method in ("__call__", "statistic"):
            one, other = getattr(ask.weat(UNEQUAL, INDEX), method), getattr(ask.weat(swapped, INDEX), method)
            assert torch.allclose(other(MODEL), -one(MODEL))


@pytest.mark.parametrize("sets", [sets_of(4, 4), UNEQUAL, sets_of(6, 2)], ids=["equal", "unequal", "larger first"])
def test_the_exact_p_value_counts_every_partition(sets):
    slow = associations(sets, MODEL.word_vectors.detach())
    test, size = ask.weat(sets, INDEX), len(sets.X)

    def statistic(chosen):
        return sum(s if word in chosen else -s for word, s in slow.items())

    observed = statistic(sets.X)
    every = [statistic(chosen) >= observed - 1e-12 for chosen in itertools.combinations(slow, size)]
    exact = test.p_value(MODEL)
    assert exact == ask.PermutationTest(sum(every) / len(every), True, math.comb(len(slow), size), 0.0)
    sampled = test.p_value(MODEL, samples=20_000, exact_up_to=0)
    assert not sampled.exact
    assert sampled.partitions == 20_000
    assert abs(sampled.value - exact.value) < 4 * sampled.standard_error
    assert sampled == test.p_value(MODEL, samples=20_000, exact_up_to=0)
    assert sampled != test.p_value(MODEL, samples=20_000, exact_up_to=0, seed=1)


def test_partitions_are_counted_and_sampled_in_blocks(monkeypatch):
    test = ask.weat(sets_of(5, 5), INDEX)
    whole = test.p_value(MODEL), test.p_value(MODEL, samples=999, exact_up_to=0).partitions
    monkeypatch.setattr("crossfluence.words.association.AT_ONCE", 100)
    assert (test.p_value(MODEL), test.p_value(MODEL, samples=999, exact_up_to=0).partitions) == whole


def test_a_p_value_is_never_zero_and_equal_words_tie():
    far = Vectors(torch.cat([torch.eye(2)[0].expand(3, 2), torch.eye(2)[1].expand(3, 2), normal(24, 2, seed=68)]))
    with torch.no_grad():
        far.word_vectors[6:9], far.word_vectors[9:12] = torch.eye(2)[0], torch.eye(2)[1]
    test = ask.weat(sets_of(3, 3, 3, 3), INDEX)
    assert test(far).item() == pytest.approx(2.0)
    assert test.p_value(far).value == 1 / 20
    same = copy.deepcopy(far)
    with torch.no_grad():
        same.word_vectors[1] = same.word_vectors[3]  # one of X is now like all of Y
    assert test.p_value(same).value == 4 / 20  # the other two of X, with any of four
    assert test.p_value(far, samples=99, exact_up_to=0).value >= 1 / 100


def test_a_p_value_needs_samples():
    with pytest.raises(ValueError, match="samples=0; needed at least 1"):
        ask.weat(UNEQUAL, INDEX).p_value(MODEL, samples=0)


def test_missing_words_are_named_and_the_others_used():
    sets = WordSets("career", ("John", "w1", "W2", "w3"), ("w4", "w5"), ("w6", "w7"), ("w8", "w9"))
    with pytest.raises(WordError, match=r"career: 2 of the 4 words of X \(X\).*least=0\.7.*John, W2.*minimum count"):
        ask.weat(sets, INDEX, lowercase=False)
    test = ask.weat(sets, INDEX)
    assert test.missing == {"X": ("John",), "Y": (), "A": (), "B": ()}
    assert test.sets.X == ("w1", "W2", "w3")
    assert torch.equal(test(MODEL), ask.weat(dataclasses.replace(sets, X=("w1", "w2", "w3")), INDEX)(MODEL))
    with pytest.raises(WordError, match=r"least=0\.8"):
        ask.weat(sets, INDEX, least=0.8)
    with pytest.raises(WordError, match=r"A \(A\) holds 1 word, 'w6'; needed at least 2"):
        ask.weat(dataclasses.replace(sets, A=("w6",)), INDEX, least=0)


def test_two_words_that_are_looked_up_as_one_are_refused():
    with pytest.raises(WordError, match=r"'w1' and 'W1' have the same vector \(row 1\)"):
        ask.weat(WordSets("t", ("w0", "w1"), ("W1", "w3"), ("w4", "w5"), ("w6", "w7")), INDEX)


def test_a_test_takes_one_test():
    with pytest.raises(TypeError, match=r"weat got tuple; needed one WordSets.*\[0\]"):
        ask.weat(word_sets("career"), INDEX)


def test_a_test_can_be_sent_to_another_process():
    assert torch.equal(pickle.loads(pickle.dumps(QUESTIONS["weat"]))(MODEL), QUESTIONS["weat"](MODEL))


# Other packages.


@pytest.fixture(scope="module")
def wefe():
    """The parts of wefe that are needed; its 0.4.1 asks numpy for a name that numpy 2 no longer has."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(np, "float_", np.float64, raising=False)
        pytest.importorskip("wefe")
        from wefe.metrics.WEAT import WEAT
        from wefe.query import Query
        from wefe.word_embedding_model import WordEmbeddingModel

        def run(sets, keyed, **options):
            query = Query([list(sets.X), list(sets.Y)], [list(sets.A), list(sets.B)])
            return WEAT().run_query(query, WordEmbeddingModel(keyed, "random"), **options)

        yield run


@pytest.fixture(scope="module")
def keyed():
    """The model's vectors as gensim holds them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = pytest.importorskip("gensim.models")
    found = models.KeyedVectors(6, dtype=np.float64)
    found.add_vectors(WORDS, MODEL.word_vectors.detach().numpy())
    return found


@pytest.mark.parametrize("sets", [sets_of(4, 4), UNEQUAL, sets_of(7, 2)], ids=["equal", "unequal", "larger first"])
def test_wefe_gives_the_same_effect_size_and_statistic(wefe, keyed, sets):
    theirs, ours = wefe(sets, keyed), ask.weat(sets, keyed.key_to_index)
    assert ours(MODEL).item() == pytest.approx(theirs["effect_size"], abs=1e-9)
    assert ours.statistic(MODEL).item() == pytest.approx(theirs["weat"], abs=1e-9)
    single = ours(copy.deepcopy(MODEL).float()).item()
    assert single == pytest.approx(theirs["effect_size"], abs=1e-5)


def test_wefe_gives_a_p_value_from_samples_with_replacement(wefe, keyed):
    """It draws every word anew, so sets may repeat words: a bootstrap, near the permutation test but not the same."""
    sets, runs = sets_of(4, 4, 2, 2), 200
    state = np.random.get_state()  # noqa: NPY002  # wefe draws from the global state
    np.random.seed(0)  # noqa: NPY002
    theirs = wefe(sets, keyed, calculate_p_value=True, p_value_iterations=runs)["p_value"]
    np.random.set_state(state)  # noqa: NPY002
    test = ask.weat(sets, INDEX)
    s = torch.tensor(list(test.associations(MODEL).values()))
    drawn = s[torch.randint(8, (100_000, 8), generator=torch.Generator().manual_seed(0))]
    bootstrap = (drawn[:, :4].sum(1) - drawn[:, 4:].sum(1) > test.statistic(MODEL)).double().mean().item()
    error = math.sqrt(bootstrap * (1 - bootstrap) / runs)
    assert abs(theirs - bootstrap) < 4 * error + 1 / runs
    assert abs(theirs - test.p_value(MODEL).value) < 4 * error + 0.05


def test_gensim_answers_the_same_analogy_with_the_same_margin(keyed):
    for a, b, c in itertools.permutations(WORDS[:4], 3):
        (best, high), (second, low) = keyed.most_similar(positive=[b, c], negative=[a], topn=2)
        margin = ask.analogy_margin(a, b, c, best, INDEX)(MODEL)
        assert margin.item() == pytest.approx(high - low, abs=1e-6)
        assert ask.analogy_margin(a, b, c, second, INDEX)(MODEL).item() == pytest.approx(low - high, abs=1e-6)


def test_gensim_finds_the_same_neighbours(keyed):
    ours, theirs = ask.nearest(MODEL, "w7", INDEX, 5), keyed.most_similar("w7", topn=5)
    assert [word for word, _ in ours] == [word for word, _ in theirs]
    assert [value for _, value in ours] == pytest.approx(
        [value for _, value in theirs], abs=1e-6
    )  # it measures lengths in float32
    assert len(ask.nearest(MODEL, "w7", INDEX, 100)) == 29


# The other questions.


def test_clusters_equal_the_formula_written_out():
    v = MODEL.word_vectors.detach()
    u = v / v.norm(dim=1, keepdim=True)
    centres = [(u[1] + u[2]) / 2, u[3], (u[4] + u[5]) / 2]
    q = torch.stack([1 / (1 + (u[0] - centre).square().sum()) for centre in centres])
    assert torch.allclose(QUESTIONS["log cluster"](MODEL).exp(), q[1] / q.sum())
    assert torch.allclose(QUESTIONS["cluster margin"](MODEL), (q[0] / q[2]).log())
    fixed = ask.cluster_margin("w0", torch.stack(centres), 0, 2, INDEX)
    assert torch.allclose(fixed(MODEL), QUESTIONS["cluster margin"](MODEL))


def test_a_word_moves_as_far_as_its_vector():
    start = MODEL.word_vectors.detach().clone()
    later = Vectors(start + 1)
    question = ask.moved("w3", start, INDEX)
    start.zero_()
    assert question(later).item() == pytest.approx(6.0)
    assert question(MODEL).item() == 0


def test_a_vector_of_length_zero_is_refused_by_name_and_no_neighbour():
    model = Vectors(MODEL.word_vectors.detach())
    with torch.no_grad():
        model.word_vectors[[0, 20]] = 0
    assert "w20" not in dict(ask.nearest(model, "w1", INDEX, 30))
    for name in ONLY_DIRECTIONS:
        with pytest.raises(ObjectiveError, match=r"'w0'\] have length zero"):
            QUESTIONS[name](model)
        with pytest.raises(ObjectiveError, match="length zero"):
            torch.func.grad(bind(QUESTIONS[name], model))(dict(model.named_parameters()))
    assert torch.func.vmap(bind(QUESTIONS["weat"], model))({"word_vectors": model.word_vectors[None]}).isnan().all()


def test_equal_associations_are_refused():
    with pytest.raises(ObjectiveError, match=r"all 8 target words have the same association.*\.statistic"):
        QUESTIONS["weat"](Vectors(torch.ones(30, 6)))


def test_an_unknown_word_is_refused_with_close_matches():
    index = {"dooku": 0, "doctor": 1, "sith": 2}
    with pytest.raises(WordError, match=r"No vector for 'Dookuu' \(close: dooku\), 'kirk'; the index has 3 words"):
        rows_of(["sith", "Dookuu", "kirk"], index)
    with pytest.raises(KeyError, match=r"'z4' and 2 more"):
        rows_of([f"z{k}" for k in range(7)], index)
    assert rows_of(["Sith"], index) == {"Sith": 2}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ask.distance("w0", "w0", INDEX), "the same vector"),
        (lambda: ask.distance("w0", "w1", INDEX, metric="l1"), "metric='l1'; needed 'cosine' or 'euclidean'"),
        (lambda: ask.analogy_margin("w0", "w1", "w2", "w1", INDEX), "the same vector"),
        (lambda: ask.analogy_margin("w0", "w1", "w2", "w3", INDEX, rival="w1"), "no rival to 'w3'"),
        (lambda: ask.analogy_margin("a", "b", "c", "d", dict(zip("abcd", range(4), strict=True))), "no rival to 'd'"),
        (
            lambda: ask.cluster_margin("w0", [["w1"], ["w2"]], 0, 2, INDEX),
            "No cluster 2; needed a position from 0 to 1",
        ),
        (lambda: ask.cluster_margin("w0", [["w1"], ["w2"]], 1, 1, INDEX), "two clusters that differ"),
        (lambda: ask.log_cluster("w0", [["w1"]], 0, INDEX), "of 1; needed two clusters"),
        (lambda: ask.log_cluster("w0", [["w1"], ["w0"]], 0, INDEX), r"\['w0'\] has no word besides 'w0'"),
        (lambda: ask.log_cluster("w0", ["w1 w2", "w3"], 0, INDEX), r"string 'w1 w2'; needed.*\['w1', 'w2'\]"),
        (lambda: ask.log_cluster("w0", [["w1"], ["nowhere"]], 0, INDEX), "No vector for 'nowhere'"),
        (lambda: ask.log_cluster("w0", 3 * torch.ones(2, 6), 0, INDEX), r"up to 7\.35 long.*length_one=False"),
        (lambda: ask.log_cluster("w0", torch.ones(6) / 9, 0, INDEX), r"shape \(6,\); needed \(k, d\)"),
        (lambda: ask.log_cluster("w0", torch.ones(2, 5) / 9, 0, INDEX)(MODEL), r"\(2, 5\); needed \(k, 6\)"),
        (lambda: ask.moved("w0", torch.ones(40, 6), INDEX)(MODEL), r"\(40, 6\) and a model with \(30, 6\)"),
        (lambda: ask.distance("w0", "far", {"w0": 0, "far": 30})(MODEL), r"\(30, 6\), the index names row 30"),
    ],
)
def test_questions_that_make_no_sense_are_refused(make, words):
    with pytest.raises((WordError, ObjectiveError, ValueError), match=words):
        make()


def test_a_euclidean_distance_of_nothing_has_no_gradient_and_says_so():
    model, data = Vectors(torch.ones(30, 6)), cf.batches(torch.ones(3))
    made = cf.Risk(model, lambda found, batch: found.word_vectors.square().sum() * batch, data)
    with pytest.raises((NonFiniteError, ObjectiveError)):
        cf.influence(made, QUESTIONS["distance"], cf.Identity())


# Lists.

NAMES = ["career", "career-terms", "math", "science", "race"]


@pytest.mark.parametrize("name", NAMES)
def test_the_built_in_lists_are_balanced(name):
    (sets,) = word_sets(name)
    assert sets.name == name
    assert len(sets.X) == len(sets.Y) == (32 if name == "race" else 8)
    assert len(sets.A) == len(sets.B) == (25 if name == "race" else 8)


def test_career_in_terms_joins_two_tests():
    (terms,), (career,), (maths,) = map(word_sets, ("career-terms", "career", "math"))
    assert (terms.X, terms.Y, terms.A, terms.B) == (maths.A, maths.B, career.A, career.B)


@pytest.mark.parametrize(("name", "number"), [("career", 6), ("math", 7), ("science", 8), ("race", 3)])
def test_the_built_in_lists_are_the_published_ones(name, number):
    folder = Path(os.environ.get("CROSSFLUENCE_DATA", "no folder")) / "weat_seat"
    if not folder.is_dir():
        pytest.skip("set CROSSFLUENCE_DATA to a folder that holds weat_seat/")
    (published,) = word_sets(folder / f"weat{number}.jsonl")
    assert dataclasses.replace(published, name=name) == word_sets(name)[0]


FOUR = {"X": ["a", "b"], "Y": ["c", "d"], "A": ["e", "f"], "B": ["g", "h"]}
SEAT = {"targ1": {"category": "Large", "examples": ["a", "b"]}, "targ2": {"examples": ["c", "d"]},
        "attr1": {"examples": ["e", "f"]}, "attr2": {"examples": ["g", "h"]}}  # fmt: skip


def test_a_file_holds_one_test_or_many_in_either_form(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(FOUR))
    assert word_sets(file) == (WordSets("mine", ("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")),)
    file.write_text(json.dumps([FOUR, SEAT, {**FOUR, "name": "third", "categories": ["p", "q", "r", "s"]}]))
    first, second, third = word_sets(str(file))
    assert [sets.name for sets in (first, second, third)] == ["mine 0", "mine 1", "third"]
    assert [sets.categories[0] for sets in (first, second, third)] == ["X", "Large", "p"]
    assert first.B == second.B == ("g", "h")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "mine.json is not a JSON file"),
        ("[]", "holds an empty list"),
        ("3", "a test is int; needed an object"),
        (json.dumps({key: FOUR[key] for key in "XYA"}), r"mine: no B among the keys \['X', 'Y', 'A'\]"),
        (json.dumps({"targ1": SEAT["targ1"]}), "no targ2, attr1, attr2 among"),
        (json.dumps({**SEAT, "targ1": {"category": "Large"}}), "targ1 has no key 'examples'"),
        (json.dumps({**FOUR, "X": []}), "mine: X is empty"),
        (json.dumps({**FOUR, "X": ["a", 3]}), r"X holds \[3\]; needed words"),
        (json.dumps({**FOUR, "X": ["a", " "]}), r"X holds \[' '\]; needed words"),
        (json.dumps({**FOUR, "X": "a b"}), "X is 'a b'; needed a list of words"),
        (json.dumps({**FOUR, "X": None}), "X is None; needed a list of words"),
        (json.dumps({**FOUR, "X": ["a", "d"]}), r"\['d'\] stand in both X and Y"),
        (json.dumps({**FOUR, "A": ["e", "g"]}), r"\['g'\] stand in both A and B"),
        (json.dumps({**FOUR, "X": ["a", "b", "a"]}), r"\['a'\] stand twice in X"),
        (json.dumps({**FOUR, "categories": ["p"]}), "needed four names"),
        (json.dumps([{**FOUR, "name": "n"}] * 2), "more than one test is called 'n'"),
    ],
)
def test_files_that_hold_no_test_are_refused(tmp_path, content, words):
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(WordSetError, match=words):
        word_sets(file)


def test_a_list_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(WordSetError, match=r"'carreer': no file, and built in are career, .*Did you mean 'career'\?"):
        word_sets("carreer")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "mine.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WordSetError, match="is not a JSON file"):
        word_sets(file)
