"""``alphatune bench``."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from alphatune.cli import options as o
from alphatune.settings import BenchSettings

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.bench import BenchDocument, Deployment, LayerCosts

#: of a network that is timed, as people read them
VARIANTS = {"plain": "plain", "folded": "folded", "example-weighted": "with α"}


@o.takes(BenchSettings)
def bench(
    settings: BenchSettings,
    *,
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Time a model on this machine, to see what α costs: plain, conv-folded, and example-weighted.

    [bold]Examples[/bold]

    alphatune bench tuned
    # what the tuned alpha costs on this machine

    alphatune bench resnet50 --no-pretrained --batch-size 1,8,64 --device cuda --dtype bfloat16
    # several batch sizes on a GPU

    alphatune bench tuned --runtime onnx --per-layer --threads 1 --batch-size 1
    # the exported graph in onnxruntime, and what each kind of layer adds

    alphatune bench my_model.py:build --input-size 128 --compile --format json -o bench.json
    # under torch.compile, too; kept as JSON
    """
    from alphatune.cli import console
    from alphatune.results.serialisation import to_json

    with console.progress_bar(quiet) as progress:
        from alphatune.jobs.bench import run_bench

        document = run_bench(settings, progress)
    if not quiet:
        console.remark_on(document.model, document.warnings)
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif format == "quiet":
        for cost in document.cost:
            folded = "" if cost.ratio_to_folded is None else f" ratio_to_folded={cost.ratio_to_folded:.4f}"
            print(
                f"batch_size={cost.batch_size} kernel={cost.kernel or cost.runtime} "
                f"ratio_to_plain={cost.ratio_to_plain:.4f}{folded}"
            )
    else:
        _show(document)


def _show(document: BenchDocument) -> None:
    from rich.text import Text

    from alphatune.cli import console

    env, folded, right = document.env, document.folded, "right"
    onnx = env.runtime == "onnxruntime"
    times = "× folded" if onnx else "× plain"
    with_memory = any(row.peak_bytes is not None for row in document.results)
    columns = [
        ("", "left"), ("kernel", "left"), ("ms (quartiles)", right), ("images/s", right), (times, right),
        ("1st use", right), *([("MiB", right)] if with_memory else []),
    ]  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for batch_size, timed in groupby(document.results, key=lambda row: row.batch_size):
        rows.append((f"batch {batch_size}", *[""] * (len(columns) - 1)))
        rows += [
            (
                f"  {VARIANTS[row.variant]}{'*' if row.torch_compile else ''}",
                row.kernel or "",
                f"{_ms(row.median_s)} ({_ms(row.low_s)}–{_ms(row.high_s)})",
                f"{row.images_per_s:.0f}",
                f"{row.ratio_to_plain:.2f}",
                f"{row.first_use_s:.{0 if row.first_use_s >= 10 else 2}f} s",
                *([f"{(row.peak_bytes or 0) / 2**20:.0f}"] if with_memory else []),
            )
            for row in timed
        ]
    size = "x".join(map(str, env.input_size))
    title = f"{document.model.source}, images {size}, {env.device}, {env.dtype}"
    title += f", {env.runtime}" if onnx else ""
    title += (
        f", {env.threads} thread{'s' if env.threads > 1 else ''}"
        if env.device == "cpu"
        else f", {env.device_name}"
    )
    out = console.stdout()
    out.print(Text(title))
    out.print(console.table("", columns, rows))
    if any(row.torch_compile for row in document.results):
        out.print(Text("* under torch.compile", style="dim"))
    for cost in document.cost:
        out.print(Text(_sentence(cost), style="bold"))
    for layers in document.layers:
        _show_layers(layers)
    difference = folded.largest_difference
    text = f"{folded.folded} of {folded.norms} norm layers were folded into convolutions"
    text += "" if difference is None else f"; largest difference of outputs {difference:.2g}"
    out.print(Text(text))


def _show_layers(costs: LayerCosts) -> None:
    from rich.text import Text

    from alphatune.cli import console

    columns = [
        ("layers like", "left"),
        ("layers", "right"),
        ("shape", "left"),
        ("% each", "right"),
        ("% all", "right"),
    ]
    rows = [
        (
            kind.layers[0],
            len(kind.layers),
            "x".join(map(str, kind.shape)),
            f"{100 * kind.share:.2f}",
            f"{100 * kind.share * len(kind.layers):.1f}",
        )
        for kind in costs.kinds
    ]
    out = console.stdout()
    title = f"What α adds by layer, in percent of the folded network's time, batches of {costs.batch_size}"
    out.print(console.table(title, columns, rows))
    off = max((abs(each.predicted / each.measured - 1) for each in costs.sets), default=None)
    text = f"α in all of them takes {costs.everywhere:.2f} times the folded network"
    text += (
        ""
        if off is None
        else f"; sums for {len(costs.sets)} random sets were off by at most {100 * off:.1f} %"
    )
    out.print(Text(text))


def _ms(seconds: float) -> str:
    """Milliseconds, of three digits or more."""
    return f"{1e3 * seconds:.{0 if seconds >= 0.1 else 2}f}"


def _sentence(cost: Deployment) -> str:
    alpha = "one α a layer" if isinstance(cost.alpha, dict) else f"α = {cost.alpha:g}"
    text = f"Batches of {cost.batch_size}: {alpha} takes {cost.ratio_to_plain:.2f} times "
    if cost.runtime == "onnxruntime":  # whose graph of the plain network is the folded one
        return f"{text}the folded network's inference ({cost.runtime})"
    text += "plain inference"
    if cost.ratio_to_folded is not None:
        text += f", {cost.ratio_to_folded:.2f} times conv-folded inference"
    if cost.ratio_compiled is not None:
        text += f"; both under torch.compile {cost.ratio_compiled:.2f} times"
    return text + f" (kernel {cost.kernel})"
