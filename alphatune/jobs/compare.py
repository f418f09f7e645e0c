"""Compare results that lie in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alphatune.core.errors import ConfigurationError
from alphatune.core.progress import ShowProgress
from alphatune.reports.compared import read_compared
from alphatune.reports.comparison_text import comparison_frame, comparison_markdown
from alphatune.reports.file import check_file, write_file, write_whole
from alphatune.reports.side_by_side import compare_document
from alphatune.results.comparison import CompareDocument

#: by ending, how a file of this job begins where it is no JSON
_MARKS = {".md": "# alphatune compare\n", ".csv": "label,name,run,temperature,n,metric,"}


def run_compare(
    names: Sequence[str],
    *,
    metric: str | None = None,
    seed: int = 0,
    output: str | None = None,
    overwrite: bool = False,
    progress: ShowProgress = None,
) -> CompareDocument:
    """Compare tuned folders, results and evaluations with the first of them.

    Args:
        names: as ``read_compared`` takes them.
        metric: what to rank by; by default what the first was tuned by, else top1.
        seed: of the bootstrap.
        output: file for the comparison; its ending, .json, .md or .csv, says in which form.
        overwrite: replace an older one.
        progress: shown what is compared.

    Raises:
        AlphatuneError: in one of its kinds; nothing is left half written.
    """
    if len(names) < 2:
        raise ConfigurationError(
            f"expected two or more results to compare, got {len(names)}",
            f"{names[0]}:baseline {names[0]} compares before and after" if names else "",
        )
    path = None if output is None else Path(output)
    if path is not None:
        _check(path, overwrite)
    document = compare_document(
        [read_compared(name) for name in names], metric=metric, seed=seed, progress=progress
    )
    if path is not None:
        _write(path, document)
    return document


def _check(path: Path, overwrite: bool) -> None:
    if path.suffix not in (".json", *_MARKS):
        raise ConfigurationError(f"`output` names a file that ends in .json, .md or .csv, got {path}")
    check_file(path, "compare", overwrite=overwrite, ours=_is_ours if path.suffix in _MARKS else None)


def _is_ours(path: Path) -> bool:
    try:
        return path.read_text(encoding="utf-8").startswith(_MARKS[path.suffix])
    except (OSError, ValueError):
        return False


def _write(path: Path, document: CompareDocument) -> None:
    if path.suffix == ".json":
        write_file(path, document)
    elif path.suffix == ".md":
        write_whole(path, comparison_markdown(document).encode())
    else:
        write_whole(path, comparison_frame(document).to_csv(index=False).encode())
