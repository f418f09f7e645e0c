"""The tables and figures of a study: NAME-SCALE.json, .csv, .md, .svg and .png."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from msgspec.structs import replace

from alphatune.core.hashing import sha256
from alphatune.reports.figures.study import draw_study
from alphatune.reports.file import write_whole
from alphatune.results.document import Artifact
from alphatune.results.serialisation import to_json
from alphatune.results.study import Estimate, StudyDocument, Variant


def write_study(folder: Path, document: StudyDocument) -> StudyDocument:
    """Write all files of a study, each whole or not at all; returns the document that names them.

    Raises:
        ResourceError: the disk refused.
    """
    stem = f"{document.name}-{document.scale}"
    files = {
        f"{stem}.csv": study_frame(document).to_csv(index=False, lineterminator="\n").encode(),
        f"{stem}.md": study_markdown(document).encode(),
    }
    if (drawing := draw_study(document)) is not None:
        files |= {f"{stem}.svg": drawing.svg.encode(), f"{stem}.png": drawing.png}
    for name, content in files.items():
        write_whole(folder / name, content)
    document = replace(
        document,
        artifacts=tuple(Artifact(path=name, sha256=sha256(folder / name)) for name in sorted(files)),
    )
    write_whole(folder / f"{stem}.json", (to_json(document) + "\n").encode())
    return document


def study_frame(document: StudyDocument) -> pd.DataFrame:
    """A row for each variant and α, network and α, or number of values."""
    if document.ranges:
        return pd.DataFrame(
            {
                "values": each.values,
                "bound": -each.bound,
                **{f"training, {name}": value for name, value in each.lowest.items()},
                **{f"inference, {name}": value for name, value in each.inference.items()},
            }
            for each in document.ranges
        )
    rows = [
        {"name": each.name, "alpha": alpha, "top1": top1, "seeds": len(each.seeds)}
        for each in document.variants
        for alpha, top1 in zip(document.alphas, each.curve, strict=True)
    ]
    rows += [
        {
            "name": each.name, "alpha": alpha, "top1": top1, "loss": loss, "images": each.images,
            "top1_change_low": low, "top1_change_high": high,
        }
        for each in document.networks
        for alpha, top1, loss, (low, high) in zip(
            each.alphas, each.top1, each.loss, each.top1_change, strict=True
        )
    ]  # fmt: skip
    return pd.DataFrame(rows)


def study_markdown(document: StudyDocument) -> str:
    """The page of a study: its question, its tables, and which of the paper's claims hold."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: StudyDocument) -> Iterator[str]:
    yield f"# {document.name}: {document.shows}"
    yield ""
    yield document.question
    yield ""
    if document.variants:
        yield f"Setting: {document.setting}; scale {document.scale}, {document.runs} runs, {_time(document.seconds)}."
        if document.unlike_paper:
            yield document.unlike_paper
        yield "Top-1 in percent of images that α was not chosen on; means over seeds with 95 % intervals."
        yield ""
        yield f"|network|seeds|as trained|against {document.variants[0].name}|with α|gain by α|α chosen|"
        yield "|---|---:|---:|---:|---:|---:|---|"
        yield from map(_row, document.variants)
        yield ""
        if diverged := [each for each in document.variants if each.diverged]:
            which = ", ".join(f"{each.diverged} of {each.name}" for each in diverged)
            yield f"Training diverged in some runs, which count as guessing: {which}."
            yield ""
    if document.claims:
        yield "|claim|compared|difference|here|"
        yield "|---|---|---:|---|"
        for claim in document.claims:
            yield f"|{claim.text}|{claim.better} less {claim.than}|{points(claim.difference)}|{claim.verdict}|"
        yield ""
    if document.networks:
        yield "|network|images|metric|as trained|best α|gain by choosing α|p|"
        yield "|---|---:|---|---:|---:|---:|---:|"
        for network in document.networks:
            for gain in network.gains:
                low, high = gain.ci
                before = network[gain.metric][network.alphas.index(0.0)]
                yield (
                    f"|{network.name}|{network.images}|{gain.metric}|{before:.4f}|{network.best[gain.metric]:g}|"
                    f"{gain.delta:+.4f} ({low:+.4f} to {high:+.4f})|{gain.p:.3g}|"
                )
        yield ""
    if document.ranges:
        kinds = tuple(document.ranges[0].lowest)
        yield "Lowest normalised value of each distribution, in training (and by averages of other batches):"
        yield ""
        yield f"|values a channel|bound −√(B − 1)|{'|'.join(kinds)}|"
        yield "|---:|---:|" + "---:|" * len(kinds)
        for each in document.ranges:
            found = "|".join(f"{each.lowest[kind]:.2f} ({each.inference[kind]:.2f})" for kind in kinds)
            yield f"|{each.values}|{-each.bound:.2f}|{found}|"
        yield ""
    if document.machines:
        yield f"Machine: {'; '.join(document.machines)}. alphatune {document.alphatune}."


def _row(variant: Variant) -> str:
    difference = "" if variant.difference is None else points(variant.difference)
    alphas = ", ".join(f"{alpha:g}" for alpha in variant.alphas)
    return (
        f"|{variant.name}|{len(variant.seeds)}|{percent(variant.plain)}|{difference}|{percent(variant.weighted)}|"
        f"{points(variant.gain)}|{alphas}|"
    )


def percent(estimate: Estimate) -> str:
    """A mean in percent, and half of its interval."""
    if estimate.interval is None:
        return f"{100 * estimate.mean:.2f}"
    return f"{100 * estimate.mean:.2f} ± {50 * (estimate.interval[1] - estimate.interval[0]):.2f}"


def points(estimate: Estimate) -> str:
    """A difference in points, and half of its interval."""
    if estimate.interval is None:
        return f"{100 * estimate.mean:+.2f}"
    return f"{100 * estimate.mean:+.2f} ± {50 * (estimate.interval[1] - estimate.interval[0]):.2f}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 3600:.1f} hours of training"
