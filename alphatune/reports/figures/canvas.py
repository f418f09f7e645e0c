"""What all figures share: style, and the three forms in which one comes.

A figure is drawn once, in the light colours. ``svg`` and ``png`` are files that
look the same anywhere. ``inline`` is the same SVG for a page: each colour is a
variable of the page's style sheet, so that it follows the page into the dark,
letters are the page's, and ids do not clash with those of other figures.

Neither a window nor a date nor random ids: the same figure gives the same bytes.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from alphatune.reports.palette import LIGHT
from alphatune.reports.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: inches; 360 units in an SVG, as wide as a phone, so that letters are read without zooming
WIDTH = 5.0
PNG_DPI = 160
FONT = "DejaVu Sans"  # comes with matplotlib, so that a figure does not depend on the machine

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "alphatune",
    "svg.fonttype": "none",
    "font.family": FONT,
    "font.size": 10,
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
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_VARIABLES = {value: f"var(--{name})" for name, value in LIGHT.items()}
_COLOUR = re.compile("|".join(LIGHT.values()))
_FONT_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_FAMILY = f"font-family: '{FONT}'"
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_HREF = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Drawing:
    """A figure: ``name`` is that of its files, ``text`` says what there is to see."""

    name: str
    text: str
    svg: str
    png: bytes

    @property
    def inline(self) -> str:
        """The SVG for a page that defines the palette's variables."""
        return _inline(self.svg, self.name, self.text)


def draw(
    name: str, text: str, paint: Callable[[Figure], None], *, height: float, width: float = WIDTH
) -> Drawing:
    """Paint a figure of so many inches."""
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
    file = svg.getvalue().replace(_FAMILY, f"{_FAMILY}, Verdana, sans-serif")
    return Drawing(name, printable(text), file, png.getvalue())


def margins(figure: Figure, *, left: float, right: float, bottom: float, top: float) -> None:
    """Leave so many units (1/72 inch) around the axes; much quicker than a layout engine."""
    width, height = (72 * side for side in figure.get_size_inches())
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height
    )


def tick_width(axes: Axes) -> float:
    """About how many units the longest label of the vertical axis takes."""
    labels = axes.yaxis.get_major_formatter().format_ticks(list(axes.get_yticks()))
    return text_width(max(labels, key=len, default=""), 9.5)


def text_width(text: str, size: float) -> float:
    """About how many units a text takes; scripts that are written in squares count twice."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return 0.62 * size * (len(text) + 0.7 * wide)


def shown(text: str, most: int = 24) -> str:
    """A name as a figure shows it: one line, and not too long."""
    line = " ".join(printable(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _inline(svg: str, name: str, text: str) -> str:
    root = ElementTree.fromstring(svg)
    used = {e.get(_HREF, "").removeprefix("#") for e in root.iter()}
    used |= {found for e in root.iter() for value in e.attrib.values() for found in _REFERENCE.findall(value)}
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = _attributes(element.attrib, name, used)
        if element.tag not in ("text", "tspan"):
            element.text = None  # indentation
        element.tail = None
    view = root.attrib["viewBox"]
    root.attrib = {"viewBox": view, "role": "img", "aria-label": text}
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(attributes: dict[str, str], name: str, used: set[str]) -> dict[str, str]:
    """Without namespaces, unused ids and idle digits; colours as variables."""
    kept: dict[str, str] = {}
    for key, value in attributes.items():
        if key == "id":
            if value in used:
                kept["id"] = f"{name}-{value}"
        elif key == _HREF:
            kept["href"] = f"#{name}-{value.removeprefix('#')}"
        else:
            moved = _REFERENCE.sub(lambda m: f"url(#{name}-{m.group(1)})", " ".join(value.split()))
            if key == "style":
                coloured = _COLOUR.sub(lambda m: _VARIABLES[m.group()], moved)
                kept[key] = _FONT_FAMILY.sub("", coloured).strip("; ")
            else:
                kept[key] = _LONG_NUMBER.sub(_rounded, moved)
    return kept


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number.group()):.2f}".rstrip("0").rstrip(".")


def style(**values: Any) -> dict[str, Any]:
    """Keyword arguments of a line or marker, from names of colours."""
    return {
        key: LIGHT.get(value, value) if isinstance(value, str) else value for key, value in values.items()
    }
