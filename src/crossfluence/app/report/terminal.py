"""Answers as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table as RichTable

from .verdicts import (
    empty_clusters,
    first_sentence,
    limits_of,
    no_sample_in,
    of_clusters,
    of_word,
    smallest_that_moves,
    smallest_that_suffices,
)

if TYPE_CHECKING:
    from ..._types import Id
    from ...clustering.explain import CheckSettings, Explanation, First
    from ...words.explain_bias import WordsAnswer
    from ...words.explain_word import WordAnswer
    from .page import Samples

EFFECTS: tuple[tuple[Literal["raises", "lowers"], str], ...] = (("raises", "Raise"), ("lowers", "Lower"))
WIDE = 110  # characters, from which a table of words holds measures of quality too
console = Console(markup=False, highlight=False)  # the user's names are printed as they are


def print_first(first: First, ids: Sequence[Id], noun: str) -> None:
    """The answer before it is checked."""
    console.print(
        f"{noun.capitalize()} {ids[first.query]} is in cluster {first.first}, next to cluster {first.second}. "
        f"Now training again without some {noun}s, to see whether the scores can be relied on.",
        soft_wrap=True,
    )


def print_clusters(found: Explanation, asked: CheckSettings, samples: Samples) -> None:
    """Prints the verdict, margin, strongest samples, agreement with retraining and groups removed."""
    label = found.ids[found.query]
    verdict = of_clusters(found, samples.noun)
    console.print(f"\n{verdict}", soft_wrap=True)
    if verdict.dependable and (empty := empty_clusters(found)):
        console.print(f"Warning: {no_sample_in(empty, samples.noun)}; ask for fewer with --k.", soft_wrap=True)
    console.print(
        f"{samples.noun.capitalize()} {label} is in cluster {found.first}, next to cluster {found.second}: "
        f"margin {found.margin:.3f} nats."
    )
    for raises, text in ((True, "Pulled it in most"), (False, "Pushed it out most")):
        listed = ", ".join(f"{name} ({value:+.4f})" for name, value in found.strongest(5, raises=raises))
        console.print(f"{text}: {listed or 'none'}.")
    begun, ended = (getattr(settings, "anchor", 0.0) for settings in (asked, found.settings))
    if begun != ended:
        console.print(
            f"The anchor was raised from {begun:g} to {ended:g}: with less, this clustering is "
            f"not well determined, and leaving out one {samples.noun} can tip it over."
        )
    agreement = RichTable(
        title=f"Predicted against {len(found.agreement.ids)} retrainings, one sample left out in each"
    )
    for column in ("", "value", "95 % interval"):
        agreement.add_column(column, justify="right" if column else "left")
    for name in ("pearson", "spearman", "slope"):
        value = getattr(found.agreement, name)
        agreement.add_row(name.capitalize(), f"{value:.3f}", f"{value.low:.3f} to {value.high:.3f}")
    console.print(agreement)
    removal = RichTable(title="Change of the margin when a group is removed, in nats")
    for column in ("removed together", "predicted", "one Newton step", "achieved"):
        removal.add_column(column, justify="left" if column.startswith("removed") else "right")
    for group in found.removals:
        newton = "" if group.newton is None else f"{group.newton:+.4f}"
        removal.add_row(group.name, f"{group.predicted:+.4f}", newton, f"{group.achieved:+.4f}")
    console.print(removal)
    console.print(smallest_that_moves(found, samples.noun), soft_wrap=True)


def print_words(answer: WordsAnswer, shown_ids: Mapping[Id, str]) -> None:
    """Prints the verdict, and one table for each test with the strongest sentences below."""
    for result in answer.tests:
        named = f"{result.name}: " if len(answer.tests) > 1 else ""
        console.print(f"{named}{first_sentence(answer, result)}", soft_wrap=True)
    for result in answer.tests:
        sets = result.test.sets
        title = (
            f"{result.name}: {sets.categories[0]} / {sets.categories[1]}, {sets.categories[2]} / {sets.categories[3]}"
        )
        shown = RichTable(title=title)
        measures = list(answer.quality) if console.width >= WIDE else []  # the page has them too
        for place, name in enumerate([
            "removed together",
            "summed scores",
            "Newton step",
            "trained again",
            "p",
            *measures,
        ]):
            shown.add_column(name, justify="right" if place else "left")
        rows = [("nothing", result.effect, result.p_value, answer.quality)]
        if (given := result.given) is not None:
            rows.insert(0, ("the given model", given.effect, given.p_value, given.quality))
        for name, effect, p_value, quality in rows:
            figures = [f"{quality[measure]:.3f}" for measure in measures]
            shown.add_row(name, "", "", f"{effect:+.3f}", f"{p_value:.2g}", *figures)
        for removal in result.removals:
            shown.add_row(
                removal.name, f"{result.effect + removal.summed:+.3f}", f"{removal.predicted:+.3f}",
                f"{removal.retrained:+.3f}", f"{removal.p_value:.2g}",
                *[f"{removal.quality[name]:.3f}" if name in removal.quality else "" for name in measures],
            )  # fmt: skip
        console.print(shown)
        if sentence := limits_of(result):
            console.print(sentence, soft_wrap=True)
        if sentence := smallest_that_suffices(result):
            console.print(sentence, soft_wrap=True)
        missing = [word for words in result.test.missing.values() for word in words]
        if missing:
            console.print(f"Not in the corpus: {', '.join(missing)}.")
        for effect, text in EFFECTS:
            top = answer.scores.top(5, result.name, effect=effect)
            listed = ", ".join(f"{shown_ids[label]} ({value:+.4f})" for label, value in top)
            console.print(f"{text} it most: {listed or 'none'}.")


def print_word(answer: WordAnswer, shown_ids: Mapping[Id, str]) -> None:
    """Prints the verdict, the clusters, the margin and the groups removed."""
    console.print(str(of_word(answer)), soft_wrap=True)
    for number, members in enumerate(answer.clusters):
        console.print(f"Cluster {number}: {', '.join(members[:8])}.")
    console.print(
        f"{answer.word!r} is in cluster {answer.first}, next to {answer.second}: margin {answer.margin:+.4f} nats."
    )
    for effect, _ in EFFECTS:
        text = "Hold it there most" if effect == "raises" else "Pull it away most"
        listed = ", ".join(f"{shown_ids[label]} ({value:+.5f})" for label, value in answer.scores.top(5, effect=effect))
        console.print(f"{text}: {listed or 'none'}.")
    shown = RichTable(title="Margin after sentences are removed together, in nats")
    for place, name in enumerate(["removed together", "summed scores", "one Newton step", "retrained"]):
        shown.add_column(name, justify="right" if place else "left")
    for move in answer.moves:
        shown.add_row(move.name, f"{move.summed:+.4f}", f"{move.predicted:+.4f}", f"{move.retrained:+.4f}")
    console.print(shown)
