"""What ``alphatune tune --score`` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alphatune.cli.usage import as_options

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.plan import ScorePlan
    from alphatune.results.tune import ScoreTuneDocument


def show_score_result(document: ScoreTuneDocument, output: str) -> None:
    """The curve of a score of one's own, the decision and where the files are."""
    from rich.text import Text

    from alphatune.cli import console
    from alphatune.reports.markdown import headline

    out, curve = console.stdout(), document.curve
    best, chosen = document.best.score, document.chosen.alpha
    baseline = document.baseline_alpha
    rows = []
    for point in curve:
        interval = point.ci.get("score") if point.alpha != baseline else None
        marks = ["chosen"] * (point.alpha == chosen) + ["best"] * (point.alpha == best)
        change = f"{interval[0]:+.4g} .. {interval[1]:+.4g}" if interval else ""
        rows.append((f"{point.alpha:g}", f"{point.score:.6g}", change, " ".join(marks)))
    name = document.score.name
    columns = [("alpha", "right"), (name, "right"), ("change (95 %)", "right"), ("", "left")]
    model = document.model
    title = f"{document.data.n} examples, {len(model.patched)} of {model.norm_layers} norm layers"
    out.print(console.table(title, columns, rows))
    if len(curve) > 2:
        values = [point.score for point in curve]
        span = f"alpha {curve[0].alpha:g} to {curve[-1].alpha:g}"
        ends = f"{min(values):.6g} to {max(values):.6g}"
        out.print(Text(f"\n{name} {console.sparkline(values)} {ends}, {span}\n"))
    out.print(Text(as_options(headline(document)), style="bold"))
    if gain := document.gain:
        out.print(Text(console.gain_text(gain)))
    out.print(
        Text(
            f"Written to {output}: model.safetensors, report.html, figures, alphatune.json, "
            "result.json, report.md, curve.csv, run.toml"
        )
    )


def show_score_plan(plan: ScorePlan, output: str) -> None:
    """What would be run."""
    from alphatune.cli import console

    model, env = plan.model, plan.env
    rows = [
        ("model", f"{model.source} {model.checkpoint}"),
        ("norm layers", f"{len(model.patched)} of {model.norm_layers} would be example-weighted"),
        ("data", plan.data.source),
        ("score", plan.score.source),
        ("alphas", ", ".join(f"{a:g}" for a in plan.alphas)),
        ("device", f"{env.device}, {env.dtype}"),
        ("output", output),
    ]
    console.stdout().print(console.table("Plan (nothing was run)", [("", "left"), ("", "left")], rows))
