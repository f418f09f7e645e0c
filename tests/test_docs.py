"""The documentation against the program: options that exist, links that lead somewhere."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def existing_options() -> set[str]:
    """The options of every command, and those of none."""
    from typer.main import get_command

    from alphatune.cli.main import app

    root: Any = get_command(app)
    params = [p for command in (root, *root.commands.values()) for p in command.params]
    return {name for p in params for name in (*p.opts, *p.secondary_opts) if name.startswith("--")}


def test_every_option_is_documented_and_every_documented_option_exists() -> None:
    from alphatune.settings import BenchSettings, ExportSettings, TrainSettings, TuneSettings

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"--[a-z][a-z-]+", page))
    existing = existing_options()
    assert documented - existing - {"--help"} == set()
    kinds = (TuneSettings, TrainSettings, BenchSettings, ExportSettings)
    named = {"--" + f.name.replace("_", "-") for kind in kinds for f in fields(kind)} - {"--model"}
    assert named <= documented
    everywhere = {
        o for p in PAGES for o in re.findall(r"(?<![\w-])--[a-z][a-z-]+", p.read_text(encoding="utf-8"))
    }
    foreign = {
        "--quiet", "--check", "--upgrade", "--rounds", "--limit", "--dist", "--allocator", "--output", "--full", "--joint",
        "--nproc-per-node", "--shm-size", "--strict",
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


def test_the_auto_grid_is_the_documented_one() -> None:
    from alphatune.tuning.alphas import AUTO

    text = (ROOT / "docs" / "tuning-guide.md").read_text(encoding="utf-8")
    assert ", ".join(f"{a:g}" for a in AUTO[:-1]) + f" and {AUTO[-1]:g}" in text


def test_exit_codes_are_the_documented_ones() -> None:
    import alphatune.core.errors as errors

    table = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    documented = {int(n) for n in re.findall(r"^\| (\d+) ", table, re.MULTILINE)}
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.AlphatuneError)]
    assert {e.exit_code for e in kinds} <= documented
