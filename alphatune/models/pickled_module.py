"""The tensors of a whole module that was pickled, by the names of its state dict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from alphatune.core.errors import CheckpointError, one_line
from alphatune.pickles.pickle_records import Record

#: what no module comes near: entries in all its dicts, depth, and letters of a name
_MOST_PARTS, _DEEPEST, _LONGEST = 200_000, 100, 1_000


def state_dict_of(value: Any) -> dict[str, Tensor] | None:
    """The state dict of a module: of a record of one, or of a real one.

    Returns:
        Tensors by dotted name, as ``nn.Module.state_dict`` names them; None for what is no module.

    Raises:
        CheckpointError: a module that contains itself, or whose own code fails.
    """
    if isinstance(value, nn.Module):
        try:
            return {k: v for k, v in value.state_dict().items() if isinstance(v, Tensor)}
        except Exception as error:  # code of the file, which it took consent to run
            raise CheckpointError(
                f"the module in the checkpoint gives no state dict: {one_line(error)}"
            ) from None
    if not isinstance(value, Record) or _parts(value) is None:
        return None
    found: dict[str, Tensor] = {}
    waiting, looked_at = [("", value, 0)], 0
    while waiting:
        prefix, module, depth = waiting.pop()
        parts = _parts(module)
        if parts is None:
            continue
        tensors, modules = parts
        looked_at += 1 + sum(map(len, (*tensors, modules)))
        if depth > _DEEPEST or looked_at > _MOST_PARTS or len(prefix) > _LONGEST:
            raise CheckpointError("the module in the checkpoint has too many parts, or contains itself")
        for group in tensors:
            found |= {prefix + name: tensor for name, tensor in _of(group, Tensor)}
        inner = [(f"{prefix}{name}.", each, depth + 1) for name, each in _of(modules, Record)]
        waiting += reversed(inner)  # in the order that the module has them in
    return found


def _parts(module: Record) -> tuple[list[dict[Any, Any]], dict[Any, Any]] | None:
    """Where a module's own tensors and its submodules are, None for what is no module."""
    states = (module.state, *(module.state if type(module.state) is tuple else ()), *module.args[:2])
    for (
        state
    ) in states:  # __dict__; beside it __slots__; of torch.fx's graph modules what they are called with
        if not isinstance(state, dict):
            continue
        if module.name.startswith("__torch__."):  # TorchScript: plain attributes
            return [state], state
        parameters, buffers, modules = map(state.get, ("_parameters", "_buffers", "_modules"))
        if not (isinstance(parameters, dict) and isinstance(buffers, dict) and isinstance(modules, dict)):
            continue
        if isinstance(unsaved := state.get("_non_persistent_buffers_set"), set) and unsaved:
            buffers = {name: value for name, value in buffers.items() if name not in unsaved}
        return [parameters, buffers], modules
    return None


def _of(entries: dict[Any, Any], kind: type[Any]) -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        if isinstance(name, str) and isinstance(value, kind):
            if len(name) > _LONGEST:
                raise CheckpointError("the module in the checkpoint has an impossible name")
            yield name, value
