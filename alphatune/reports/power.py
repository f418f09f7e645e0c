"""What gains the examples of a tune can tell from luck, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alphatune.core.metrics import INFO, SCORE, Measure
from alphatune.results.power import MOST_EXAMPLES, Power
from alphatune.results.tune import Tuned


def power_sentence(document: Tuned) -> str:
    """What these examples can tell from luck, in a sentence; "" where it is not known."""
    power = document.power
    if power is None:
        return ""
    name = document.score_name if power.metric == SCORE else INFO[power.metric].name
    return power_words((power,), name, "examples" if power.metric == SCORE else "images")


def power_words(powers: Sequence[Power], name: str, things: str, *, needs: bool = True) -> str:
    """The same of one ``Power``, or of the least and the most that is usual.

    Args:
        name: of the metric.
        things: what the examples are.
        needs: also say how many a smaller gain needs.
    """
    metric, sizes = powers[0].metric, [power.smallest_gain for power in powers]
    least, most = min(sizes), max(sizes)
    start = f"With {count_text(powers[0].examples)} {things}"
    if most == 0:
        return (
            f"{start}, any gain in {name} would be found: none of them differs at the α that was looked at."
        )
    if INFO[metric].is_share and least >= 1:
        return f"{start}, no gain in {name} is sure to be found."
    low, high = gain_text(metric, least), gain_text(metric, most)
    span = low if low == high else f"{low.split()[0]} to {high}"
    text = f"{start}, a gain of {span} in {name} has an 80 % chance of being found significant"
    if not needs:
        return f"{text}."
    smaller = [each.gain for each in powers[0].needed if each.gain < least]
    wished = max((gain for gain in smaller if gain <= least / 2), default=min(smaller, default=None))
    if wished is None:
        return f"{text}."
    many = _needed(powers, wished)
    about = "" if many.startswith("more") else "about "
    return f"{text}; a gain of {gain_text(metric, wished)} needs {about}{many}."


def assumption(powers: Sequence[Power]) -> str:
    """Where a plan's numbers come from, in a sentence."""
    first, last = powers[0], powers[-1]
    if first.known == "earlier result":
        at = "" if first.alpha is None else f" at α = {first.alpha:g}"
        return f"By how the images differ{at} in the earlier result in the output folder."
    if first.discordant is not None and last.discordant is not None:
        varies = f"{100 * first.discordant:.2g} to {100 * last.discordant:.2g} % of the predictions become right or wrong"
    else:
        varies = f"the difference varies by {first.deviation:g} to {last.deviation:g} from image to image"
    return (
        f"Assumed, as nothing was measured yet: {varies}, as in ResNet-20 and ResNet-56 on CIFAR-10 at α of 0.02 to 0.1. "
        "The result of the run says what is true here."
    )


def needed_rows(powers: Sequence[Power]) -> list[tuple[str, str]]:
    """A gain and how many images it needs, for a table."""
    metric = powers[0].metric
    return [(gain_text(metric, each.gain), _needed(powers, each.gain)) for each in powers[0].needed]


def _needed(powers: Sequence[Power], gain: float) -> str:
    """How many examples a gain needs: of one ``Power`` a number, of two from the least to the most."""
    counts = sorted({each.examples for power in powers for each in power.needed if each.gain == gain})
    if counts[0] >= MOST_EXAMPLES:
        return rough_count(counts[0])
    return " to ".join(dict.fromkeys(count_text(two_digits(count)) for count in counts))


def gain_text(metric: Measure, gain: float) -> str:
    """``0.6 points`` of an accuracy, ``0.012 nats`` of a loss, ``0.012`` of anything else."""
    if INFO[metric].is_share:
        return f"{_up(100 * gain)} point{'' if _up(100 * gain) == '1' else 's'}"
    return f"{_up(gain)}{' nats' if metric == 'loss' else ''}"


def count_text(number: int) -> str:
    """``18 000``."""
    return f"{number:,}".replace(",", " ")


def rough_count(number: int) -> str:
    """To two digits, as is known of it: ``about 18 000``."""
    if number >= MOST_EXAMPLES:
        return f"more than {count_text(MOST_EXAMPLES)}"
    return f"about {count_text(two_digits(number))}"


def _up(value: float) -> str:
    """Two digits, not rounded below what it is."""
    digits = 1 - math.floor(math.log10(value) + 1e-12)
    return f"{math.ceil(round(value * 10.0**digits, 6)) / 10.0**digits:.12g}"


def two_digits(number: int) -> int:
    """Rounded, as more is not known of it."""
    step: int = 10 ** max(len(str(number)) - 2, 0)
    return round(number / step) * step
