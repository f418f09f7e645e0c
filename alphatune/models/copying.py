"""Copies of a model that cost no memory: their modules are new, their tensors are the original's."""

from __future__ import annotations

import copy
import itertools

from torch import nn

from alphatune.core.errors import UnsupportedModelError, one_line
from alphatune.models.temperature import set_temperature_
from alphatune.norms.patching import unpatch_


def stock_copy(model: nn.Module) -> nn.Module:
    """The model as it is without alphatune, in eval mode, beside the model itself.

    Parameters and buffers are shared with the original, so the copy must not
    change them in place; giving its modules other tensors is fine.

    Raises:
        UnsupportedModelError: the model holds something that cannot be copied.
    """
    tensors = itertools.chain(model.parameters(), model.buffers())
    try:
        twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    except Exception as error:  # whatever the attributes of somebody's model raise
        raise UnsupportedModelError(
            f"the model cannot be copied: {type(error).__name__}: {one_line(error)}"
        ) from None
    unpatch_(twin)
    set_temperature_(twin, 1.0)
    return twin.eval()
