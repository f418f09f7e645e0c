"""Scores of every example of an evaluation, as a file of its own: what ``alphatune compare`` pairs.

    FILE.npz   the arrays of scores.npz (scores.py) for one run, ``evaluated``, and
               ``document``: the result of the evaluation, as the bytes of its JSON

One file is enough to compare by: it says which model and data it is about.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from alphatune.core.errors import ConfigurationError, InputError, one_line
from alphatune.reports.file import check_file, write_whole
from alphatune.reports.scores import StoredScores, from_arrays, is_even, to_arrays
from alphatune.results.evaluation import EvaluateDocument
from alphatune.results.serialisation import to_json
from alphatune.results.stored import decode_measured
from alphatune.statistics.conditions import conditions_of, has_conditions, images_of
from alphatune.statistics.scores import Scores

RUN, SUFFIX = "evaluated", ".npz"


def check_scores_file(path: Path, *, overwrite: bool) -> None:
    """Refuse what is no place for the scores of an evaluation.

    Raises:
        ConfigurationError: another ending, or a file that may not be replaced.
    """
    if path.suffix != SUFFIX:
        raise ConfigurationError(f"`scores` names a file that ends in {SUFFIX}, got {path}")
    check_file(path, "evaluate", overwrite=overwrite, option="`scores`", ours=_is_ours)


def write_evaluation(
    path: Path, scores: Scores, document: EvaluateDocument, classes: tuple[str, ...] = ()
) -> None:
    """Write the scores of an evaluation and its result; the same ones give the same bytes."""
    arrays = to_arrays(StoredScores({RUN: scores}, classes))
    arrays["document"] = np.frombuffer(to_json(document, for_pipe=True).encode(), dtype=np.uint8)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_whole(path, content.getvalue())


def read_evaluation(path: Path) -> tuple[EvaluateDocument, StoredScores]:
    """The result of an evaluation, and its scores.

    Raises:
        InputError: a file that ``write_evaluation`` did not write.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            content = bytes(arrays["document"])
            stored = from_arrays(arrays, (RUN,))
    except Exception as error:  # whatever zipfile, zlib and NumPy have to say about a damaged file
        raise InputError(
            f"cannot read scores from {path}: {type(error).__name__}: {one_line(error)}",
            "expected a file that alphatune evaluate with `scores` wrote",
        ) from None
    document = decode_measured(content, path)
    if RUN not in stored.runs or not is_even(stored) or not isinstance(document, EvaluateDocument):
        raise InputError(f"damaged {path}: it does not hold the scores of an evaluation")
    return document, stored


def clean_scores(scores: Scores) -> Scores:
    """Those of the clean images, by the ids that they have without conditions."""
    if not has_conditions(scores.ids):
        return scores
    clean = scores.take(np.flatnonzero(conditions_of(scores.ids) == 1))
    return replace(clean, ids=images_of(clean.ids))


def _is_ours(path: Path) -> bool:
    try:
        read_evaluation(path)
    except InputError:
        return False
    return True
