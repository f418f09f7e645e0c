"""Which two runs a report compares: the unpatched model, and what is deployed or would come nearest."""

from __future__ import annotations

from dataclasses import dataclass

from alphatune.reports.repairs import changes_model, deployed_name, free_repair
from alphatune.reports.scores import StoredScores
from alphatune.results.alpha import alpha_text
from alphatune.results.tune import Tuned
from alphatune.statistics.scores import Scores


@dataclass(frozen=True)
class Comparison:
    """Scores of the same examples by two runs; ``deployed`` is whether the second is the tuned model."""

    before: Scores
    after: Scores
    before_name: str
    after_name: str
    deployed: bool

    @property
    def right(self) -> int:
        """How many predictions became right."""
        return int((~self.before.top1 & self.after.top1).sum())

    @property
    def wrong(self) -> int:
        """How many became wrong."""
        return int((self.before.top1 & ~self.after.top1).sum())

    @property
    def elsewhere(self) -> int:
        """How many were wrong and are wrong in another way."""
        moved = self.before.predicted != self.after.predicted
        return int((moved & ~self.before.top1 & ~self.after.top1).sum())


def compare_runs(document: Tuned, stored: StoredScores | None) -> Comparison | None:
    """What was chosen against the unpatched model; where that is kept, the best other α that was measured.

    None where neither is there.
    """
    if stored is None:
        return None
    plain = plain_name(document)
    if changes_model(document):
        return Comparison(stored.baseline, stored.chosen, plain, chosen_name(document), True)
    if "best" not in stored.runs:
        return None
    name = f"α = {document.best[document.metric]:g}"
    return Comparison(stored.baseline, stored.runs["best"], plain, f"{name} (not chosen)", False)


def plain_name(document: Tuned) -> str:
    return f"α = {document.baseline_alpha:g} (plain)"


def chosen_name(document: Tuned) -> str:
    """Short: it is the entry of a legend and the head of a column."""
    if free_repair(document) is not None:
        return deployed_name(document)
    chosen = document.chosen
    name = f"α = {alpha_text(chosen.alpha)}"
    return name if chosen.temperature == 1 else f"{name}, T = {chosen.temperature:g}"


def is_on_curve(document: Tuned) -> bool:
    """Whether what is deployed is a point of the curve over α."""
    return document.chosen.on_curve and free_repair(document) is None
