"""Build an architecture with as many outputs as the data have classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from alphatune.core.errors import ConfigurationError
from alphatune.data.preprocessing import Preprocessing
from alphatune.models.checkpoint_containers import Container
from alphatune.models.checkpoint_loading import Loaded, load_weights_
from alphatune.models.checkpoints import Checkpoint, read_checkpoint
from alphatune.models.foreign import materialise_
from alphatune.models.sources import Source, build, find_factory


@dataclass(frozen=True)
class Started:
    """A model to train, and which weights were loaded into it."""

    source: Source
    loaded: Loaded | None


def build_for_classes(
    spec: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    checkpoint: Checkpoint | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    input_size: tuple[int, int, int] | None = None,
) -> Started:
    """Build MODEL with ``num_classes`` outputs, from scratch or to be fine-tuned (paper section 4.3).

    Args:
        pretrained: start from the weights that timm or torchvision has for the name.
        checkpoint: start from these weights.
        input_size: of the images, where the model does not say; lazy layers need it.

    A head of another number of classes is newly made; all other weights must
    fit. A factory that takes no ``num_classes`` is called without it.

    Raises:
        ConfigurationError, CheckpointError: as ``build`` and ``load_weights_`` do.
    """
    kwargs, weights = dict(model_kwargs or {}), ""
    if checkpoint is None and pretrained:
        source = build(spec, pretrained=True, model_kwargs=kwargs)
        if source.kind == "factory":
            raise ConfigurationError(
                f"{spec} has no pretrained weights that alphatune could fetch",
                "give them as `checkpoint=FILE`",
            )
        weights = source.weights or str(source.checkpoint or "")
        if source.checkpoint:
            checkpoint = read_checkpoint(source.checkpoint)
        else:
            checkpoint = Checkpoint(weights or spec, "", (Container("", source.model.state_dict()),))
        # What came with the weights and decides about keys: auxiliary heads, transform_input.
        kwargs = {**source.model_kwargs, **kwargs}
    if kwargs.setdefault("num_classes", num_classes) != num_classes:
        raise ConfigurationError(
            f"`model_kwargs=num_classes={kwargs['num_classes']}` for data with {num_classes} classes"
        )
    if not _takes_num_classes(spec):
        del kwargs["num_classes"]
    source = build(spec, pretrained=False, model_kwargs=kwargs)
    size = input_size or (source.preprocessing or Preprocessing()).input_size
    materialise_(source.model, size, weights_follow=checkpoint is not None, spec=spec)
    loaded = load_weights_(source.model, checkpoint, num_classes) if checkpoint else None
    return Started(replace(source, weights=weights), loaded)


def _takes_num_classes(spec: str) -> bool:
    """Whether MODEL is built by a call that takes ``num_classes``; timm and torchvision always do."""
    scheme = spec.partition(":")[0]
    if ":" not in spec or scheme in ("torchvision", "hf-hub", "hf_hub", "local-dir"):
        return True
    try:
        parameters = inspect.signature(find_factory(spec)).parameters.values()
    except (TypeError, ValueError):  # an instance, or a built-in
        return False
    return any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)
