"""What inference may cost, and what α costs in each layer: the prices that layers are chosen by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from alphatune.core.distributed import World
from alphatune.core.errors import ConfigurationError
from alphatune.core.progress import Meter
from alphatune.evaluation.predictor import Predictor
from alphatune.export.counted_costs import counted_costs
from alphatune.export.layer_costs import LayerCosts, LayerKind, LayerTimer
from alphatune.tuning.journal import Entry, Journal
from alphatune.tuning.layers import LayerPrices

#: α of layers that are timed; any but 0 costs the same
TIMED_ALPHA = 0.05


@dataclass(frozen=True)
class LatencyBudget:
    """How long inference may take, and how its time is found.

    Args:
        most: times as long as the network whose norm layers are all folded; None: no limit, but layers that are not
            worth what they cost are left out.
        runtime: ``"torch"``; ``"onnx"``: the exported graph in onnxruntime on the CPU; or ``"counted"``: nothing is
            timed, and costs come from multiply-adds and bytes moved, for a target that is not at hand.
        batch_size: images of the batches that are timed.
        seconds: budget of each timing, less its first call; at least three rounds.
    """

    most: float | None = None
    runtime: Literal["torch", "onnx", "counted"] = "torch"
    batch_size: int = 1
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.most is not None and not (math.isfinite(self.most) and self.most >= 1):
            raise ConfigurationError(
                f"expected a `latency_budget` from 1, in multiples of the folded network's time, got {self.most:g}",
                "1.05 lets inference take 5 % longer than with all norm layers folded",
            )
        if self.batch_size < 1:
            raise ConfigurationError(f"expected a `budget_batch` from 1, got {self.batch_size}")


def find_prices(
    predictor: Predictor,
    shapes: Mapping[str, tuple[int, ...]],
    input_size: tuple[int, int, int],
    budget: LatencyBudget,
    *,
    world: World,
    journal: Journal | None,
    meter: Meter,
) -> LayerPrices:
    """Time or count what α costs in each kind of layers, by one process; a run that goes on takes what it found before.

    Args:
        predictor: of a model that is patched or not; it is not touched.
        shapes: (C, H, W) of an example's activation by layer, as the forward pass sees it.
        input_size: (C, H, W) of an image.

    Raises:
        UnsupportedModelError: no norm layer folds, or a network that cannot be exported.
        ConfigurationError: a package that the runtime needs is missing.
    """
    meter.phase("what layers cost")
    if budget.runtime == "counted":
        costs = counted_costs(predictor.model, shapes, input_size, budget.batch_size)
        return LayerPrices(costs, "counted", 0, budget.most)
    timer = LayerTimer(
        predictor.model,
        input_size,
        budget.batch_size,
        runtime=budget.runtime,
        alpha=TIMED_ALPHA,
        seconds=budget.seconds,
        dtype=predictor.dtype,
        channels_last=predictor.channels_last,
        skip_unknown=True,
    )
    entry = journal.entry("layer-costs") if journal else None

    def mine() -> LayerCosts | None:
        return _known(entry, lambda: timer.costs(shapes, sets=0)) if world.first else None

    costs = next(costs for costs in world.run_on_all_ranks(mine) if costs is not None)
    runtime: Literal["torch", "onnxruntime"] = "onnxruntime" if budget.runtime == "onnx" else "torch"
    return LayerPrices(costs, runtime, torch.get_num_threads(), budget.most, timer.ratio)


def _known(entry: Entry | None, measure: Callable[[], LayerCosts]) -> LayerCosts:
    """The costs measured before an interruption, or else now: the sets of layers depend on them, so they must not change."""
    if entry and (saved := entry.read()):
        kinds = tuple(
            LayerKind(tuple(kind["layers"]), tuple(kind["shape"]), kind["share"]) for kind in saved["kinds"]
        )
        return LayerCosts(saved["batch_size"], saved["folded_s"], kinds, saved["everywhere"])
    costs = measure()
    if entry:
        state = asdict(costs) | {"kinds": [asdict(kind) for kind in costs.kinds], "sets": []}
        entry.journal.write_later(entry, state)
    return costs
