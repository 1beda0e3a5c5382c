"""A model that gensim trained, explained from the command line; vectors written; what does not fit refused."""

import re

import numpy as np
import pytest
from typer.testing import CliRunner

from crossfluence.app import app
from crossfluence.words.corpus.vocabulary import corpus_of
from crossfluence.words.explain_bias import WordsSettings, explain_words
from crossfluence.words.objectives import weat
from crossfluence.words.planted import planted
from crossfluence.words.skipgram import SkipGram
from crossfluence.words.word_sets import word_sets

gensim = pytest.importorskip("gensim.models")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, a model trained on it, and models that will not do."""
    made = tmp_path_factory.mktemp("corpus")
    texts = planted(sentences=800, culprits=40).texts
    (made / "planted.txt").write_text("\n".join(texts) + "\n")
    sentences = [text.lower().rstrip(".").split() for text in texts]
    options = {"vector_size": 6, "min_count": 1, "window": 3, "workers": 1, "seed": 0, "epochs": 10}
    gensim.Word2Vec(sentences, sg=1, **options).save(str(made / "model"))
    gensim.Word2Vec(sentences, sg=0, **options).save(str(made / "cbow"))
    gensim.Word2Vec([["these", "words"], ["are", "others"]] * 9, sg=1, **options).save(str(made / "others"))
    gensim.Word2Vec([*sentences, *[["quark", "gluon"]] * 3], sg=1, **options).save(str(made / "nearly"))
    gensim.Word2Vec([*sentences, [f"only{k}" for k in range(20)]], sg=1, **options).save(str(made / "partly"))
    gensim.Word2Vec(sentences, sg=1, **options).wv.save(str(made / "vectors"))
    return made


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def words(*arguments):
        return CliRunner().invoke(app, ["words", str(folder / "planted.txt"), "--trust", *map(str, arguments)])

    return words


def test_a_pickle_is_opened_only_if_it_is_trusted(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    result = CliRunner().invoke(app, ["words", str(folder / "planted.txt"), "--model", "evil"])
    assert result.exit_code == 2
    assert "opening it can run a program" in result.output
    assert "--trust" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["evil"]


def table_row(output, name):
    return next(line for line in output.splitlines() if name in line)


def test_a_model_is_explained_with_its_own_words_dimensions_and_window(run, folder, tmp_path):
    result = run("--model", folder / "model", "--remove", 20, "--save-vectors", "vectors.txt")
    assert result.exit_code == 0, result.output
    theirs = SkipGram.from_gensim(gensim.Word2Vec.load(str(folder / "model")))
    effect = float(weat(word_sets("career-terms")[0], theirs.index)(theirs).detach())
    assert f"{effect:+.3f}" in table_row(result.output, "the given")
    page = re.sub(r"<script.*?</script>", "", (tmp_path / "crossfluence-words.html").read_text(), flags=re.DOTALL)
    assert "Training went on from the given model" in page
    assert f'<td>the given model</td><td></td><td></td><td class="n">{effect:+.3f}</td>' in page
    assert '<td>dimensions</td><td class="n">6</td>' in page
    assert '<td>window</td><td class="n">3</td>' in page
    saved = gensim.KeyedVectors.load_word2vec_format("vectors.txt")
    assert saved.index_to_key == list(theirs.words)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "crossfluence-words.csv", "crossfluence-words.html", "crossfluence-words.result", "vectors.txt",
    ]  # fmt: skip


def test_words_that_never_occur_are_left_out_if_they_are_few(run, folder):
    result = run("--model", folder / "nearly", "--plan")
    assert result.exit_code == 0, result.output
    assert f"vocabulary {len(gensim.Word2Vec.load(str(folder / 'nearly')).wv) - 2}." in result.output


def test_training_goes_on_from_the_model_to_where_training_from_nothing_ends(folder):
    start = SkipGram.from_gensim(gensim.Word2Vec.load(str(folder / "model")))
    corpus = corpus_of((folder / "planted.txt").read_text().splitlines(), words=start.words)
    settings, lists = WordsSettings(dimensions=6, remove=10), word_sets("career-terms")
    near, anew = (explain_words(corpus, lists, settings, start=given) for given in (start, None))
    assert anew.tests[0].given is None
    assert near.tests[0].given is not None
    assert near.tests[0].effect == pytest.approx(anew.tests[0].effect, abs=0.02)
    scores = [answer.scores.values[:, 0].numpy() for answer in (near, anew)]
    assert np.corrcoef(*scores)[0, 1] > 0.95


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "cbow"], "continuous bag of words"),
        (["--model", "vectors"], "context vectors"),
        (["--model", "planted.txt"], "Word2Vec.save"),
        (["--model", "absent"], "There is no file"),
        (["--model", "others"], "0 of the 4 given words"),
        (["--model", "partly"], "20 of the model's"),
        (["--model", "model", "--word", "fox"], "--weat"),
        (["--model", "model", "--tokenizer", "letters"], "--tokenizer letters"),
        (["--save-vectors", "vectors.npy"], ".kv"),
        (["--save-vectors", "nowhere/vectors.kv"], "does not exist"),
        (["--weat", "science", "--least", "0.3"], "--least 0.3"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_what_does_not_fit_gets_a_sentence_and_leaves_nothing_behind(run, folder, tmp_path, options, says):
    places = [str(folder / given) if place and options[place - 1] == "--model" else given
              for place, given in enumerate(options)]  # fmt: skip
    result = run("--min-count", 2, *places)
    assert result.exit_code == 2, result.output
    assert says in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_the_corpus_is_never_overwritten_by_vectors(run, folder):
    before = (folder / "planted.txt").read_bytes()
    result = run("--save-vectors", folder / "planted.txt", "--force")
    assert result.exit_code == 2
    assert "is what is read" in result.output
    assert (folder / "planted.txt").read_bytes() == before
