"""The metrics of a classifier, by name, and the one of any other task."""

from __future__ import annotations

from typing import Literal, get_args

Metric = Literal["top1", "top5", "loss", "ece"]
METRICS: tuple[Metric, ...] = get_args(Metric)
#: a score of one's own goes by one name, whatever it measures
SCORE: Literal["score"] = "score"
Measure = Literal["top1", "top5", "loss", "ece", "score"]
HIGHER_IS_BETTER: dict[Measure, bool] = {
    "top1": True,
    "top5": True,
    "loss": False,
    "ece": False,
    "score": True,
}
