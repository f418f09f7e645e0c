"""Patch a model for example-weighted inference, set α, and undo it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from glob import escape

from torch import Tensor, nn

from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.core.suggestions import did_you_mean
from alphatune.norms.example_weighted import ExampleWeighted
from alphatune.norms.surgery import become_example_weighted_, become_stock_
from alphatune.norms.survey import NormLayer, survey

Alpha = float | Tensor


def patch_(
    model: nn.Module,
    alpha: Alpha | Mapping[str, Alpha] | None = None,
    *,
    exclude: Collection[str] = (),
    skip_unknown: bool = False,
) -> tuple[str, ...]:
    """Make every BatchNorm of a model weigh the example in, in place.

        y = γ · (x − mean) / sqrt(variance + ε) + β

    with mean and variance mixed from the example's moments (weight α) and the
    moving averages (weight 1 − α): paper section 3.1, Eq. 3. At α = 0 outputs
    are the unpatched model's, bit for bit (where GroupNorm layers are patched at
    α = 1); state-dict keys never change. Layers that are patched already only get
    the new α; those that keep no moving averages are patched once ``calibrate_``
    has measured them.

    Args:
        model: any module; put it in eval mode to see the effect.
        alpha: one weight for all layers, or a mapping from layer name to weight.
            Layers it does not name, and without it all of them, get the α that
            changes nothing: 0, but 1 for GroupNorm.
        exclude: layer names or globs (``"layer4.*"``) to leave alone, of unknown kind or not.
        skip_unknown: leave all layers of unknown kind as they are instead of refusing.

    Returns:
        The names of all example-weighted layers, in model order.

    Raises:
        UnsupportedModelError: nothing to patch, or a layer of unknown kind.
        ConfigurationError: α outside [0, 1]; a name or glob that matches nothing.
    """
    exclude = (exclude,) if isinstance(exclude, str) else exclude
    layers = survey(model)
    _refuse_unknown([layer for layer in layers if not _matches(layer, exclude)], skip_unknown)
    chosen = [
        layer for layer in layers if layer.status in ("patchable", "patched") and not _matches(layer, exclude)
    ]
    _require_matches("exclude", exclude, layers)
    if not chosen:
        raise UnsupportedModelError(*_nothing_to_patch(layers))
    modules = dict(model.named_modules())
    added: list[ExampleWeighted] = []
    try:
        for layer in chosen:
            module = modules[layer.name]
            if layer.status == "patchable":
                become_example_weighted_(module)
                added.append(module)
        set_alpha_(model, {} if alpha is None else alpha)
    except BaseException:
        for module in added:
            become_stock_(module)
        raise
    return tuple(layer.name for layer in chosen)


def unpatch_(model: nn.Module) -> None:
    """Undo ``patch_``: every layer is the very object, of the class, it was before."""
    for _, module in example_weighted_layers(model):
        become_stock_(module)


def set_alpha_(model: nn.Module, alpha: Alpha | Mapping[str, Alpha]) -> None:
    """Set α of a patched model: one for all, or a mapping from layer name.

    Raises:
        UnsupportedModelError: the model is not patched.
        ConfigurationError: α outside [0, 1], or an unknown layer name.
    """
    layers = dict(example_weighted_layers(model))
    if not layers:
        raise UnsupportedModelError("the model has no example-weighted layer", "call patch_(model) first")
    wanted: dict[ExampleWeighted, Alpha]
    if isinstance(alpha, Mapping):
        wanted = {layer: layer.unpatched_alpha for layer in layers.values()}
        by_any_name = dict(model.named_modules(remove_duplicate=False))
        for name, value in alpha.items():
            layer = by_any_name.get(name)
            if not isinstance(layer, ExampleWeighted):
                raise ConfigurationError(
                    f"alpha names {name!r}, which is no example-weighted layer of this model",
                    f"layers are called like {next(iter(layers))!r}",
                )
            wanted[layer] = value
    else:
        wanted = dict.fromkeys(layers.values(), alpha)
    for layer, value in wanted.items():  # all are checked before any is changed
        layer.check_alpha(value)
    for layer, value in wanted.items():
        layer.set_alpha(value)


def get_alpha(model: nn.Module) -> dict[str, float | list[float]]:
    """α of every example-weighted layer by name; empty for an unpatched model."""
    return {name: layer.alpha.tolist() for name, layer in example_weighted_layers(model)}


def unpatched_alpha(model: nn.Module) -> float:
    """The α at which a patched model is the unpatched one: 0, or 1 where all patched layers are GroupNorm.

    Raises:
        UnsupportedModelError: layers differ in it, so that no single α is.
    """
    alphas = {layer.unpatched_alpha for _, layer in example_weighted_layers(model)}
    if len(alphas) > 1:
        raise UnsupportedModelError(
            "the model has BatchNorm and GroupNorm layers: no single α stands for the unpatched model",
            "`exclude` leaves the layers of one kind alone",
        )
    return alphas.pop() if alphas else 0.0


def example_weighted_layers(model: nn.Module) -> list[tuple[str, ExampleWeighted]]:
    """Names and modules of the patched layers, each shared module once."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, ExampleWeighted)]


@contextmanager
def patched(
    model: nn.Module, *, exclude: Collection[str] = (), skip_unknown: bool = False
) -> Iterator[tuple[str, ...]]:
    """Patch for the time of a ``with`` block; undone on any exit.

    A model that was patched already keeps its layers and gets its α back.
    """
    before = {module: module.alpha.clone() for _, module in example_weighted_layers(model)}
    try:
        yield patch_(model, exclude=exclude, skip_unknown=skip_unknown)
    finally:
        for _, layer in example_weighted_layers(model):
            if layer in before:
                layer.set_alpha(before[layer])
            else:
                become_stock_(layer)


@contextmanager
def differentiable_alpha(alphas: Mapping[ExampleWeighted, Tensor]) -> Iterator[None]:
    """Let layers normalise by α tensors of an autograd graph, () or (C,), for the time of a ``with`` block."""
    before = {layer: (layer.alpha, layer.weighs_example) for layer in alphas}
    try:
        for layer, alpha in alphas.items():
            layer.alpha, layer.weighs_example = alpha, True
        yield
    finally:
        for layer, (alpha, weighs) in before.items():
            layer.alpha, layer.weighs_example = alpha, weighs


def all_but(model: nn.Module, names: Collection[str]) -> tuple[str, ...]:
    """What to exclude so that ``patch_`` takes the named layers, by any of their names, and no other."""
    layers = [layer for layer in survey(model) if not {layer.name, *layer.aliases} & set(names)]
    return tuple(escape(layer.name) for layer in layers)


def all_but_matching(model: nn.Module, patterns: Collection[str]) -> tuple[str, ...]:
    """What to exclude so that ``patch_`` takes only layers that match a name or glob; nothing without any.

    Raises:
        ConfigurationError: a name or glob that matches nothing.
    """
    layers = survey(model)
    _require_matches("layers", patterns, layers)
    return tuple(escape(layer.name) for layer in layers if patterns and not _matches(layer, patterns))


def _require_matches(what: str, patterns: Collection[str], layers: Sequence[NormLayer]) -> None:
    for pattern in patterns:
        if not any(_matches(layer, (pattern,)) for layer in layers):
            raise ConfigurationError(
                f"{what} pattern {pattern!r} matches no norm layer",
                did_you_mean(
                    pattern, [layer.name for layer in layers], "`alphatune inspect` lists the names"
                ),
            )


def _matches(layer: NormLayer, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, p) for p in patterns for name in (layer.name, *layer.aliases))


def _refuse_unknown(layers: Sequence[NormLayer], skip_unknown: bool) -> None:
    unknown = [layer for layer in layers if layer.status == "unsupported"]
    if unknown and not skip_unknown:
        shown = "; ".join(f"{layer.name or '(root)'}: {layer.reason}" for layer in unknown[:3])
        more = f"; and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UnsupportedModelError(
            f"{len(unknown)} norm layer(s) cannot be example-weighted: {shown}{more}",
            "`skip_unknown` leaves them as they are and tunes the rest",
        )


def _nothing_to_patch(layers: tuple[NormLayer, ...]) -> tuple[str, str]:
    """What is wrong, and what to do."""
    hint = "`alphatune inspect` shows each layer and why"
    if not layers:
        return (
            "expected a model with BatchNorm layers, found no normalisation layer at all: "
            "it has none, or they are folded into the convolutions or quantised"
        ), hint
    kinds = ", ".join(sorted({layer.kind for layer in layers}))
    if any(layer.status == "calibratable" for layer in layers):
        hint = "tune with `calibrate=DATA`, or calibrate_, measures them over a set of images"
    return f"expected at least one BatchNorm layer with moving averages to patch, found only: {kinds}", hint
