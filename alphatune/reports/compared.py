"""What ``alphatune compare`` is given: a result that lies in a file, and the scores that belong to it.

    FOLDER, FOLDER/result.json   of a tune, with FOLDER/scores.npz
    FILE.json                    what ``tune`` or ``evaluate --format json`` printed
    FILE.npz                     what ``evaluate --scores`` wrote: scores, and the result in it

``:baseline``, ``:chosen`` or ``:best`` after it names the run of a tune.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphatune.errors import ConfigurationError, InputError, one_line
from alphatune.evaluation import METRICS, Scores, summarise
from alphatune.hashing import sha256
from alphatune.reports import evaluation_scores, scores
from alphatune.reports.result import SCHEMA
from alphatune.reports.scores import StoredScores
from alphatune.tuning.gain import SCORE


@dataclass(frozen=True)
class Compared:
    """One run of a result: its metrics and, if they were kept, its scores of every example."""

    name: str  # as the user named it
    run: str  # one of scores.RUNS, or "evaluated"
    document: dict[str, Any]
    metrics: dict[str, Any]  # n, and the mean of each metric, or score
    scores: Scores | None
    classes: tuple[str, ...]
    missing: str  # why there are no scores

    @property
    def alpha(self) -> Any:
        """A number, or an object of layer name to α."""
        if self.run == evaluation_scores.RUN:
            return self.document["model"]["alpha"]
        if self.run == "chosen":
            return self.document["chosen"]["alpha"]
        return self.document["baseline_alpha"] if self.run == "baseline" else self._best

    @property
    def temperature(self) -> float:
        if self.run == evaluation_scores.RUN:
            return float(self.document["model"].get("temperature", 1.0))
        return float(self.document["chosen"].get("temperature", 1.0)) if self.run == "chosen" else 1.0

    @property
    def is_plain(self) -> bool:
        """Whether it is the unpatched model, as far as the result says."""
        return self.temperature == 1 and self.alpha == self.document.get("baseline_alpha", 0.0)

    @property
    def was_chosen(self) -> bool:
        """Whether it was fitted to the examples that it was measured on."""
        return self.run != evaluation_scores.RUN and not self.is_plain

    @property
    def _best(self) -> Any:
        return self.document["best"][self.document["metric"]]


def read_compared(name: str) -> Compared:
    """Read what a user named.

    Raises:
        ConfigurationError: a run that there is not.
        InputError: not a result of tune or evaluate, or a damaged one.
    """
    path, run = _split(name)
    if path.suffix == evaluation_scores.SUFFIX and path.is_file():
        document, stored = evaluation_scores.read_evaluation(path)
        return _compared(name, run, _checked(document, path), path, stored, "")
    file = path / "result.json" if path.is_dir() else path
    document = _checked(_read(file, path), file)
    return _compared(name, run, document, file, *_scores_of(document, file))


def _split(name: str) -> tuple[Path, str]:
    path, _, run = name.rpartition(":")
    if not path or Path(name).exists():
        return Path(name), ""
    if run not in scores.RUNS and Path(path).exists():
        raise ConfigurationError(f"unknown run {run!r} of {path}", f"one of: {', '.join(scores.RUNS)}")
    return (Path(path), run) if run in scores.RUNS else (Path(name), "")


def _read(file: Path, named: Path) -> Any:
    if named.is_dir() and not file.is_file():
        raise InputError(
            f"{named} holds no result.json: expected a folder that alphatune tune wrote",
            "alphatune evaluate MODEL --data DATA --scores FILE.npz measures any other model",
        )
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"cannot read {file}: {one_line(error)}",
            "expected a tuned folder, a result of tune or evaluate as JSON, or a file of evaluate --scores",
        ) from None


def _checked(document: Any, path: Path) -> dict[str, Any]:
    """The document, if it has what a comparison needs."""
    if not isinstance(document, dict) or "schema" not in document:
        if isinstance(document, dict) and isinstance(failure := document.get("error"), dict):
            raise InputError(f"{path} holds no result but an error: {one_line(failure.get('message'))}")
        raise InputError(f"{path} is not a result of alphatune: expected a JSON object with a schema")
    if document["schema"] != SCHEMA:
        raise InputError(
            f"{path} has schema {document['schema']!r}, this version reads {SCHEMA}",
            "pip install --upgrade alphatune",
        )
    if (command := document.get("command")) not in ("tune", "evaluate"):
        raise InputError(
            f"{path} is the result of {command!r}: expected one of tune or evaluate",
            "alphatune evaluate MODEL --data DATA --scores FILE.npz measures a model to compare",
        )
    try:
        _ = (document["model"]["source"], document["data"]["source"], document["env"])
        if command == "evaluate":
            known = [document["metrics"]]
            _ = document["model"]["alpha"]
        else:
            known = [document["baseline"], document["chosen"]["metrics"]]
            _ = (document["chosen"]["alpha"], document["baseline_alpha"], document["decision"]["reason"])
            _ = document["best"][document["metric"]]
        for metrics in known:
            for key in ("n", *((SCORE,) if document.get("metric") == SCORE else METRICS)):
                if not math.isfinite(metrics[key]):
                    raise InputError(f"damaged {path}: {key} is {metrics[key]}")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"damaged {path}: {type(error).__name__}: {one_line(error)}") from None
    return document


def _scores_of(document: dict[str, Any], file: Path) -> tuple[StoredScores | None, str]:
    """The scores that a result speaks of, if they are there and the same; else why not."""
    if document["command"] == "evaluate":
        return _evaluated_scores(document.get("scores"), file)
    if document["metric"] == SCORE:
        return None, f"{file} was tuned by a score of its own, which is not kept for every example"
    listed = {a["path"]: a["sha256"] for a in document.get("artifacts", [])}
    if scores.FILE not in listed:
        return None, f"{file} was written without {scores.FILE}"
    path = file.parent / scores.FILE
    if not path.is_file():
        return None, f"{scores.FILE} is not beside {file}: name the tuned folder"
    if sha256(path) != listed[scores.FILE]:
        return None, f"{path} is not the one that {file.name} speaks of"
    return scores.read_scores(file.parent), ""


def _evaluated_scores(kept: dict[str, str] | None, file: Path) -> tuple[StoredScores | None, str]:
    if not kept:
        return None, f"{file} was evaluated without --scores"
    for path in (file.parent / Path(kept["path"]).name, Path(kept["path"])):
        if path.is_file() and sha256(path) == kept["sha256"]:
            return evaluation_scores.read_evaluation(path)[1], ""
    return None, f"the scores of {file} are not in {kept['path']}, or have changed"


def _compared(
    name: str, run: str, document: dict[str, Any], path: Path, stored: StoredScores | None, missing: str
) -> Compared:
    if document["command"] == "evaluate":
        if run:
            raise ConfigurationError(f"{path} is an evaluation, which has no run {run!r}", f"give {path}")
        run, metrics = evaluation_scores.RUN, document["metrics"]
    else:
        run = run or "chosen"
        metrics = document["baseline"] if run == "baseline" else document["chosen"]["metrics"]
    own = stored.runs.get(run) if stored else None
    if run == "best":
        if own is None:
            raise ConfigurationError(
                f"{path} keeps no run 'best'",
                missing
                or "there is one only if the best alpha that was measured is neither 0 nor the chosen one",
            )
        metrics = vars(summarise(own))
    if own is not None and len(own) != metrics["n"]:
        raise InputError(f"damaged {path}: {len(own)} scores of {metrics['n']} examples")
    return Compared(name, run, document, metrics, own, stored.classes if stored else (), missing)
