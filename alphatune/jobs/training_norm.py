"""The normalisation that the options of train ask for, and a model made to train with it."""

from __future__ import annotations

import timm.layers
import torch
from torch import nn

from alphatune.core.distributed import World
from alphatune.core.errors import ConfigurationError
from alphatune.models.probe import Probe
from alphatune.norms.conversion import Norm, convert_, groups_for
from alphatune.norms.survey import survey
from alphatune.settings import TrainSettings


def norm_of(settings: TrainSettings, steps: int) -> Norm:
    """The normalisation asked for; Batch Renormalisation's schedule keeps its share of the run.

    Ioffe (2017) starts at 5 000 of 160 000 steps, and ends at 40 000 (r) and 25 000 (d).
    """
    return Norm(
        kind=settings.norm,
        ghost_batch_size=settings.ghost_size,
        num_groups=settings.groups,
        examples_per_group=settings.examples_per_group,
        renorm=(steps // 32, steps // 4, 5 * steps // 32),
        averages=settings.averages,
    )


def convert_for_training_(
    model: nn.Module, norm: Norm, settings: TrainSettings, world: World, seen: Probe
) -> list[str]:
    """Change the norm layers before the optimiser sees them; what is worth remarking."""
    if settings.sync_bn:
        if not torch.cuda.is_available():
            raise ConfigurationError(
                "`sync_bn` needs CUDA devices", "`norm=ghost` keeps statistics per process"
            )
        if world.size == 1:
            return ["`sync_bn` changes nothing with one process"]
        timm.layers.convert_sync_batchnorm(model)
        return []
    if norm.kind == "batch":
        return []
    converted = convert_(model, norm)
    if norm.kind == "renorm":
        for name in converted:  # its schedule counts this run's steps, not those of a checkpoint
            model.get_submodule(name).num_batches_tracked.zero_()  # type: ignore[operator]
    notes = []
    if norm.kind in ("batch-group", "group"):
        layers = [layer for layer in survey(model) if layer.num_features]
        channels = [layer.num_features or 1 for layer in layers]
        fewer = [n for n in channels if groups_for(n, norm.num_groups) < norm.num_groups]
        if fewer:
            notes.append(
                f"{len(fewer)} norm layer(s) have fewer than {norm.num_groups} groups, e.g. "
                f"{groups_for(fewer[0], norm.num_groups)} for {fewer[0]} channels"
            )
        single = [
            layer.name
            for layer in layers
            if layer.name in seen.layers
            and seen.layers[layer.name].positions == 1
            and groups_for(layer.num_features or 1, norm.num_groups) == layer.num_features
        ]
        if single and (norm.kind == "group" or norm.examples_per_group == 1):
            raise ConfigurationError(
                f"layer {single[0]} would have one value in each group, and nothing to normalise by",
                "use fewer `groups`",
            )
    share = settings.batch_size // world.size
    if norm.kind == "ghost" and norm.ghost_batch_size >= share:
        notes.append(
            f"`ghost_size={norm.ghost_batch_size}` is no smaller than the batch of {share}: it trains as BatchNorm does"
        )
    elif norm.kind == "ghost" and share % norm.ghost_batch_size:
        notes.append(f"the last ghost batch of each {share} has {share % norm.ghost_batch_size} examples")
    return notes
