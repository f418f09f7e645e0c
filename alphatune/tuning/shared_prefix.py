"""Compute what precedes the first example-weighted layer once a batch, not once an α.

Nothing that runs before that layer can depend on α. While a batch sees its
first α, every outermost module that finishes before the layer begins leaves
its output; at the batch's other α it gives that output again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from alphatune.norms.patching import example_weighted_layers
from alphatune.norms.watching import watching


class SharedPrefix:
    """The outputs of one batch; ``forget`` before the next one."""

    def __init__(self) -> None:
        self._kept: dict[tuple[nn.Module, int], tuple[Any, Tensor, int]] = {}
        self._calls: dict[nn.Module, int] = {}
        self._recording = self._before_first_layer = True

    def forget(self) -> None:
        """Begin a new batch: its first pass leaves outputs."""
        self._kept.clear()
        self._recording = True
        self.begin_pass()

    def begin_pass(self, *, replay: bool = False) -> None:
        """Begin a pass over the batch, the first one or a repetition."""
        self._calls.clear()
        self._before_first_layer = True
        if replay:
            self._recording = False

    def first_layer_begins(self, *_: Any) -> None:
        """Called before every example-weighted layer."""
        self._before_first_layer = False

    def call(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """In place of a module's forward."""
        if not self._before_first_layer:
            return forward(*args, **kwargs)
        place = self._calls.get(module, 0)  # a module may be called more than once
        self._calls[module] = place + 1
        if not self._recording and (module, place) in self._kept:
            shapes, output, version = self._kept[module, place]
            # Another shape: the batch was cut in two meanwhile. Another version: somebody wrote to it.
            if shapes == _shapes(args, kwargs) and output._version == version:
                return output
        output = forward(*args, **kwargs)
        # A tensor of inference mode has no version: nobody could tell whether it was written to.
        shared = self._recording and self._before_first_layer and torch.is_tensor(output)
        if shared and not output.is_inference():
            self._kept[module, place] = (_shapes(args, kwargs), output, output._version)
        return output


@contextmanager
def shared_prefix(model: nn.Module) -> Iterator[SharedPrefix]:
    """Share the work before the first example-weighted layer of a patched model; undone on any exit."""
    prefix = SharedPrefix()
    layers = dict(example_weighted_layers(model))
    candidates = [m for m in _outermost_without(model, set(layers.values())) if "forward" not in m.__dict__]
    try:
        for module in candidates:
            module.forward = _through(prefix, module)
        # A layer whose call went unseen would let what follows it be taken for what precedes it.
        with watching(model, layers, prefix.first_layer_begins):
            yield prefix
    finally:
        for module in candidates:
            module.__dict__.pop("forward", None)


def _through(prefix: SharedPrefix, module: nn.Module) -> Callable[..., Any]:
    forward = module.forward

    def call(*args: Any, **kwargs: Any) -> Any:
        return prefix.call(module, forward, args, kwargs)

    return call


def _outermost_without(module: nn.Module, layers: set[Any]) -> list[nn.Module]:
    """The largest parts of a model that hold none of the layers."""
    found: dict[nn.Module, None] = {}
    for child in module.children():
        if isinstance(child, torch.jit.ScriptModule):
            continue
        if any(m in layers for m in child.modules()):
            found.update(dict.fromkeys(_outermost_without(child, layers) if child not in layers else []))
        else:
            found[child] = None
    return list(found)


def _shapes(args: Any, kwargs: Any) -> list[Any]:
    leaves = tree_leaves((args, kwargs))  # of any arguments: of lists and by keyword, too
    return [tuple(a.shape) if torch.is_tensor(a) else None for a in leaves]
