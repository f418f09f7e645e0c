"""Draw the report of a tuned folder again, from the result and the scores in it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import jinja2

from alphatune.core.errors import ConfigurationError, InputError, one_line
from alphatune.core.hashing import sha256
from alphatune.core.metrics import SCORE
from alphatune.core.version import VERSION
from alphatune.reports.drawings import FOLDER, Drawn
from alphatune.reports.file import check_file, write_whole
from alphatune.reports.folder import PAGE, file_names
from alphatune.reports.html import render_html
from alphatune.reports.scores import FILE, read_own_scores
from alphatune.results.page import ReportDocument
from alphatune.results.stored import RESULT, read_tuned
from alphatune.results.tune import Tuned

_DAMAGE = (
    KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, jinja2.TemplateError
)  # fmt: skip
#: how a page of ours begins
_MARK = '<meta name="generator" content="alphatune '


def run_report(folder: str, *, output: str | None = None, overwrite: bool = False) -> ReportDocument:
    """Write report.html and figures/ into a tuned folder anew, or the page alone into a file.

    Raises:
        AlphatuneError: in one of its kinds; no file is left half written.
    """
    root = Path(folder)
    document = read_tuned(root)
    page_path = root / PAGE if output is None else Path(output)
    if output is not None:
        check_file(page_path, "report", overwrite=overwrite, ours=_is_ours)
    elif not os.access(root, os.W_OK):
        raise ConfigurationError(f"cannot write to {root}", "`output=FILE` writes the page somewhere else")
    try:
        stored = read_own_scores(root, document)
        page, drawn = render_html(document, stored)
    except _DAMAGE as error:  # parts that do not fit each other
        raise InputError(
            f"damaged {root / RESULT}: {type(error).__name__}: {one_line(error)}",
            f"it says that alphatune {document.alphatune} wrote it, this is {VERSION}",
        ) from error
    figures: list[str] = []
    if output is None:
        figures = _write_figures(drawn, root)
    write_whole(page_path, page.encode())
    if output is None:
        _update_hashes(root, document, [PAGE, *figures])
    warnings = []
    if stored is None and document.metric != SCORE:
        warnings.append(f"{root} holds no {FILE}: the report is without reliability, classes and images")
    return ReportDocument(
        alphatune=VERSION,
        folder=folder,
        report=str(page_path),
        figures=tuple(figures),
        scores=stored is not None,
        warnings=tuple(warnings),
    )


def _write_figures(drawn: Drawn, root: Path) -> list[str]:
    """Replace each file as a whole; a reader never finds half a figure."""
    try:
        (root / FOLDER).mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot write to {root / FOLDER}: {one_line(error)}") from None
    names = file_names(drawn)
    for name, content in zip(names, (c for d in drawn.all() for c in (d.svg.encode(), d.png)), strict=True):
        write_whole(root / name, content)
    return names


def _update_hashes(root: Path, document: Tuned, names: list[str]) -> None:
    """Let result.json speak of the files as they are now; another version may draw them otherwise."""
    listed = {a.path: a.sha256 for a in document.artifacts}
    found = dict(sorted((listed | {name: sha256(root / name) for name in names}).items()))
    if found != listed:
        content = json.loads(
            (root / RESULT).read_text(encoding="utf-8")
        )  # with all that another version wrote
        content["artifacts"] = [{"path": path, "sha256": digest} for path, digest in found.items()]
        write_whole(root / RESULT, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _MARK.encode() in file.read(io.DEFAULT_BUFFER_SIZE)
    except OSError:
        return False
