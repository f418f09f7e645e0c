"""The figures that a result has, in the order of the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alphatune.core.metrics import shown
from alphatune.reports.before_after import Comparison, plain_name
from alphatune.reports.figures.canvas import Drawing
from alphatune.reports.figures.classes import draw_classes
from alphatune.reports.figures.conditions import draw_conditions
from alphatune.reports.figures.curves import draw_curve
from alphatune.reports.figures.depth import draw_depth
from alphatune.reports.figures.front import draw_front
from alphatune.reports.figures.labels import draw_labels
from alphatune.reports.figures.reliability import draw_reliability
from alphatune.reports.front import front_of
from alphatune.reports.per_class import ClassChange, class_names, loss_changes, most_changed, top1_changes
from alphatune.reports.reliability import Bin, reliability
from alphatune.reports.scores import StoredScores
from alphatune.results.tune import Tuned, TuneDocument
from alphatune.statistics.calibration_error import expected_calibration_error

#: the subfolder of a tuned folder that holds them as files
FOLDER = "figures"


@dataclass(frozen=True)
class Drawn:
    """The figures with what they were drawn from."""

    curves: tuple[Drawing, ...]
    reliability: tuple[Drawing, ...]
    bins: tuple[tuple[str, tuple[Bin, ...]], ...]  # by name of the run
    classes: tuple[Drawing, ...]
    top1: tuple[ClassChange, ...]
    loss: tuple[ClassChange, ...]
    depth: Drawing | None
    conditions: Drawing | None = None
    labels: Drawing | None = None
    front: Drawing | None = None

    def all(self) -> tuple[Drawing, ...]:
        single = (self.depth, self.conditions, self.labels, self.front)
        return (*self.curves, *self.reliability, *self.classes, *filter(None, single))


def draw_all(document: Tuned, stored: StoredScores | None, compared: Comparison | None) -> Drawn:
    """Every figure that the result and the scores allow."""
    curves = tuple(draw_curve(document, metric) for metric in shown(document.metric))
    diagrams, bins = _reliability(document, stored, compared)
    classes, top1, loss = _classes(stored, compared)
    alphas = document.chosen.alpha
    depth = draw_depth(alphas) if isinstance(alphas, dict) else None
    conditions = draw_conditions(document) if isinstance(document, TuneDocument) else None
    labels = draw_labels(document.label_curve) if document.label_curve else None
    front = front_of(document)
    by_cost = draw_front(front) if front else None
    return Drawn(curves, diagrams, bins, classes, top1, loss, depth, conditions, labels, by_cost)


def write_figures(drawn: Drawn, folder: Path) -> None:
    """Each as an SVG and as a PNG."""
    folder.mkdir(exist_ok=True)
    for drawing in drawn.all():
        (folder / f"{drawing.name}.svg").write_text(drawing.svg, encoding="utf-8")
        (folder / f"{drawing.name}.png").write_bytes(drawing.png)


def _reliability(
    document: Tuned, stored: StoredScores | None, compared: Comparison | None
) -> tuple[tuple[Drawing, ...], tuple[tuple[str, tuple[Bin, ...]], ...]]:
    if stored is None:
        return (), ()
    runs = [("reliability-before", plain_name(document), stored.baseline)]
    if compared:
        runs.append(("reliability-after", compared.after_name, compared.after))
    bins = [reliability(scores) for _, _, scores in runs]
    most = max(b.count for run in bins for b in run)
    drawings = tuple(
        draw_reliability(name, title, run, expected_calibration_error(scores.confidence, scores.top1), most)
        for (name, title, scores), run in zip(runs, bins, strict=True)
    )
    return drawings, tuple((title, run) for (_, title, _), run in zip(runs, bins, strict=True))


def _classes(
    stored: StoredScores | None, compared: Comparison | None
) -> tuple[tuple[Drawing, ...], tuple[ClassChange, ...], tuple[ClassChange, ...]]:
    if stored is None or compared is None:
        return (), (), ()
    names = class_names(compared.before, stored.classes)
    top1 = top1_changes(compared.before, compared.after, names)
    loss = loss_changes(compared.before, compared.after, names)
    drawings = []
    for name, title, changes in (("top1", "Top-1 by class", top1), ("loss", "Loss by class", loss)):
        selection = most_changed(changes)
        if any(change.gain for change in (*selection.lost, *selection.gained)):
            drawings.append(draw_classes(f"classes-{name}", title, selection, lower_is_better=name == "loss"))
    return tuple(drawings), top1, loss
