"""``alphatune bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alphatune.cli import options as o
from alphatune.settings import BenchSettings

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.bench import BenchDocument, Deployment


@o.takes(BenchSettings)
def bench(
    settings: BenchSettings,
    *,
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Time a model on this machine, to see what alpha costs: plain, conv-folded, and example-weighted.

    [bold]Examples[/bold]

    alphatune bench tuned

    alphatune bench resnet50 --no-pretrained --batch-size 1,8,64 --device cuda --dtype bfloat16

    alphatune bench my_model.py:build --input-size 128 --compile --format json -o bench.json
    """
    import sys

    from alphatune.cli import console
    from alphatune.jobs.bench import run_bench
    from alphatune.results.serialisation import to_json

    document = run_bench(settings, console.note if not quiet and console.is_terminal(sys.stderr) else None)
    if not quiet:
        console.remark_on(document.model, document.warnings)
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif format == "quiet":
        for cost in document.cost:
            folded = "" if cost.ratio_to_folded is None else f" ratio_to_folded={cost.ratio_to_folded:.4f}"
            print(
                f"batch_size={cost.batch_size} kernel={cost.kernel} "
                f"ratio_to_plain={cost.ratio_to_plain:.4f}{folded}"
            )
    else:
        _show(document)


def _show(document: BenchDocument) -> None:
    from rich.text import Text

    from alphatune.cli import console

    env, folded, right = document.env, document.folded, "right"
    columns = [
        ("batch", right), ("variant", "left"), ("kernel", "left"), ("ms", right), ("quartiles", right),
        ("images/s", right), ("x plain", right), ("first use (s)", right),
    ]  # fmt: skip
    with_memory = any(row.peak_bytes is not None for row in document.results)
    rows = [
        (
            row.batch_size,
            row.variant + (", torch.compile" if row.torch_compile else ""),
            row.kernel or "",
            f"{1e3 * row.median_s:.2f}",
            f"{1e3 * row.low_s:.2f} .. {1e3 * row.high_s:.2f}",
            f"{row.images_per_s:.0f}",
            f"{row.ratio_to_plain:.2f}",
            f"{row.first_use_s:.2f}",
            *([f"{(row.peak_bytes or 0) / 2**20:.0f}"] if with_memory else []),
        )
        for row in document.results
    ]
    size = "x".join(map(str, env.input_size))
    title = f"{document.model.source}, images {size}, {env.device}, {env.dtype}"
    title += f", {env.threads} threads" if env.device == "cpu" else f", {env.device_name}"
    out = console.stdout()
    out.print(console.table(title, [*columns, *([("peak MiB", right)] if with_memory else [])], rows))
    for cost in document.cost:
        out.print(Text(_sentence(cost), style="bold"))
    difference = folded.largest_difference
    text = f"{folded.folded} of {folded.norms} norm layers were folded into convolutions"
    text += "" if difference is None else f"; largest difference of outputs {difference:.2g}"
    out.print(Text(text))


def _sentence(cost: Deployment) -> str:
    alpha = "alpha per layer" if isinstance(cost.alpha, dict) else f"alpha = {cost.alpha:g}"
    text = f"Batches of {cost.batch_size}: {alpha} takes {cost.ratio_to_plain:.2f} times plain inference"
    if cost.ratio_to_folded is not None:
        text += f", {cost.ratio_to_folded:.2f} times conv-folded inference"
    if cost.ratio_compiled is not None:
        text += f"; both under torch.compile {cost.ratio_compiled:.2f} times"
    return text + f" (kernel {cost.kernel})"
