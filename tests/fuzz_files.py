"""Random tables and corpora, each read rightly or refused in one sentence.

python tests/fuzz_files.py --cases N --seed S. Every case is a table or a corpus of known content, written in a random
encoding, separator, packing and format, and then, half of the time, spoilt: cells that are no numbers, huge and tiny
numbers, bytes that are cut off, turned or put in. A whole file must give back its content, number by number; a spoilt
one its numbers, or one sentence. Nothing else may happen: no other exception, no NaN, no warning of numpy or pandas,
nothing written. One case in `--commands` also goes through the command line, with exit code 0 or 2, and none of its
output left behind.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import lzma
import math
import random
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from crossfluence.app.columns import TableError
from crossfluence.app.suggest import suggested_k
from crossfluence.app.tables import read_table
from crossfluence.app.texts import encoding_of
from crossfluence.errors import CrossfluenceError
from crossfluence.words.corpus.vocabulary import read_corpus

PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zip": None}
ODD = [
    "",
    " ",
    "NaN",
    "inf",
    "-inf",
    "abc",
    "½",
    "1e999",
    "1_0",
    "=1+1",
    "'",
    '"',
    "<b>",
    "\u202e",
    "٣",
    "true",
    "None",
    "1,5",
]
LETTERS = "abcdefghij äöüßéñЖя漢字ก🐈'\"<>&=+-@"
WORDS = ["he", "she", "office", "home", "fox", "bär", "über", "größe", "don't", "ñandú", "кот", "猫"]


def number(draw: random.Random) -> float:
    kind = draw.randrange(6)
    if kind == 0:
        return float(draw.randint(-9, 9))
    if kind == 1:
        return draw.uniform(-1, 1) * 10.0 ** draw.randint(-300, 300)
    return round(draw.gauss(0, 1) * 10 ** draw.randint(-3, 4), draw.randint(0, 8))


def names(draw: random.Random, count: int) -> list[str]:
    made = [
        f"x{place}" + "".join(draw.choices(LETTERS.replace('"', ""), k=draw.randint(0, 6))).strip()
        for place in range(count)
    ]
    return [name.strip() for name in made]


def table(draw: random.Random) -> tuple[list[str], list[list[float]]]:
    rows, columns = draw.choice([1, 2, 5, 9, 40]), draw.choice([1, 2, 3, 8])
    return names(draw, columns), [[number(draw) for _ in range(columns)] for _ in range(rows)]


def packed(draw: random.Random, content: bytes, name: str) -> tuple[bytes, str]:
    ending = draw.choice([*PACKED, "", ""])
    if ending == ".zip":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
        return file.getvalue(), f"{name}.zip"
    pack = PACKED[ending]
    assert pack is not None
    return pack(content), f"{name}{ending}"


def spoilt(draw: random.Random, content: bytes) -> bytes:
    place = draw.randrange(len(content) + 1)
    return draw.choice([
        content[:place], content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :],
        content[:place] + b"\0" * draw.randint(1, 9) + content[place:], content[place:] + content[:place],
        content[:place] + b'"' + content[place:], b"", content.replace(b"\n", b"\r"),
    ])  # fmt: skip


def written(draw: random.Random, header: list[str], rows: list[list[object]], folder: Path) -> tuple[bytes, str]:
    """A table in a random format, and its name."""
    frame = pd.DataFrame(rows, columns=pd.Index(header))
    kind = draw.choice(["csv", "csv", "csv", "tsv", "jsonl", "json", "parquet", "npy", "xlsx"])
    if kind in {"csv", "tsv"}:
        separator = "\t" if kind == "tsv" else draw.choice(",;|\t")
        text = frame.to_csv(index=False, sep=separator, lineterminator=draw.choice(["\n", "\r\n"]))
        encoding = draw.choice(["utf-8", "utf-8-sig", "utf-16", "utf-32"])
        return packed(draw, text.encode(encoding), f"t.{kind}")
    if kind in {"jsonl", "json"}:
        objects = [dict(zip(header, row, strict=True)) for row in rows]
        text = json.dumps(objects) if kind == "json" else "\n".join(map(json.dumps, objects))
        return packed(draw, text.encode(), f"t.{kind}")
    if kind == "npy" and all(isinstance(cell, float) for row in rows for cell in row):
        file = io.BytesIO()
        np.save(file, np.array(rows, dtype=float))
        return file.getvalue(), "t.npy"
    if kind == "xlsx" and not any(isinstance(cell, str) and cell.startswith("=") for row in rows for cell in row):
        file = io.BytesIO()
        frame.to_excel(file, index=False)
        return file.getvalue(), "t.xlsx"
    file = io.BytesIO()
    (frame if not any(isinstance(cell, str) for row in rows for cell in row) else frame.astype(str)).to_parquet(file)
    return file.getvalue(), "t.parquet"


def try_table(draw: random.Random, folder: Path, commands: bool) -> str:
    header, clean = table(draw)
    rows: list[list[object]] = [list(row) for row in clean]
    whole = draw.random() < 0.5
    if not whole:
        for _ in range(draw.randint(1, 4)):
            rows[draw.randrange(len(rows))][draw.randrange(len(header))] = draw.choice(ODD)
    content, name = written(draw, header, rows, folder)
    if not whole and draw.random() < 0.3:
        content = spoilt(draw, content)
    (folder / name).write_bytes(content)
    options = {"missing": draw.choice(["refuse", "drop", "mean"]), "categories": draw.choice(["drop", "onehot"])}
    options |= {"header": False} if draw.random() < 0.1 else {}
    if commands:
        through_the_command_line(draw, folder / name, options)
    if whole:
        options = {"missing": "refuse"}
    try:
        found = read_table(folder / name, **options)
    except TableError as error:
        assert one_sentence(error), str(error)
        varying = any(len({row[place] for row in clean}) > 1 for place in range(len(header)))
        assert not whole or not varying or known(error, clean, header, name), f"refused: {error}"
        return "refused"
    x = found.standardised()
    assert found.values.isfinite().all()
    assert x.isfinite().all(), "a NaN after standardising"
    assert len(found.ids) == len(found.values) == len(found.rows)
    found.used()
    if draw.random() < 0.02 and len(x) > 3:
        suggested_k(x, 0)
    if whole:
        for place, column in enumerate(found.columns):
            at = int(column) if name == "t.npy" else header.index(column)
            near = 1e-14 if name == "t.xlsx" else 0.0  # a sheet keeps 15 digits
            pairs = zip(found.values[:, place].tolist(), [row[at] for row in clean], strict=True)
            assert all(math.isclose(came, put, rel_tol=near, abs_tol=0.0) for came, put in pairs), (
                f"{column!r} is another"
            )
    return "read"


def known(error: TableError, clean: list[list[float]], header: list[str], name: str) -> bool:
    """Refusals of whole tables that are right: all columns number rows or hold ids, or only one value each differs."""
    said = str(error)
    return "no numeric column" in said or "constant" in said or "which may be" in said


def one_sentence(error: Exception) -> bool:
    return bool(str(error)) and "\n" not in str(error) and "Traceback" not in str(error)


def try_corpus(draw: random.Random, folder: Path) -> str:
    sentences = [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(draw.choice([1, 2, 10, 60]))]
    kind = draw.choice(["txt", "csv", "tsv", "jsonl", "parquet", "xlsx"])
    frame = pd.DataFrame({"id": [f"d{row}" for row in range(len(sentences))], "text": sentences})
    encoding = draw.choice(["utf-8", "utf-8-sig", "utf-16", "utf-32"]) if kind != "jsonl" else "utf-8"
    if kind in {"parquet", "xlsx"}:
        file = io.BytesIO()
        frame.to_parquet(file) if kind == "parquet" else frame.to_excel(file, index=False)
        content, name = file.getvalue(), f"t.{kind}"
    else:
        text = {
            "txt": "".join(f"{one}\n" for one in sentences), "csv": frame.to_csv(index=False),
            "tsv": frame.to_csv(index=False, sep="\t"),
            "jsonl": frame.to_json(orient="records", lines=True, force_ascii=draw.random() < 0.5),
        }[kind]  # fmt: skip
        content, name = packed(draw, text.encode(encoding), f"t.{kind}")
    whole = draw.random() < 0.5
    (folder / name).write_bytes(content if whole else spoilt(draw, content))
    source = folder if draw.random() < 0.3 else folder / name
    if source == folder:
        (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    try:
        told, _ = encoding_of(source)
        corpus = read_corpus(source, encoding=told, min_count=1, max_words=None)
    except CrossfluenceError as error:
        assert one_sentence(error), str(error)
        assert not whole or len({word for one in sentences for word in one.split()}) < 2, f"refused: {error}"
        return "refused"
    if whole:
        assert corpus.n == len(sentences)
        assert [" ".join(corpus.sentence(row)) for row in range(corpus.n)] == sentences
        assert kind == "txt" or list(corpus.fields["id"]) == frame["id"].tolist()
    return "read"


def through_the_command_line(draw: random.Random, file: Path, options: dict[str, object]) -> None:
    from typer.testing import CliRunner

    from crossfluence import app as cli

    out = file.parent / "page.html"
    line = ["clusters", file, "--k", 2, "--check", 3, "--out", out, "--plan"]
    line += ["--missing", options["missing"], "--categories", options["categories"]]
    result = CliRunner().invoke(cli.app, [str(one) for one in line])
    assert result.exit_code in {0, 2}, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert {path.name for path in file.parent.iterdir()} == {file.name}
    assert result.exit_code == 0 or result.stderr.startswith("crossfluence: "), result.stderr


def run(cases: int, seed: int, commands: int) -> int:
    counts, failures, began = {"read": 0, "refused": 0}, 0, time.perf_counter()
    for case in range(cases):
        draw = random.Random(f"{seed}:{case}")
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", module="openpyxl")
            try:
                through = bool(commands) and case % commands == 0
                corpus = draw.random() < 0.3
                counts[try_corpus(draw, Path(folder)) if corpus else try_table(draw, Path(folder), through)] += 1
            except Exception:
                failures += 1
                print(f"case {case} of seed {seed}:\n{traceback.format_exc()}", file=sys.stderr)
                if failures >= 10:
                    break
    seconds = time.perf_counter() - began
    print(f"{case + 1} cases of seed {seed} in {seconds:.0f} s: {counts['read']} read, {counts['refused']} refused, "
          f"{failures} failed.")  # fmt: skip
    return 1 if failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", type=int, default=50, help="one case in so many goes through the command line")
    given = parser.parse_args()
    sys.exit(run(given.cases, given.seed, given.commands))
