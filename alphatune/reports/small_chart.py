"""A curve as a few lines of SVG, in the colours of whatever page it stands on."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

WIDTH, HEIGHT = 240, 110
#: told apart from white and from black alike
_ACCENT = "#3b82f6"
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 18, 16
Points = Sequence[tuple[float, float]]


def small_chart(
    title: str, curve: Points, *, level: float, dots: Points = (), marked: float | None = None
) -> Markup:
    """A line, with the ends of both axes as numbers.

    Args:
        title: of the values.
        curve: (x, value) in order, joined by a line.
        level: the value that the rest is compared with.
        dots: further points, which no line joins.
        marked: the x to mark.
    """
    xs, ys = zip(*curve, *dots, strict=True)
    left, right, low, high = min(xs), max(xs), min(*ys, level), max(*ys, level)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - low) / (high - low) if high > low else 0.5
        return (
            round(_LEFT + across * (WIDTH - _LEFT - _RIGHT), 1),
            round(HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM), 1),
        )

    def text(x: float, y: float, words: str, anchor: str) -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'

    bottom, across = HEIGHT - _BOTTOM, at(left, level)[1]
    shapes = [
        text(_LEFT, _TOP - 7, title, "start"),
        text(_LEFT - 4, _TOP + 4, f"{high:.4g}", "end"),
        text(_LEFT - 4, bottom, f"{low:.4g}" if high > low else "", "end"),
        text(_LEFT, HEIGHT - 3, f"{left:g}", "start"),
        text(WIDTH - _RIGHT, HEIGHT - 3, f"{right:g}", "end"),
        f'<path d="M{_LEFT} {across}H{WIDTH - _RIGHT}" stroke="currentColor" stroke-opacity=".4" stroke-dasharray="3 3"/>',
        f'<polyline points="{" ".join(f"{x},{y}" for x, y in (at(*p) for p in curve))}" fill="none" '
        f'stroke="{_ACCENT}" stroke-width="2"/>',
    ]
    for point in dots:
        x, y = at(*point)
        shapes.append(f'<circle cx="{x}" cy="{y}" r="2" fill="none" stroke="{_ACCENT}"/>')
    for point in (*curve, *dots):
        if point[0] == marked:
            x, y = at(*point)
            shapes.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{_ACCENT}"/>')
    return Markup(
        f'<svg role="img" aria-label="{escape(title)}" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-size="10" fill="currentColor">{"".join(shapes)}</svg>'
    )
