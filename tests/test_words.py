"""Bias of word embeddings from the command line: planted culprits, the page, resuming, careless input."""

import gzip
import re

import pandas as pd
import pytest
import torch
from browser import CHROMIUM, browse, parsed
from typer.testing import CliRunner

from crossfluence._errors import CorpusError, SolveError
from crossfluence.cli import app
from crossfluence.models.skipgram import SkipGram
from crossfluence.report.words import marked
from crossfluence.studies import words as study
from crossfluence.studies.planted import marked as marked_corpus
from crossfluence.studies.planted import planted
from crossfluence.studies.word import clustered, own_and_next


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "planted.txt"
    file.write_text("\n".join(planted(sentences=800, culprits=40).texts) + "\n")
    return file


def run(*arguments):
    return CliRunner().invoke(app, ["words", *map(str, arguments)])


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_planted_sentences_are_found_and_the_bias_is_gone_without_them(seed):
    found = marked_corpus(seed)
    assert found["found"] >= 0.95
    assert found["whole corpus"] > 1.5
    assert found["trained without the top"] == pytest.approx(found["never planted"], abs=0.1)


def test_the_command_writes_a_page_and_all_scores(corpus_file, tmp_path):
    out = tmp_path / "words.html"
    result = run(corpus_file, "--remove", "5%", "--dimensions", 8, "--min-count", 2, "--out", out)
    assert result.exit_code == 0, result.output
    page = re.sub(r"<script.*?</script>", "", out.read_text(), flags=re.DOTALL)
    assert page.count('<mark class="target">') > 40
    assert not re.search(r'(src|href)="https?://', page)
    assert "the 42 that raise it most" in page
    scores = pd.read_csv(out.with_suffix(".csv"))
    assert len(scores) == 840
    assert not out.with_name("words.html.unfinished").exists()
    assert run(corpus_file, "--out", out).exit_code == 2  # it is there already


def about(corpus_file, out, *more, word="fox"):
    asked = ["--word", word, "--clusters", 4, "--remove", 10, "--dimensions", 8, "--min-count", 2]
    return run(corpus_file, *asked, "--out", out, *more)


def test_a_word_is_explained_by_its_cluster(corpus_file, tmp_path):
    out = tmp_path / "word.html"
    result = about(corpus_file, out)
    assert result.exit_code == 0, result.output
    assert "'fox' is in cluster" in result.output
    assert len(pd.read_csv(out.with_suffix(".csv"))) == 840
    tags, page = parsed(out.read_text()), re.sub(r"<script.*?</script>", "", out.read_text(), flags=re.DOTALL)
    assert set(tags.ids) >= {"question", "clusters", "map", "raises", "lowers", "check", "made"}
    assert tags.fetched == [("link", "data:,")]
    for kind in ("target", "first", "second"):
        assert page.count(f'<mark class="{kind}">') > 3
    assert "10 random ones with &#39;fox&#39;" in page
    assert not out.with_name("word.html.unfinished").exists()


def test_a_word_lies_in_its_cluster_of_k_means_and_no_member_is_left_out():
    model = SkipGram.initial([f"w{number}" for number in range(200)], 3, seed=0)
    members = clustered(model, 2, seed=0)
    assert sorted(word for words in members for word in words) == sorted(model.words)
    assert max(map(len, members)) > 30
    for word in model.words:
        own, other = own_and_next(model, word, members)
        assert word in members[own]
        assert own != other


def test_the_next_cluster_is_the_nearest_of_the_others():
    places = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.8, 0.6], [0.7, 0.7], [-1.0, 0.0], [-1.0, 0.1]])
    model = SkipGram(["a", "b", "c", "d", "e", "f"], places, places)
    assert own_and_next(model, "a", [["e", "f"], ["a", "b"], ["c", "d"]]) == (1, 2)


def test_a_word_alone_in_its_cluster_and_vectors_of_one_direction_are_refused():
    model = SkipGram.initial(["a", "b", "c"], 2, seed=0)
    with pytest.raises(CorpusError, match="the only word of its cluster"):
        own_and_next(model, "a", [["a"], ["b", "c"]])
    table = torch.tensor([[1.0, 2.0]]) * torch.tensor([[1.0], [2.0], [3.0]])
    with pytest.raises(CorpusError, match="one direction"):
        clustered(SkipGram(["a", "b", "c"], table, table), 2, seed=0)


def test_fewer_sentences_of_the_word_than_are_removed_are_refused_before_training(corpus_file, tmp_path):
    result = about(corpus_file, tmp_path / "word.html", "--remove", "30%")
    assert result.exit_code == 2
    assert re.search(r"252 sentences are to be removed together, and \d+ hold 'fox'", result.output.replace("\n", " "))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_page_of_a_word_and_requests_nothing(corpus_file, tmp_path):
    assert about(corpus_file, tmp_path / "word.html").exit_code == 0
    dom, requested = browse(tmp_path, (tmp_path / "word.html").as_uri())
    assert dom.count('class="main-svg"') >= 2
    assert requested == set()


def test_a_stopped_run_goes_on_and_gives_what_an_unbroken_one_gives(corpus_file, tmp_path, monkeypatch):
    arguments = [corpus_file, "--remove", 20, "--dimensions", 6, "--min-count", 2]
    assert run(*arguments, "--out", tmp_path / "whole.html").exit_code == 0
    original = study._newton

    def stops(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "_newton", stops)
    broken = run(*arguments, "--out", tmp_path / "broken.html")
    assert broken.exit_code == 130
    assert (tmp_path / "broken.html.unfinished").is_dir()
    assert not (tmp_path / "broken.html").exists()
    monkeypatch.setattr(study, "_newton", original)
    assert run(*arguments, "--out", tmp_path / "broken.html").exit_code == 0
    assert (tmp_path / "broken.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_a_plan_trains_nothing_and_writes_nothing(corpus_file, tmp_path):
    result = run(corpus_file, "--plan", "--out", tmp_path / "words.html")
    assert result.exit_code == 0
    assert re.search(r"About \d+ min and [\d.]+ GiB", result.output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"", [], "empty"),
        (b"\x00\x01\x02 he she" * 50, [], "text"),
        ("caf\u00e9 he she\n".encode("latin-1") * 30, [], "line 1"),
        (b"one two three\n" * 300, [], "career-terms"),
        (None, ["--remove", "2000"], "at most half"),
        (None, ["--remove", "many"], "share such as 1%"),
        (None, ["--weat", "no-such-list"], "no-such-list"),
        (None, ["--word", "dooku"], "dooku"),
        (None, ["--word", "dooku", "--plan"], "dooku"),
        (None, ["--word", "fox", "--clusters", "30"], "a quarter of the words"),
        (None, ["--column", "text"], "column"),
        (None, ["--out", "words.txt"], ".html"),
    ],
)
def test_bad_input_gets_a_sentence_and_leaves_nothing_behind(
    corpus_file, tmp_path, monkeypatch, content, options, says
):
    monkeypatch.chdir(tmp_path)
    file = corpus_file
    if content is not None:
        file = tmp_path / "corpus.txt"
        file.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    result = run(file, "--min-count", 2, *options)
    assert result.exit_code == 2, result.output
    assert says in result.output
    assert "Traceback" not in result.output
    assert sorted(tmp_path.iterdir()) == before


def test_a_compressed_table_is_read_by_its_column(tmp_path):
    file = tmp_path / "corpus.csv.gz"
    rows = "".join(f'{number},"{text}"\n' for number, text in enumerate(planted(sentences=100, culprits=10).texts))
    file.write_bytes(gzip.compress(("number,body\n" + rows).encode()))
    assert run(file, "--column", "body", "--plan", "--out", tmp_path / "w.html", "--min-count", 1).exit_code == 0


def test_only_whole_words_are_marked_and_all_else_is_escaped():
    kinds = {"target": ["he"], "attribute": ["management"]}
    html = str(marked("He's <script>the</script> HE, shepherd; Management.", kinds))
    assert html.count("<mark") == 3
    assert "<script>" not in html
    assert "shepherd" in html
    long = str(marked("word " * 300 + "career " + "word " * 300, {"target": ["he"], "attribute": ["career"]}))
    assert '<mark class="attribute">career</mark>' in long
    assert len(long) < 600


def test_a_run_whose_newton_steps_all_go_astray_still_answers(corpus_file, tmp_path, monkeypatch):
    def astray(*args, **kwargs):
        raise SolveError("it went too far")

    monkeypatch.setattr(study, "unlearn", astray)
    out = tmp_path / "words.html"
    result = run(corpus_file, "--remove", 20, "--dimensions", 6, "--min-count", 2, "--out", out)
    assert result.exit_code == 0, result.output
    assert "no step possible" in out.read_text()
    monkeypatch.setattr("crossfluence.studies.word.newton_step", lambda *args: float("nan"))
    assert about(corpus_file, tmp_path / "word.html").exit_code == 0
    assert "no step possible" in (tmp_path / "word.html").read_text()
