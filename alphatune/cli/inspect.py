"""``alphatune inspect``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from alphatune.cli import options as o
from alphatune.cli.usage import as_options
from alphatune.settings import InspectSettings
from alphatune.settings.option import MODEL, OUTPUT

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.inspection import InspectDocument, InspectedLayer

NormPaths = Annotated[
    bool,
    typer.Option(
        "--paths",
        help="Also say which norm layers have a path to the output without another norm layer: only there "
        "does weight decay on gamma and beta have an effect.",
        rich_help_panel=MODEL,
    ),
]
EachLayer = Annotated[
    bool, typer.Option("--all", help="A row for each layer, in the model's order.", rich_help_panel=OUTPUT)
]
#: answers to whether a norm layer has a norm-free path to the output
PATH: dict[object, str] = {True: "yes", False: "no", None: "?"}


@o.takes(InspectSettings)
def inspect(
    settings: InspectSettings,
    *,
    paths: NormPaths = False,
    all: EachLayer = False,
    config: o.Config = None,
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """List the norm layers: kind, size, whether they can be patched and why not, health of their statistics.

    Layers that are alike share a row, and problems come first.

    With --data also how far their moving averages are from what they see of these images.

    [bold]Examples[/bold]

    alphatune inspect resnet50.a1_in1k
    # which layers can be patched

    alphatune inspect efficientnet_b0 --no-pretrained --input-size 240 --format json
    # an architecture without weights, as JSON

    alphatune inspect torchvision:resnet50 --no-pretrained --paths
    # where weight decay of gamma and beta acts

    alphatune inspect resnet50.a1_in1k --data imagenet/train --limit 2000
    # do the moving averages fit these images?
    """
    from alphatune.cli import console
    from alphatune.results.serialisation import to_json

    say = console.Announcements(quiet)
    with console.progress_bar(quiet) as progress:
        from alphatune.jobs.inspect import run_inspect

        document = run_inspect(settings, progress, paths=paths, say=say)
    if not quiet:
        console.remark_on(document.model, say.rest(document.warnings))
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif format == "quiet":
        line = " ".join(f"{status}={count}" for status, count in document.summary.items()) or "none"
        if document.data:
            line += f" stale={sum(bool(layer.stale) for layer in document.layers)}"
        print(line + (f" paths={document.paths.found}/{document.paths.of}" if document.paths else ""))
    else:
        _show(document, all)


def _show(document: InspectDocument, every: bool) -> None:
    from rich.text import Text

    from alphatune.cli import console

    out, right, layers = console.stdout(), "right", document.layers
    out.print(Text(_title(document)))
    if not layers:
        return
    extra = [("distance", right)] * bool(document.data) + [("free path", "left")] * bool(document.paths)
    common = [("kind", "left"), ("channels", right), ("map", right), ("status", "left"), *extra]
    if every:
        columns = [("layer", "left"), *common[:2], ("eps", right), ("momentum", right), *common[2:]]
        rows = [
            (layer.name or "(root)", *_cells(document, [layer], every), _notes(layer)) for layer in layers
        ]
        out.print(console.table("", [*columns, ("notes", "left")], rows))
        return
    for note in _noted(layers):
        out.print(Text(note, style="bold red" if note.startswith("!") else ""))
    groups = _groups(layers, _alike)
    rows = [(len(group), *_cells(document, group, every), _range(group)) for group in groups]
    out.print(console.table("", [("n", right), *common, ("layers", "left")], rows))
    if len(groups) < len(layers):
        out.print(Text("--all shows each layer in a row of its own", style="dim"))


def _title(document: InspectDocument) -> str:
    summary = ", ".join(f"{count} {status}" for status, count in document.summary.items())
    title = f"{document.model.source}: {summary or 'no norm layers'}"
    classes = document.model.num_classes
    title += ", no classifier" if classes is None else f", {classes} outputs"
    if paths := document.paths:
        title += f"\n{paths.found} of {paths.of} norm layers have a norm-free path to the output"
        title += f" ({paths.unknown} unknown)" if paths.unknown else ""
    if data := document.data:
        title += f"\ndistance between stored averages and {data.n} examples; stale from {data.threshold:g}"
    return title


def _groups(
    layers: Sequence[InspectedLayer], key: Callable[[InspectedLayer], object]
) -> list[list[InspectedLayer]]:
    """Layers of one key, wherever they are in the model; those with problems first."""
    groups: dict[object, list[InspectedLayer]] = {}
    for layer in layers:
        groups.setdefault(key(layer), []).append(layer)
    return sorted(groups.values(), key=lambda group: _urgency(group[0]))


def _alike(layer: InspectedLayer) -> object:
    """Equal for layers of one kind, outcome and map size."""
    return (layer.kind, layer.status, layer.spatial, _said(layer), layer.stale, layer.free_path)


def _said(layer: InspectedLayer) -> object:
    """The notes but for their numbers."""
    return layer.healthy, re.sub(r"\d[\d.]*", "", _notes(layer))


def _urgency(layer: InspectedLayer) -> int:
    """Problems first."""
    if not layer.healthy or layer.status == "unsupported":
        return 0
    if layer.stale:
        return 1
    return 2 if layer.status == "inactive" or _notes(layer) else 3


def _noted(layers: Sequence[InspectedLayer]) -> list[str]:
    """Each thing there is to say of layers, once."""
    lines = []
    for group in _groups([layer for layer in layers if _notes(layer)], _said):
        name, several = group[0].name or "(root)", len(group) > 1
        mark = "!" if not _urgency(group[0]) else "-"
        lines.append(f"{mark} {f'{len(group)} layers, e.g. {name}' if several else name}: {_notes(group[0])}")
    return lines


def _range(group: list[InspectedLayer]) -> str:
    first, last = group[0].name or "(root)", group[-1].name
    return first if len(group) == 1 else f"{first} … {last}"


def _cells(document: InspectDocument, group: list[InspectedLayer], every: bool) -> tuple[object, ...]:
    """What layers that are alike have in common."""
    first = group[0]
    widths = sorted({layer.num_features for layer in group if layer.num_features is not None})
    of_one = tuple("" if value is None else f"{value:g}" for value in (first.eps, first.momentum))
    return (
        first.kind,
        f"{widths[0]}–{widths[-1]}" if len(widths) > 1 else "".join(map(str, widths)),
        *(of_one if every else ()),
        "" if first.spatial is None else "×".join(map(str, first.spatial)) or "1",
        first.status if first.healthy or every else f"{first.status} !",
        *([_distance(group)] if document.data else []),
        *([PATH[first.free_path]] if document.paths else []),
    )


def _notes(layer: InspectedLayer) -> str:
    shared = f"shared with {', '.join(layer.aliases)}" if layer.aliases else ""
    return "; ".join(filter(None, (as_options(layer.reason), as_options(layer.remark), layer.health, shared)))


def _distance(group: list[InspectedLayer]) -> str:
    """The largest."""
    known = [layer for layer in group if layer.stale is not None]
    if not known:
        return ""
    distances = [layer.distance for layer in known if layer.distance is not None]
    shown = "inf" if len(distances) < len(known) else f"{max(distances):.3g}"
    return f"{shown} stale" if group[0].stale else shown
