"""Commands that go on from the result of a tune."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from alphatune.core.metrics import INFO
from alphatune.reports.power import gain_text, rough_count, two_digits
from alphatune.reports.repairs import changes_model, free_repair
from alphatune.results.shift import Shift
from alphatune.results.tune import Gate, Tuned, TuneDocument
from alphatune.settings.bench import BenchSettings
from alphatune.settings.evaluate import EvaluateSettings
from alphatune.settings.export import ExportSettings
from alphatune.settings.saved import to_command, to_rerun
from alphatune.statistics.gain import FEWEST_EXAMPLES, FEWEST_TO_REFINE

#: at least so many images can tell finer α from luck
ENOUGH_FOR_LAYERS = 1000
#: times the images at hand that nobody has: to ask for so many is no advice
FAR = 20
#: times as long as the folded network that inference takes, from which on layers are worth choosing; what to aim at
COSTLY, CHEAP = 1.2, 1.05
#: factories that need no consent
OWN_MODELS = "alphatune.models."


@dataclass(frozen=True)
class Step:
    """A command to copy, and what it is for. Words in capitals stand for what only the user knows."""

    caption: str
    command: str


def next_steps(document: Tuned, folder: str) -> tuple[Step, ...]:
    """One to three commands that fit this outcome."""
    images, free = isinstance(document, TuneDocument), free_repair(document)
    changed = changes_model(document) or document.recalibration is not None
    failed = [gate.name for gate in document.gates if not gate.passed]
    steps = [_after_gate(document, folder, gate) for gate in document.gates if not gate.passed]
    if changed and not failed:
        settings = ExportSettings(
            model=folder,
            format="onnx",
            output="../tuned.onnx" if folder == "." else None,  # not into the folder itself
            trust_code=_needs_trust(document, folder),
        )
        export = to_command("export", settings)
        cost = "" if free is None else ", at no cost at inference"
        steps.append(Step(f"write it for deployment{cost}", export))
        steps.append(_cheaper(document, folder))
    if changed and images:
        shift = shift_settings(document.shift)
        other = EvaluateSettings(
            model=folder, data="OTHER_IMAGES", shift=shift, trust_code=_needs_trust(document, folder)
        )
        under = " under the same shifts," if shift else ""
        steps.append(Step(f"check it{under} on images that took no part", to_command("evaluate", other)))
    if not changed:
        steps.append(_more_images(document, folder))
    if isinstance(document, TuneDocument):
        steps += _other_searches(document, folder)
    if not any(steps):
        if images and document.recalibration is None and document.baseline_alpha == 0:
            again = _again(document, folder, "recalibrated", recalibrate="TRAINING_IMAGES")
            steps.append(Step("measure exact moving averages first", again))
        else:
            near = "0:0.05:11" if document.baseline_alpha == 0 else "0.95:1:11"
            again = _again(document, folder, "near", alphas=near)
            steps.append(Step(f"try α nearer to {document.baseline_alpha:g}", again))
    found = list(dict.fromkeys(step for step in steps if step))
    if not failed and (step := _shift_step(document, folder)):
        found[2:] = [step]
    return tuple(found[:3])


def shift_settings(shift: Shift | None) -> tuple[str, ...]:
    """The setting that makes the same conditions: ``contrast:3``, ``fog:2-4``, or a name for all severities."""
    parts = []
    for each in () if shift is None else shift.conditions:
        levels = each.severities
        if not each.made or not levels:  # of the user's own, or the clean images
            continue
        if levels == (1, 2, 3, 4, 5):
            parts.append(each.name)
        elif levels == tuple(range(levels[0], levels[-1] + 1)):
            ends = f"{levels[0]}-{levels[-1]}" if len(levels) > 1 else f"{levels[0]}"
            parts.append(f"{each.name}:{ends}")
        else:
            parts += [f"{each.name}:{level}" for level in levels]
    return (",".join(parts),) if parts else ()


def images_needed(document: Tuned) -> int | None:
    """About how many images tell a gain of the size that was measured from luck; None without such a gain."""
    gain, n = document.gain, document.baseline.n
    if gain is None or gain.significant or gain.delta <= 0:
        return None
    if document.power is not None:
        from alphatune.statistics.gain_table import images_for  # with SciPy

        needed = images_for(document.power, gain.delta)
    else:  # an earlier version's result
        needed = round(n * ((gain.ci[1] - gain.ci[0]) / 2 / gain.delta) ** 2)
    return two_digits(max(needed, round(1.1 * n)))


def _needs_trust(document: Tuned, folder: str) -> bool:
    """Whether reading the folder imports a module of the user's own; a report for strangers asks for no consent."""
    return (
        folder != "."
        and document.model.kind == "factory"
        and not document.model.source.startswith(OWN_MODELS)
    )


def _shift_step(document: Tuned, folder: str) -> Step | None:
    """After a tune on images as they are: there α gains least."""
    if not isinstance(document, TuneDocument) or document.shift is not None or document.baseline_alpha != 0:
        return None
    if not INFO[document.metric].is_mean:  # it cannot be averaged over conditions
        return None
    again = _again(document, folder, "shift", shift="common")
    return Step("find out what α is worth when cameras or lighting change", again)


def _cheaper(document: Tuned, folder: str) -> Step | None:
    """α in fewer layers, where it costs much and there are images enough to choose layers by."""
    cost = document.deployment
    ratio = None if cost is None else cost.ratio_to_folded
    if ratio is None or ratio < COSTLY or document.baseline.n < ENOUGH_FOR_LAYERS:
        return None
    caption = (
        f"leave α out of layers that are not worth their time: inference now takes {ratio:.2f} times as long"
    )
    return _within_budget(document, folder, CHEAP, caption)


def _within_budget(document: Tuned, folder: str, budget: float, caption: str) -> Step | None:
    """The command that chooses layers; None where they are chosen already, or cannot be."""
    if not isinstance(document, TuneDocument) or not INFO[document.metric].is_mean:
        return None
    if document.refinement is not None and document.refinement.front is not None:
        return None
    return Step(caption, _again(document, folder, "budget", latency_budget=f"{budget:g}"))


def _after_gate(document: Tuned, folder: str, gate: Gate) -> Step | None:
    """What goes on from a gate that failed."""
    kind, _, metric = gate.name.partition(" ")
    if kind == "max-latency-ratio":
        if gate.value is not None and gate.limit >= 1 and document.baseline.n >= FEWEST_TO_REFINE:
            caption = (
                f"leave α out of layers until inference takes {gate.limit:g} times as long as folded, at most"
            )
            if step := _within_budget(document, folder, gate.limit, caption):
                return step
        return Step(
            "see what α costs at inference",
            to_command("bench", BenchSettings(model=folder, trust_code=_needs_trust(document, folder))),
        )
    if kind in ("max-regression", "max-class-regression") and metric != document.metric:
        name = {str(each): info.name for each, info in INFO.items()}.get(metric, metric)
        return Step(f"choose α by {name}", _again(document, folder, metric, metric=metric))
    return _more_images(document, folder)


def _more_images(document: Tuned, folder: str) -> Step | None:
    """Where more of them could tell a gain from luck; of the data at hand, if a limit left some out."""
    gain, n, needed = document.gain, document.baseline.n, images_needed(document)
    if needed is not None and needed > FAR * n:
        return None
    if gain is None:
        caption = f"{FEWEST_EXAMPLES} images are the least that can be decided on; more show smaller gains"
    elif needed is not None:
        size = gain_text(gain.metric, gain.delta)
        caption = f"{rough_count(needed)} images could tell the gain expected on new ones, {size}, from luck"
    elif n < ENOUGH_FOR_LAYERS and not gain.significant:
        caption = "more images show smaller gains"
    else:
        return None
    changes: dict[str, object] = {"data": "MORE_IMAGES"}
    if limit := _given(document, "limit"):
        skipped = len(document.data.skipped) if isinstance(document, TuneDocument) else 0
        if n + skipped >= int(limit):
            changes = {}
            caption += "; the limit left some out"
        changes["limit"] = max(needed or 0, 4 * max(n, int(limit)))
    return Step(caption, _again(document, folder, "more", **changes))


def _other_searches(document: TuneDocument, folder: str) -> list[Step]:
    """Other looks at the same images that may find more."""
    n, refinement, by_loss = document.baseline.n, document.refinement, INFO[document.metric].sees_confidence
    if refinement is None and n >= FEWEST_TO_REFINE:
        if by_loss:
            again = _again(document, folder, "temperature", temperature=True)
            first = Step("tell α's part of the gain from calibration", again)
        else:
            again = _again(document, folder, "loss", metric="loss", temperature=True)
            first = Step("look for a lower loss and better calibration", again)
        if n < ENOUGH_FOR_LAYERS:
            return [first]
        finer = {"metric": "loss", "temperature": True, "granularity": "channel"}
        again = _again(document, folder, "channel", **finer)
        return [first, Step("try one α for each channel, which takes longer", again)]
    if refinement and refinement.granularity == "global" and by_loss and n >= ENOUGH_FOR_LAYERS:
        again = _again(document, folder, "channel", granularity="channel")
        return [Step("try one α for each channel, which takes longer", again)]
    return []


def _again(document: Tuned, folder: str, name: str, **changes: object) -> str:
    """The command that tunes once more, with some settings changed."""
    # A report says nothing of where it was written, not even the folder's name.
    beside = "../tuned" if folder == "." else folder.rstrip("/")
    return to_rerun(folder, f"{beside}-{name}", document.command_line, **changes)


def _given(document: Tuned, setting: str) -> str:
    """What the tune's command line gave a setting; "" where it left it out."""
    words, option = shlex.split(document.command_line), f"--{setting}"
    return words[words.index(option) + 1] if option in words[:-1] else ""
