"""Bias of word embeddings from the command line: planted culprits, the page, resuming, careless input."""

import gzip
import importlib
import json
import random
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from browser import CHROMIUM, browse, parsed
from typer.testing import CliRunner

from crossfluence.app import app
from crossfluence.app.advice import as_typed
from crossfluence.app.report.words import marked
from crossfluence.errors import CorpusError, SolveError
from crossfluence.words import explain_bias as study
from crossfluence.words.explain_bias import refuse_collapsed
from crossfluence.words.explain_word import clustered, own_and_next
from crossfluence.words.planted import marked as marked_corpus
from crossfluence.words.planted import planted
from crossfluence.words.skipgram import ExpectedTraining, SkipGram


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
    assert page.count('<mark class="target">') + page.count('<mark class="other">') > 40  # a colour for each list
    assert min(page.count(f'<mark class="{kind}">') for kind in ("target", "other", "attribute", "counter")) > 5
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
    for refuse in (refuse_collapsed, lambda model: clustered(model, 2, seed=0)):
        with pytest.raises(CorpusError, match="one direction"):
            refuse(SkipGram(["a", "b", "c"], table, table))


@pytest.mark.parametrize("asked", ["--weat test.json", "--word doctor --clusters 2"])
def test_vectors_that_the_l2_term_pulls_to_zero_are_refused(tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    drawn = random.Random(0)
    jobs = {"he": ["doctor", "farmer"], "she": ["nurse", "dancer"]}
    forms = {"he": ["he", "his"], "she": ["she", "her"]}
    rows = [f"{drawn.choice(forms[who])} {drawn.choice(some)} w{drawn.randrange(9)} w{drawn.randrange(9)}"
            for who, some in jobs.items() for _ in range(80)]  # fmt: skip
    Path("few.txt").write_text("\n".join(rows))
    lists = {"X": jobs["he"], "Y": jobs["she"], "A": forms["he"], "B": forms["she"]}
    Path("test.json").write_text(json.dumps(lists))
    found = CliRunner().invoke(app, ["words", "few.txt", *asked.split(), "--dimensions", "4"])
    assert found.exit_code == 2, found.output
    said = " ".join(found.output.split())
    assert re.search(r"vectors of all \d+ words (are zero|have one direction)", said)
    assert "--prior" in said
    assert not list(tmp_path.glob("*.html"))


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
    assert re.search(r"About \d+ (s|min) and [\d.]+ GiB", result.output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"", [], "empty"),
        (b"\x00\x01\x02 he she" * 50, [], "text"),
        ("caf\u00e9 he she\n".encode("latin-1") * 30, ["--encoding", "utf-8"], "line 1"),
        ("caf\u00e9 he she\n".encode("latin-1") * 30, [], "Read corpus.txt as cp1252"),  # its encoding is told
        (b"one two three\n" * 300, [], "career-terms"),
        (None, ["--remove", "2000"], "at most half"),
        (None, ["--remove", "many"], "share such as 1%"),
        (None, ["--weat", "no-such-list"], "no-such-list"),
        (None, ["--word", "dooku"], "dooku"),
        (None, ["--word", "dooku", "--plan"], "dooku"),
        (None, ["--word", "fox", "--clusters", "30"], "a quarter of the words. Ask for --clusters "),
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
    monkeypatch.setattr(
        importlib.import_module("crossfluence.words.explain_word"), "newton_step", lambda *args: float("nan")
    )
    assert about(corpus_file, tmp_path / "word.html").exit_code == 0
    assert "no step possible" in (tmp_path / "word.html").read_text()


# Ids of the user's table, and answers that cannot be relied on.


def scored(file, out, *more):
    options = ["--dimensions", 6, "--min-count", 2, "--remove", 5]
    result = run(file, *options, "--out", out, *more)
    assert result.exit_code == 0, result.output
    return result, pd.read_csv(out.with_suffix(".csv"), dtype={"id": str, "line": str}, keep_default_na=False)


@pytest.mark.parametrize("name", ["id", "ID", "doc_id"])
def test_scores_hold_the_tables_own_ids_and_text(tmp_path, name):
    texts = planted(sentences=400, culprits=20).texts
    table = pd.DataFrame({name: [f"D{row * 7 + 3}" for row in range(len(texts))], "text": texts, "topic": "x"})
    table.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "text.txt").write_text("\n".join(texts))
    result, found = scored(tmp_path / "t.csv", tmp_path / "page.html")
    _, plain = scored(tmp_path / "text.txt", tmp_path / "plain.html")
    assert list(plain) == ["line", "career-terms", "text", "source"]
    assert set(plain["source"]) == {"text.txt"}
    assert list(found)[:2] == ["id", "line"]
    by_line = plain.set_index("line")["career-terms"]
    assert len(found) == len(plain)
    for row in found.itertuples():
        place = int(row.line) - 2  # the header, and lines count from 1
        assert (row.id, row.text) == (table[name][place], texts[place])
        assert row.topic == "x"
        assert by_line[str(place + 1)] == pytest.approx(row[3])
    first = found["id"][0]
    assert f"{first} (" in result.output
    assert f'<span class="soft">{first}</span>' in (tmp_path / "page.html").read_text()


def test_sentences_of_one_cell_share_its_id_and_have_their_own_line(tmp_path):
    texts = planted(sentences=400, culprits=20).texts
    pairs = [f'7{row},"{texts[row]}\n{texts[row + 1]}"' for row in range(0, len(texts) - 1, 2)]
    (tmp_path / "t.csv").write_text("\n".join(["key_id,text", *pairs]) + "\n")
    result, found = scored(tmp_path / "t.csv", tmp_path / "page.html")
    row = found[found["line"] == "4.2"].iloc[0]
    assert (row["id"], row["text"]) == ("72", texts[3])
    assert f"{found['id'][0]} (line {found['line'][0]}) (" in result.output
    assert run(tmp_path / "t.csv", "--id", "gone", "--out", tmp_path / "u.html").exit_code == 2


def test_an_answer_that_fails_its_check_says_so_first_and_ends_with_3(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(planted(sentences=120, culprits=10).texts))
    options = ["--dimensions", 4, "--min-count", 1, "--remove", 40]
    result = run(tmp_path / "t.txt", *options, "--prior", 0.03, "--out", tmp_path / "t.html")
    assert result.exit_code == 3, result.output
    answer = result.output[result.output.index("These scores") :]
    assert answer.startswith("These scores cannot be relied on: removing the 40 that lower it most together changed")
    advice = re.search(r"type --prior (\S+), or", answer.partition("\n")[0])
    assert advice is not None
    page = (tmp_path / "t.html").read_text()
    first = page[page.index("</h1>") :]
    assert first.startswith('</h1>\n<p class="verdict unreliable">These scores cannot be relied on')
    better = run(tmp_path / "t.txt", *options, "--prior", advice[1], "--out", tmp_path / "u.html")  # as it said
    assert better.exit_code == 0, better.output
    assert "These scores can be relied on" in better.output


def test_where_there_is_no_bias_title_and_first_sentence_say_so(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(planted(sentences=800, culprits=0, seed=3).texts))
    result, found = scored(tmp_path / "t.txt", tmp_path / "t.html", "--min-count", 5)
    assert len(found) == 800
    assert "There is no bias to explain: career-terms has the effect size +0.489 with p = 0.18" in result.output
    page = (tmp_path / "t.html").read_text()
    assert "t.txt: No bias to explain</title>" in page
    assert "<h1>No bias to explain</h1>" in page
    assert "here does this bias come from" not in page


def test_a_run_stopped_after_training_does_not_train_again_and_says_what_is_kept(corpus_file, tmp_path, monkeypatch):
    def stops(*args):
        raise KeyboardInterrupt

    arguments = [corpus_file, "--remove", 20, "--dimensions", 6, "--min-count", 2, "--out", tmp_path / "w.html"]
    with monkeypatch.context() as patched:
        patched.setattr(study, "_newton", stops)
        broken = run(*arguments)
    assert broken.exit_code == 130
    said = broken.output.replace("\n", "")
    assert "The trained vectors are kept in" in said
    assert "goes on from there, but reads the corpus and computes the scores again" in said
    whole, asked = [], ExpectedTraining.fit

    def counted(self, weights=None, **options):
        whole.append(weights is None)
        return asked(self, weights, **options)

    monkeypatch.setattr(ExpectedTraining, "fit", counted)
    assert run(*arguments).exit_code == 0
    assert not any(whole)


def test_a_run_stopped_before_anything_is_finished_leaves_nothing(corpus_file, tmp_path, monkeypatch):
    monkeypatch.setattr(ExpectedTraining, "fit", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    broken = run(corpus_file, "--min-count", 2, "--out", tmp_path / "w.html")
    assert broken.exit_code == 130
    assert "Nothing is kept, so the same command starts from the beginning" in broken.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        ('{"X": ["he"], "Y": ["she"], "A": ["office"], "B": ["home"]}', "holds 1 word, 'he'; needed at least 2"),
        ('{"X": ["👨", "👦", "he"], "Y": ["she", "her"], "A": ["office", "salary"], "B": ["home", "family"]}',
         "--tokenizer whitespace"),
    ],
)  # fmt: skip
def test_lists_that_cannot_make_a_test_say_what_they_lack(corpus_file, tmp_path, lists, says):
    (tmp_path / "own.json").write_text(lists)
    result = run(corpus_file, "--weat", tmp_path / "own.json", "--min-count", 2, "--out", tmp_path / "w.html")
    assert result.exit_code == 2
    assert says in result.output.replace("\n", " ")


def test_a_text_of_one_sentence_is_named(tmp_path):
    (tmp_path / "t.txt").write_text(" ".join(planted(sentences=200, culprits=20).texts))
    result = run(tmp_path / "t.txt", "--min-count", 1, "--out", tmp_path / "w.html")
    assert result.exit_code == 2
    assert "The text is 1 sentence" in result.output


def test_a_rare_word_is_explained_without_naming_a_number_of_sentences(tmp_path):
    rare = ["the fox met a zebra near the river today"] * 8
    (tmp_path / "t.txt").write_text("\n".join([*planted(sentences=3000, culprits=40).texts, *rare]))
    line = [tmp_path / "t.txt", "--word", "zebra", "--clusters", 4, "--dimensions", 6, "--min-count", 2]
    result = run(*line, "--out", tmp_path / "w.html")
    assert result.exit_code in {0, 3}, result.output
    assert "the 2 that hold it there most" in result.output
    assert run(*line, "--remove", "0.5%", "--out", tmp_path / "v.html").exit_code == 2  # as asked for


def test_vectors_that_tell_no_words_apart_get_advice_in_options():
    said = as_typed("all 6 target words. Ask for .statistic, or look at the table: are its rows all equal?")
    assert "--prior 1" in said
    assert ".statistic" not in said
