"""Which timm, torchvision or transformers call builds a module that somebody hands over.

A guess counts only if what it builds, on the meta device, has the same layers with the same settings
and the same weights by name and shape.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator

import timm
import torch
import torchvision
from torch import nn

from alphatune.core.errors import AlphatuneError
from alphatune.data.preprocessing import Preprocessing, preprocessing_of_timm
from alphatune.models.copying import stock_copy
from alphatune.models.model_kwargs import Kwargs
from alphatune.models.sources import Source
from alphatune.models.weights import weights_of


def find_source(model: nn.Module) -> Source | None:
    """Where a model could come from, None where nothing that is known builds it."""
    home = type(model).__module__.partition(".")[0]
    try:
        stock = stock_copy(model)
    except AlphatuneError:
        return None
    if home == "transformers":
        return _transformers(stock)
    guesses = {"timm": _of_timm, "torchvision": _of_torchvision}.get(home)
    for spec, kwargs, build in guesses(stock) if guesses else ():
        if _is_built_by(stock, build):
            return Source(spec, home, model, kwargs, _preprocessing(model) if home == "timm" else None)
    return None


def _of_timm(model: nn.Module) -> Iterator[tuple[str, Kwargs, Callable[[], nn.Module]]]:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    name = str(config.get("architecture") or "")
    if not timm.is_model(name):
        return
    given: Kwargs = {}
    if (classes := getattr(model, "num_classes", None)) is not None and classes != config.get("num_classes"):
        given["num_classes"] = classes
    channels = next((w.shape[1] for w in model.parameters() if w.ndim == 4), None)
    for kwargs in (given, given | {"in_chans": channels}):
        yield name, kwargs, lambda kwargs=kwargs: timm.create_model(name, pretrained=False, **kwargs)  # type: ignore[misc]


def _of_torchvision(model: nn.Module) -> Iterator[tuple[str, Kwargs, Callable[[], nn.Module]]]:
    kind = type(model).__name__
    heads = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    convs = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    for name in torchvision.models.list_models():
        builder = torchvision.models.get_model_builder(name)
        signature = inspect.signature(builder)
        if signature.return_annotation not in (kind, type(model)):
            continue
        fixed: Kwargs = {"weights": None}
        if "weights_backbone" in signature.parameters:
            fixed["weights_backbone"] = None
        kwargs = {
            key: getattr(model, key) for key in ("aux_logits", "transform_input") if hasattr(model, key)
        }
        if "aux_logits" in kwargs:
            kwargs["init_weights"] = False
        if getattr(model, "aux_classifier", None) is not None:
            kwargs["aux_loss"] = True
        for classes in dict.fromkeys([None, *heads[-1:], *convs[-1:]]):
            given = kwargs | ({} if classes in (None, 1000) else {"num_classes": classes})
            how = {**fixed, **given}
            yield f"torchvision:{name}", given, lambda builder=builder, how=how: builder(**how)  # type: ignore[misc]


def _transformers(model: nn.Module) -> Source | None:
    config = getattr(model, "config", None)
    build = getattr(type(model), "_from_config", None)
    if config is None or build is None or not _is_built_by(model, lambda: build(config)):
        return None
    return Source("", "transformers", model)


def _is_built_by(model: nn.Module, build: Callable[[], nn.Module]) -> bool:
    """Whether a call builds the same layers, with weights of the same names and shapes."""
    with contextlib.suppress(Exception), warnings.catch_warnings():  # an argument that it does not take, say
        warnings.simplefilter("ignore")
        with torch.device("meta"):
            built = build()
        shapes = {name: tensor.shape for name, tensor in weights_of(built).items()}
        same = shapes == {name: tensor.shape for name, tensor in weights_of(model).items()}
        return same and _layers(built) == _layers(model)
    return False


def _layers(model: nn.Module) -> str:
    """All layers and their settings; what drops in training only does not count."""
    return re.sub(r"\w*Drop\w*\([^()]*\)|Identity\(\)", "-", repr(model))


def _preprocessing(model: nn.Module) -> Preprocessing | None:
    with contextlib.suppress(Exception):  # a pretrained_cfg may have been changed into anything
        return preprocessing_of_timm(model)
    return None
