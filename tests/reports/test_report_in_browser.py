"""report.html in a real browser, where there is one: it fits a phone, follows the colour scheme, asks for nothing."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_results import (
    HOSTILE,
    by_labels,
    made_examples,
    made_result,
    made_scores,
    refined,
    shifted,
    typed,
)

from alphatune.reports.html import render_html
from alphatune.reports.palette import DARK, LIGHT

DRAWS_FIGURES = True

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--dump-dom",
)  # fmt: skip
WIDTHS = (390, 1280)
#: the page in frames of several widths, and what a script outside of it finds there
FRAME = '<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>'
SCRIPT = """<script>
onload = () => {
  const found = [...document.querySelectorAll('iframe')].map(frame => {
    const page = frame.contentDocument, style = frame.contentWindow.getComputedStyle.bind(frame.contentWindow);
    page.querySelectorAll('details').forEach(each => each.open = true);
    const root = page.documentElement, label = page.querySelector('svg text');
    return {
      overflow: root.scrollWidth - root.clientWidth,
      wide: [...page.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg, pre') &&
        e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 80)),
      ground: style(page.body).backgroundColor, letters: style(label).fill,
      smallest: Math.min(...[...page.querySelectorAll('figure svg text')].map(e => parseFloat(style(e).fontSize) *
        e.ownerSVGElement.clientWidth / e.ownerSVGElement.viewBox.baseVal.width)),
      images: [...page.images].every(image => image.naturalWidth > 0),
      scripts: page.scripts.length,
    };
  });
  document.body.innerHTML = '';
  document.body.append(JSON.stringify(found));
};
</script>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


@pytest.mark.parametrize(("scheme", "palette"), [(1, LIGHT), (0, DARK)], ids=["light", "dark"])
@pytest.mark.parametrize("shifts", [False, True], ids=["plain", "shifts"])
def test_the_page(tmp_path: Path, scheme: int, palette: dict[str, str], shifts: bool) -> None:
    stored = made_scores(classes=len(HOSTILE), names=HOSTILE)
    gates = [
        {"name": name, "limit": 0, "value": None, "passed": False, "reason": name * 9} for name in HOSTILE
    ]
    document = refined(made_result(stored)) | {"warnings": [name * 9 for name in HOSTILE], "gates": gates}
    if shifts:
        names = (*HOSTILE[:4], HOSTILE[-1])
        document = by_labels(shifted(document, names=names))
        stored = replace(stored, examples=made_examples(names))
    page, _ = render_html(typed(document), stored)
    frames = "".join(FRAME.format(width=width, page=html.escape(page)) for width in WIDTHS)
    (tmp_path / "outer.html").write_text(f"<!doctype html><meta charset=utf-8>{frames}{SCRIPT}")
    done = subprocess.run(
        [str(BROWSER), *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}",
         f"--blink-settings=preferredColorScheme={scheme}", f"file://{tmp_path / 'outer.html'}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    text = re.search(r"<body>(.*)</body>", done.stdout, re.DOTALL)
    assert text, done.stderr[-2000:]
    for width, found in zip(WIDTHS, json.loads(html.unescape(text[1])), strict=True):
        assert found["overflow"] == 0, width
        assert found["wide"] == [], width
        assert found["ground"] == rgb(palette["page"])
        assert found["letters"] == rgb(palette["muted"])
        assert found["smallest"] > 8  # pixels: letters of a figure
        assert found["images"]
        assert found["scripts"] == 0
    # What the policy refuses, and what a page gets wrong, a browser says.
    assert "CONSOLE" not in done.stderr


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"
