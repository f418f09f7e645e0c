"""What the templates see of conditions, repairs and the number of labels: the same names in HTML and Markdown."""

from __future__ import annotations

from alphatune.core.metrics import INFO
from alphatune.reports.label_curve import label_kinds, label_rows, label_sentence
from alphatune.reports.repairs import free_repair, repair_table
from alphatune.reports.shifts import condition_table, guard_rows, unseen_rows
from alphatune.results.tune import Tuned

#: what is new in the norm layers of a model that a free repair is deployed in, as in "the layers have ..."
_TUNED_PARTS = {"affine": "tuned γ and β", "averages": "running statistics measured anew"}


def shift_tables(document: Tuned) -> dict[str, object]:
    """Rows and sentences by the names that templates use; empty or None where there is nothing to show."""
    curve, shift, free = document.label_curve, document.shift, free_repair(document)
    return {
        "conditions": condition_table(document),
        "unseen": unseen_rows(document),
        "guards": guard_rows(document),
        "repairs": repair_table(document),
        "labels": () if curve is None else label_rows(curve),
        "label_kinds": () if curve is None else label_kinds(curve),
        "label_sentence": "" if curve is None else label_sentence(curve),
        "label_unit": " (points)" if curve is not None and INFO[curve.metric].is_share else "",
        "crossings": () if curve is None else curve.crossings,
        "by_condition": shift is not None and any(len(each.curve) > 1 for each in shift.conditions),
        "free": free,
        "tuned_parts": _TUNED_PARTS.get(free or "", ""),
    }
