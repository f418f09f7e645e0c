"""What ``alphatune compare`` is given: a result that lies in a file, and the scores that belong to it.

    FOLDER, FOLDER/result.json   of a tune, with FOLDER/scores.npz
    FILE.json                    what ``tune`` or ``evaluate`` printed as JSON
    FILE.npz                     what ``evaluate`` wrote as its scores: scores, and the result in it

``:baseline``, ``:chosen`` or ``:best`` after it names the run of a tune.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from alphatune.core.errors import ConfigurationError, InputError, one_line
from alphatune.core.hashing import sha256
from alphatune.core.metrics import Measure
from alphatune.reports import evaluation_scores, scores
from alphatune.reports.scores import StoredScores
from alphatune.results.alpha import ModelAlpha
from alphatune.results.comparison import Run
from alphatune.results.document import Artifact
from alphatune.results.evaluation import EvaluateDocument
from alphatune.results.metrics import AnyMetrics, Metrics, ScoreMetrics
from alphatune.results.stored import RESULT, Measured, decode_measured
from alphatune.results.tune import ScoreTuneDocument
from alphatune.statistics.scores import Scores, summarise


@dataclass(frozen=True)
class Compared:
    """One run of a result: its metrics and, if they were kept, its scores of every example."""

    name: str  # as the user named it
    run: Run
    document: Measured
    metrics: AnyMetrics
    scores: Scores | None
    classes: tuple[str, ...]
    missing: str  # why there are no scores

    @property
    def alpha(self) -> ModelAlpha:
        """A number, or an object of layer name to α."""
        document = self.document
        if isinstance(document, EvaluateDocument):
            return document.model.alpha
        if self.run == "chosen":
            return document.chosen.alpha
        best: float = document.best[document.metric]
        return document.baseline_alpha if self.run == "baseline" else best

    @property
    def temperature(self) -> float:
        if isinstance(self.document, EvaluateDocument):
            return self.document.model.temperature
        return self.document.chosen.temperature if self.run == "chosen" else 1.0

    @property
    def is_plain(self) -> bool:
        """Whether it is the unpatched model, as far as the result says."""
        plain = 0.0 if isinstance(self.document, EvaluateDocument) else self.document.baseline_alpha
        return self.temperature == 1 and self.alpha == plain

    @property
    def was_chosen(self) -> bool:
        """Whether it was fitted to the examples that it was measured on."""
        return self.run != "evaluated" and not self.is_plain

    @property
    def tuned_for(self) -> Measure | None:
        """The metric that α was chosen by; None for an evaluation."""
        return None if isinstance(self.document, EvaluateDocument) else self.document.metric

    @property
    def score_name(self) -> str | None:
        """What the user's own score is called; None where the metrics are those of a classifier."""
        return self.document.score.name if isinstance(self.document, ScoreTuneDocument) else None


def read_compared(name: str) -> Compared:
    """Read what a user named.

    Raises:
        ConfigurationError: a run that there is not.
        InputError: not a result of tune or evaluate, or a damaged one.
    """
    path, run = _split(name)
    if path.suffix == evaluation_scores.SUFFIX and path.is_file():
        evaluated, stored = evaluation_scores.read_evaluation(path)
        return _compared(name, run, evaluated, path, stored, "")
    file = path / RESULT if path.is_dir() else path
    document = decode_measured(_read(file, path), file)
    return _compared(name, run, document, file, *_scores_of(document, file))


def _split(name: str) -> tuple[Path, str]:
    path, _, run = name.rpartition(":")
    if not path or Path(name).exists():
        return Path(name), ""
    if run not in scores.RUNS and Path(path).exists():
        raise ConfigurationError(f"unknown run {run!r} of {path}", f"one of: {', '.join(scores.RUNS)}")
    return (Path(path), run) if run in scores.RUNS else (Path(name), "")


def _read(file: Path, named: Path) -> bytes:
    if named.is_dir() and not file.is_file():
        raise InputError(
            f"{named} holds no result.json: expected a folder that alphatune tune wrote",
            "evaluate with `scores=FILE.npz` measures any other model",
        )
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {file}: {one_line(error)}",
            "expected a tuned folder, a result of tune or evaluate as JSON, or a file of evaluate with `scores`",
        ) from None


def _scores_of(document: Measured, file: Path) -> tuple[StoredScores | None, str]:
    """The scores that a result speaks of, if they are there and the same; else why not."""
    if isinstance(document, EvaluateDocument):
        return _evaluated_scores(document.scores, file)
    if isinstance(document, ScoreTuneDocument):
        return None, f"{file} was tuned by a score of its own, which is not kept for every example"
    listed = {artifact.path: artifact.sha256 for artifact in document.artifacts}
    if scores.FILE not in listed:
        return None, f"{file} was written without {scores.FILE}"
    path = file.parent / scores.FILE
    if not path.is_file():
        return None, f"{scores.FILE} is not beside {file}: name the tuned folder"
    if sha256(path) != listed[scores.FILE]:
        return None, f"{path} is not the one that {file.name} speaks of"
    return scores.read_scores(file.parent), ""


def _evaluated_scores(kept: Artifact | None, file: Path) -> tuple[StoredScores | None, str]:
    if kept is None:
        return None, f"{file} was evaluated without `scores`"
    for path in (file.parent / Path(kept.path).name, Path(kept.path)):
        if path.is_file() and sha256(path) == kept.sha256:
            return evaluation_scores.read_evaluation(path)[1], ""
    return None, f"the scores of {file} are not in {kept.path}, or have changed"


def _compared(
    name: str, run: str, document: Measured, path: Path, stored: StoredScores | None, missing: str
) -> Compared:
    metrics: Metrics | ScoreMetrics
    if isinstance(document, EvaluateDocument):
        if run:
            raise ConfigurationError(f"{path} is an evaluation, which has no run {run!r}", f"give {path}")
        run, metrics = evaluation_scores.RUN, document.metrics  # of the clean images
        own = evaluation_scores.clean_scores(stored.runs[run]) if stored else None
    else:
        run = run or "chosen"
        metrics = document.baseline if run == "baseline" else document.chosen.metrics
        own = stored.runs.get(run) if stored else None
    if run == "best":
        if own is None:
            raise ConfigurationError(
                f"{path} keeps no run 'best'",
                missing
                or "there is one only if the best α that was measured is neither 0 nor the chosen one",
            )
        metrics = summarise(own)
    if own is not None and len(own) != metrics.n:
        raise InputError(f"damaged {path}: {len(own)} scores of {metrics.n} examples")
    shown = metrics.extended(AnyMetrics)
    return Compared(name, cast("Run", run), document, shown, own, stored.classes if stored else (), missing)
