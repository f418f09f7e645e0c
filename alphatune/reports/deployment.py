"""What α costs in deployment, as it appears in a result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from alphatune.core.version import VERSION
from alphatune.export.deployment import DeploymentCost
from alphatune.export.layer_costs import LayerCosts as Layers
from alphatune.results.bench import (
    BenchDocument,
    Deployment,
    Folding,
    LayerCosts,
    LayerKindCost,
    LayerSetCost,
    UnfoldedLayer,
    VariantTiming,
)  # fmt: skip
from alphatune.results.environment import BenchEnvironment
from alphatune.results.model import Source
from alphatune.results.values import Kernel


def bench_document(
    costs: Sequence[DeploymentCost],
    layers: Sequence[Layers] = (),
    *,
    model: Source,
    env: BenchEnvironment,
    warnings: Sequence[str],
) -> BenchDocument:
    """The result of ``alphatune bench``: one cost a batch size, and those of layers if they were asked for."""
    return BenchDocument(
        alphatune=VERSION,
        model=model,
        env=env,
        results=tuple(timing for cost in costs for timing in _timings(cost)),
        folded=_folding(costs),
        cost=tuple(map(cost_summary, costs)),
        layers=tuple(map(_layers, layers)),
        warnings=tuple(dict.fromkeys([*warnings, *(w for cost in costs for w in cost.warnings)])),
    )


def _layers(costs: Layers) -> LayerCosts:
    return LayerCosts(
        batch_size=costs.batch_size,
        folded_s=costs.folded_s,
        kinds=tuple(
            LayerKindCost(layers=kind.layers, shape=kind.shape, share=kind.share) for kind in costs.kinds
        ),
        everywhere=costs.everywhere,
        sets=tuple(
            LayerSetCost(layers=each.layers, predicted=each.predicted, measured=each.measured)
            for each in costs.sets
        ),
    )


def cost_summary(cost: DeploymentCost) -> Deployment:
    """Example-weighted inference with the fastest kernel next to what else one could deploy."""
    return Deployment(
        batch_size=cost.batch_size,
        alpha=cost.alpha,
        kernel=cast("Kernel | None", cost.fastest.kernel),
        ratio_to_plain=cost.ratio_to_plain,
        ratio_to_folded=cost.ratio_to_folded,
        ratio_compiled=cost.ratio_compiled,
        runtime=cost.runtime,
    )


def _timings(cost: DeploymentCost) -> Iterator[VariantTiming]:
    for m in cost.measured:
        yield VariantTiming(
            batch_size=cost.batch_size,
            variant=m.variant,
            kernel=cast("Kernel | None", m.kernel),
            torch_compile=m.torch_compile,
            median_s=m.timing.median,
            low_s=m.timing.low,
            high_s=m.timing.high,
            rounds=len(m.timing.samples),
            images_per_s=cost.batch_size / m.timing.median,
            ratio_to_plain=m.ratio_to_plain,
            peak_bytes=m.peak_bytes,
            first_use_s=m.timing.first_use,
        )


def _folding(costs: Sequence[DeploymentCost]) -> Folding:
    differences = [c.largest_difference for c in costs if c.largest_difference is not None]
    first = costs[0]
    return Folding(
        norms=first.norms,
        folded=first.folded,
        largest_difference=max(differences, default=None),
        kept=tuple(UnfoldedLayer(name=name, reason=reason) for name, reason in first.kept.items()),
    )
