"""Corpora from files: what is read of each format, one sentence for what cannot be, and numbers that stay the same."""

import bz2
import csv
import gzip
import json
import lzma
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest

from crossfluence.errors import CorpusError, IdError, MissingExtraError, ResultFileError, StaleError
from crossfluence.words.corpus.corpus import Corpus
from crossfluence.words.corpus.readers import Sentence, find_sentences, read_sentences
from crossfluence.words.corpus.text import splitter, tokenizer_of
from crossfluence.words.corpus.vocabulary import build_corpus, read_corpus

WIKI = """<doc id="12" url="?curid=12" title="Tom &amp; "Jerry" (film)">
Tom &amp; "Jerry" (film)

A cat &lt;and&gt; a mouse.
Plot.
</doc>
<doc id="13" url="?curid=13" title="Empty">
Empty

</doc>
<doc id="14" url="?curid=14" title="Dog">
Dog

A dog.
Dog
</doc>
"""
WNC = "7\ta b\ta\tA loved film.\tA film.\tDET\tdet\n8\tx\tx\tIt ran.\tIt ran.\n"


@pytest.fixture
def write(tmp_path):
    """Writes text or bytes to a file and gives its path."""

    def write_to(content, name="t.txt", encoding="utf-8"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
        return path

    return write_to


def read(*source, **options):
    return list(read_sentences(source[0] if len(source) == 1 else source, **options))


def texts(*source, **options):
    return [sentence.text for sentence in read(*source, **options)]


def ids(*source, **options):
    return [sentence.id for sentence in read(*source, **options)]


# Formats.


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("One line.\n\nTwo.\n", "utf-8"),
        ("One line.\n\nTwo.", "utf-8"),
        ("One line.\r\n\r\nTwo.\r\n", "utf-8"),  # Windows
        ("One line.\n \t\n  Two. \n", "utf-8-sig"),  # an editor's mark
    ],
)
def test_a_line_of_plain_text_is_a_sentence_of_its_file(write, content, encoding):
    found = read(write(content, encoding=encoding))
    assert found == [Sentence("One line.", "t.txt", 1), Sentence("Two.", "t.txt", 3)]
    assert [sentence.id for sentence in found] == ["1", "3"]


@pytest.mark.parametrize(("pack", "ending"), [(gzip.compress, ".gz"), (lzma.compress, ".xz"), (bz2.compress, ".bz2")])
def test_packed_files_are_opened_whatever_their_name(write, pack, ending):
    for name in (f"t.txt{ending}", "t.txt"):
        assert read(write(pack(b"One.\nTwo.\n"), name)) == [Sentence("One.", "t.txt", 1), Sentence("Two.", "t.txt", 2)]


def test_other_encodings_are_read_when_named(write):
    for encoding in ("latin-1", "utf-16", "utf-16-le", "utf-32"):
        assert texts(write("Bär\nÉtude\n", encoding=encoding), encoding=encoding) == ["Bär", "Étude"]


def test_csv_cells_may_hold_separators_quotes_and_lines(write):
    path = write('title,text\n"a, b","say ""hi"""\n\nc,"two\r\nlines"\nd,"  "\ne,last\n', "t.csv")
    found = read(path)
    assert [(s.id, s.text, s.document, dict(s.fields)) for s in found] == [
        ("2", 'say "hi"', "2", {"title": "a, b"}),
        ("4.1", "two", "4", {"title": "c"}),
        ("4.2", "lines", "4", {"title": "c"}),
        ("7", "last", "7", {"title": "e"}),
    ]
    assert ids(path, split="records") == ["2", "4", "7"]
    assert texts(path, column="title") == ["a, b", "c", "d", "e"]


def test_tsv_cells_are_never_quoted(write):
    found = read(write('text\tlabel\r\n"A" film\t1\r\n"\t0\r\n', "t.tsv"))
    assert [(s.id, s.text, dict(s.fields)) for s in found] == [
        ("2", '"A" film', {"label": "1"}),
        ("3", '"', {"label": "0"}),
    ]


def test_jsonl_records_may_lack_the_text_and_hold_other_values(write):
    rows = [{"text": "One.", "n": 1, "ok": True, "tags": ["ä"]}, {"n": 2}, {"text": None}, {"text": "T\u2028wo.\nB."}]
    path = write("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "t.jsonl")
    found = read(path)
    assert [(s.id, s.text) for s in found] == [("1", "One."), ("7.1", "T\u2028wo."), ("7.2", "B.")]
    assert found[0].fields == {"n": "1", "ok": "true", "tags": '["ä"]'}
    assert read(path.rename(path.with_suffix(""))) == found  # told by its content
    assert texts(path.with_suffix(""), column="n") == ["1", "2"]


def test_wikiextractor_articles_lose_their_title_line_and_entities(write):
    path = write(WIKI, "AA/wiki_00")
    title = 'Tom & "Jerry" (film)'
    fields = {"id": "12", "url": "?curid=12", "title": title}
    assert read(path)[:2] == [
        Sentence("A cat <and> a mouse.", title, 4, fields=fields), Sentence("Plot.", title, 5, fields=fields)
    ]  # fmt: skip
    assert [(s.text, s.document) for s in read(path)[2:]] == [("A dog.", "Dog"), ("Dog", "Dog")]


def test_neutrality_pairs_give_two_sentences_a_row(write):
    header = write("origin\tid\tbiased\tneutral\nx\t0\tA loved film.\tA film.\n", "pairs.tsv")
    assert read(header) == [
        Sentence("A loved film.", "2", 2, "biased", fields={"origin": "x", "id": "0", "side": "biased"}),
        Sentence("A film.", "2", 2, "neutral", fields={"origin": "x", "id": "0", "side": "neutral"}),
    ]
    assert texts(header, column="neutral") == ["A film."]
    for name in ("biased.full", "biased.word", "biased.word.train", "neutral"):
        released = write(WNC, name)
        assert ids(released) == ["1.biased", "1.neutral", "2.neutral"]
        assert [s.fields for s in read(released, column="biased")] == [{"id": "7", "side": "biased"}]


def test_a_usual_column_name_is_enough(write):
    for header in ("id,Sentence", "plot,id", "only"):
        assert len(read(write(f"{header}\n{'x,y' if ',' in header else 'x'}\n", "t.csv"))) == 1


def test_the_format_can_be_named(write):
    assert texts(write("text,n\nA,1\n"), format="csv") == ["A"]
    assert texts(write("text,n\nA,1\n", "t.csv"), format="text") == ["text,n", "A,1"]


def test_long_lines_and_cells_are_read_whole(write):
    long = "word " * 100_000
    assert texts(write(long)) == [long.strip()]
    limit = csv.field_size_limit()
    assert texts(write(f"text,n\n{long},1\n", "t.csv")) == [long.strip()]
    assert csv.field_size_limit() == limit


# Places.


def test_ids_are_unique_over_files_folders_parts_and_sides(write, tmp_path):
    write("One.\nTwo.\n", "a/t.txt")
    write("One.\nTwo.\n", "b/t.txt")
    write('text\n"x\ny"\n', "b/c.csv")
    write(WNC, "b/biased.full")
    write("not read", "b/.hidden")
    write("not read", "_SUCCESS")
    found = ids(tmp_path)
    assert found == [
        "a/t.txt:1", "a/t.txt:2", "b/biased.full:1.biased", "b/biased.full:1.neutral", "b/biased.full:2.neutral",
        "b/c.csv:2.1", "b/c.csv:2.2", "b/t.txt:1", "b/t.txt:2",
    ]  # fmt: skip
    assert ids(str(tmp_path / "b" / "t.txt"), tmp_path / "a") == ["b/t.txt:1", "b/t.txt:2", "a/t.txt:1", "a/t.txt:2"]
    assert read(tmp_path)[0].document == "a/t.txt"
    write(gzip.compress(b"Three.\n"), "a/t.txt.gz")
    assert ids(tmp_path / "a") == ["t.txt:1", "t.txt:2", "t.txt.gz:1"]


def test_sentences_are_found_again_by_their_ids(write):
    path = write("".join(f"Line {number}.\n" for number in range(1, 100)))
    found = find_sentences(path, ["90", "3", "3"])
    assert [(label, sentence.text) for label, sentence in found.items()] == [("90", "Line 90."), ("3", "Line 3.")]
    with pytest.raises(IdError, match=r"No sentence has the id '100' .1 of 2 ids"):
        find_sentences(path, ["100", "1"])


def test_reading_stops_when_all_are_found_and_holds_no_more_than_a_record(write):
    path = write('{"text": "One."}\n' * 5 + "broken\n", "t.jsonl")
    assert next(read_sentences(path)).text == "One."
    assert list(find_sentences(path, ["5"])) == ["5"]
    with pytest.raises(CorpusError, match=r"^Line 6 of t\.jsonl is not JSON"):
        find_sentences(path, ["7"])


# What cannot be read.


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.txt", "", r"^t\.txt is empty; needed text"),
        ("t.txt.gz", gzip.compress(b""), r"^t\.txt\.gz is empty"),
        ("t.txt", " \n\n", r"^There is no text in t\.txt"),
        ("t.csv", "text\n", r"^There is no text in t\.csv"),
        ("t.csv", "text,n\n,1\n", r"^There is no text in t\.csv"),
        ("t.txt", b"\x89PNG\r\n\0\0\0", r"^t\.txt holds zero bytes, so it is not text; needed plain text, CSV"),
        ("t.txt", (b"a" * 999 + b"\n") * 70 + b"\0", r"^Line 71 of t\.txt holds a zero byte"),
        ("t.txt", "ä\n".encode("utf-16"), r"begins with the mark of UTF-16.*encoding='utf-16'"),
        ("t.txt", b"fine\nB\xe4r\n", r"^t\.txt is not utf-8: line 2, byte 2 is 0xe4.*encoding='latin-1'"),
        ("t.txt.gz", gzip.compress(b"a\n" * 9000 + b"\xff"), r"not utf-8: line 9001, byte 1 is 0xff"),
        ("t.txt.gz", b"plain", r"ends in \.gz but does not hold such data"),
        ("t.txt.xz", gzip.compress(b"a word\n" * 9)[:20], r"^t\.txt\.xz breaks off at line 1"),
        ("t.txt.gz", gzip.compress(np.random.default_rng(0).bytes(9**6).hex().encode())[:-99], r"breaks off at line"),
        ("t.txt.xz", lzma.compress(b"a word\n" * 9)[:-30], "breaks off at line 1"),
        ("t.txt.xz", lzma.compress(b"a word\n" * 9)[:30] + b"x" * 90, "is damaged at line 1"),
        ("t.txt.gz", gzip.compress(b"a word\n" * 9)[:-8] + b"x" * 8, "is damaged at line"),
        ("t.csv", "a,b\n1,2\n", r"^Which column of t\.csv holds the text\? No column.*'a', 'b'. Pass column="),
        ("t.csv", "text,plot\n1,2\n", r"2 of its columns may be it.*'text', 'plot'"),
        ("t.csv", "text,text\n1,2\n", r"has 2 columns named 'text'"),
        ("t.csv", "text,n\na,1\nb\n", r"^Line 3 of t\.csv has 1 cells, but its header has 2: 'text', 'n'"),
        ("t.csv", 'text,n\na,1\n"b,1\nc,1\n', r"^Cannot read the row that begins at line 3 of t\.csv: .*quotes"),
        ("t.csv", 'text\n"a" b\n', "begins at line 2 of t.csv"),
        ("t.tsv", "text\tn\na\t1\nb\t2\t3\n", r"^Line 3 of t\.tsv has 3 cells"),
        ("t.jsonl", '{"text": "a"}\n{"text": \n', r'^Line 2 of t\.jsonl is not JSON: Expecting value.*{"text": "..."}'),
        ("t.jsonl", '{"text": "a"}\n["b"]\n', r"^Line 2 of t\.jsonl holds a JSON list; needed an object"),
        ("t.json", '[{"text": "a"}]', r"holds one JSON list.*jq -c '\.\[\]'"),
        ("t.jsonl", "[" * 100_000, r"^Line 1 of t\.jsonl is not JSON"),
        ("wiki", WIKI.replace("</doc>", "", 1), r"The article 'Tom & .* has no </doc> before line 7"),
        ("wiki", WIKI[:-8], r"The article 'Dog' has no </doc>"),
        ("wiki", WIKI + "stray\n", r"^Line 17 of wiki stands outside of <doc"),
        ("t.xml", "<mediawiki xmlns=''>\n", "Run WikiExtractor"),
        ("biased.full", "1\ta\tb\tc\td\n2\ta\n", r"^Line 2 of biased\.full has 2 cells; needed id, src_tok"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "-",
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_where_and_what_to_do(write, name, content, sentence):
    with pytest.raises(CorpusError, match=sentence) as caught:
        read(write(content, name))
    assert "\n" not in str(caught.value)


def test_what_can_be_seen_early_is_refused_before_the_first_sentence(write, tmp_path):
    good, bad = write("text\nfine\n", "a.csv"), write(b"\0", "b.csv")
    for source, sentence in (
        (tmp_path / "gone", r"There is no file or folder .*gone"),
        ([good, bad], r"b\.csv holds zero bytes"),
        ([good, good], "is given twice"),
        ([], "Got no files"),
        (write("a\n", "empty/.hidden").parent, "holds no files to read"),
    ):
        with pytest.raises(CorpusError, match=sentence):
            read_sentences(source)
    for options, sentence in (
        ({"format": "xml"}, "needed one of 'text', 'csv'"),
        ({"encoding": "utf8x"}, "There is no encoding 'utf8x'"),
        ({"split": "words"}, "Got split='words'; needed 'lines'"),
        ({"column": "body"}, r"a\.csv has no column 'body'; its columns are 'text'"),
        ({"column": "body", "format": "text"}, "read as text, which has no columns"),
        ({"column": "body", "format": "wnc"}, "no column 'body'; its columns are 'biased', 'neutral'"),
    ):
        with pytest.raises(CorpusError, match=sentence):
            read_sentences(good, **options)
    assert [one.text for one in read_sentences(write("id;text\n1;a\n", "s.csv"), column="text")] == ["a"]


def test_a_column_that_no_jsonl_record_has_is_refused_in_the_end(write):
    path = write('{"text": "a"}\n{"text": "b", "other": 1}\n', "t.jsonl")
    with pytest.raises(CorpusError, match=r"t\.jsonl has no column 'plot'; its columns are 'text', 'other'"):
        read(path, column="plot")


# Sentences and words.


@pytest.mark.parametrize(
    ("tokenizer", "text", "words"),
    [
        ("words", "Don\u2019t feed O'Brien's 2 cats; it's R2-D2's!", "don't feed o'brien cats it r d"),
        ("words", "rock 'n' roll 'sand' the boys' \"x_y\"", "rock n roll sand the boys x y"),
        ("words", "Straße, Ævar! ПРИВЕТ мир Été E\u0301te\u0301 co\u00adop", "straße ævar привет мир été été coop"),
        ("words", "नमस्ते दुनिया", "नमस्ते दुनिया"),  # vowel signs are part of a word
        ("words", "123 -- !? \u00bd", ""),
        ("whitespace", "It don ' t  Work .", "it don ' t work ."),
        (str.split, "As it Is", "As it Is"),
    ],
)
def test_words_of_a_sentence(tokenizer, text, words):
    assert tokenizer_of(tokenizer)(text) == words.split()


def test_syntok_cuts_sentences_and_words(write):
    pytest.importorskip("syntok")
    first, second = "Dr. Who didn't leave at 5 p.m. on Mon. evening.", "Why\u2026 not?"
    assert splitter("sentences")(f"  {first} \t{second}\n\n{second}  {first}") == [first, second, second, first]
    assert tokenizer_of("syntok")("He left, at 5.") == ["he", "left", "at"]
    assert ids(write("One is here. Two is there.\nThree.\n"), split="sentences") == ["1.1", "1.2", "2"]


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "syntok.tokenizer", None)
    monkeypatch.setitem(sys.modules, "syntok.segmenter", None)
    for make, option in ((splitter, "sentences"), (tokenizer_of, "syntok")):
        with pytest.raises(MissingExtraError, match=r"pip install 'crossfluence\[words\]'"):
            make(option)


def test_functions_that_return_something_else_are_refused(write):
    path = write("One. Two.\n")
    assert texts(path, split=lambda text: text.split(". ")) == ["One", "Two."]
    with pytest.raises(CorpusError, match=r"The split function returned 'One\. Two\.\\n'; needed a list"):
        read(path, split=lambda text: text)
    with pytest.raises(CorpusError, match="The tokenizer function returned None; needed a list"):
        read_corpus(path, tokenizer=lambda text: None)
    with pytest.raises(CorpusError, match="Got tokenizer='bert'; needed 'words'"):
        read_corpus(path, tokenizer="bert")


# The corpus.

LINES = ["b a a b c", "z z z", "a c rare", "... 5", "c c b keep"]


def sentences(lines=LINES):
    for number, line in enumerate(lines, 1):
        yield Sentence(line, f"d{number % 2}", number, fields={"kind": "odd"} if number % 2 else {})


def make(lines=LINES, **options):
    return build_corpus(sentences(lines), **{"min_count": 2, **options})


def slow(corpus, lines):
    """Words by sentence, cut by the vocabulary one by one."""
    return [kept for line in lines if (kept := [word for word in line.split() if word in corpus.words])]


def test_the_vocabulary_is_ordered_by_count_then_spelling():
    corpus = make()
    assert corpus.words == ("c", "a", "b", "z")
    assert corpus.counts.tolist() == [4, 3, 3, 3]
    assert [corpus.index[word] for word in corpus.words] == [0, 1, 2, 3]
    assert make(max_words=2).words == ("c", "a")
    assert make(max_words=None, min_count=1).words == ("c", "a", "b", "z", "keep", "rare")


def test_words_to_keep_stay_if_they_occur():
    assert make(keep=["Keep", "gone"]).words == ("c", "a", "b", "z", "keep")
    assert make(keep="rare", max_words=2).words == ("c", "rare")
    assert make(keep=["rare keep", "a"], max_words=2).words == ("a", "keep", "rare")


@pytest.mark.parametrize(
    "options", [{}, {"max_words": 2}, {"min_count": 1}, {"keep": ["rare"]}, {"min_count": 4, "keep": "z"}]
)
def test_tokens_are_the_sentences_without_other_words(options):
    corpus = make(**options)
    assert [corpus.sentence(row) for row in range(corpus.n)] == slow(corpus, LINES)
    assert np.bincount(corpus.tokens).tolist() == corpus.counts.tolist()
    assert corpus.dropped == len(LINES) - corpus.n
    assert (corpus.tokens.dtype, corpus.offsets.dtype, corpus.counts.dtype) == (np.int32, np.int64, np.int64)


def test_sentences_without_words_take_their_labels_along():
    corpus = make(max_words=2)  # c and a: neither in the second nor in the fourth sentence
    assert (corpus.ids, corpus.dropped) == (("1", "3", "5"), 2)
    assert (corpus.documents, corpus.document.tolist()) == (("d1",), [0, 0, 0])
    assert corpus.fields == {"kind": ("odd", "odd", "odd")}


def test_groups_are_documents_or_fields():
    corpus = make()
    assert corpus.groups("document") == ("d1", "d0", "d1", "d1")
    assert corpus.groups("kind") == ("odd", "", "odd", "odd")
    with pytest.raises(IdError, match="cannot be grouped by 'side'; they can by 'document', 'kind'"):
        corpus.groups("side")
    assert make(fields=()).fields == {}
    assert repr(corpus) == "Corpus(sentences=4, words=4, tokens=13, documents=2, dropped=1)"
    with pytest.raises(CorpusError, match="No sentence has the field 'side'; there are 'kind'"):
        make(fields=["side"])


def test_sentences_with_a_word_are_found_by_row():
    corpus = make()
    for asked in ("a", ["z", "b"], ["c"], []):
        words = [asked] if isinstance(asked, str) else asked
        expected = [row for row in range(corpus.n) if set(words) & set(corpus.sentence(row))]
        assert corpus.sentences_with(asked).tolist() == expected
    with pytest.raises(IdError, match=r"Not in the vocabulary of 4 words: 'rare'.*keep="):
        corpus.sentences_with(["a", "rare"])
    with pytest.raises(IndexError):
        corpus.sentence(corpus.n)


def test_sentences_are_taken_one_at_a_time():
    class Text(str):
        __slots__ = ("__weakref__",)

    alive, most = weakref.WeakSet(), 0

    def stream():
        nonlocal most
        for number in range(1, 200):
            text = Text(f"a word number {number}")
            alive.add(text)
            most = max(most, len(alive))
            yield Sentence(text, "d", number)

    assert build_corpus(stream()).n == 199
    assert most <= 2


@pytest.mark.parametrize(
    ("lines", "options", "sentence"),
    [
        (["1 2", "..."], {}, r"None of the 2 sentences holds a word as tokenizer='words'"),
        ([], {}, "None of the 0 sentences"),
        (["a b b"], {}, r"vocabulary has 1 words; needed at least 2. There are 2 .*'b', occurs 2 times. Lower"),
        (["a b c"], {}, "vocabulary has 0 words"),
        (LINES, {"min_count": 0}, "Got min_count=0"),
        (LINES, {"max_words": 1}, "max_words=1"),
    ],
)  # fmt: skip
def test_a_corpus_without_words_is_refused(lines, options, sentence):
    with pytest.raises(CorpusError, match=sentence):
        make(lines, **options)


def test_ids_that_repeat_are_refused():
    with pytest.raises(CorpusError, match="Two sentences have the id '1'"):
        build_corpus([Sentence("a b", "d", 1), Sentence("a b", "d", 1)], min_count=1)


def test_a_corpus_knows_its_files_and_finds_its_text(write):
    path = write("text,n\nThe cat.,1\n...,2\nThe dog!,3\n", "t.csv")
    corpus = read_corpus(path, min_count=1)
    assert (corpus.ids, corpus.dropped) == (("2", "4"), 1)
    assert corpus.find(["4"])["4"].text == "The dog!"
    write("text,n\nThe cat.,1\nnew line,1\n...,2\nThe dog!,3\n", "t.csv")
    with pytest.raises(StaleError, match="changed: it had 35 bytes, now 46"):
        corpus.find(["4"])
    path.unlink()
    with pytest.raises(CorpusError, match=r"Cannot read .*t\.csv: No such file"):
        corpus.find(["4"])
    with pytest.raises(CorpusError, match="does not know its files"):
        make().find(["1"])


def test_the_same_files_make_the_same_corpus_wherever_they_lie(write, tmp_path):
    for folder in ("a", "b"):
        write("Ä cat.\nA dog.\n", f"{folder}/x/t.txt")
        write("A cat.\n", f"{folder}/t.txt")
    one, two = (read_corpus(tmp_path / folder, min_count=1) for folder in ("a", "b"))
    assert one.digest == two.digest
    for change in ({"min_count": 2}, {"tokenizer": "whitespace"}, {"format": "text", "split": str.split}):
        assert read_corpus(tmp_path / "a", **{"min_count": 1, **change}).digest != one.digest


def test_a_saved_corpus_comes_back_whole(write, tmp_path):
    path = write('{"text": "Ein Bär.", "n": "1"}\n{"text": "Ein Hund.\\nEin Bär."}\n', "t.jsonl")
    corpus = read_corpus(path, min_count=1)
    corpus.save(tmp_path / "c.npz")
    corpus.save(tmp_path / "again.npz")
    assert (tmp_path / "c.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    back = Corpus.load(tmp_path / "c.npz")
    assert back.digest == corpus.digest
    assert (back.words, back.ids, back.fields, back.source) == (corpus.words, corpus.ids, corpus.fields, corpus.source)
    assert back.find(["2.2"])["2.2"].text == "Ein Bär."
    read_corpus(path, min_count=1, split=str.splitlines).save(tmp_path / "c.npz")
    assert Corpus.load(tmp_path / "c.npz").source is None


def test_what_is_not_a_saved_corpus_is_refused(write, tmp_path):
    np.savez(tmp_path / "other.npz", kind=np.array("result"), texts=np.zeros(2, dtype=np.uint8))
    np.savez(tmp_path / "pickled.npz", kind=np.array([None]))
    np.save(tmp_path / "one.npy", np.ones(2))
    for path in (write("text"), write(b"", "empty.npz"), write(b"PK\x03\x04", "cut.npz"), tmp_path,
                 *(tmp_path / name for name in ("other.npz", "pickled.npz", "one.npy"))):  # fmt: skip
        with pytest.raises(ResultFileError, match=r"is not a corpus that Corpus\.save wrote"):
            Corpus.load(path)
    with pytest.raises(ResultFileError, match="There is no file"):
        Corpus.load(tmp_path / "gone.npz")
    with pytest.raises(ResultFileError, match="Cannot write"):
        make().save(tmp_path / "gone" / "c.npz")


def test_parts_that_do_not_fit_together_are_refused():
    corpus = make()
    for change in ({"ids": corpus.ids[1:]}, {"counts": corpus.counts[1:]}, {"fields": {"x": ("y",)}}):
        with pytest.raises(CorpusError, match="entries; needed"):
            replace(corpus, **change)
    with pytest.raises(CorpusError, match="offsets must run from 0 to the"):
        replace(corpus, tokens=corpus.tokens[1:])


# Objects inside of JSON objects.

NESTED = [{"id": "D1", "doc": {"text": "One.", "by": {"name": "Ann"}}}, {"id": "D2", "doc": {"text": "Two."}}]


def jsonl(rows):
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def test_text_inside_of_an_object_is_read_by_its_path(write):
    found = read(write(jsonl(NESTED), "t.jsonl"), column="doc.text")
    assert [(s.text, dict(s.fields)) for s in found] == [
        ("One.", {"id": "D1", "doc.by.name": "Ann"}),
        ("Two.", {"id": "D2"}),
    ]
    literal = [{"doc.text": "This.", "doc": {"text": "Not this."}}]
    assert texts(write(jsonl(literal), "u.jsonl"), column="doc.text") == ["This."]


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        (
            NESTED,
            {"column": "doc"},
            r"^Line 1 .* object in 'doc', with the fields 'text', 'by.name'.*--column doc",
        ),
        ([{"text": "a"}, {"text": {"en": "b"}}], {}, r"^Line 2 .* an object in 'text', with the fields 'en'"),
        ([{"text": ["a", "b"]}], {}, r"^Line 1 of t\.jsonl holds a list in 'text': \[\"a\", \"b\"\]; needed text"),
        ([{"text": "a"}, {"text": True}], {}, r"^Line 2 of t\.jsonl holds true or false in 'text': true"),
        ([{"text": {}}], {}, r"^Line 1 of t\.jsonl holds an empty object in 'text'"),
        (NESTED, {"column": "doc.body"}, r"no column 'doc.body'; its columns are 'id', 'doc.text', 'doc.by.name'"),
    ],
)
def test_json_that_is_not_text_is_never_read_as_text(write, rows, options, sentence):
    with pytest.raises(CorpusError, match=sentence):
        read(write(jsonl(rows), "t.jsonl"), **options)
