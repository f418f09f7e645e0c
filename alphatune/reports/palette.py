"""The colours of the report and its figures: by what they mean, on light and on dark ground.

Blue against orange is told apart with every common colour vision; nothing is
said by colour alone. Figures are drawn in the light ones, each of which is
there once, so that an inlined figure can look them up by value (figures/canvas.py).
"""

from __future__ import annotations

LIGHT = {
    "page": "#f4f6f8",
    "card": "#ffffff",
    "inset": "#eef1f5",
    "line": "#d3d9e0",
    "grid": "#e4e8ed",
    "ink": "#1a1f26",
    "muted": "#586271",
    "before": "#737e8c",  # the unpatched model's marks
    "tuned": "#0b5cc4",  # the tuned model's, and what got better
    "worse": "#b34700",
    "optimum": "#8a5a00",
    "notice": "#fff5dc",
    "notice-line": "#d9a520",
}
DARK = {
    "page": "#0e1216",
    "card": "#161b22",
    "inset": "#1f262f",
    "line": "#343c47",
    "grid": "#272e38",
    "ink": "#e8ecf1",
    "muted": "#9ca7b5",
    "before": "#8793a1",
    "tuned": "#6cb1ff",
    "worse": "#ff9a57",
    "optimum": "#e9bd4a",
    "notice": "#2c2413",
    "notice-line": "#8f6d17",
}
#: text colours and the grounds that text of these colours stands on, for WCAG AA
READABLE = {
    "ink": ("page", "card", "inset", "notice"),
    "muted": ("page", "card", "inset", "notice"),
    "tuned": ("page", "card", "inset"),
    "worse": ("page", "card", "inset"),
    "optimum": ("card",),
}


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: str) -> float:
    linear = []
    for start in (1, 3, 5):
        value = int(colour[start : start + 2], 16) / 255
        linear.append(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
