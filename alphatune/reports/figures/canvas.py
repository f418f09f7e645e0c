"""What all figures share: style, and the three forms in which one comes.

A figure is drawn once, in the light colours. ``svg`` and ``png`` are files that
look the same anywhere. ``inline`` is the same SVG for a page, and ``keys`` the
entries of its legend (inline.py).

Neither a window nor a date nor random ids: the same figure gives the same bytes.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alphatune.reports.figures.inline import HANDLE, PAD, Key, inline_figure, legend_keys
from alphatune.reports.palette import LIGHT
from alphatune.reports.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: inches; 317 units in an SVG, fewer than a phone is wide, so that letters are read without zooming
WIDTH = 4.4
#: size of tick labels and legends, in units
LETTERS = 10
PNG_DPI = 160
FONT = "DejaVu Sans"  # comes with matplotlib, so that a figure does not depend on the machine

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "alphatune",
    "svg.fonttype": "none",
    "font.family": FONT,
    "font.size": LETTERS,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # a class may be called $x$
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "figure.facecolor": LIGHT["card"],
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": LIGHT["line"],
    "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "xtick.labelsize": LETTERS,
    "ytick.labelsize": LETTERS,
    "legend.frameon": False,
    "legend.fontsize": LETTERS,
    "legend.handlelength": HANDLE,
    "legend.handletextpad": PAD,
    "legend.labelcolor": LIGHT["muted"],
}
_FAMILY = f"font-family: '{FONT}'"


@dataclass(frozen=True)
class Drawing:
    """A figure: ``name`` is that of its files, ``text`` says what there is to see."""

    name: str
    text: str
    svg: str
    png: bytes

    @property
    def inline(self) -> str:
        """The SVG for a page that defines the palette's variables, without the legend."""
        return inline_figure(self.svg, self.name, self.text)

    @property
    def keys(self) -> tuple[Key, ...]:
        """The entries of the legend, for such a page."""
        return legend_keys(self.svg, self.name)


def draw(
    name: str, text: str, paint: Callable[[Figure], None], *, height: float, width: float = WIDTH
) -> Drawing:
    """Paint a figure of so many inches."""
    svg, png = render(paint, width, height)
    return Drawing(name, printable(text), svg, png)


def render(paint: Callable[[Figure], None], width: float, height: float) -> tuple[str, bytes]:
    """What was painted on so many inches, as an SVG and as a PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    svg, png = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever style the user likes elsewhere
        matplotlib.rcParams.update(_STYLE)
        # A letter that the font lacks: an SVG's reader has more fonts, and the table has the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(width, height))
        paint(figure)
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
    # matplotlib names no font to fall back on; Verdana has about the same widths.
    return svg.getvalue().replace(_FAMILY, f"{_FAMILY}, Verdana, sans-serif"), png.getvalue()


def lay_out(figure: Figure, *, left: float, right: float, bottom: float, top: float) -> None:
    """Leave so many units (1/72 inch) around the axes, and below that add the legend of whatever has a label.

    The figure grows by the legend. This is much quicker than a layout engine.
    """
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    width, height = (72 * side for side in figure.get_size_inches())
    if labels:
        column = max(text_width(label, LETTERS) for label in labels) + (HANDLE + PAD + 1.2) * LETTERS
        columns = max(1, min(3, int((width - 10) / column)))
        legend = 1.5 * LETTERS * -(-len(labels) // columns) + 6
        figure.set_figheight((height + legend) / 72)
        figure.legend(loc="lower center", ncols=columns, columnspacing=1.2, borderpad=0.2, borderaxespad=0.3)
        height, bottom = height + legend, bottom + legend
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height
    )


def tick_width(axes: Axes) -> float:
    """About how many units the longest label of the vertical axis takes."""
    labels = axes.yaxis.get_major_formatter().format_ticks(list(axes.get_yticks()))
    return text_width(max(labels, key=len, default=""), LETTERS)


def text_width(text: str, size: float) -> float:
    """About how many units a text takes; scripts that are written in squares count twice."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return 0.62 * size * (len(text) + 0.7 * wide)


def shown(text: str, most: int = 24) -> str:
    """A name as a figure shows it: one line, and not too long."""
    line = " ".join(printable(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def style(**values: Any) -> dict[str, Any]:
    """Keyword arguments of a line or marker, from names of colours."""
    return {
        key: LIGHT.get(value, value) if isinstance(value, str) else value for key, value in values.items()
    }
