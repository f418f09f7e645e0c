"""Which norm layers a forward pass runs, what they see, and who else computes with their tensors.

The survey tells what a layer could do, a forward pass whether it does: a head
for training only, a block that folds its norm into a convolution, or one that
passes the layer's tensors to ``F.batch_norm`` leaves the layer out, and α of
such a layer changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from alphatune.core.errors import UnsupportedModelError
from alphatune.core.versions import COMPILED, require_torch, torch_allows
from alphatune.norms.survey import NormLayer, moving_averages, survey


@contextmanager
def watching(
    model: nn.Module, layers: Mapping[str, nn.Module], see: Callable[[str, nn.Module, Any], None]
) -> Iterator[None]:
    """Call ``see`` with name, layer and input whenever one of a model's layers is about to run; undone on any exit.

    Looks at ``forward`` on the instance, where a layer is example-weighted, too,
    and not at hooks: a direct call of ``forward`` runs none of them. Code that
    calls the class's forward does without the layer's.

    Raises:
        ConfigurationError: the model is compiled, and torch too old to run it as plain Python.
    """
    before = {layer: layer.__dict__.get("forward") for layer in layers.values()}

    def through(name: str, layer: nn.Module) -> Callable[..., Any]:
        forward = layer.forward

        def call(*args: Any, **kwargs: Any) -> Any:
            see(name, layer, next(iter((*args, *kwargs.values())), None))
            return forward(*args, **kwargs)

        return call

    try:
        for name, layer in layers.items():
            layer.__dict__["forward"] = through(name, layer)
        with _uncompiled(model):
            yield
    finally:
        for layer, forward in before.items():
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.__dict__["forward"] = forward


def _uncompiled(model: nn.Module) -> AbstractContextManager[object]:
    """Run compiled code as plain Python: it does not look for what comes after it."""
    if torch_allows(COMPILED):
        stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance
    if any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules()):
        require_torch(COMPILED, "give it before it is compiled")
    return nullcontext()


@dataclass
class Watched:
    """What a forward pass in eval mode did with a model's norm layers."""

    #: of each layer that ran, the shape of its last input (N, C, *)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: of each layer for which α changes nothing, why
    inactive: dict[str, str] = field(default_factory=dict)
    #: modules that call ``F.batch_norm`` with moving averages of no norm layer
    functions: dict[str, NormLayer] = field(default_factory=dict)

    def account(self, layers: Sequence[NormLayer]) -> tuple[NormLayer, ...]:
        """A survey, with what the pass tells beyond it: layers that are inactive, and functions that are no layer."""
        judged = [
            replace(layer, status="inactive", reason=self.inactive[layer.name])
            if layer.name in self.inactive and layer.status != "skipped"
            else layer
            for layer in layers
        ]
        return (*judged, *self.functions.values())


@contextmanager
def watched(model: nn.Module) -> Iterator[Watched]:
    """Watch the norm layers of a model for the time of a ``with`` block, in which it runs in eval mode.

    What is yielded is complete when the block is left.
    """
    found = Watched()
    modules = dict(model.named_modules())
    norms = {layer.name: modules[layer.name] for layer in survey(model)}
    training = set()

    def see(name: str, layer: nn.Module, x: Any) -> None:
        found.shapes[name] = tuple(getattr(x, "shape", ()))
        if layer.training:
            training.add(name)

    with ExitStack() as stack:
        stack.enter_context(watching(model, norms, see))
        functions = stack.enter_context(_Functions(modules, norms))
        yield found
    for name in norms:
        if name in training:
            found.inactive[name] = "stays in training mode after eval(): it normalises by the batch"
        elif name not in found.shapes:
            reason = functions.users.get(name, "")
            found.inactive[name] = f"not reached by the forward pass{reason and ': '}{reason}"
    found.functions = functions.own


def leave_inactive(layers: Sequence[NormLayer]) -> tuple[str, ...]:
    """What to exclude so that ``patch_`` leaves inactive layers alone.

    Raises:
        UnsupportedModelError: there are some, and no other that could be example-weighted.
    """
    inactive = [layer for layer in layers if layer.status == "inactive"]
    if inactive and not any(layer.status in ("patchable", "patched", "calibratable") for layer in layers):
        first = inactive[0]
        raise UnsupportedModelError(
            f"none of the model's {len(layers)} norm layers acts in the forward pass, "
            f"e.g. {first.name or '(root)'}: {first.reason}",
            "`alphatune inspect` shows each layer and why",
        )
    return tuple(escape(layer.name) for layer in inactive)


class _Functions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Who calls a norm function, or computes otherwise, with moving averages of which layer."""

    def __init__(self, modules: Mapping[str, nn.Module], norms: Mapping[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.users: dict[str, str] = {}  # of layers' tensors, what they do
        self.own: dict[str, NormLayer] = {}
        self._modules = modules
        self._names = {id(module): name for name, module in modules.items()}
        self._norms = norms
        self._averages = {
            id(tensor): name for name, layer in norms.items() for tensor in moving_averages(layer) or ()
        }
        self._places = {
            _place(tensor): name
            for name, layer in norms.items()
            for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
            if _place(tensor)
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
        if "batch_norm" in func._schema.name:
            if given.get("running_mean") is not None:  # StdConv normalises its weights without
                self._normalised(given)
        else:
            for tensor in given.values():
                if (layer := self._averages.get(id(tensor))) is not None:
                    caller = self._caller()
                    if caller not in self._norms:
                        does = f"{caller or 'the model'} computes with its moving averages itself"
                        self.users.setdefault(layer, does)
        return func(*args, **(kwargs or {}))

    def _normalised(self, given: Mapping[str, Any]) -> None:
        caller = self._caller()
        if caller in self._norms:
            return
        places = (
            self._places.get(_place(given.get(n))) for n in ("running_mean", "running_var", "weight", "bias")
        )
        layer = next((name for name in places if name is not None), None)
        if layer is not None:
            self.users[layer] = f"{caller or 'the model'} passes its tensors to F.batch_norm"
        else:
            kind = type(self._modules[caller]).__name__
            reason = f"{kind} calls F.batch_norm with moving averages of its own"
            channels, eps = given["running_mean"].numel(), given.get("eps", given.get("epsilon"))
            self.own[caller] = NormLayer(caller, kind, "unsupported", reason, channels, eps, None, False)

    def _caller(self) -> str:
        """The innermost module in a method of which this is called; a function may be handed any module."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            module = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            if id(module) in self._names:
                methods = (vars(cls).get(code.co_name) for cls in type(module).__mro__)
                if any(getattr(method, "__code__", None) is code for method in methods):
                    return self._names[id(module)]
            frame = frame.f_back
        return ""


def _place(tensor: Tensor | None) -> int:
    """Where a tensor's values are; 0 where there are none."""
    if tensor is None or is_lazy(tensor) or tensor.is_meta or tensor.layout is not torch.strided:
        return 0
    return tensor.data_ptr()
