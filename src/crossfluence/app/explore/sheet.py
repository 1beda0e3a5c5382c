"""Chosen rows as CSV, with their scores."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from ..report.sheet import no_formula
from .engine import Engine, Question


def sheet_of(engine: Engine, question: Question, rows: Sequence[int]) -> bytes:
    """One line for each row: its id, score and cluster, and its features as the user knows them.

    Args:
        engine: That answers.
        question: Whose scores.
        rows: Row numbers.

    Returns:
        UTF-8; no cell is a formula to a spreadsheet.
    """
    samples, scores, clusters = engine.result.samples, engine.answer(question).scores, engine.q.argmax(1)
    file = io.StringIO()
    sheet = csv.writer(file, lineterminator="\n")
    sheet.writerow(["id", "score", "cluster", *map(no_formula, samples.columns)])
    for row in rows:
        values = [] if samples.values is None else samples.values[row].tolist()
        line = [no_formula(engine.ids[row]), repr(float(scores[row])), int(clusters[row]), *map(repr, values)]
        sheet.writerow(line)
    return file.getvalue().encode()
