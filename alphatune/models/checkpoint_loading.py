"""Load a checkpoint into a model: all of it, or the model stays as it was.

What fits by its keys (checkpoint_keys.py) is loaded. If nothing does, the
model's own hooks get their turn, which know the keys of older versions, and
after them the converters of timm and torchvision.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from alphatune.core.errors import (
    CheckpointError,
    NumericError,
    UnsupportedModelError,
    one_line,
    raise_if_machine_failed,
)
from alphatune.models.checkpoint_keys import (
    Expected,
    Match,
    could_become,
    is_counter,
    is_no_weight,
    matches,
    plain,
    same,
)
from alphatune.models.checkpoint_refusal import refusal
from alphatune.models.checkpoints import Checkpoint
from alphatune.models.weights import left_out, left_out_note

State = dict[str, Any]
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.[a-z_]+)$")


@dataclass(frozen=True)
class Loaded:
    """Which weights of which file were loaded."""

    path: str
    sha256: str
    weights_key: str = ""  # the container they were in, "" for the top of the file
    unsafe_pickle: bool = False
    notes: tuple[str, ...] = ()  # what is worth saying of it
    new: tuple[str, ...] = ()  # the model's weights that were left newly made


class _Unfit(Exception):
    """The model did not take a state dict."""


def load_weights_(model: nn.Module, checkpoint: Checkpoint, num_classes: int | None = None) -> Loaded:
    """Load a checkpoint strictly: every weight of the model, under its name and in its shape.

    Args:
        num_classes: the outputs of a head that is left newly made, told by its first dimension, where the
            checkpoint has another number; None: the head has to match, too.

    Raises:
        CheckpointError: keys or shapes of another architecture, or several that fit; the model is unchanged.
        NumericError: a weight that is NaN or infinite.
        UnsupportedModelError: layers that do not know their own shapes yet.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if lazy := next((name for name, tensor in tensors if is_lazy(tensor)), None):
        raise UnsupportedModelError(
            f"{lazy} has no shape before the first forward pass, so no checkpoint can be compared with it",
            "let the model's factory run one forward pass",
        )
    if meta := next((name for name, tensor in tensors if tensor.is_meta), None):
        raise UnsupportedModelError(
            f"{meta} is on the meta device, which holds no values", "build the model on a real device"
        )
    expected = Expected(model, num_classes)
    unsaved = left_out(model)
    checkpoint, apart = _set_apart(checkpoint, unsaved)
    found = [match for c in checkpoint.containers for match in matches(c, expected, checkpoint.prefix)]
    fits = [match for match in found if not match.faults]
    if fits:
        match, notes = _chosen(fits, checkpoint.path)
        try:
            _load_(model, match.weights, match, expected, checkpoint.path, apart)
        except _Unfit as error:
            raise CheckpointError(f"cannot load {checkpoint.path}: {error}") from None
    else:
        match, how = _convert_and_load_(model, found, expected, checkpoint, apart)
        notes = [f"the keys of {checkpoint.path} are those of another version, converted by {how}"]
    notes += _remarks(match, checkpoint.path)
    if apart[match.container.key].keys() != unsaved.keys():
        notes += left_out_note(model)
    key, unsafe = match.container.key, checkpoint.unsafe_pickle
    notes += checkpoint.warnings
    if unsafe:
        notes.append(f"{checkpoint.path} was unpickled without restriction (`unsafe_pickle`)")
    return Loaded(checkpoint.path, checkpoint.sha256, key, unsafe, tuple(notes), match.new)


def _set_apart(checkpoint: Checkpoint, unsaved: Mapping[str, Tensor]) -> tuple[Checkpoint, dict[str, State]]:
    """By container the weights that the model's ``state_dict()`` leaves out, and the checkpoint without them."""
    apart: dict[str, State] = {}
    containers = []
    for container in checkpoint.containers:
        own = {
            name: value
            for name, value in container.tensors.items()
            if name in unsaved and isinstance(value, Tensor) and value.shape == unsaved[name].shape
        }
        apart[container.key] = own
        rest = {name: value for name, value in container.tensors.items() if name not in own}
        containers.append(replace(container, tensors=rest))
    return replace(checkpoint, containers=tuple(containers)), apart


def _chosen(fits: list[Match], path: str) -> tuple[Match, list[str]]:
    """The first container that fits, and what else would have."""
    best = fits[0]
    if best.rivals and not best.literal:
        prefixes = ", ".join(sorted(repr(match.rule.file) for match in (best, *best.rivals)))
        raise CheckpointError(
            f"{path} holds several weights that fit the model, under the prefixes {prefixes}",
            "`checkpoint_prefix` chooses",
        )
    others = {
        m.container.key: m for m in fits if m.container is not best.container and not m.same_values(best)
    }
    keys = ", ".join(repr(key) for key in others)
    if others and not best.container.usual:
        raise CheckpointError(
            f"{path} holds several weights that fit the model, under {best.container.key!r}, {keys}",
            "`checkpoint_key` chooses",
        )
    notes = []
    if others:
        taken = repr(best.container.key) if best.container.key else "the top"
        notes.append(
            f"the weights at {taken} of {path} were taken; others under {keys} fit, too (`checkpoint_key`)"
        )
    if best.rivals:
        prefixes = ", ".join(sorted(repr(match.rule.file) for match in best.rivals))
        notes.append(f"{path} also holds other weights that fit, under {prefixes} (`checkpoint_prefix`)")
    return best, notes


def _remarks(match: Match, path: str) -> list[str]:
    notes = []
    if plain(match.rule.file):
        notes.append(f"the weights are those under the prefix {match.rule.file!r} of {path}")
    if plain(match.rule.model):
        notes.append(f"the model's prefix {match.rule.model!r} is not in the keys of {path}")
    if over := [*match.container.other, *match.no_weights, *match.beside]:
        more = f" and {len(over) - 4} more" if len(over) > 4 else ""
        notes.append(f"passed over in {path}, no weights of this model: {', '.join(over[:4])}{more}")
    return notes


def _convert_and_load_(
    model: nn.Module,
    found: list[Match],
    expected: Expected,
    checkpoint: Checkpoint,
    apart: Mapping[str, State],
) -> tuple[Match, str]:
    """Let hooks and converters try the state dicts that come nearest; what they make of one has to fit entirely."""
    nearest = sorted((m for m in found if not m.twice), key=_distance)[:4]
    for match in nearest:
        if _rivalled(match, nearest):
            continue
        state = _renamed(match, expected)
        for how, convert in _converters(model).items():
            converted = convert(dict(state)) if state else None
            if not converted or (how != _HOOKS and converted.keys() == state.keys()):
                continue
            with contextlib.suppress(_Unfit):
                _load_(model, converted, match, expected, checkpoint.path, apart)
                return match, how
    raise refusal(checkpoint.path, found, expected)


def _distance(match: Match) -> int:
    return len(match.missing) + len(match.shapes)


def _rivalled(match: Match, others: list[Match]) -> bool:
    """Whether another prefix comes as near, with other values: hooks could not tell which is meant."""
    return not match.literal and any(
        other.container is match.container
        and other.rule != match.rule
        and _distance(other) == _distance(match)
        and not match.same_values(other)
        for other in others
    )


_HOOKS = "the model's own load hooks"


def _converters(model: nn.Module) -> dict[str, Callable[[State], State | None]]:
    return {
        _HOOKS: lambda state: state,
        "torchvision's rule for old DenseNets": lambda state: {
            _OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()
        },
        "timm": lambda state: _as_timm_does(state, model),
    }


def _as_timm_does(state: State, model: nn.Module) -> State | None:
    """What timm makes of its own and other people's pretrained weights for a model of its own."""
    module = sys.modules.get(type(model).__module__)
    names = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
    convert = next((function for name in names if (function := getattr(module, name, None))), None)
    if convert is None or not type(model).__module__.startswith("timm.models."):
        return None
    try:
        try:
            return dict(convert(state, model))
        except TypeError:
            return dict(convert(state))
    except Exception:  # written for weights of its own family, and given any
        return None


def _renamed(match: Match, expected: Expected) -> State:
    """All tensors under a match's prefix as the model would name them; empty where two would have one name."""
    rule = match.rule
    named = (f"{name}." for name, _ in expected.model.named_modules() if name)
    modules = {"": "", **{expected.plain(name): name for name in named}}
    state: State = {}
    for original, value in match.container.tensors.items():
        if not original.startswith(rule.file):
            continue
        name = rule.model + expected.plain(original[len(rule.file) :])
        place = name
        while (place := place[: place[:-1].rfind(".") + 1]) not in modules:
            pass
        key = modules[place] + name[len(place) :]
        if key in state and not same(state[key], value):
            return {}
        state[key] = value
    return state


def _metadata(match: Match, expected: Expected) -> dict[str, Any]:
    """The format versions of the model's modules: the file's where it has them, for the hooks that convert."""
    file, model = match.rule

    def dotted(name: str) -> str:
        return f"{name}." if name else ""

    found = {
        model + expected.plain(dotted(name)[len(file) :]): value
        for name, value in match.container.metadata.items()
        if dotted(name).startswith(file)
    }
    own = expected.metadata
    return {name: found.get(expected.plain(dotted(name)), version) for name, version in own.items()}


def _load_(
    model: nn.Module,
    weights: Mapping[str, Any],
    match: Match,
    expected: Expected,
    path: str,
    apart: Mapping[str, State],
) -> None:
    """Load tensors by the model's keys, and check that nothing was left out; else the model is as it was.

    Args:
        apart: by container the weights that the model's ``state_dict()`` leaves out.
    """
    state = OrderedDict({**weights, **expected.notes})
    state._metadata = _metadata(match, expected)  # type: ignore[attr-defined]
    shapes = {key: getattr(value, "shape", None) for key, value in expected.state.items()}
    for key, value in weights.items():
        if key in expected.state and not could_become(value, expected.state[key], key):
            raise _Unfit(f"{key} holds something else in the file")  # of which torch would take what it can
    with _unchanged_on_error(model):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = model.load_state_dict(state, strict=False)
            missing, unexpected = result.missing_keys, result.unexpected_keys
        except Exception as error:  # hooks may raise anything
            raise_if_machine_failed(error)
            raise _Unfit(one_line(error)) from None
        aliased = {k for group in expected.aliases if not set(group) <= set(missing) for k in group}
        if lost := [
            k
            for k in missing
            if k in expected.state and not is_counter(k) and k not in match.new and k not in aliased
        ]:
            raise _Unfit(f"{lost[0]} is missing")
        if left := [k for k in unexpected if not is_no_weight(expected.plain(k), state.get(k), expected)]:
            raise _Unfit(f"{left[0]} is unknown to the model")
        now = {k: getattr(v, "shape", None) for k, v in model.state_dict().items() if k not in expected.notes}
        if now != shapes:
            raise _Unfit("it is of an older version of the architecture, with layers of other shapes")
        unsaved = left_out(model)
        with torch.no_grad():
            for name, tensor in apart[match.container.key].items():
                unsaved[name].copy_(tensor)
        # Parameters only: a buffer may be a mask of -inf, and running_stats_check.py looks at moving averages.
        for name, weight in model.named_parameters():
            if not _is_finite(weight):
                raise NumericError(f"{name} in {path} holds NaN or infinity")


@contextlib.contextmanager
def _unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Put a model back as it was, values and structure, if an exception passes."""
    tensors = {id(t): (t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())}
    modules = list(model.modules())
    inner = [[dict(d) for d in (m._parameters, m._buffers, m._modules)] for m in modules]
    outer = [dict(vars(module)) for module in modules]
    try:
        yield
    except BaseException:
        for module, attributes, contents in zip(modules, outer, inner, strict=True):
            vars(module).clear()
            vars(module).update(attributes)
            owned: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module._modules)
            for own, content in zip(owned, contents, strict=True):
                own.clear()
                own.update(content)
        with torch.no_grad():
            for tensor, copy in tensors.values():
                tensor.copy_(copy)
        raise


def _is_finite(weight: Tensor) -> bool:
    """Whether no value is NaN or infinite; without the copies that torch.isfinite makes of a large tensor."""
    floats = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    if weight.numel() == 0 or weight.is_meta:
        return True
    if weight.dtype not in floats:
        return bool(torch.isfinite(weight).all())
    extremes = torch.aminmax(weight.detach())  # NaN goes through both
    return all(math.isfinite(extreme.item()) for extreme in extremes)
