"""Pictures of pages, drawn when the page is made: points, lines and bars in SVG, with their names on hover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

LEFT, RIGHT, TOP, BOTTOM = 64, 14, 14, 46
WIDTH = 920
NAMED_UP_TO = 3_000  # points of a picture that each have a name on hover; what is more is drawn as paths
TICKS = 6
ESTIMATED_LETTER = 7.2  # width of a letter of the legend


@dataclass
class Picture:
    """A picture that grows by what is added to it.

    Attributes:
        title: What it shows, read out by screen readers.
        x: What the horizontal axis is.
        y: What the vertical axis is.
        height: In the picture's units, of which its width is 920.
        ticks: Whether numbers stand along the axes.

    Example:
        >>> picture = Picture("Two points", "height", "weight")
        >>> picture.points([(0.0, 1.0), (2.0, 3.0)], ["a", "<b>"], name="people", colour="#4c78a8")
        >>> "<title>&lt;b&gt;</title>" in picture.drawn()
        True
    """

    title: str
    x: str
    y: str
    height: int = 520
    ticks: bool = True
    _points: list[tuple[list[tuple[float, float]], list[str], str, float, str, list[str]]] = field(default_factory=list)
    _legend: list[tuple[str, str, str]] = field(default_factory=list)
    _lines: list[tuple[tuple[float, float], tuple[float, float]]] = field(default_factory=list)
    _bars: list[tuple[str, list[float], list[str]]] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)

    def points(
        self, places: Sequence[tuple[float, float]], names: Sequence[str], *, name: str, colour: str, size: float = 3.5,
        kind: str = "dot", texts: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Adds points.

        Args:
            places: Where.
            names: Shown on hover.
            name: In the legend.
            colour: Of all.
            size: Radius.
            kind: "dot", "ring", "star" or "cross".
            texts: Written beside each; empty for none.
        """
        if kind == "dot" and sum(len(held) for held, *_ in self._points) + len(places) > NAMED_UP_TO:
            kind = "path"
        self._points.append((list(places), list(names), colour, size, kind, list(texts) or [""] * len(places)))
        self._legend.append((name, colour, "dot" if kind == "path" else kind))

    def diagonal(self, low: float, high: float, name: str) -> None:
        """Adds the line on which both axes are equal.

        Args:
            low: Where it begins.
            high: Where it ends.
            name: In the legend.
        """
        self._lines.append(((low, low), (high, high)))
        self._legend.append((name, "#888888", "line"))

    def bars(self, labels: Sequence[str], values: Sequence[float], *, name: str, colour: str) -> None:
        """Adds one bar for each label, beside those that were added before.

        Args:
            labels: The same in every call.
            values: How long.
            name: In the legend.
            colour: Of all.
        """
        self._names = list(labels)
        self._bars.append((colour, list(values), [name] * len(values)))
        self._legend.append((name, colour, "bar"))

    def drawn(self) -> Markup:
        """The picture as part of a page; everything of the user's is escaped."""
        legend, rows = self._drawn_legend()
        top = TOP + 20 * rows
        xs = [place[0] for group in self._points for place in group[0]] + [
            end[0] for line in self._lines for end in line
        ]
        ys = [place[1] for group in self._points for place in group[0]] + [
            end[1] for line in self._lines for end in line
        ]
        ys += [value for _, values, _ in self._bars for value in values] + ([0.0] if self._bars else [])
        across = _Scale.over(xs or [0.0, 1.0], LEFT, WIDTH - RIGHT)
        up = _Scale.over(ys or [0.0, 1.0], self.height - BOTTOM, top)
        parts = [*self._frame(across, up, top), *(self._line(line, across, up) for line in self._lines)]
        parts += [one for group in self._points for one in _group(group, across, up)]
        parts += self._drawn_bars(up)
        body = Markup("").join([*parts, legend])
        svg = Markup('<svg class="main-svg plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
            WIDTH, self.height, self.title, body
        )
        return Markup('<div class="wide" tabindex="0" role="group" aria-label="Picture">{}</div>').format(svg)

    def _drawn_legend(self) -> tuple[Markup, int]:
        parts, x, row = list[Markup](), float(LEFT), 0
        for name, colour, kind in self._legend:
            shown = name if len(name) <= 60 else f"{name[:59]}…"
            wide = 22 + ESTIMATED_LETTER * len(shown) + 14
            if x + wide > WIDTH - RIGHT and x > LEFT:
                x, row = float(LEFT), row + 1
            parts.append(_mark(x + 6, 12 + 20 * row, 5, kind, colour, ""))
            parts.append(Markup('<text x="{:.0f}" y="{}">{}</text>').format(x + 16, 16 + 20 * row, shown))
            x += wide
        return Markup("").join(parts), row + 1

    def _frame(self, across: _Scale, up: _Scale, top: int) -> list[Markup]:
        bottom, parts = self.height - BOTTOM, list[Markup]()
        for value in up.ticks() if self.ticks else ():
            y = up(value)
            parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
            parts.append(
                Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 6, y + 4, _n(value))
            )
        for value in across.ticks() if self.ticks and not self._bars else ():
            x = across(value)
            parts.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(x, top, bottom))
            parts.append(
                Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(x, bottom + 16, _n(value))
            )
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
                (LEFT + WIDTH) / 2, self.height - 8, self.x
            )
        )
        middle = (top + bottom) / 2
        parts.append(
            Markup(
                '<text x="14" y="{0:.0f}" text-anchor="middle" transform="rotate(-90 14 {0:.0f})">{1}</text>'
            ).format(middle, self.y)
        )
        return parts

    def _line(self, line: tuple[tuple[float, float], tuple[float, float]], across: _Scale, up: _Scale) -> Markup:
        (x1, y1), (x2, y2) = line
        return Markup('<path class="equal" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(
            across(x1), up(y1), across(x2), up(y2)
        )

    def _drawn_bars(self, up: _Scale) -> list[Markup]:
        if not self._bars:
            return []
        slot = (WIDTH - LEFT - RIGHT) / max(1, len(self._names))
        wide, parts = 0.8 * slot / len(self._bars), list[Markup]()
        for place, label in enumerate(self._names):
            for number, (colour, values, names) in enumerate(self._bars):
                x, ends = LEFT + place * slot + 0.1 * slot + number * wide, sorted([up(0.0), up(values[place])])
                parts.append(
                    Markup(
                        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"><title>{}</title></rect>'
                    ).format(x, ends[0], wide, max(0.5, ends[1] - ends[0]), colour,
                             f"{label}, {names[place]}: {values[place]:+.4f}")
                )  # fmt: skip
            middle, base = LEFT + (place + 0.5) * slot, self.height - BOTTOM + 14
            parts.append(
                Markup(
                    '<text x="{0:.1f}" y="{1}" text-anchor="end" transform="rotate(-35 {0:.1f} {1})">{2}</text>'
                ).format(middle + 4, base, label if len(label) <= 14 else f"{label[:13]}…")
            )
        return parts


@dataclass(frozen=True)
class _Scale:
    """From values to places along one axis."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Scale:
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        rough = (self.high - self.low) / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * one for one in (1, 2, 5, 10) if power * one >= rough)
        first = math.ceil(self.low / step)
        return [step * number for number in range(first, math.floor(self.high / step) + 1)]


def _n(value: float) -> str:
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"


def _group(
    group: tuple[list[tuple[float, float]], list[str], str, float, str, list[str]], across: _Scale, up: _Scale
) -> list[Markup]:
    places, names, colour, size, kind, texts = group
    at = [(across(x), up(y)) for x, y in places]
    if kind == "path":
        path = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in at)
        return [Markup('<path class="many" d="{}" stroke="{}" stroke-width="{}"/>').format(path, colour, 2 * size)]
    marks = [_mark(x, y, size, kind, colour, name) for (x, y), name in zip(at, names, strict=True)]
    written = [
        Markup('<text x="{:.1f}" y="{:.1f}" fill="{}">{}</text>').format(x + size + 2, y + 4, colour, text)
        for (x, y), text in zip(at, texts, strict=True) if text
    ]  # fmt: skip
    return marks + written


def _mark(x: float, y: float, size: float, kind: str, colour: str, name: str) -> Markup:
    title = Markup("<title>{}</title>").format(name) if name else Markup("")
    if kind in {"dot", "ring"}:
        ring = Markup('fill="none" stroke="{}" stroke-width="2"').format(colour)
        paint = ring if kind == "ring" else Markup('fill="{}" fill-opacity=".65"').format(colour)
        return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}" {}>{}</circle>').format(x, y, size, paint, title)
    if kind == "bar":
        return Markup('<rect x="{:.1f}" y="{:.1f}" width="{}" height="{}" fill="{}">{}</rect>').format(
            x - size, y - size, 2 * size, 2 * size, colour, title
        )
    if kind == "line":
        return Markup('<path class="equal" d="M{:.1f} {:.1f}h{}"/>').format(x - size, y, 2 * size)
    d = _star(x, y, size) if kind == "star" else _cross(x, y, size)
    fill = "" if kind == "star" else Markup(' fill="none" stroke-width="2.5" stroke="{}"').format(colour)
    return Markup('<path class="{}" d="{}"{}>{}</path>').format(kind, d, fill, title)


def _star(x: float, y: float, size: float) -> str:
    turns = [math.pi * (number / 5 - 0.5) for number in range(10)]
    ends = [(size if number % 2 == 0 else 0.45 * size, turn) for number, turn in enumerate(turns)]
    return "M" + "L".join(f"{x + r * math.cos(t):.1f} {y + r * math.sin(t):.1f}" for r, t in ends) + "Z"


def _cross(x: float, y: float, size: float) -> str:
    return (
        f"M{x - size:.1f} {y - size:.1f}l{2 * size:.1f} {2 * size:.1f}m0 {-2 * size:.1f}l{-2 * size:.1f} {2 * size:.1f}"
    )
