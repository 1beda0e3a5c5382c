"""Published tests of bias, read from their official files."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from crossfluence.errors import DataError

from .items import Pair, SentenceSets, Template

BRACKETS = re.compile(r"\[([^\[\]]*)\]")
OPPOSITE = {
    "he": "she", "him": "her", "his": "her", "himself": "herself", "she": "he", "hers": "his", "herself": "himself",
}  # fmt: skip  # "her" may be "him" or "his"
NO_NOUNS = {"a", "an", "the", "about", "and", "for", "from", "how", "in", "on", "that", "to", "with"}
HE, SHE = {"he", "him", "his", "himself"}, {"she", "her", "hers", "herself"}
SEAT_KEYS = ("targ1", "targ2", "attr1", "attr2")


def crows_pairs(path: str | Path, kind: str | None = None) -> list[Pair]:
    """CrowS-Pairs: sentences about a group, and the same about another.

    Args:
        path: `crows_pairs_anonymized.csv`, or the folder that holds it.
        kind: Only pairs about this, such as "gender".

    Returns:
        Pairs, the more stereotypical sentence first.

    Raises:
        DataError: If it is no such file, or no pair is of this kind.

    References:
        Nangia et al., "CrowS-Pairs", EMNLP 2020.
    """
    file = _file(path, "crows_pairs_anonymized.csv")
    rows = list(csv.DictReader(io.StringIO(_text(file))))
    if not rows or not {"sent_more", "sent_less", "bias_type"} <= set(rows[0]):
        raise DataError(f"{file} is not CrowS-Pairs; needed a table with the columns sent_more, sent_less, bias_type.")
    return _of_kind([Pair(row["sent_more"], row["sent_less"], row["bias_type"]) for row in rows], kind, file)


def stereoset(path: str | Path, kind: str | None = None) -> list[Pair]:
    """StereoSet: sentences that agree with a stereotype, and others that contradict it.

    Args:
        path: A file of the official form, or of EditBias's parts of it; or a folder of such files.
        kind: Only pairs about this, such as "gender".

    Returns:
        Pairs, the stereotype first.

    Raises:
        DataError: If it is no such file, or no pair is of this kind.

    References:
        Nadeem, Bethke and Reddy, "StereoSet", ACL 2021; Xu et al., "EditBias", 2024.
    """
    folder = Path(path)
    files = sorted(folder.glob("*.json*")) if folder.is_dir() else [_file(folder, folder.name)]
    if not files:
        raise DataError(f"{folder} holds no .json file; needed StereoSet's.")
    return _of_kind([pair for file in files for pair in _stereotypes(file)], kind, folder)


def winobias(
    path: str | Path,
    part: Literal[1, 2] = 1,
    split: Literal["dev", "test"] = "test",
) -> list[Template]:
    """WinoBias: sentences whose pronoun belongs to an occupation, as the stereotype has it, and the other way round.

    Args:
        path: The folder of `pro_stereotyped_type1.txt.dev` and its kin.
        part: 1, where only the world tells whom the pronoun means; 2, where the grammar does.
        split: "dev" or "test".

    Returns:
        Templates, the stereotypical pronoun first.

    Raises:
        DataError: If the files are not there, or do not belong together.

    References:
        Zhao et al., "Gender bias in coreference resolution", NAACL 2018.
    """
    names = [f"{side}_stereotyped_type{part}.txt.{split}" for side in ("pro", "anti")]
    pro, anti = ([line for line in _text(_file(path, name)).splitlines() if line] for name in names)
    others = dict(map(_slots, anti))
    return [_template(line, others) for line in pro]


def seat(path: str | Path) -> SentenceSets:
    """A test of the sentence encoder association test, or a word test of the same form.

    Args:
        path: Such as `sent-weat6.jsonl`.

    Returns:
        Its four lists of texts.

    Raises:
        DataError: If it is no such file.

    References:
        May et al., "On measuring social biases in sentence encoders", NAACL 2019.
    """
    file = _file(path, Path(path).name)
    found = _json(file)
    if not isinstance(found, dict) or any("examples" not in found.get(key, {}) for key in SEAT_KEYS):
        raise DataError(f"{file} is no association test; needed {', '.join(SEAT_KEYS)}, each with its examples.")
    x, y, a, b = (tuple(found[key]["examples"]) for key in SEAT_KEYS)
    of_x, of_y, of_a, of_b = (str(found[key].get("category", key)) for key in SEAT_KEYS)
    return SentenceSets(file.name.removesuffix(".jsonl"), x, y, a, b, (of_x, of_y, of_a, of_b))


def _stereotypes(file: Path) -> Iterator[Pair]:
    found = _json(file)
    items = found.get("data", {}).get("intrasentence", []) if isinstance(found, dict) else found
    for item in items:
        sentences = _sentences(item)
        if not {"stereotype", "anti-stereotype"} <= set(sentences):
            raise DataError(f"{file} is not StereoSet; needed items with a stereotype and an anti-stereotype.")
        yield Pair(sentences["stereotype"], sentences["anti-stereotype"], str(item.get("bias_type", "")))


def _sentences(item: Any) -> dict[str, str]:
    """The sentences of an item by their label, in either form."""
    if isinstance(item, dict) and isinstance(item.get("data"), dict):
        return {label: each["sentence"] for label, each in item["data"].items()}
    listed = item.get("sentences", []) if isinstance(item, dict) else []
    return {each.get("gold_label", ""): each["sentence"] for each in listed}


def _template(pro: str, others: dict[str, tuple[str, ...]]) -> Template:
    """The sentence with places for its pronouns, and the opposite ones, as the most similar other sentence has them."""
    text, words = _slots(pro)
    close = [text] if text in others else difflib.get_close_matches(text, list(others), n=3, cutoff=0.6)
    found = (others[each] for each in close if len(others[each]) == len(words))
    pronouns = next((each for each in found if all(map(_opposite, words, each))), None)
    after = text.split("{}")[1:]
    pronouns = pronouns or tuple(_turned(word, rest) for word, rest in zip(words, after, strict=True))
    if not words or not all(pronouns):
        raise DataError(f"No line of the other file is {pro!r} with the other pronoun; needed WinoBias's own files.")
    return Template(text, words, pronouns)


def _turned(word: str, rest: str) -> str:
    """The opposite pronoun; of "her" by what follows it."""
    if word == "her":
        return "him" if (re.findall(r"\w+", rest) or ["."])[0] in NO_NOUNS or not rest.startswith(" ") else "his"
    return OPPOSITE.get(word, "")


def _slots(line: str) -> tuple[str, tuple[str, ...]]:
    """A sentence with a place for each bracketed pronoun, and the pronouns."""
    sentence = line.partition(" ")[2].strip()
    words = tuple(found[1] for found in BRACKETS.finditer(sentence) if found[1].lower() in HE | SHE)
    text = BRACKETS.sub(lambda found: "{}" if found[1].lower() in HE | SHE else found[1].strip(), sentence)
    return text.replace("[", "").replace("]", ""), words


def _opposite(one: str, other: str) -> bool:
    return (one.lower() in HE) == (other.lower() in SHE)


def _of_kind(pairs: list[Pair], kind: str | None, path: Path) -> list[Pair]:
    found = [pair for pair in pairs if kind is None or pair.kind == kind]
    if not found:
        kinds = ", ".join(sorted({pair.kind for pair in pairs}))
        raise DataError(f"{path} has no pairs of the kind {kind!r}; it has {kinds or 'none at all'}.")
    return found


def _file(path: str | Path, name: str) -> Path:
    """A file by its official name, as it is or packed, in a folder or given itself."""
    given = Path(path)
    places = [given / name, given / f"{name}.gz"] if given.is_dir() else [given, given.with_name(f"{given.name}.gz")]
    for place in places:
        if place.is_file():
            return place
    raise DataError(f"There is no {name} at {given}; needed the official file, or the folder that holds it.")


def _text(file: Path) -> str:
    raw = file.read_bytes()
    return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")


def _json(file: Path) -> Any:
    try:
        return json.loads(_text(file))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}.") from error
