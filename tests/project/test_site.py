"""The site: builds without a warning, shows what the code host shows, and asks no other server for anything."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from markdown_it import MarkdownIt

DOCS = ROOT / "docs"
PAGES = {"index.md": ROOT / "README.md"} | {str(p.relative_to(DOCS)): p for p in sorted(DOCS.rglob("*.md"))}
REGENERATE = "docs/reference/cli.md is out of date: run `python docs/cli_reference.py`"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-f", ROOT / ".mkdocs.yml", "--strict", "-d", folder],
        capture_output=True, text=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def built(site: Path, page: str) -> str:
    name = page.removesuffix(".md")
    return (site / ("" if name == "index" else name) / "index.html").read_text(encoding="utf-8")


def article(text: str) -> str:
    return text.partition("<article")[2].partition("</article>")[0]


def test_every_page_is_built_and_can_be_reached(site: Path) -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    configuration = yaml.load((ROOT / ".mkdocs.yml").read_text(encoding="utf-8"), Loader)

    def files(entries: object) -> list[str]:
        if isinstance(entries, str):
            return [entries]
        values = entries.values() if isinstance(entries, dict) else entries
        return [file for value in values for file in files(value)]

    hidden = [page for page in PAGES if page == "reliability.md" or page.startswith("benchmarks/")]
    assert sorted([*files(configuration["nav"]), *hidden]) == sorted(PAGES), "nav of .mkdocs.yml"
    index = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    assert [page for page in hidden if f"]({page})" not in index] == []
    for page in PAGES:
        assert article(built(site, page)), page


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_what_the_code_host_shows(site: Path, page: str) -> None:
    """Python-Markdown wants blank lines and indents that CommonMark does not: the same things must come out."""
    source = PAGES[page].read_text(encoding="utf-8")
    expected = MarkdownIt("commonmark", {"html": True}).enable("table").render(source)
    shown = article(built(site, page))
    for tag in ("table", "tr", "td", "pre", "li", "ul", "ol", "h2", "h3", "strong"):
        count = [len(re.findall(rf"<{tag}[ >]", text)) for text in (expected, shown)]
        assert count[0] == count[1], f"<{tag}>: {count[0]} on the code host, {count[1]} on the site"
    assert inline_code(shown) == inline_code(expected)


def inline_code(text: str) -> list[str]:
    """What stands between backticks, as a reader sees it."""
    outside_blocks = re.sub(r"<pre.*?</pre>", "", text, flags=re.DOTALL)
    return [html.unescape(code) for code in re.findall(r"<code>(.*?)</code>", outside_blocks, re.DOTALL)]


def test_nothing_comes_from_another_server(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(https?:)?//([^\"'> ]+)", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=[\"']?(https?:)?//([^\"'> ]+)", text)
        assert loaded == [], page
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_anchors_keep_their_greek_letters(site: Path) -> None:
    assert 'id="finer-α-and-temperature"' in built(site, "deciding.md")


def test_a_broken_link_would_not_be_built(tmp_path: Path) -> None:
    """The strictness that the first test relies on."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Home\n\n[gone](docs/gone.md)\n")
    (tmp_path / "docs" / "site_hooks.py").write_text((DOCS / "site_hooks.py").read_text())
    configuration = (ROOT / ".mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[0]
    (tmp_path / ".mkdocs.yml").write_text(configuration + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-f", tmp_path / ".mkdocs.yml", "--strict", "-d", tmp_path / "out"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "gone.md" in done.stderr


# --- the reference ---------------------------------------------------------------------------


def generated() -> str:
    done = subprocess.run(
        [sys.executable, "-c", "import cli_reference; print(cli_reference.reference(), end='')"],
        capture_output=True, text=True, check=True, cwd=DOCS, timeout=120, env={**os.environ, "COLUMNS": "40"},
    )  # fmt: skip
    return done.stdout


def test_the_reference_is_that_of_the_program() -> None:
    assert (DOCS / "reference" / "cli.md").read_text(encoding="utf-8") == generated(), REGENERATE


def test_the_reference_has_every_option_with_its_default() -> None:
    """In the command's own section, or named there and described under the shared options."""
    from typer.main import get_command

    from alphatune.cli.main import app

    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    shared = text.partition("\n## Shared options\n")[2]
    for name, command in get_command(app).commands.items():
        section = text.partition(f"\n## alphatune {name}\n")[2].partition("\n## ")[0]
        assert section, f"{name}: {REGENERATE}"
        own, _, elsewhere = section.partition("\nShared:\n")
        for anchor in re.findall(r"\(#([\w-]+)\): all$", elsewhere, re.MULTILINE):
            group = re.search(
                rf"^### {anchor}\n(.*?)(?=^### |\Z)", shared, re.MULTILINE | re.DOTALL | re.IGNORECASE
            )
            assert group
            elsewhere += group[1]
        for param in command.params:
            if (
                param.param_type_name != "option"
                or param.name == "help_all"
                or getattr(param, "hidden", False)
            ):
                continue
            for option in param.opts:
                place = shared if re.search(rf"`{option}[ `]", elsewhere) else own
                rows = [row for row in place.splitlines() if row.startswith("- `")]
                row = next(row for row in rows if re.search(rf"`{option}[ `]", row.partition(": ")[0]))
                if isinstance(param.default, (int, float, str)) and not isinstance(param.default, bool):
                    assert f"`{param.default}`" in row
                if param.required:
                    assert "(required)" in row
                assert len(row.partition(": ")[2]) > 5, row
