"""A loader and a score of the user's own, found as MODEL's factories are: only what the caller names runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from alphatune.core.errors import AlphatuneError, ConfigurationError, one_line
from alphatune.models.neighbours import Neighbours
from alphatune.models.sources import beside, find_factory
from alphatune.tuning.set_score import SetScore


def find_score(spec: str) -> Callable[[Any, Any], Any]:
    """The function, or ``SetScore``, that ``score`` names.

    Raises:
        ConfigurationError: it cannot be imported, or is neither.
    """
    found = _find(spec, "`score`")
    if not callable(found):
        raise ConfigurationError(
            f"`score` must name a function score(outputs, targets), {spec} is a {type(found).__name__}"
        )
    calling = _beside(spec).calling
    if isinstance(found, SetScore):
        return replace(
            found, rows=calling(found.rows), statistic=calling(found.statistic), name=found.__name__
        )
    return calling(found)


def open_loader(spec: str) -> Iterable[Any]:
    """What ``data`` names beside ``score``: a loader, or a function without arguments that makes one.

    Raises:
        ConfigurationError: it cannot be imported, fails, or is nothing to iterate over.
    """
    found = _find(spec, "`data`")
    loader = found
    if callable(found):
        try:
            with contextlib.redirect_stdout(sys.stderr):
                loader = _beside(spec).calling(found)()
        except AlphatuneError:
            raise
        except (Exception, SystemExit) as error:  # a function of one's own may raise anything
            raise ConfigurationError(
                f"{spec} failed: {type(error).__name__}: {one_line(error)}",
                "it is called without arguments and gives an iterable of (inputs, targets)",
            ) from None
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise ConfigurationError(
            f"{spec} must give an iterable of (inputs, targets), got {type(loader).__name__}"
        )
    return loader  # type: ignore[no-any-return]


def _beside(spec: str) -> Neighbours:
    return beside(spec.rpartition(":")[0])


def _find(spec: str, option: str) -> Any:
    if not spec.rpartition(":")[0]:
        raise ConfigurationError(
            f"{option} takes package.module:function or file.py:function, got {spec!r}",
            "with `score` the data are a loader of your own" if option == "`data`" else "",
        )
    return find_factory(spec, option, again=False)
