"""The result of ``alphatune export``: what was written, and how near it comes to the tuned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import alphatune
from alphatune.hashing import sha256
from alphatune.models.agreement import Agreement
from alphatune.reports.result import SCHEMA


def export_document(
    *,
    model: Mapping[str, Any],
    file: Mapping[str, Any],
    images: Mapping[str, Any] | None,
    agreements: Sequence[tuple[str, Agreement]],
    tolerance: float,
    env: Mapping[str, Any],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """One object; ``check`` is null where nothing had to be run."""
    check = {
        "images": images,
        "tolerance": tolerance,
        "largest_difference": max((a.largest_difference for _, a in agreements), default=None),
        "results": [_row(reader, agreement) for reader, agreement in agreements],
    }
    return {
        "schema": SCHEMA,
        "command": "export",
        "alphatune": alphatune.__version__,
        "model": dict(model),
        "export": dict(file),
        "check": check if agreements else None,
        "env": dict(env),
        "warnings": list(warnings),
    }


def describe_files(output: Path) -> list[dict[str, Any]]:
    """What was written: a file, with its external data if it has some, or all files of a folder."""
    files = sorted(output.iterdir()) if output.is_dir() else [output, Path(f"{output}.data")]
    return [
        {"path": str(file), "bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in files
        if file.is_file()
    ]


def _row(reader: str, agreement: Agreement) -> dict[str, Any]:
    return {
        "read_by": reader,
        "batch_size": agreement.batch_size,
        "size": list(agreement.size),
        "images": agreement.images,
        "largest_difference": agreement.largest_difference,
        "allowed": agreement.bound,
        "largest_logit": agreement.largest_logit,
        "predictions": agreement.predictions,
        "different": agreement.different,
    }
