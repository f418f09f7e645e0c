"""What to say of weights that fit no key matching: what differs, and which architecture they are of."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from alphatune.core.errors import CheckpointError
from alphatune.models.checkpoint_architectures import fitting_architectures
from alphatune.models.checkpoint_keys import Expected, Match

ANOTHER = "name the architecture it was trained with as MODEL"
_PAIRS = 3


def refusal(path: str, found: Sequence[Match], expected: Expected) -> CheckpointError:
    """The error for a file of which no container fits, by the one that comes nearest.

    Args:
        found: what was tried, with its faults; empty where a prefix chosen by hand is nowhere.
    """
    if not found:
        return CheckpointError(
            f"no weights of the model are under this prefix in {path}", "see `checkpoint_prefix`"
        )
    match = min(found, key=lambda m: m.faults)
    where = path + (f" (under {match.container.key!r})" if match.container.key else "")
    if match.twice and not match.missing:
        first, second = match.twice[0]
        return CheckpointError(
            f"{where} holds {first!r} and {second!r}: different tensors that are the same weight of the model",
            "`checkpoint_prefix` chooses",
        )
    if not match.missing and not match.unknown:
        return _of_other_shapes(where, path, match, expected)
    parts = []
    if match.missing:
        parts.append(
            f"{len(match.missing)} of {len(expected.state)} keys are missing, e.g. {match.missing[0]!r}"
        )
    if match.unknown:
        parts.append(
            f"{len(match.unknown)} keys of the file are unknown to the model, e.g. {match.unknown[0]!r}"
        )
    if match.shapes:
        parts.append(
            f"{len(match.shapes)} have another shape, e.g. {_shapes(match, match.shapes[0], expected)}"
        )
    if pairs := _nearest(match, expected):
        parts.append(f"nearest to what is missing: {', '.join(pairs)}")
    return CheckpointError(
        f"{where} is a checkpoint of another architecture: {'; '.join(parts)}", _hint(match, path)
    )


def _of_other_shapes(where: str, path: str, match: Match, expected: Expected) -> CheckpointError:
    differ = [(match.container.tensors[match.keys[key]], expected.state[key]) for key in match.shapes]
    more = f", and {len(match.shapes) - 1} others" if len(match.shapes) > 1 else ""
    message = f"{where} does not fit the model: {_shapes(match, match.shapes[0], expected)}{more}"
    heads = {found.shape[0] for found, own in differ if found.ndim and found.shape[1:] == own.shape[1:]}
    if len(heads) == 1 and all(
        own.ndim in (1, 2) and found.shape[1:] == own.shape[1:] for found, own in differ
    ):
        return CheckpointError(
            message, f"another number of classes? try `model_kwargs=num_classes={heads.pop()}`"
        )
    return CheckpointError(message, _hint(match, path))


def _shapes(match: Match, key: str, expected: Expected) -> str:
    found, own = match.container.tensors[match.keys[key]], expected.state[key]
    text = f"{key} has shape {tuple(found.shape)}, the model expects {tuple(own.shape)}"
    return text if found.shape != own.shape else f"{key} holds {found.dtype}, the model {own.dtype}"


def _nearest(match: Match, expected: Expected) -> list[str]:
    """Missing keys beside the keys of the file that look most like them."""
    tensors, left = match.container.tensors, list(match.unknown)
    pairs = []
    for key in match.missing[:_PAIRS]:
        if not (near := difflib.get_close_matches(key, left[:2000], 1)):
            continue
        name, own = near[0], expected.state[key]
        sizes = [f" {tuple(getattr(value, 'shape', ()))}" for value in (own, tensors[name])]
        first, second = ("", "") if sizes[0] == sizes[1] else sizes
        pairs.append(f"{key!r}{first} ~ {name!r}{second}")
        left.remove(name)
    return pairs


def _hint(match: Match, path: str) -> str:
    """Which architecture these weights are of, if one is found; a few keys are more likely a slip."""
    if match.faults <= 3 and match.keys:
        return ANOTHER
    names = fitting_architectures(match.container, path)
    return f"they fit {' or '.join(names)}: name it as MODEL" if names else ANOTHER
