"""The documentation against the program: options that exist, links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def existing_options() -> set[str]:
    """The options of every command, and those of none; but for hidden ones, whose values another option holds."""
    from typer.main import get_command

    from alphatune.cli.main import app

    root: Any = get_command(app)
    params = [
        p
        for command in (root, *root.commands.values())
        for p in command.params
        if not getattr(p, "hidden", False)
    ]
    return {name for p in params for name in (*p.opts, *p.secondary_opts) if name.startswith("--")}


def test_every_option_is_documented_and_every_documented_option_exists() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    existing = existing_options()
    assert existing - set(re.findall(r"--[a-z][a-z-]+", page)) == set()
    everywhere = {
        o for p in PAGES for o in re.findall(r"(?<![\w-])--[a-z][a-z-]+", p.read_text(encoding="utf-8"))
    }
    foreign = {
        "--quiet", "--check", "--upgrade", "--rounds", "--limit", "--dist", "--allocator", "--output", "--full", "--joint",
        "--nproc-per-node", "--shm-size", "--strict", "--index-url", "--no-deps", "--find-links", "--wheel-dir",
        "--counts", "--images", "--unseen",
    }  # fmt: skip
    assert everywhere - existing - foreign - {"--help"} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_wrapped_line_starts_like_a_list_quote_or_heading(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    paragraph = r"^(?![ \n#>|<]|[-+*] |\d+[.)] ).+\n"
    assert re.findall(paragraph + r" {0,3}(?:\d+[.)]|[-+*>]|#{1,6})(?:\s.*)?$", text, re.MULTILINE) == []
    continued = r"^ +(?![ -+*>#|]|\d+[.)] )\S.*\n"  # of a list's item
    assert re.findall(continued + r" +(?:[+>]|#{1,6})\s.*$", text, re.MULTILINE) == []


def test_the_auto_grid_is_the_documented_one() -> None:
    from alphatune.tuning.alphas import AUTO

    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    assert ", ".join(f"{a:g}" for a in AUTO[:-1]) + f" and {AUTO[-1]:g}" in text


def test_exit_codes_are_the_documented_ones() -> None:
    import alphatune.core.errors as errors

    table = (
        (ROOT / "docs" / "exit-codes-and-gates.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    )
    cells = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    documented = {int(n) for cell in cells for n in cell.split(",")}
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.AlphatuneError)]
    assert {e.exit_code for e in kinds} | {0, 1, 129, 130, 143} <= documented


def test_every_field_of_a_result_is_described() -> None:
    import msgspec

    from alphatune.results.schemas import DOCUMENTS

    text = (ROOT / "docs" / "result.md").read_text(encoding="utf-8")
    described = {name for code in re.findall(r"`([^`]+)`", text) for name in re.findall(r"\w+", code)}
    names: set[str] = set()

    def collect(kind: Any) -> None:
        """The names of a type's fields, and of those of all types in it."""
        if isinstance(kind, tuple):
            for each in kind:
                collect(each)
        elif isinstance(kind, msgspec.inspect.StructType):
            for field in kind.fields:
                names.add(field.encode_name)
                collect(field.type)
        elif isinstance(kind, msgspec.inspect.Type):
            for part in ("types", "item_type", "item_types", "value_type", "type"):
                collect(getattr(kind, part, ()))

    for name in ("tune", "evaluate", "compare", "export", "inspect", "bench", "report", "doctor", "error"):
        collect(tuple(msgspec.inspect.type_info(kind) for kind in DOCUMENTS[name]))
    assert len(names) > 150
    assert names - described == set()


def test_the_documentation_stays_short() -> None:
    """What the README has to say fits a screen or three; long tables go into CSV files beside the pages."""
    readme, *pages = (page.read_text(encoding="utf-8") for page in PAGES)
    assert len(readme.splitlines()) < 150
    assert readme.index("![") < readme.index("\n|")  # a picture before any table
    assert sum(len(page.split()) for page in pages) <= 25_000
