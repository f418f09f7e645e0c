"""Which architecture of alphatune, torchvision or timm a state dict fits; sought for a few seconds at most."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from alphatune.models import cifar
from alphatune.models.checkpoint_containers import Container
from alphatune.models.checkpoint_keys import Expected, matches, plain
from alphatune.models.model_kwargs import Kwargs

SECONDS = 3.0
MOST = 3  # names to give
#: parts of keys that a family of timm's goes by, and its module there
_FAMILIES = {
    r"layer\d\.\d+\.(conv|bn)\d": "resnet byobnet sknet resnest res2net",
    r"denselayer\d": "densenet",
    r"blocks\.\d+\.\d+\.(conv_pw|conv_dw)": "efficientnet mobilenetv3",
    r"stages\.\d\.(blocks\.)?\d+\.(conv|norm|mlp|gamma)": "convnext byobnet regnet cspnet",
    r"s\d\.b\d+\.conv": "regnet",
    r"features\.\d+\.(weight|running_mean)": "vgg",
    r"blocks\.\d+\.(attn|norm)": "vision_transformer eva beit cait",
    r"layers\.\d\.blocks": "swin_transformer swin_transformer_v2",
    r"Mixed_": "inception_v3 inception_v4 inception_resnet_v2",
    r"cell_": "nasnet pnasnet",
    r"ese|osa": "vovnet",
}


class _Unfilled(TorchFunctionMode):
    """Leaves new weights unfilled: filling them takes most of the time, and only shapes are asked for."""

    _FILLS = frozenset(("normal_", "uniform_", "trunc_normal_", "fill_", "zero_"))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def fitting_architectures(container: Container, path: str) -> tuple[str, ...]:
    """The first few MODEL names whose every key and shape the container has, often none."""
    start = time.monotonic()
    size = sum(
        t.numel() for n, t in container.tensors.items() if isinstance(t, torch.Tensor) and not _is_buffer(n)
    )
    found: list[str] = []
    for name, build in _candidates(container, size, path):
        if time.monotonic() - start > SECONDS / (3 if found else 1) or len(found) == MOST:
            break
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.device("meta"), _Unfilled(), contextlib.redirect_stdout(io.StringIO()):
                model = build()
            if any(not match.faults for match in matches(container, Expected(model))):
                found.append(name)
    return tuple(found)


def _candidates(container: Container, size: int, path: str) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Architectures in the order in which they are worth a look, each with how it is built."""
    classes, features = _head(container)
    kwargs: Kwargs = {} if classes == 1000 else {"num_classes": classes}
    text = f" `model_kwargs=num_classes={classes}`" if kwargs else ""
    keys = "\n".join(map(plain, container.tensors))
    if "linear.weight" in keys:
        other = "" if classes == 10 else f" `model_kwargs=num_classes={classes}`"
        for depth in (18, 20, 32, 44, 56, 110):
            name = f"resnet{depth}"
            yield f"alphatune.models.cifar:{name}{other}", lambda n=name: getattr(cifar, n)(classes)  # type: ignore[misc]
    # Parameters with a head for the 1 000 classes that torchvision counts.
    thousand = size + (1000 - classes) * (features + 1)
    for name in torchvision.models.list_models(module=torchvision.models):
        weights = torchvision.models.get_model_weights(name)
        counts = {w.meta["num_params"] for w in weights}
        if not counts or any(abs(count - thousand) <= count * 0.02 for count in counts):
            yield (
                f"torchvision:{name}{text}",
                lambda n=name: torchvision.models.get_model(n, weights=None, **kwargs),  # type: ignore[misc]
            )
    for name in _of_timm(keys, Path(path).stem):
        yield f"{name}{text}", lambda n=name: timm.create_model(n, **kwargs)  # type: ignore[misc]


def _of_timm(keys: str, stem: str) -> list[str]:
    """Names of the families with such keys: first those that the file's name holds, then a few of each by turns."""
    modules = [m for pattern, names in _FAMILIES.items() if re.search(pattern, keys) for m in names.split()]
    lists = []
    for module in modules:
        names = timm.list_models(module=module, exclude_filters=["tf_*"])
        own, others = ([n for n in names if n.startswith(module) is wanted] for wanted in (True, False))
        lists.append([*sorted(own, key=len), *sorted(others, key=len)])
    turns = [name for turn in itertools.zip_longest(*lists) for name in turn if name]
    return sorted(turns, key=lambda name: -len(name) if name in stem else 0)


def _head(container: Container) -> tuple[int, int]:
    """Outputs and inputs of the last layer that maps vectors: (classes, features)."""
    shapes = [
        tuple(t.shape) for t in container.tensors.values() if isinstance(t, torch.Tensor) and t.ndim == 2
    ]
    return (shapes[-1][0], shapes[-1][1]) if shapes else (1000, 0)


def _is_buffer(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))
