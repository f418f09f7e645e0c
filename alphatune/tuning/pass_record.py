"""What a pass over the data has found so far, batch by batch, for a pass that is interrupted.

Records are keyed by a hash of query, positions and α: the same question about the same examples
has the same name. New batches go to the journal in segments, so that nothing is
written twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from alphatune.core.distributed import World
from alphatune.norms.patching import Alpha
from alphatune.statistics.scores import Scores
from alphatune.tuning.curve_scores import CurveScores
from alphatune.tuning.journal import Journal
from alphatune.tuning.temperature import TemperatureScores

R = TypeVar("R")

_CLASSES = {c.__name__: c for c in (Scores, CurveScores, TemperatureScores)}


def pass_name(
    question: str, positions: NDArray[np.int64], alphas: Sequence[float | Mapping[str, Alpha]], world: World
) -> str:
    """A name for what is asked, of which examples, at which α, in this of so many processes."""
    plain = [a if isinstance(a, float) else sorted((k, _numbers(v)) for k, v in a.items()) for a in alphas]
    asked = json.dumps([question, plain])
    digest = hashlib.sha256(asked.encode() + np.ascontiguousarray(positions).tobytes()).hexdigest()
    return f"pass-{digest[:20]}-{world.rank}of{world.size}"


def _numbers(alpha: Alpha) -> float | list[float]:
    return alpha.tolist() if isinstance(alpha, torch.Tensor) else alpha


class PassRecord(Generic[R]):
    """The results of the batches that a pass has seen: numpy arrays, and our scores made of them."""

    def __init__(self, journal: Journal | None, name: str) -> None:
        self.results: list[R] = []
        self.examples = 0
        self._journal, self._name = journal, name
        self._segment = 0
        self._new: list[R] = []
        self._written = 0  # examples of the segments so far
        while journal and (saved := journal.entry(f"{name}-{self._segment}").read()):
            if saved["after"] != self.examples:
                break  # left by a run whose earlier segments are gone
            try:
                self.results += [_from_plain(each) for each in saved["results"]]
            except TypeError:
                break  # kept by a version whose scores had fewer columns
            self.examples = self._written = int(saved["examples"])
            self._segment += 1

    def add(self, result: R, examples: int) -> None:
        """Add the result of a batch of so many examples, and save if it is time."""
        self.results.append(result)
        self.examples += examples
        if self._journal is None:
            return
        self._new.append(result)
        if self._journal.due:
            self.end()
            self._journal.write_due()

    def end(self) -> None:
        """All batches were seen: what is new is saved when it is time."""
        if self._journal is None or not self._new:
            return
        results = [_to_plain(each) for each in self._new]
        state = {"results": results, "after": self._written, "examples": self.examples}
        self._journal.write_later(self._journal.entry(f"{self._name}-{self._segment}"), state)
        self._segment += 1
        self._written = self.examples
        self._new = []


def _to_plain(value: Any) -> Any:
    """What read_content reads back."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, (list, tuple)):
        return [_to_plain(each) for each in value]
    return {"class": type(value).__name__} | {
        f.name: _to_plain(each) for f in fields(value) if (each := getattr(value, f.name)) is not None
    }


def _from_plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, list):
        return [_from_plain(each) for each in value]
    return _CLASSES[value["class"]](**{k: _from_plain(v) for k, v in value.items() if k != "class"})
