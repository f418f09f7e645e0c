"""How to read the logits out of what a model returns.

A ``Reading`` names the output that holds the logits, by its path through tuples, dicts and
records, and says whether it holds probabilities instead, and whether it is the one number of
a network that tells two classes apart. ``models/outputs.py`` decides on it
and keeps it on the model, where copies of the model take it along; everything that looks at
outputs asks here.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alphatune.core.errors import ConfigurationError

#: what to do with a model that does not return one row of logits an example
NOT_A_CLASSIFIER = "this is for classifiers; tune with `score` takes any other model, by a score of your own"
#: names that outputs of classifiers go by, the most telling first
NAMES = ("logits", "out", "pred", "preds", "prediction", "predictions", "scores", "output")
#: how far the sum of a row of probabilities may be from 1: some are rounded to a few decimals, or float16
SUM_TOLERANCE = 0.01

#: where a tensor is in an output: () is the output itself
Path = tuple[int | str, ...]


class SeveralOutputsError(ConfigurationError):
    """More than one output could be the logits: the choice is the caller's."""


_ATTRIBUTE = "_alphatune_reading"
#: how deep outputs are nested at most
_DEPTH = 4


@dataclass(frozen=True)
class Reading:
    """Where the logits are in what a model returns, and what form they have.

    a row z (N, classes)     logits z
    a row p >= 0 of sum 1    logits log p
    one number z an example  logits (0, z): z is for the second of two classes, against the first
    one probability p        logits (log(1 - p), log p)
    """

    path: Path = ()
    probabilities: bool = False
    single: bool = False

    @property
    def name(self) -> str:
        """The path as text, "" for the output itself."""
        return name_of(self.path)

    def take(self, output: object) -> Tensor:
        """The tensor as the model gives it.

        Raises:
            ConfigurationError: the output is not built like the one that was looked at.
        """
        try:
            found: Any = output
            for key in self.path:
                found = _at(found, key)
        except (KeyError, IndexError, AttributeError, TypeError):
            found = None
        if not torch.is_tensor(found):
            raise ConfigurationError(
                f"the model's output has no tensor {self.name or 'by itself'} this time: it is a "
                f"{type(output).__name__} of {_listed(tensors_of(output))}",
                NOT_A_CLASSIFIER,
            )
        return found

    def logits(self, output: object) -> Tensor:
        """Logits (N, classes), as the table above has them.

        Raises:
            ConfigurationError: as ``take``; or values that are no probabilities although earlier ones were.
        """
        values = self.take(output)
        if self.single:
            flat = values.reshape(-1)
            if not self.probabilities:
                return torch.stack([torch.zeros_like(flat), flat], dim=1)
            if bool(((flat < 0) | (flat > 1)).any()):
                raise ConfigurationError(
                    "the model returned one probability an example for the first images, and a number outside of "
                    "[0, 1] for a later one",
                    "let the model return its logit",
                )
            return torch.stack([log_of(1 - flat), log_of(flat)], dim=1)
        if not self.probabilities or values.ndim != 2:
            return values
        if not are_probabilities(values):
            raise ConfigurationError(
                "the model returned probabilities for the first images, and something else for later ones: a row "
                "has negative values or does not sum to 1",
                "let the model return its logits",
            )
        return log_of(values)

    def divide(self, output: Any, temperature: float) -> Any:
        """The output with its logits divided by a temperature; probabilities stay probabilities."""
        values = self.take(output)
        if not self.probabilities:
            cooled = values / temperature
        elif self.single:
            cooled = ((log_of(values) - log_of(1 - values)) / temperature).sigmoid().to(values.dtype)
        else:
            cooled = (log_of(values) / temperature).softmax(1).to(values.dtype)
        return _put(output, self.path, cooled)


def reading_to_dict(reading: Reading | None) -> dict[str, object] | None:
    """As it stands in a file; None where nothing was decided."""
    if reading is None:
        return None
    return {"path": list(reading.path), "probabilities": reading.probabilities, "single": reading.single}


def reading_from_dict(values: Any) -> Reading | None:
    """What ``reading_to_dict`` gave; raises ValueError on anything else."""
    if values is None:
        return None
    path, probabilities = values["path"], values["probabilities"]
    single = values.get("single", False)  # earlier versions refused such models
    if (
        not isinstance(path, list)
        or not all(type(k) in (int, str) for k in path)
        or type(probabilities) is not bool
        or type(single) is not bool
    ):
        raise ValueError(f"no reading: {values!r}")
    return Reading(tuple(path), probabilities, single)


def reading_of(model: nn.Module, output: object) -> Reading:
    """The reading that was decided on for a model; else what its output says by itself.

    Raises:
        ConfigurationError: several outputs could be the logits.
    """
    known = kept_reading(model)
    return known or Reading(choose(tensors_of(output), first=first_is_main(model)))


def first_is_main(model: nn.Module) -> bool:
    """Whether auxiliary heads come after the logits, as in all networks of timm and torchvision."""
    return type(model).__module__.partition(".")[0] in ("timm", "torchvision")


def kept_reading(model: nn.Module) -> Reading | None:
    """What ``keep_reading_`` left on a model."""
    return model.__dict__.get(_ATTRIBUTE)


def keep_reading_(model: nn.Module, reading: Reading | None) -> None:
    """Remember with a model how its output is read; None forgets."""
    model.__dict__.pop(_ATTRIBUTE, None)
    if reading is not None:
        model.__dict__[_ATTRIBUTE] = reading


def logits_of(model: nn.Module, output: object) -> Tensor:
    """The logits (N, classes) in what a model returned."""
    return reading_of(model, output).logits(output)


def output_of(model: nn.Module, output: object) -> Tensor:
    """The same tensor as the model gives it: probabilities, where it gives those."""
    return reading_of(model, output).take(output)


def heads_of(model: nn.Module, output: object) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The logits of a model in training mode, and those of auxiliary heads, equally wide.

    Heads that there are in training only come after the logits, as in torchvision's and timm's Inception.
    """
    tensors, kept = tensors_of(output), kept_reading(model) or Reading()
    if kept.path not in tensors and tensors:
        first = next(iter(tensors))
        named = (p for name in NAMES for p in tensors if p and p[-1] == name)
        kept = dataclasses.replace(kept, path=next(named, first))
    own = kept.take(output)
    others = [t for p, t in tensors.items() if p != kept.path and t.shape == own.shape]
    return kept.logits(output), tuple(
        dataclasses.replace(kept, path=()).logits(t) for t in others if t.is_floating_point()
    )


def log_of(probabilities: Tensor) -> Tensor:
    """log p in float32 at least; a p of 0 counts as the smallest number of its dtype, so that a loss is finite."""
    smallest = 2.0**-24 if probabilities.dtype == torch.float16 else torch.finfo(probabilities.dtype).tiny
    wide = torch.promote_types(probabilities.dtype, torch.float32)
    return probabilities.to(wide).clamp_min(smallest).log()


def are_probabilities(values: Tensor) -> bool:
    """Whether every row that is finite is >= 0 and sums to 1."""
    rows = values.detach().float()
    wrong = (rows < 0).any(1) | ((rows.sum(1) - 1).abs() > SUM_TOLERANCE)  # a NaN is for others to report
    return not bool(wrong.any())


def tensors_of(output: object, path: Path = ()) -> dict[Path, Tensor]:
    """Every tensor in an output by its path, each once."""
    if torch.is_tensor(output):
        return {path: output}
    found: dict[Path, Tensor] = {}
    for key, value in _items(output) if len(path) < _DEPTH else ():
        for place, tensor in tensors_of(value, (*path, key)).items():
            if not any(tensor is other for other in found.values()):
                found[place] = tensor
    return found


def choose(
    tensors: Mapping[Path, Tensor],
    widths: tuple[int, ...] = (),
    wanted: str | None = None,
    among: int = 0,
    first: bool = False,
) -> Path:
    """Which of the tensors are the logits.

    The only tensor; or the one that was asked for; or among those with a row an example the one
    by a usual name, if it has a wanted width; or the only one of a wanted width; or the only one.

    Args:
        widths: numbers of columns that logits may have, the likeliest first.
        wanted: N or KEY, by which the caller chooses.
        among: the number of examples, 0 where it is not known.
        first: among several take the first, where that is known to be the model's own head.

    Raises:
        ConfigurationError: none could be, or several and the choice is the caller's.
    """
    if wanted is not None:
        tensors = _wanted(tensors, wanted)
    if len(tensors) == 1:
        return next(iter(tensors))
    rows = {
        p: t
        for p, t in tensors.items()
        if t.ndim == 2 and t.is_floating_point() and len(t) == (among or len(t))
    }
    names = {str(p[-1]): p for p in reversed(list(tensors)) if p and tensors[p].is_floating_point()}
    named = next((names[name] for name in NAMES if name in names), None)
    fitting: dict[Path, Tensor] = {}
    for width in widths:
        fitting = fitting or {p: t for p, t in rows.items() if t.shape[1] == width}
    if named is not None and (named in fitting or not fitting):
        return named
    found = fitting or {p: t for p, t in rows.items() if t.shape[1] > 1}
    if len(found) == 1 or (first and found):
        return next(iter(found))
    if not found:
        raise ConfigurationError(
            "the model's output holds no tensor of logits" + (f": {_listed(tensors)}" if tensors else ""),
            NOT_A_CLASSIFIER,
        )
    raise SeveralOutputsError(
        f"the model returns several outputs, and {len(found)} of them could be the logits: {_listed(found)}",
        f"say which: `logits={name_of(next(reversed(found)))}` takes the last, for example",
    )


def name_of(path: Path) -> str:
    """A path as people write it: ``logits``, ``1``, ``heads.0``."""
    return ".".join(map(str, path))


def _wanted(tensors: Mapping[Path, Tensor], wanted: str) -> dict[Path, Tensor]:
    """The tensors that N or KEY names: one, or those within what it names."""
    found = {p: t for p, t in tensors.items() if name_of(p) == wanted}
    found = found or {p: t for p, t in tensors.items() if name_of(p).startswith(f"{wanted}.")}
    if not found and wanted.isdecimal():  # by position among outputs that have names
        keys = list(dict.fromkeys(p[0] for p in tensors if p))
        if int(wanted) < len(keys):
            found = {p: t for p, t in tensors.items() if p[0] == keys[int(wanted)]}
    if not found:
        alone = () in tensors
        raise ConfigurationError(
            f"the model has no output {wanted!r}: "
            + ("it returns a single tensor" if alone else f"it returns {_listed(tensors)}"),
            "leave out `logits`" if alone else "`logits` takes one of these",
        )
    return found


def _listed(tensors: Mapping[Path, Tensor]) -> str:
    """``0 (64 columns), 1 (10 columns)``."""
    shown = []
    for path, tensor in list(tensors.items())[:8]:
        shape = f"{tensor.shape[1]} columns" if tensor.ndim == 2 else f"shape {tuple(tensor.shape)}"
        shown.append(f"{name_of(path) or 'a tensor'} ({shape})")
    return ", ".join(shown) + (", ..." if len(tensors) > 8 else "") if shown else "no tensors"


def _items(output: Any) -> Iterator[tuple[int | str, Any]]:
    """The parts of a container or record, by index or name."""
    if isinstance(output, Mapping):
        pairs: Any = output.items()
    elif isinstance(output, tuple) and (fields := getattr(output, "_fields", None)):
        pairs = zip(fields, output, strict=False)
    elif isinstance(output, (tuple, list)):
        pairs = enumerate(output)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        pairs = ((field.name, getattr(output, field.name, None)) for field in dataclasses.fields(output))
    else:
        pairs = getattr(output, "__dict__", {}).items()
    for key, value in pairs:
        if isinstance(key, (int, str)) and not str(key).startswith("_"):
            yield key, value


def _at(output: Any, key: int | str) -> Any:
    if isinstance(output, Mapping) or (isinstance(output, (tuple, list)) and isinstance(key, int)):
        return output[key]  # type: ignore[index]
    return getattr(output, str(key))


def _put(output: Any, path: Path, value: Tensor) -> Any:
    """A copy of an output with another tensor at a path."""
    if not path:
        return value
    key, inner = path[0], _put(_at(output, path[0]), path[1:], value)
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        changed[key] = inner
    elif hasattr(output, "_replace"):
        changed = output._replace(**{str(key): inner})
    elif isinstance(output, (tuple, list)):
        changed = type(output)([inner if i == key else item for i, item in enumerate(output)])
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        changed = dataclasses.replace(output, **{str(key): inner})
    else:
        changed = copy.copy(output)
        setattr(changed, str(key), inner)
    return changed
