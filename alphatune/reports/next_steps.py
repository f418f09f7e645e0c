"""Commands that go on from the result of a tune."""

from __future__ import annotations

from dataclasses import dataclass

from alphatune.core.metrics import INFO
from alphatune.reports.power import rough_count, two_digits
from alphatune.results.tune import Tuned, TuneDocument
from alphatune.settings.bench import BenchSettings
from alphatune.settings.evaluate import EvaluateSettings
from alphatune.settings.export import ExportSettings
from alphatune.settings.saved import to_command, to_rerun
from alphatune.statistics.gain import FEWEST_EXAMPLES, FEWEST_TO_REFINE

#: at least so many images can tell finer α from luck
ENOUGH_FOR_LAYERS = 1000
#: factories that need no consent
OWN_MODELS = "alphatune.models."


@dataclass(frozen=True)
class Step:
    """A command to copy, and what it is for. Words in capitals stand for what only the user knows."""

    caption: str
    command: str


def next_steps(document: Tuned, folder: str) -> tuple[Step, ...]:
    """One to three commands that fit this outcome."""
    images = isinstance(document, TuneDocument)
    changed = (
        document.chosen.alpha != document.baseline_alpha
        or document.chosen.temperature != 1
        or document.recalibration is not None
    )
    failed = [gate.name for gate in document.gates if not gate.passed]
    steps = [_after_gate(document, folder, name) for name in failed]
    if changed and not failed:
        settings = ExportSettings(
            model=folder,
            format="onnx",
            output="../tuned.onnx" if folder == "." else None,  # not into the folder itself
            trust_code=_needs_trust(document, folder),
        )
        export = to_command("export", settings)
        steps.append(Step("write it for deployment", export))
    if changed and images:
        other = EvaluateSettings(model=folder, data="OTHER_IMAGES", trust_code=_needs_trust(document, folder))
        steps.append(Step("check it on images that took no part", to_command("evaluate", other)))
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
    return tuple(dict.fromkeys(step for step in steps if step))[:3]


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


def _after_gate(document: Tuned, folder: str, gate: str) -> Step | None:
    """What goes on from a gate that failed."""
    kind, _, metric = gate.partition(" ")
    if kind == "max-latency-ratio":
        return Step(
            "see what α costs at inference",
            to_command("bench", BenchSettings(model=folder, trust_code=_needs_trust(document, folder))),
        )
    if kind in ("max-regression", "max-class-regression") and metric != document.metric:
        name = {str(each): info.name for each, info in INFO.items()}.get(metric, metric)
        return Step(f"choose α by {name}", _again(document, folder, metric, metric=metric))
    return _more_images(document, folder)


def _more_images(document: Tuned, folder: str) -> Step | None:
    """Where more of them could tell a gain from luck."""
    gain, needed = document.gain, images_needed(document)
    if gain is None:
        caption = f"{FEWEST_EXAMPLES} images are the least that can be decided on; more show smaller gains"
    elif needed is not None:
        caption = f"{rough_count(needed)} images could tell a gain of this size from luck"
    elif document.baseline.n < ENOUGH_FOR_LAYERS and not gain.significant:
        caption = "more images show smaller gains"
    else:
        return None
    return Step(caption, _again(document, folder, "more", data="MORE_IMAGES"))


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
    beside = "../tuned" if folder == "." else folder.rstrip("/")
    return to_rerun(folder, f"{beside}-{name}", document.command_line, **changes)
