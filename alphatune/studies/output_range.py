"""The range of what BatchNorm puts out before γ and β (paper section 3.1, Eq. 2, and Fig. 6).

With B values x of a channel, their mean μ and biased variance s, a training
output is at most

    |x − μ| / √s ≤ √(B − 1)

which is met where all values but one are equal. Inference divides by the
moving averages instead, which a value has no part in, and has no bound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from alphatune.results.study import OutputRange

#: values of a channel that share statistics
SIZES = tuple(2**k for k in range(1, 15))
#: values that are drawn for each size, in batches
DRAWN = 2**21

Draw = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]
#: distributions of a channel's values
INPUTS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "log-normal": lambda rng, shape: -rng.lognormal(0, 2, shape),
    "one value differs": lambda _rng, shape: -np.eye(1, shape[1])[[0] * shape[0]],
}


def output_ranges(seed: int = 0) -> tuple[OutputRange, ...]:
    """The lowest outputs for each number of values, in training and by moving averages of other batches."""
    rng = np.random.default_rng(seed)
    return tuple(_range(rng, values) for values in SIZES)


def _range(rng: np.random.Generator, values: int) -> OutputRange:
    lowest, inference = {}, {}
    for name, draw in INPUTS.items():
        x = draw(rng, (max(2, DRAWN // values), values))
        mean, variance = x.mean(1, keepdims=True), x.var(1, keepdims=True)
        lowest[name] = float(((x - mean) / np.sqrt(variance)).min())
        # The averages of all other batches, which is what moving averages tend to.
        others_mean, others_second = (
            (total.sum() - total) / (len(x) - 1) for total in (mean, variance + mean**2)
        )
        inference[name] = float(((x - others_mean) / np.sqrt(others_second - others_mean**2)).min())
    return OutputRange(values=values, bound=(values - 1) ** 0.5, lowest=lowest, inference=inference)
