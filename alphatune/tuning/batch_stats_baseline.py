"""What inference by the test batch's statistics would give, and how far it depends on companions.

Mixing the moving averages with the test batch's moments (norms/batch_statistics.py)
is the closest relative of example weighting, and the one thing it cannot do is
give an image the same output whatever else is in its batch. So it appears beside
the curve for comparison, and is never chosen: all examples are seen in batches
drawn at random, and once more in other ones; the share of predictions that
differ between the two says how much a result depends on the draw.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from alphatune.core.errors import ConfigurationError
from alphatune.core.metrics import Metric
from alphatune.data.prefetch import Batch
from alphatune.evaluation.predictor import evaluation_mode, score_logits
from alphatune.norms.batch_statistics import PSEUDO_COUNT, batch_statistics
from alphatune.results.metrics import Metrics
from alphatune.statistics.gain import paired_differences
from alphatune.statistics.scores import Scores, concatenate, summarise
from alphatune.tuning.curve import Interval
from alphatune.tuning.passes import Data, Passes

#: inputs that are held at a time to draw batches from; with more of them the data are read in parts
HELD_BYTES = 2 * 2**30
#: in a single batch every example would meet the same companions both times
FEWEST_BATCHES = 4


@dataclass(frozen=True)
class BatchStatistics:
    """Metrics with the test batch's statistics mixed in: a comparison, which cannot be deployed by α."""

    pseudo_count: float  # how many examples the moving averages count for
    batch_size: int  # of the largest batch
    metrics: Metrics
    ci: Mapping[Metric, Interval]  # paired, of each mean's difference to the unpatched model
    changed: float  # share of predictions that other companions change


def compare_batch_statistics(
    passes: Passes,
    baseline: Scores,
    *,
    seed: int = 0,
    exclude: Collection[str] = (),
    skip_unknown: bool = False,
) -> BatchStatistics:
    """Evaluate a model by the statistics of random batches, twice.

    Args:
        passes: the model and its data; processes share the batches.
        baseline: scores of all examples by the unpatched model.
        seed: of both draws.
        exclude, skip_unknown: as for ``patch_``: the same layers that α is about.

    Raises:
        ConfigurationError: inputs of several shapes, which no batch could hold.
        NumericError: an output that is not finite.
    """
    # Not through torch.compile: what was compiled is the layers' other forward.
    predictor = replace(passes.predictor, compile=False)
    size = min(passes.data.batch_size, predictor.max_batch or passes.data.batch_size)
    n = len(passes.data)
    passes.meter.phase("batch statistics")
    passes.expect(2 * n)
    count = min(n, max(FEWEST_BATCHES, -(-n // size)))

    def draw(which: int) -> Scores:
        order = np.random.default_rng((seed, which)).permutation(n)
        mine = np.array_split(order, count)[passes.world.rank :: passes.world.size]

        def share() -> list[Scores]:
            parts = []
            for batch in batches_of(passes.data, mine):
                logits = predictor(predictor.prepare(batch.inputs))
                parts.append(score_logits(logits, batch, where="with batch statistics"))
                passes.meter.add(len(batch))
            return parts

        return concatenate([part for parts in passes.world.run_on_all_ranks(share) for part in parts])

    with (
        batch_statistics(predictor.model, exclude=exclude, skip_unknown=skip_unknown),
        evaluation_mode(predictor.model),
    ):
        first, second = draw(0), draw(1)
    largest = -(-n // count)
    return BatchStatistics(
        pseudo_count=PSEUDO_COUNT,
        batch_size=min(largest, predictor.max_batch or largest),  # cut up where memory ran out
        metrics=summarise(first),
        ci=paired_differences(first, baseline) if n > 1 else {},
        changed=float((first.predicted != second.predicted).mean()),
    )


def batches_of(data: Data, groups: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
    """A batch of each group of positions, in any order, while the data are read in theirs.

    Several groups are read at a time, as many as ``HELD_BYTES`` of inputs allow.

    Raises:
        ConfigurationError: inputs of several shapes.
    """
    if not groups:
        return
    (example,) = data.take(groups[0][:1])
    most = max(1, HELD_BYTES // max(1, example.inputs.nbytes) // len(groups[0]))
    for start in range(0, len(groups), most):
        together = groups[start : start + most]
        wanted = np.sort(np.concatenate(together))
        read = [Batch(b.inputs.cpu(), b.targets, b.ids) for b in data.take(wanted)]
        if len({batch.inputs.shape[1:] for batch in read}) > 1:
            raise ConfigurationError(
                "batches drawn at random need inputs of one shape, the data have several",
                "leave out `batch_stats`",
            )
        inputs = torch.cat([batch.inputs for batch in read])
        targets = torch.cat([batch.targets for batch in read])
        ids = torch.cat([batch.ids for batch in read])
        device = targets.device
        del read
        for group in together:
            rows = torch.from_numpy(np.searchsorted(wanted, group))
            yield Batch(inputs[rows].to(device), targets[rows.to(device)], ids[rows])
