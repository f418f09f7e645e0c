"""``alphatune export``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from alphatune.cli import options as o
from alphatune.settings import ExportSettings
from alphatune.settings.option import OUTPUT

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.export import ExportDocument

Stdout = Annotated[
    Literal["human", "json", "quiet"],
    typer.Option(
        "--stdout",
        help="Print a table, one JSON object, or the path; --format in other commands.",
        rich_help_panel=OUTPUT,
    ),
]


@o.takes(ExportSettings)
def export(
    settings: ExportSettings,
    *,
    stdout: Stdout = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Export a tuned folder, and check that what was written computes the same.

    [bold]Examples[/bold]

    alphatune export tuned --format onnx -o model.onnx
    # an ONNX file

    alphatune export tuned --format pt2 --data imagenet/val --check-images 100
    # a program of torch.export, compared with PyTorch on 100 images

    alphatune export tuned --format hf --license apache-2.0 --repo me/resnet50-alpha
    # a folder for the Hugging Face hub
    """
    from alphatune.cli import console
    from alphatune.results.serialisation import to_json

    say = console.Announcements(quiet)
    with console.progress_bar(quiet) as progress:
        from alphatune.jobs.export import run_export

        document = run_export(settings, progress, say=say)
    if not quiet:
        console.warn(say.rest(document.warnings))
    if stdout == "json":
        print(to_json(document, for_pipe=True))
    elif stdout == "quiet":
        print(document.export.path)
    else:
        _show(document, settings)


def _show(document: ExportDocument, settings: ExportSettings) -> None:
    from rich.text import Text

    from alphatune.cli import console

    written, check, right = document.export, document.check, "right"
    out = console.stdout()
    if check:
        columns = [
            ("read by", "left"), ("batch", right), ("size", "left"), ("images", right),
            ("largest difference", right), ("allowed", right), ("other prediction", right),
        ]  # fmt: skip
        rows = [
            (
                row.read_by,
                row.batch_size,
                "x".join(map(str, row.size)),
                row.images,
                f"{row.largest_difference:.2g}",
                f"{row.allowed:.2g}",
                f"{row.different} of {row.predictions}",
            )
            for row in check.results
        ]
        source = check.images.source if check.images else "random"
        images = "random images" if source == "random" else source
        out.print(console.table(f"logits compared with PyTorch's, {images}", columns, rows))
    for file in written.files:
        out.print(Text(f"{file.path}  {file.bytes / 1e6:.1f} MB"))
    for line in _remarks(document):
        out.print(Text(line))
    if step := _next(document, settings):
        console.show_next([step])


def _next(document: ExportDocument, settings: ExportSettings) -> tuple[str, str] | None:
    """A command that goes on from here, and what it is for; None where there is none."""
    from alphatune.settings import BenchSettings
    from alphatune.settings.saved import to_command

    if settings.format == "hf":
        upload = ["hf", "upload", settings.repo or "USER/REPO", document.export.path]
        return shlex.join(upload), "publish it on the Hugging Face hub"
    if document.model.alpha == 0:
        return None
    return to_command(
        "bench", BenchSettings(model=settings.model, trust_code=settings.trust_code)
    ), "see what α costs at inference"


def _remarks(document: ExportDocument) -> list[str]:
    from alphatune.results.export import OnnxExport, ProgramExport

    written, model = document.export, document.model
    lines = []
    if isinstance(written, ProgramExport):
        onnx = written if isinstance(written, OnnxExport) else None
        names = f", {onnx.input_name} -> {onnx.output_name}" if onnx else ""
        opset = f"opset {onnx.opset}, " if onnx else ""
        lines.append(f"{opset}input ({', '.join(map(str, written.input))}){names}")
    if model.temperature != 1:
        where = {"graph": "in the graph", None: "not in the weights: divide the logits by it"}
        place = where.get(model.temperature_in, f"in the weights of {model.temperature_in}")
        lines.append(f"temperature {model.temperature:g} {place}")
    if document.timing:
        first = document.timing[0]
        threads = f"{first.threads} thread{'s' if first.threads > 1 else ''}"
        ratios = ", ".join(
            f"{each.ratio_to_folded:.2f} in batches of {each.batch_size}" for each in document.timing
        )
        lines.append(f"{first.runtime}, {threads}, in multiples of the folded network's time: {ratios}")
    return lines
