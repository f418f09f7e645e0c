"""The metrics of a classifier, by name."""

from __future__ import annotations

from typing import Literal, get_args

Metric = Literal["top1", "top5", "loss", "ece"]
METRICS: tuple[Metric, ...] = get_args(Metric)
HIGHER_IS_BETTER: dict[Metric, bool] = {"top1": True, "top5": True, "loss": False, "ece": False}
