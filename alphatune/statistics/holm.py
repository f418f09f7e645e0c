"""p-values that allow for how many of them are looked at."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: calling those up to a significant errs in any with probability ≤ a.

        p̃_(i) = max over j ≤ i of min(1, (m − j + 1) · p_(j)),  p_(1) ≤ … ≤ p_(m)

    However the tests depend on each other. Source: Holm 1979.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, least = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = least
    return adjusted
