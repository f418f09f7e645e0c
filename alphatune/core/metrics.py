"""The metrics of a classifier, declared once, and the one of any other task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Metric = Literal["top1", "top5", "loss", "ece", "macro_recall", "macro_f1", "auroc", "average_precision"]
METRICS: tuple[Metric, ...] = get_args(Metric)
#: a score of one's own goes by one name, whatever it measures
SCORE: Literal["score"] = "score"
Measure = Literal[
    "top1", "top5", "loss", "ece", "macro_recall", "macro_f1", "auroc", "average_precision", "score"
]


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """What there is to know about a metric, besides its values.

    Args:
        name: in a sentence.
        unit: of its values; "" where they are fractions, or of unknown unit.
        title: over a figure.
        hub_name: the Hugging Face hub's name for it.
        higher_is_better: its direction.
        is_mean: whether it is the mean of one number an example; otherwise it is a statistic of the whole set
            (statistics/set_statistics.py).
        is_share: whether that number is 0 or 1 for every example.
        sees_confidence: whether it depends on more than the order of the logits, so that a temperature changes it.
        follows_loss: whether finer α are fitted by the loss, for want of its own slope; otherwise by the error.
    """

    name: str
    title: str
    hub_name: str
    higher_is_better: bool
    is_mean: bool = True
    is_share: bool = False
    sees_confidence: bool = False
    follows_loss: bool = False
    unit: str = ""

    @property
    def label(self) -> str:
        """In a table: the name, with the unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def sign(self) -> int:
        """1, or -1: times a value, larger is better."""
        return 1 if self.higher_is_better else -1


INFO: dict[Measure, MetricInfo] = {
    "top1": MetricInfo(
        name="top-1", title="Top-1 accuracy", hub_name="accuracy", higher_is_better=True, is_share=True
    ),
    "top5": MetricInfo(
        name="top-5", title="Top-5 accuracy", hub_name="top_5_accuracy", higher_is_better=True, is_share=True
    ),
    "loss": MetricInfo(
        name="loss",
        unit="nats",
        title="Loss (nats)",
        hub_name="cross_entropy",
        higher_is_better=False,
        sees_confidence=True,
        follows_loss=True,
    ),
    "ece": MetricInfo(
        name="ECE",
        title="Calibration error (ECE)",
        hub_name="expected_calibration_error",
        higher_is_better=False,
        is_mean=False,
        sees_confidence=True,
        follows_loss=True,
    ),
    "macro_recall": MetricInfo(
        name="macro recall", title="Macro recall", hub_name="recall", higher_is_better=True, is_mean=False
    ),
    "macro_f1": MetricInfo(
        name="macro F1", title="Macro F1", hub_name="f1", higher_is_better=True, is_mean=False
    ),
    "auroc": MetricInfo(
        name="AUROC",
        title="AUROC",
        hub_name="roc_auc",
        higher_is_better=True,
        is_mean=False,
        follows_loss=True,
    ),
    "average_precision": MetricInfo(
        name="average precision",
        title="Average precision",
        hub_name="average_precision",
        higher_is_better=True,
        is_mean=False,
        follows_loss=True,
    ),
    "score": MetricInfo(name="score", title="Score", hub_name="score", higher_is_better=True),
}
#: those that every result shows, in the order of tables; and in that of reports
STANDARD: tuple[Metric, ...] = ("top1", "top5", "loss", "ece")
REPORTED: tuple[Metric, ...] = ("top1", "loss", "top5", "ece")
#: those that are means over examples
MEANS: tuple[Metric, ...] = tuple(name for name in METRICS if INFO[name].is_mean)


def shown(metric: Measure, order: tuple[Metric, ...] = REPORTED) -> tuple[Measure, ...]:
    """The metrics that a result of a tune by one of them shows."""
    if metric == SCORE:
        return (SCORE,)
    return order if metric in order else (metric, *order)
