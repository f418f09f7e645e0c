"""What the site (.mkdocs.yml) does to pages that are written for the code host as well."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

README = Path(__file__).parents[1] / "README.md"


def on_files(files: Files, config: Any) -> Files:
    """The first page is the README, whose links start at the project's root: there is one text of it."""
    text = README.read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """In code in a table the code host wants ``\\|`` for a bar, and Python-Markdown shows that backslash."""
    rows = re.compile(r"^\|.*$", re.MULTILINE)
    return rows.sub(
        lambda row: re.sub(r"`[^`]+`", lambda code: code[0].replace("\\|", "|"), row[0]), markdown
    )
