"""What ``alphatune tune --score`` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.plan import ScorePlan


def show_score_plan(plan: ScorePlan, output: str) -> None:
    """What would be run."""
    from rich.text import Text

    from alphatune.cli import console
    from alphatune.cli.tune import show_power

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
    if plan.power:
        show_power(plan.power, "the score", "examples")
    else:
        console.stdout().print(
            Text(
                "Which gains these examples can tell from luck is not known before a run: its result says it."
            )
        )
