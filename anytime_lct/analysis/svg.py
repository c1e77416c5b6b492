"""Small drawings in SVG, whose colours are those of the page that they stand in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

Point = tuple[float, float]
LEFT, RIGHT, TOP, BOTTOM = 56.0, 14.0, 12.0, 40.0
MOST_NAMED, LONGEST = 12, 7  # classes whose names stand at a heatmap, and their characters


def colour(k: int, count: int) -> str:
    """Return the colour of exit k of `count`, from 0: from shallow to deep."""
    share = round(100 * k / max(1, count - 1))
    return f"color-mix(in oklab, var(--deep) {share}%, var(--shallow))"


class Plot:
    """A drawing with two axes; `x` and `y` are the ranges of the data, `bottom` is the room for the numbers of x."""

    def __init__(self, x: Point, y: Point, size: tuple[int, int], name: str, bottom: float = BOTTOM) -> None:
        self.x, self.y, self.name, self.bottom = x, y, name, bottom
        self.width, self.height = size
        self._parts: list[str] = []

    def at(self, x: float, y: float) -> Point:
        """Return where a point of the data lies."""
        (x0, x1), (y0, y1) = self.x, self.y
        across, up = (x - x0) / ((x1 - x0) or 1), (y - y0) / ((y1 - y0) or 1)
        return (
            LEFT + across * (self.width - LEFT - RIGHT),
            self.height - self.bottom - up * (self.height - TOP - self.bottom),
        )

    def axes(self, x_name: str, y_name: str, x_text: Callable[[float], str], y_text: Callable[[float], str]) -> Plot:
        """Draw a grid with numbers, and the names of the axes."""
        left, right = self.at(self.x[0], 0)[0], self.at(self.x[1], 0)[0]
        top, bottom = self.at(0, self.y[1])[1], self.at(0, self.y[0])[1]
        for y in ticks(*self.y):
            at = self.at(0, y)[1]
            self._add(f'<line class="grid" x1="{left:.1f}" y1="{at:.1f}" x2="{right:.1f}" y2="{at:.1f}"/>')
            self._text(left - 6, at + 4, y_text(y), "end")
        for x in ticks(*self.x):
            at = self.at(x, 0)[0]
            self._add(f'<line class="tick" x1="{at:.1f}" y1="{bottom:.1f}" x2="{at:.1f}" y2="{bottom + 4:.1f}"/>')
            self._text(at, bottom + 17, x_text(x), "middle")
        self._text((left + right) / 2, self.height - 6, x_name, "middle", "name")
        middle = (top + bottom) / 2
        self._add(
            f'<text class="name" text-anchor="middle" transform="translate(12 {middle:.1f}) rotate(-90)">'
            f"{escape(y_name)}</text>"
        )
        return self

    def line(self, points: Iterable[Point], style: str) -> Plot:
        """Draw a line through points."""
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        self._add(f'<polyline points="{at}" style="fill:none;{style}"/>')
        return self

    def area(self, upper: Sequence[Point], lower: Sequence[Point], fill: str, title: str) -> Plot:
        """Fill what lies between two lines."""
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in [*upper, *reversed(lower)]))
        self._add(f'<polygon points="{at}" style="fill:{fill}"><title>{escape(title)}</title></polygon>')
        return self

    def dot(self, point: Point, style: str, title: str = "", radius: float = 5) -> Plot:
        """Draw a point, with what is shown where the mouse is over it."""
        x, y = self.at(*point)
        self._add(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" style="{style}"><title>{escape(title)}</title></circle>'
        )
        return self

    def whisker(self, x: float, low: float, high: float, stroke: str) -> Plot:
        """Draw an interval at x."""
        return self.line([(x, low), (x, high)], f"stroke:{stroke};stroke-width:1.5")

    def box(self, x: Point, y: Point, fill: str, title: str) -> Plot:
        """Fill a rectangle."""
        (left, bottom), (right, top) = self.at(x[0], y[0]), self.at(x[1], y[1])
        self._add(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(0.0, right - left):.1f}" '
            f'height="{max(0.0, bottom - top):.1f}" style="fill:{fill}"><title>{escape(title)}</title></rect>'
        )
        return self

    def label(self, point: Point, text: str, anchor: str = "middle", shift: Point = (0, 0)) -> Plot:
        """Write beside a point."""
        x, y = self.at(*point)
        self._text(x + shift[0], y + shift[1], text, anchor, "label")
        return self

    def svg(self) -> str:
        """Return the drawing."""
        box, parts = f"0 0 {self.width} {self.height}", "".join(self._parts)
        return f'<svg viewBox="{box}" role="img" aria-label="{escape(self.name)}">{parts}</svg>'

    def _add(self, part: str) -> None:
        self._parts.append(part)

    def _text(self, x: float, y: float, text: str, anchor: str, kind: str = "number") -> None:
        self._add(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers within a range.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    low, high = min(low, high), max(low, high)
    if low == high:
        return [low]
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each >= raw * (1 - 1e-9))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [round(number * step, 12) for number in numbers]


def heatmap(counts: Sequence[Sequence[int]], names: Sequence[str], name: str) -> str:
    """Draw counts of (true, answered) as a square of cells, shaded by their share of the row; wrong ones in red."""
    count, edge = len(counts), 46 if len(counts) <= MOST_NAMED else 4
    cell = (328 - edge) / max(1, count)
    parts: list[str] = []
    for i, row in enumerate(counts):
        total = max(1, sum(row))
        if count <= MOST_NAMED:
            short = escape(names[i] if len(names[i]) <= LONGEST else f"{names[i][: LONGEST - 1]}…")
            middle = (i + 0.5) * cell
            parts.append(f'<text class="cell" x="{edge - 6}" y="{middle + 4:.1f}" text-anchor="end">{short}</text>')
            turned = f'transform="translate({edge + middle + 4:.1f} {328 - edge + 6:.1f}) rotate(-60)"'
            parts.append(f'<text class="cell" text-anchor="end" {turned}>{short}</text>')
        for j, value in enumerate(row):
            share = 100 * value / total
            tint = "var(--right)" if i == j else "var(--wrong)"
            mixed = share if i == j else min(100.0, 4 * share)  # few are wrong, and shall be seen
            words = escape(f"{names[i]} answered as {names[j]}: {value} ({share:.1f}%)")
            parts.append(
                f'<rect x="{edge + j * cell:.1f}" y="{i * cell:.1f}" width="{cell - 1:.1f}" '
                f'height="{cell - 1:.1f}" style="fill:color-mix(in oklab, {tint} {mixed:.0f}%, var(--cell))">'
                f"<title>{words}</title></rect>"
            )
            if value and count <= MOST_NAMED:
                ink = "cell-on" if mixed > 55 else "cell"
                parts.append(
                    f'<text class="{ink}" x="{edge + (j + 0.5) * cell:.1f}" y="{(i + 0.5) * cell + 4:.1f}" '
                    f'text-anchor="middle">{value}</text>'
                )
    return f'<svg viewBox="0 0 328 328" role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'
