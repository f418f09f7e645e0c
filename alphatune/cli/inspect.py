"""``alphatune inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from alphatune.cli import options as o
from alphatune.cli.usage import as_options
from alphatune.settings import InspectSettings
from alphatune.settings.option import MODEL

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.inspection import InspectDocument, InspectedLayer

NormPaths = Annotated[
    bool,
    typer.Option(
        "--paths",
        help="Also say which norm layers have a path to the output that passes no further one: "
        "only there does weight decay of gamma and beta act on what the network computes.",
        rich_help_panel=MODEL,
    ),
]
#: answers to whether a norm layer has a norm-free path to the output
PATH: dict[object, str] = {True: "yes", False: "no", None: "?"}


@o.takes(InspectSettings)
def inspect(
    settings: InspectSettings,
    *,
    paths: NormPaths = False,
    config: o.Config = None,
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """List every norm layer: kind, size, whether it can be patched and why not, health of its statistics.

    With --data also how far its moving averages are from what it sees of these images.

    [bold]Examples[/bold]

    alphatune inspect resnet50.a1_in1k

    alphatune inspect efficientnet_b0 --no-pretrained --input-size 240 --format json

    alphatune inspect torchvision:resnet50 --no-pretrained --paths

    alphatune inspect resnet50.a1_in1k --data imagenet/train --limit 2000
    """
    from alphatune.cli import console
    from alphatune.jobs.inspect import run_inspect
    from alphatune.results.serialisation import to_json

    with console.progress_bar("measuring", quiet or settings.data is None) as progress:
        document = run_inspect(settings, progress, paths=paths)
    if not quiet:
        console.remark_on(document.model, document.warnings)
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif format == "quiet":
        line = " ".join(f"{status}={count}" for status, count in document.summary.items()) or "none"
        if document.data:
            line += f" stale={sum(bool(layer.stale) for layer in document.layers)}"
        print(line + (f" paths={document.paths.found}/{document.paths.of}" if document.paths else ""))
    else:
        _show(document)


def _show(document: InspectDocument) -> None:
    from alphatune.cli import console

    columns = [
        ("layer", "left"), ("kind", "left"), ("channels", "right"), ("eps", "right"), ("momentum", "right"),
        ("spatial", "right"), ("status", "left"), *([("distance", "right")] if document.data else []),
        *([("free path", "left")] if document.paths else []),
        ("notes", "left"),
    ]  # fmt: skip
    rows = []
    for layer in document.layers:
        spatial = layer.spatial
        notes = [as_options(layer.reason), as_options(layer.remark), layer.health]
        if layer.aliases:
            notes.append("shared with " + ", ".join(layer.aliases))
        rows.append(
            (
                layer.name or "(root)",
                layer.kind,
                layer.num_features,
                "" if layer.eps is None else f"{layer.eps:g}",
                "" if layer.momentum is None else f"{layer.momentum:g}",
                "" if spatial is None else "x".join(map(str, spatial)) or "1",
                layer.status,
                *([_distance(layer)] if document.data else []),
                *([PATH[layer.free_path]] if document.paths else []),
                "; ".join(n for n in notes if n),
            )
        )
    out = console.stdout()
    summary = ", ".join(f"{count} {status}" for status, count in document.summary.items())
    title = f"{document.model.source}: {summary or 'no norm layers'}"
    classes = document.model.num_classes
    title += ", no classifier" if classes is None else f", {classes} outputs"
    if paths := document.paths:
        title += f"\n{paths.found} of {paths.of} norm layers have a norm-free path to the output"
        title += f" ({paths.unknown} unknown)" if paths.unknown else ""
    if data := document.data:
        title += f"\ndistance between stored averages and {data.n} examples; stale from {data.threshold:g}"
    out.print(console.table(title, columns, rows))


def _distance(layer: InspectedLayer) -> str:
    if layer.stale is None:
        return ""
    shown = "inf" if layer.distance is None else f"{layer.distance:.3g}"
    return f"{shown} stale" if layer.stale else shown
