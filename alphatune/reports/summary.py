"""What a tune found, in the words and numbers that every report begins with."""

from __future__ import annotations

from dataclasses import dataclass

from alphatune.core.metrics import INFO, MEANS, REPORTED, SCORE, Measure, Metric, shown
from alphatune.reports.changes import HERE, Figure, Worth, change_text, worth_of
from alphatune.reports.curve import split_curve
from alphatune.reports.next_steps import Step, next_steps
from alphatune.reports.power import power_sentence
from alphatune.reports.repairs import (
    NAMES,
    PHRASES,
    changes_model,
    deployed_gain,
    deployed_name,
    free_repair,
    repair_decision,
    repair_reason,
)
from alphatune.reports.shifts import guard_sentences, headline, worse_sentence
from alphatune.results.alpha import alpha_text
from alphatune.results.document import Part
from alphatune.results.tune import Chosen, ScoreTuneDocument, Tuned, TuneDocument
from alphatune.statistics.gain import FEWEST_TO_REFINE

#: what another choice has to promise to be worth a word: points of an accuracy, and a share of loss or ECE
WORTH_POINTS, WORTH_SHARE, WORTH_ECE_SHARE = 0.002, 0.05, 0.2
#: an ECE from which a temperature is worth trying, above what chance leaves of a well calibrated network's: about
#: 0.95 / √n, 0.03 of 1 000 images (15 bins)
HIGH_ECE, NOISE_OF_ECE = 0.03, 0.95


@dataclass(frozen=True)
class Summary:
    """What a tune found. Sentences name settings as `metric=loss`; the commands are complete."""

    decision: str  # "Use α = 0.3", "Keep α = 0 (plain BatchNorm)"
    sentence: str  # why
    before_name: str  # of the figures' columns
    after_name: str  # "" where there is nothing to compare with
    taken: bool  # whether what comes after is deployed; else it is the best other α
    figures: tuple[Figure, ...]
    gains: tuple[Worth, ...]
    missed: tuple[str, ...]  # what other choices could give
    next: tuple[Step, ...]
    notes: tuple[
        str, ...
    ] = ()  # of shifts and repairs: what got worse, why this repair, which guard is not met


def summarise_tune(document: Tuned, folder: str = ".") -> Summary:
    """The summary of a tune.

    Args:
        folder: the tuned folder, as commands are to name it.
    """
    after, after_name, taken = _after(document)
    metrics = shown(document.metric)
    return Summary(
        decision=_decision(document),
        sentence=_sentence(document),
        before_name=f"α = {document.baseline_alpha:g}" if free_repair(document) is None else "plain",
        after_name=after_name,
        taken=taken,
        figures=tuple(_figure(document, metric, after) for metric in metrics),
        gains=_gains(document, after),
        missed=_missed(document),
        next=next_steps(document, folder),
        notes=_notes(document),
    )


def metric_name(document: Tuned, metric: Measure) -> str:
    """What a metric is called in a sentence."""
    return document.score_name if metric == SCORE else INFO[metric].name


def known_best(document: Tuned, metric: Measure) -> float | None:
    """The best α of a metric, where all points it is compared with rest on the same examples; else None."""
    best: float | None = document.best[metric] if document.best.has(metric) else None
    # Earlier versions named one whatever the points rested on.
    one_set = len({point.n for point in document.curve if not point.measured}) <= 1
    return best if metric == document.metric or one_set else None


def method_sentence(document: Tuned) -> str:
    """How the gain that is expected on new images was measured, for those who know statistics."""
    gain, power = document.gain, power_sentence(document)
    if gain is None:
        return " ".join(filter(None, [f"The gain was not estimated: {document.decision.reason}.", power]))
    if gain.scheme == "progressive":
        how = (
            f"Measured on {gain.examples} examples that each had no part in choosing the α they were scored at "
            f"({', '.join(f'{a:g}' for a in gain.fold_alphas)})"
        )
    else:
        how = f"Chosen on {gain.folds - 1} of {gain.folds} folds and scored on the other, in turn"
        searched = document.search if isinstance(document, TuneDocument) else None
        if searched is not None and searched.confirming and document.refinement is None:
            how += f"; {searched.confirming} further examples were scored at the choice of all folds"
    verdict = "Significant" if gain.significant else "Not significant"
    name = metric_name(document, gain.metric)
    said = f"{how}: {worth_of('', name, gain).text}, p = {gain.p:.2g}; {gain.method}. {verdict}."
    return f"{said} {power}".rstrip()


def _after(document: Tuned) -> tuple[Part | None, str, bool]:
    """What is compared with the unpatched model, its name, and whether it is deployed."""
    chosen, best = document.chosen, document.best[document.metric]
    if free_repair(document) is not None:
        return chosen.metrics, deployed_name(document), True
    if chosen.temperature != 1 or chosen.alpha != document.baseline_alpha:
        tempered = "" if chosen.temperature == 1 else f", T = {chosen.temperature:.4g}"
        return chosen.metrics, f"α = {alpha_text(chosen.alpha)}{tempered}", True
    point = next((p for p in document.curve if p.alpha == best), None)
    if best == document.baseline_alpha or point is None:
        return None, "", False
    return point, f"α = {best:g}", False


def _decision(document: Tuned) -> str:
    chosen = document.chosen
    if decision := repair_decision(document):
        return decision
    verb, plain = "Use", ""
    if document.decision.keep_baseline:
        verb, plain = "Keep", f" (plain {_plain_kind(document)})"
    tempered = "" if chosen.temperature == 1 else f" and temperature {chosen.temperature:.4g}"
    return f"{verb} α = {alpha_text(chosen.alpha)}{plain}{tempered}"


def _notes(document: Tuned) -> tuple[str, ...]:
    """What got worse, why this repair is deployed, and which guards are not met; none of a plain tune."""
    kept = "" if changes_model(document) else headline(document)
    found = (worse_sentence(document), repair_reason(document), *guard_sentences(document), kept)
    return tuple(filter(None, found))


def _plain_kind(document: Tuned) -> str:
    """What the unpatched model's norm layers are."""
    if document.baseline_alpha == 0:
        return "BatchNorm"
    return " and ".join(document.calibration.kinds) if document.calibration else "GroupNorm"


def _figure(document: Tuned, metric: Measure, after: Part | None) -> Figure:
    best = known_best(document, metric)
    point = next((p for p in document.curve if p.alpha == best), None)
    return Figure(
        metric=metric,
        label=metric_name(document, metric),
        before=document.baseline[metric],
        after=None if after is None else after[metric],
        best_alpha=None if point is None else best,
        best=None if point is None else point[metric],
        best_is_estimate=point is not None and not point.measured,
        interval=_interval(document, metric),
    )


def _gains(document: Tuned, after: Part | None) -> tuple[Worth, ...]:
    """On these images, and expected on new ones; of a temperature as well, where it was measured."""
    metric, gain, refinement, chosen = (
        document.metric, deployed_gain(document), document.refinement, document.chosen,
    )  # fmt: skip
    name, found, free = metric_name(document, metric), [], free_repair(document)
    joint = refinement is not None and refinement.with_temperature
    if after is not None:
        of = "α" if free is None else NAMES[free]
        if free is None and joint and chosen.temperature != 1:
            of = "temperature" if chosen.alpha == document.baseline_alpha else "α and temperature"
        change = after[metric] - document.baseline[metric]
        found.append(Worth(HERE, of, metric, name, change, _interval(document, metric)))
    if gain is not None and after is not None:
        of = "α beyond a temperature" if joint else "α"
        found.append(worth_of(of if free is None else NAMES[free], name, gain))
    if free is None and refinement is not None and (tempered := refinement.temperature_gain):
        found.append(worth_of("temperature", INFO[tempered.metric].name, tempered))
    return tuple(found)


def _interval(document: Tuned, metric: Measure) -> tuple[float, float] | None:
    """Of the change of a metric on these images, where it is known."""
    chosen = document.chosen
    if isinstance(chosen, Chosen) and metric in chosen.ci:
        return chosen.ci[metric]
    if chosen.temperature != 1:  # as an earlier version wrote it
        return None
    alpha: object = document.best[document.metric] if document.decision.keep_baseline else chosen.alpha
    point = next((p for p in document.curve if p.alpha == alpha), None)
    return point.ci.get(metric) if point else None


def _sentence(document: Tuned) -> str:
    """Why, for somebody who is no statistician."""
    if changes_model(document) and (said := headline(document)):
        return said
    metric, gain, refinement, free = (
        document.metric, deployed_gain(document), document.refinement, free_repair(document),
    )  # fmt: skip
    name, base = metric_name(document, metric), document.baseline_alpha
    kept = document.decision.keep_baseline and free is None
    things = "images" if isinstance(document, TuneDocument) else "examples"
    if gain is None and free is not None:
        return f"The gain of {PHRASES[free]} on new {things} was not estimated."
    if gain is None:
        many = f"{document.baseline.n} {things} are" if document.baseline.n != 1 else f"One {things[:-1]} is"
        taken = "" if kept else "; `accept=best` takes the best α all the same"
        return f"{many} too few to tell a gain from luck{taken}."
    worth, best = worth_of("", name, gain), document.best[metric]
    the = name if INFO[metric].is_share or metric == SCORE else f"the {name}"
    others = "α > 0" if base == 0 else f"α other than {base:g}"
    joint = refinement is not None and refinement.with_temperature and free is None
    beyond = " beyond what a temperature alone gives" if joint else ""
    if not kept and gain.significant:
        verb = "rise" if worth.change > 0 else "fall"
        about = f"{change_text(metric, abs(worth.change))} {INFO[metric].unit}".strip("+ ")
        return f"On new {things} like these, expect {the} to {verb} by about {about}{beyond}, more than luck explains."
    if free is not None:
        return f"The gain of {PHRASES[free]} on new {things} may be luck."
    if not kept:
        return f"`accept=best` takes the best α seen; its gain{beyond} on new {things} may be luck."
    if document.chosen.temperature != 1:
        tempered = refinement and refinement.temperature_gain
        sure = "" if tempered and tempered.significant else " on these images, which may be luck"
        return f"The temperature improves the loss{sure}; no {others} adds a gain in {name} that is more than luck."
    if best == base:
        return f"No {others} was found to improve {the} on these {things}. The written model is the one you gave."
    if gain.delta <= 0:
        return f"α = {best:g} looks best on these {things}, but there is no gain on those that did not choose it."
    return f"α = {best:g} looks better on these {things}, but its gain{beyond} on new ones may be luck."


def _missed(document: Tuned) -> tuple[str, ...]:
    """What tuning by another metric, or a temperature, could give."""
    if isinstance(document, ScoreTuneDocument):
        return ()
    # A temperature, of which there is a line of its own, lowers the ECE better than an α does.
    found = [_better_by(document, metric) for metric in REPORTED if metric not in (document.metric, "ece")]
    unknown = [INFO[metric].name for metric in REPORTED if known_best(document, metric) is None]
    if unknown and not any(found):
        names = " and ".join(filter(None, [", ".join(unknown[:-1]), unknown[-1]]))
        found.append(
            f"The search followed {INFO[document.metric].name} only, so the best α by {names} is not known; "
            f"`metric={'loss' if document.metric != 'loss' else 'top1'}` searches by another metric."
        )
    ece = document.chosen.metrics.ece
    untried = (
        document.refinement is None and document.repairs is None and document.baseline.n >= FEWEST_TO_REFINE
    )
    if untried and ece >= HIGH_ECE + NOISE_OF_ECE / document.baseline.n**0.5:
        found.append(
            f"An ECE of {ece:.3f} is high{_raised(document)}. A temperature may lower it, and the loss, at no cost: "
            "`temperature`."
        )
    return tuple(filter(None, found))


def _raised(document: TuneDocument) -> str:
    """Where the chosen α raised the ECE, by how much."""
    before, after = document.baseline.ece, document.chosen.metrics.ece
    if document.chosen.alpha == document.baseline_alpha or after - before < HIGH_ECE / 3:
        return ""
    return f" ({before:.3f} at α = {document.baseline_alpha:g})"


def _better_by(document: TuneDocument, metric: Metric) -> str:
    """What another α could give a metric that was not chosen by; "" where that is little or may be luck."""
    info, before, best = INFO[metric], document.chosen.metrics[metric], known_best(document, metric)
    points = [p for p in split_curve(document).joined if best in (None, p.alpha)]
    point = max(points, key=lambda p: info.sign * p[metric], default=None)
    if point is None or point.alpha in (document.chosen.alpha, document.baseline_alpha):
        return ""
    better = info.sign * (point[metric] - before)
    least = WORTH_POINTS if info.is_share else before * (WORTH_SHARE if metric in MEANS else WORTH_ECE_SHARE)
    low = min((info.sign * end for end in point.ci.get(metric, ())), default=None)
    if better < least or (low is not None and low <= 0):
        return ""
    much = f"{100 * better:.1f} points" if info.is_share else f"{100 * better / before:.0f} %"
    asked = f"`metric={metric}`" + (" `temperature`" if info.sees_confidence else "")
    name = info.name[0].upper() + info.name[1:]
    more = "" if best is not None else " or more"  # others may be better, as they were not compared
    verb = "rise" if info.higher_is_better else "fall"
    main, side = document.metric, ""
    if document.chosen.temperature == 1:  # else the curve, which has none, cannot be compared
        change = change_text(main, point[main] - document.chosen.metrics[main])
        side = f", where {INFO[main].name} changes by {change}"
    return f"{name} could {verb} by {much}{more}, as at α = {point.alpha:g}{side}: {asked}."
