"""What an export wrote, and how near it comes to the tuned model, as it appears in a result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alphatune.core.hashing import sha256
from alphatune.export.agreement import Agreement as Measured
from alphatune.export.latency import Latency
from alphatune.results.export import Agreement, Check, CheckImages, ExportedFile, GraphTiming


def describe_check(
    images: CheckImages, agreements: Sequence[tuple[str, Measured]], tolerance: float
) -> Check | None:
    """How near what was written comes; None where nothing had to be run."""
    if not agreements:
        return None
    return Check(
        images=images,
        tolerance=tolerance,
        largest_difference=max(agreement.largest_difference for _, agreement in agreements),
        results=tuple(_row(reader, agreement) for reader, agreement in agreements),
    )


def describe_timing(format: str, latencies: Sequence[Latency]) -> tuple[GraphTiming, ...]:
    """What a graph takes beside that of the folded network."""
    return tuple(
        GraphTiming(
            runtime="onnxruntime" if format == "onnx" else "torch",
            threads=latency.threads,
            batch_size=latency.batch_size,
            median_s=latency.weighted.median,
            folded_s=latency.folded.median,
            ratio_to_folded=latency.ratio,
        )
        for latency in latencies
    )


def describe_files(output: Path) -> tuple[ExportedFile, ...]:
    """What was written: a file, with its external data if it has some, or all files of a folder."""
    files = sorted(output.iterdir()) if output.is_dir() else [output, Path(f"{output}.data")]
    return tuple(
        ExportedFile(path=str(file), bytes=file.stat().st_size, sha256=sha256(file))
        for file in files
        if file.is_file()
    )


def _row(reader: str, agreement: Measured) -> Agreement:
    return Agreement(
        read_by=reader,
        batch_size=agreement.batch_size,
        size=tuple(agreement.size),
        images=agreement.images,
        largest_difference=agreement.largest_difference,
        allowed=agreement.bound,
        largest_logit=agreement.largest_logit,
        predictions=agreement.predictions,
        different=agreement.different,
    )
