"""What a factory gives, made into a network that can be worked on, or refused by name.

Wrappers for training and compiling are taken off, a network is picked out of a tuple, lazy layers
are initialised by a forward pass, and tensors on the meta device make room for a checkpoint.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from alphatune.core.errors import ConfigurationError, UnsupportedModelError, one_line, raise_if_machine_failed
from alphatune.evaluation.predictor import evaluation_mode, input_dtype

#: files of graphs, whose norm layers are no layers any more
GRAPHS = {
    ".onnx": "an ONNX graph",
    ".pt2": "an exported program (torch.export)",
    ".ts": "a TorchScript program",
    ".torchscript": "a TorchScript program",
    ".tflite": "a TensorFlow Lite graph",
    ".engine": "a TensorRT engine",
    ".mlmodel": "a Core ML graph",
    ".pb": "a TensorFlow graph",
    ".h5": "a Keras model",
    ".keras": "a Keras model",
}
_THE_NETWORK = "alphatune needs the network itself, as a torch.nn.Module, and its weights"


def refuse_graph(path: Path) -> None:
    """Refuse a file that holds a finished graph.

    Raises:
        UnsupportedModelError: names what it is.
    """
    if kind := GRAPHS.get(path.suffix.lower()):
        raise UnsupportedModelError(f"{path} is {kind}: it has no layers to work on", _THE_NETWORK)


def as_network(given: object, spec: str) -> tuple[nn.Module, tuple[str, ...]]:
    """The network in what a factory gave, and what is worth saying.

    Raises:
        UnsupportedModelError: there is none, or one whose layers cannot be reached.
    """
    notes: tuple[str, ...] = ()
    if isinstance(given, (tuple, list)):
        networks = [i for i, item in enumerate(given) if isinstance(item, nn.Module)]
        if len(networks) == 1:
            notes = (f"{spec} gives {len(given)} things; took the network, number {networks[0]}",)
            given = given[networks[0]]
    if not isinstance(given, nn.Module):
        raise UnsupportedModelError(
            f"{spec} must give a torch.nn.Module, got {_described(given)}", _THE_NETWORK
        )
    if isinstance(given, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"{spec} gives a TorchScript program: its layers are compiled and cannot be changed", _THE_NETWORK
        )
    network, wrappers = unwrapped(given)
    if wrappers:
        notes += (f"{spec} gives a network in {' and '.join(wrappers)}: taken off",)
    if type(network).forward is nn.Module.forward:
        raise UnsupportedModelError(
            f"{spec} gives a {type(network).__name__}, which has no forward", _THE_NETWORK
        )
    try:
        network.eval()
    except Exception as error:  # of a program that torch.export made, for one
        raise UnsupportedModelError(
            f"{spec} gives a {type(network).__name__} that has no eval mode: {one_line(error)}", _THE_NETWORK
        ) from None
    return network, notes


def unwrapped(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The model without DataParallel, DistributedDataParallel and torch.compile, in its parts, too, and their names."""
    found: dict[str, None] = {}

    def inside(module: nn.Module) -> nn.Module:
        while True:
            if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
                inner = module.module
            elif isinstance(original := module._modules.get("_orig_mod"), nn.Module):
                inner = original
            else:
                return module
            found[type(module).__name__ if "_orig_mod" not in module._modules else "torch.compile"] = None
            module = inner

    model = inside(model)
    for module in list(model.modules()):
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, child in list(module._modules.items()):
            if child is not None and (inner := inside(child)) is not child:
                module._modules[name] = inner
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None:  # module.compile()
            module._compiled_call_impl = None
            found["torch.compile"] = None
    return model, tuple(found)


def materialise_(
    model: nn.Module, input_size: tuple[int, int, int], *, weights_follow: bool, spec: str
) -> None:
    """Give every parameter and buffer a shape and memory, in place.

    Args:
        input_size: of the forward pass that lazy layers learn their shapes from.
        weights_follow: whether a checkpoint is loaded afterwards.

    Raises:
        UnsupportedModelError: tensors on the meta device that nothing will fill.
        ConfigurationError: lazy layers, and the model does not take this input size.
    """
    lazy = [m for m in model.modules() if isinstance(m, LazyModuleMixin) and m.has_uninitialized_params()]
    meta = [name for name, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]
    if meta:
        kept = {
            f"{p}.{b}".lstrip(".") for p, m in model.named_modules() for b in m._non_persistent_buffers_set
        }
        if lost := [name for name in meta if name in kept]:
            raise UnsupportedModelError(
                f"{spec} gives a model on the meta device, and no checkpoint holds its buffer {lost[0]}",
                "build it on the CPU",
            )
        if not weights_follow:
            raise UnsupportedModelError(
                f"{spec} gives a model on the meta device: {len(meta)} of its tensors have no values, e.g. {meta[0]}",
                "give its weights as `checkpoint=FILE`, or build it on the CPU",
            )
        for module in model.modules():
            if any(
                t.is_meta for t in (*module._parameters.values(), *module._buffers.values()) if t is not None
            ):
                module.to_empty(device="cpu", recurse=False)
                for name, buffer in module._buffers.items():
                    if buffer is not None and name == "num_batches_tracked":  # which checkpoints may lack
                        buffer.zero_()
    if lazy:
        with evaluation_mode(model), contextlib.redirect_stdout(sys.stderr):
            try:
                model(torch.zeros((2, *input_size), dtype=input_dtype(model)))
            except Exception as error:
                raise_if_machine_failed(error)
                raise ConfigurationError(
                    f"{spec} has layers that take their shapes from an input, and the model does not take one of size "
                    f"{'x'.join(map(str, input_size))}: {one_line(error)}",
                    "see `input_size`",
                ) from None


def _described(given: object) -> str:
    """What something that is no network is, and what was probably meant."""
    if isinstance(given, type):
        return f"the class {given.__name__}, not an instance of it"
    if isinstance(given, torch.export.ExportedProgram):
        return "an exported program (torch.export), a graph without layers to work on"
    if isinstance(given, dict) and given and all(torch.is_tensor(v) for v in given.values()):
        return "a dict of tensors: weights, which go to `checkpoint`, without the network"
    if isinstance(given, (tuple, list)):
        kinds: list[Any] = [type(item).__name__ for item in given[:6]]
        return (
            f"a {type(given).__name__} of {', '.join(kinds) or 'nothing'}, which holds no network, or several"
        )
    return type(given).__name__
