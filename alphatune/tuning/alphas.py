"""Which α to try: ``auto``, a list, or ``start:stop:count``."""

from __future__ import annotations

from collections.abc import Sequence, Sized

import numpy as np

from alphatune.core.errors import ConfigurationError, one_line

#: The paper finds optima between 0 and 0.1 and a slow decline after them; the
#: grid is dense where the curve bends and still sees a distribution shift.
AUTO = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
MOST = 100_000


def resolve_alphas(alphas: str | float | Sequence[float], baseline: float = 0.0) -> tuple[float, ...]:
    """Distinct α, the baseline first and then by distance from it.

    The baseline is the α of the unpatched model: 0, or 1 where all layers are
    GroupNorm, whose ``auto`` grid is mirrored.

    ``"0,0.01,0.02"`` is a list; ``"0:0.3:31"`` is 31 evenly spaced values, both
    ends included; ``"auto"`` is ``AUTO``.

    Raises:
        ConfigurationError: not a number, outside [0, 1], or a count below 2.
    """
    if isinstance(alphas, str):
        values = [abs(baseline - a) for a in AUTO] if alphas == "auto" else _parse(alphas)
    else:
        try:
            values = [float(a) for a in (alphas if isinstance(alphas, Sized) else [alphas])]
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"expected alphas to be numbers in one row, got {one_line(alphas, 80)}",
                "e.g. [0, 0.01, 0.02]",
            ) from None
    for value in values:
        if not 0 <= value <= 1:
            raise ConfigurationError(
                f"alpha must lie in [0, 1], got {value:g}", "0 is plain BatchNorm, 1 is InstanceNorm"
            )
    return tuple(sorted({baseline, *values}, key=lambda alpha: abs(alpha - baseline)))


def _parse(text: str) -> list[float]:
    try:
        if ":" in text:
            start, stop, count = text.split(":")
            if int(count) < 2:
                raise ConfigurationError(f"`alphas` start:stop:count needs a count of 2 or more, got {count}")
            if int(count) > MOST:
                raise ConfigurationError(f"`alphas` takes {MOST} values at most, got {count}")
            # Rounded, so that 0:0.3:31 holds 0.07 and not 0.06999999999999999.
            return [round(float(a), 12) for a in np.linspace(float(start), float(stop), int(count))]
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigurationError(
            f"cannot understand `alphas={text!r}`", "auto, a list like 0,0.01,0.02, or start:stop:count"
        ) from None
