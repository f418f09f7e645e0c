"""A figure's SVG as a page shows it, and its legend apart: a page lists the entries of several figures once.

Each colour is a variable of the page's style sheet, so that it follows the page
into the dark, letters are the page's, and ids do not clash with those of other
figures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from xml.etree import ElementTree

from alphatune.reports.palette import LIGHT

_Element = ElementTree.Element
_VARIABLES = {value: f"var(--{name})" for name, value in LIGHT.items()}
_COLOUR = re.compile("|".join(LIGHT.values()))
_FONT_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_HREF = "{http://www.w3.org/1999/xlink}href"
_FONT_SIZE = re.compile(r"font-size: ([\d.]+)px")
#: matplotlib's layout of a legend, in font sizes: the width of a handle, and what separates it from its text
HANDLE, PAD = 1.8, 0.8


@dataclass(frozen=True)
class Key:
    """An entry of a legend: what it is called, and what it looks like, as an SVG."""

    label: str
    svg: str


def inline_figure(svg: str, name: str, text: str) -> str:
    """The figure without its legend."""
    root = ElementTree.fromstring(svg)
    left, top, width, height = root.attrib["viewBox"].split()
    for parent, legend in _legends(root):
        parent.remove(legend)
        height = f"{min(float(entry.get('y', '')) - _size(entry) for entry in _texts(legend)):g}"
    return _page_svg(root, name, f"{left} {top} {width} {height}", {"role": "img", "aria-label": text})


def legend_keys(svg: str, name: str) -> tuple[Key, ...]:
    """The entries of its legend, in their order."""
    root = ElementTree.fromstring(svg)
    defined = {e.get("id"): e for e in root.iter() if e.get("id")}
    keys: list[Key] = []
    for _, legend in _legends(root):
        handle: list[_Element] = []
        for part in legend:
            (text,) = _texts(part) or (None,)
            if text is None:
                handle.append(deepcopy(part))
                continue
            entry = ElementTree.Element("svg")
            entry.extend(handle)
            missing = _used(entry) - {e.get("id", "") for e in entry.iter()}
            definitions = ElementTree.SubElement(entry, "defs")
            definitions.extend(deepcopy(defined[used]) for used in sorted(missing))
            x, y, size = float(text.get("x", "")), float(text.get("y", "")), _size(text)
            left, width, height = x - (PAD + HANDLE) * size - 2, HANDLE * size + 4, 15
            view = f"{left:.2f} {y - 0.35 * size - height / 2:.2f} {width:.2f} {height}"
            keys.append(
                Key(text.text or "", _page_svg(entry, f"{name}-{len(keys)}", view, {"aria-hidden": "true"}))
            )
            handle = []
    return tuple(keys)


def _legends(root: _Element) -> list[tuple[_Element, _Element]]:
    """Each with the element that it is in."""
    return [(parent, e) for parent in root.iter() for e in parent if e.get("id", "").startswith("legend_")]


def _texts(element: _Element) -> list[_Element]:
    return [e for e in element.iter() if e.tag.endswith("}text")]


def _size(text: _Element) -> float:
    found = _FONT_SIZE.search(text.get("style", ""))
    return float(found[1]) if found else 0.0


def _used(element: _Element) -> set[str]:
    """The ids that are referred to."""
    used = {e.get(_HREF, "").removeprefix("#") for e in element.iter()} - {""}
    return used | {
        found for e in element.iter() for value in e.attrib.values() for found in _REFERENCE.findall(value)
    }


def _page_svg(root: _Element, name: str, view: str, more: dict[str, str]) -> str:
    used = _used(root)
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
    root.attrib = {"viewBox": view, **more}
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(attributes: dict[str, str], name: str, used: Iterable[str]) -> dict[str, str]:
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
