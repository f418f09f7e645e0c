"""All weights of a model, those that its own ``state_dict()`` leaves out as well."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from alphatune.core.errors import UnsupportedModelError, one_line


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Every persistent tensor by its key in the state dict; by its place in the model where it has none there.

    Extra state that is no tensor is left out.

    Raises:
        UnsupportedModelError: weights that are no tensors of numbers (packed, quantised), or no state dict at all.
    """
    state = _state(model)
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            if value.is_quantized or value.layout is not torch.strided:
                raise UnsupportedModelError(
                    f"the weight {key} is quantised or sparse, and cannot be written",
                    "tune the model before that",
                )
            weights[key] = value.detach()
        elif str(key).endswith("_packed_params") or isinstance(value, tuple):
            raise UnsupportedModelError(
                f"the weight {key} is packed in a {type(value).__name__}, and cannot be written",
                "tune the model before it is quantised",
            )
    return weights | {name: tensor.detach() for name, tensor in left_out(model, state).items()}


def left_out(model: nn.Module, state: Mapping[str, object] | None = None) -> dict[str, Tensor]:
    """Parameters and persistent buffers that ``state_dict()`` does not return, by their place in the model."""
    if state is None:
        state = _state(model)
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    there = {id(tensor) for tensor in tensors} | {
        tensor.data_ptr() for tensor in tensors if not tensor.is_meta
    }
    missing: dict[str, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        own = [*module._parameters.items(), *module._buffers.items()]
        for name, tensor in own:
            key = f"{prefix}.{name}".lstrip(".")
            if tensor is None or name in module._non_persistent_buffers_set or key in state:
                continue
            if id(tensor) not in there and (tensor.is_meta or tensor.data_ptr() not in there):
                missing[key] = tensor
    return missing


def _state(model: nn.Module) -> dict[str, object]:
    try:
        return dict(model.state_dict())
    except Exception as error:  # whatever an override raises
        raise UnsupportedModelError(f"the model has no state dict: {one_line(error)}") from None


def left_out_note(model: nn.Module) -> tuple[str, ...]:
    """What to say of weights that a checkpoint of the model's own may lack."""
    if not (missing := left_out(model)):
        return ()
    return (
        f"the model's state_dict() leaves out {len(missing)} of its tensors, e.g. {next(iter(missing))}: where the "
        "checkpoint lacks them they are as its factory made them",
    )
