"""Which key of a state dict is which key of a model.

Two things are done, and to all keys alike: names that wrappers put in (DDP,
torch.compile, FSDP, …) are dropped wherever they stand, in file and model; and
one prefix of the model's keys may stand for one of the file's. The result fits
only if every weight of the model is there, in its shape, and nothing else is
under that prefix that could be a weight of another architecture.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alphatune.models.checkpoint_containers import Container

#: names under which wrappers keep the module they wrap
WRAPPERS = frozenset(
    (
        *("module", "_module", "_orig_mod", "_original_module", "_forward_module"),
        *("_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module"),
        *("_wrapped_module", "wrapped_module", "wrapped_model", "_ddp_module", "_dp_module"),
    )
)
#: counts of steps, operations or averaged models, which inference never reads
_COUNTER = re.compile(r"(^|\.)(num_batches_tracked|n_averaged|total_ops|total_params)$")
#: tables that follow from the architecture
_TABLE = re.compile(r"(^|\.)(attn_mask|relative_coords_table|relative_position_index|position_ids)$")
#: the state of a loss or a metric
_SCORE = re.compile(r"(^|_)(criterions?|loss|losses|metrics?|acc|accuracy|auroc)\d*(_|$)", re.IGNORECASE)
#: single numbers of the training
_PROGRESS = re.compile(r"(.*_)?(epoch|step|iteration|lr|decay|num_updates|initted|acc|top1|top5|loss)\d*")


class Rule(NamedTuple):
    """The one change of prefix: ``model`` + NAME in the model is ``file`` + NAME in the file."""

    file: str = ""
    model: str = ""


@dataclass(frozen=True)
class Match:
    """What a rule makes of the keys of a container."""

    container: Container
    rule: Rule
    keys: dict[str, str]  # model's key -> file's
    missing: tuple[str, ...]  # the model's keys that the file lacks
    twice: tuple[tuple[str, str], ...]  # the file's keys of different tensors that would be the same weight
    unknown: tuple[str, ...] = ()  # the file's keys that may be weights, and are none of this model
    shapes: tuple[str, ...] = ()  # the model's keys that have another shape or type in the file
    new: tuple[str, ...] = ()  # the model's keys of a head for another number of classes
    no_weights: tuple[str, ...] = ()  # the file's keys of counters and the like
    beside: tuple[str, ...] = ()  # the file's keys under other prefixes
    rivals: tuple[Match, ...] = ()  # that fit as well, with other values

    @property
    def literal(self) -> bool:
        """Whether each key of the model is the file's to the letter."""
        return all(key == name for key, name in self.keys.items())

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.twice) + len(self.unknown) + len(self.shapes)

    @property
    def weights(self) -> dict[str, Any]:
        """The tensors to load, by the model's keys."""
        return {key: self.container.tensors[name] for key, name in self.keys.items() if key not in self.new}

    def same_values(self, other: Match) -> bool:
        """Whether the other match gives the same weights."""
        mine, its = self.weights, other.weights
        return all(key in its and same(value, its[key]) for key, value in mine.items() if not is_counter(key))


class Expected:
    """The keys of a model's state dict, as they are and without the names of wrappers."""

    def __init__(self, model: nn.Module, num_classes: int | None = None) -> None:
        self.model = model
        self.num_classes = num_classes  # of a head that may be newly made, None where none may
        state: Mapping[str, Any] = model.state_dict()
        self.metadata: Mapping[str, Any] = getattr(state, "_metadata", {})
        #: of an override of state_dict(): what is neither a tensor nor the extra state of a module
        self.notes = {
            k: v for k, v in state.items() if not (isinstance(v, Tensor) or k.endswith("_extra_state"))
        }
        self.state = {key: value for key, value in state.items() if key not in self.notes}
        self.dropped = _droppable(self.state)
        self.names = {key: self.plain(key) for key in self.state}
        self.required = {name for key, name in self.names.items() if not is_counter(key)}
        self.parts = {part for name in self.required for part in name.split(".")}
        buffers = [name for name, _ in model.named_buffers(remove_duplicate=False)]
        self.unsaved = {self.plain(name) for name in buffers if name not in self.state}
        self.aliases = _aliases(model, self.state)
        self.prefixes = _prefixes(self.required)

    def plain(self, key: str) -> str:
        """A key without the wrappers' names that tell none of the model's keys apart."""
        return plain(key, self.dropped)

    @property
    def one_layer(self) -> bool:
        """Whether the model is a single layer: one of its keys and shapes is in many a network."""
        inside = {name[len(self.prefixes[-1]) :] for name in self.required}
        return not any("." in name for name in inside) or len({n.partition(".")[0] for n in inside}) < 2


def plain(key: str, dropped: Collection[str] = WRAPPERS) -> str:
    """A key, or a prefix that ends in a dot, without the names of wrappers; a tensor's own name stays."""
    *path, last = key.split(".")
    return ".".join([*(part for part in path if part not in dropped), last])


def is_counter(key: str) -> bool:
    """Whether a key is that of a counter; a file may lack it."""
    return _COUNTER.search(key) is not None


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal tensors, or the same object."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    if a is b or a.shape != b.shape or a.dtype != b.dtype:
        return a is b
    return torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(0.5), b.nan_to_num(0.5)))


def matches(container: Container, expected: Expected, prefix: str | None = None) -> list[Match]:
    """What the rules make of a container, the best first: it fits where it has no faults.

    Args:
        prefix: the only prefix of the file's keys that may be used, with or without the names of wrappers.
    """
    rules = _rules(container.tensors, expected)
    most = max(rules.values(), default=0)
    dotted = prefix and f"{prefix.removesuffix('.')}."
    asked = dotted and expected.plain(dotted)
    near = [r for r, n in rules.items() if 2 * n > most or expected.plain(r.file) == asked]
    tried = {rule: _assigned(rule, container, expected) for rule in near or [Rule()]}
    whole = [rule for rule, match in tried.items() if not match.missing]
    for rule in whole:  # what stands within a copy belongs to that copy alone
        inner = tuple(r.file for r in whole if r.file != rule.file and r.file.startswith(rule.file))
        if inner and (match := _assigned(rule, container, expected, inner)).missing:
            del tried[rule]
        elif inner:
            tried[rule] = match
    if dotted is not None:
        chosen = {rule: match for rule, match in tried.items() if rule.file == dotted}
        allowed = chosen or {r: match for r, match in tried.items() if expected.plain(r.file) == asked}
    else:
        allowed = {
            r: match for r, match in tried.items() if not expected.one_layer or not expected.plain(r.file)
        }
    copies = [tried[rule] for rule in whole if rule in tried]
    found = [_with_leftovers(match, expected, copies) for match in allowed.values()]
    found.sort(key=lambda m: (m.faults > 0, not m.literal, m.faults, m.rule))
    if found and not found[0].faults:
        best, others = found[0], [m for m in found[1:] if m.faults == len(m.twice)]
        found[0] = replace(best, rivals=tuple(m for m in others if m.twice or not m.same_values(best)))
    return found


def _rules(names: Iterable[str], expected: Expected) -> dict[Rule, int]:
    """For each rule how many of the model's weights it finds among names in a file."""
    found: dict[Rule, set[str]] = defaultdict(set)
    for model in expected.prefixes:
        wanted = {name[len(model) :] for name in expected.required}
        ending = f".{model.split('.')[-2]}." if model else None
        for name in names:
            for at in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
                inner = expected.plain(name[at:])
                # Where both prefixes end alike a shorter pair says the same.
                if inner in wanted and not (ending and f".{expected.plain(name[:at])}".endswith(ending)):
                    found[Rule(name[:at], model)].add(inner)
    return {rule: len(inside) for rule, inside in found.items()}


def _assigned(rule: Rule, container: Container, expected: Expected, inner: tuple[str, ...] = ()) -> Match:
    """Each of the model's keys with the file's; ``inner``: longer prefixes, whose keys do not count."""
    names: dict[str, list[str]] = defaultdict(list)
    for original in container.tensors:
        if original.startswith(rule.file) and not original.startswith(inner):
            names[rule.model + expected.plain(original[len(rule.file) :])].append(original)
    keys: dict[str, str] = {}
    twice = []
    for key, name in expected.names.items():
        if found := names.get(name):
            keys[key] = found[0]
            twice += [(found[0], other) for other in found[1:]]
    # One tensor that the model has under two names may have been saved under one of them.
    for group in expected.aliases:
        if present := [keys[key] for key in group if key in keys]:
            keys |= {key: present[0] for key in group if key not in keys}
            twice += [(present[0], other) for other in present[1:]]
    missing = tuple(key for key in expected.state if key not in keys and not is_counter(key))
    tensors = container.tensors
    differ = tuple((a, b) for a, b in twice if not same(tensors[a], tensors[b]) and not is_counter(a))
    shapes = tuple(key for key, name in keys.items() if not _alike(tensors[name], expected.state[key], key))
    head = tuple(
        key for key in shapes if _only_classes_differ(tensors[keys[key]], expected.state[key], expected)
    )
    if len({tensors[keys[key]].shape[0] for key in head}) > 1:
        head = ()
    shapes = tuple(key for key in shapes if key not in head)
    return Match(container, rule, keys, missing, differ, shapes=shapes, new=head)


def _with_leftovers(match: Match, expected: Expected, whole: Iterable[Match]) -> Match:
    """A match with what becomes of the file's other keys; ``whole``: all copies of the model in the file."""
    rule, taken, known = match.rule, set(match.keys.values()), set(expected.names.values())
    copies = {name for other in whole if other.rule != rule for name in other.keys.values()}
    unknown, no_weights, beside = [], [], []
    for original, value in match.container.tensors.items():
        name = rule.model + expected.plain(original[len(rule.file) :])
        if original in taken:
            continue
        if not original.startswith(rule.file) or original in copies:
            beside.append(original)
        elif is_no_weight(name, value, expected):
            no_weights.append(original)
        elif name not in known:  # else it is there twice, which is a fault if the values differ
            unknown.append(original)
    return replace(match, unknown=tuple(unknown), no_weights=tuple(no_weights), beside=tuple(beside))


def is_no_weight(name: str, value: Any, expected: Expected) -> bool:
    """Whether a tensor of a plain name that the model does not know is certainly no trained weight."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return True  # nothing is trained in whole numbers
    if is_counter(name) or _TABLE.search(name) or name in expected.unsaved:
        return True
    if value.numel() == 1 and _PROGRESS.fullmatch(name):
        return True
    return any(_SCORE.search(part) and part not in expected.parts for part in name.split("."))


def _alike(found: Any, wanted: Any, key: str) -> bool:
    """Whether a tensor has the shape and the kind of numbers that the model wants."""
    if not isinstance(wanted, Tensor):  # a module's extra state
        return True
    return isinstance(found, Tensor) and found.shape == wanted.shape and could_become(found, wanted, key)


def could_become(found: Any, wanted: Any, key: str) -> bool:
    """Whether copying a tensor loses nothing of what it says; its shape may be for a load hook to change."""
    if not isinstance(found, Tensor) or not isinstance(wanted, Tensor):
        return not isinstance(wanted, Tensor)
    if found.is_quantized or (wanted.ndim == 0 and found.numel() != 1):
        return False
    if wanted.is_floating_point():
        return found.is_floating_point()
    return wanted.is_complex() or (
        not found.is_complex() and (not found.is_floating_point() or is_counter(key))
    )


def _only_classes_differ(found: Any, wanted: Any, expected: Expected) -> bool:
    if not isinstance(found, Tensor) or not isinstance(wanted, Tensor) or 0 in (found.ndim, wanted.ndim):
        return False
    return wanted.shape[0] == expected.num_classes and found.shape[1:] == wanted.shape[1:]


def _droppable(state: Iterable[str]) -> frozenset[str]:
    """The wrappers' names that tell none of a model's keys apart."""
    keys = list(state)

    def tells_apart(dropped: Collection[str]) -> bool:
        return len({plain(key, dropped) for key in keys}) < len(keys)

    if not tells_apart(WRAPPERS):
        return WRAPPERS
    kept = {name for name in WRAPPERS if tells_apart({name})}
    dropped = WRAPPERS - kept
    return frozenset() if tells_apart(dropped) else dropped


def _prefixes(names: Collection[str]) -> list[str]:
    """What all names begin with, shortest first: ``""``, ``net.``, ``net.body.``."""
    common: list[str] = []
    for level in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(level)) > 1:
            break
        common.append(f"{level[0]}.")
    return ["".join(common[:i]) for i in range(len(common) + 1)]


def _aliases(model: nn.Module, state: Mapping[str, Any]) -> list[list[str]]:
    """Groups of keys that are one tensor."""
    groups: dict[int, list[str]] = defaultdict(list)
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            if name in state:
                groups[id(tensor)].append(name)
    return [group for group in groups.values() if len(group) > 1]
