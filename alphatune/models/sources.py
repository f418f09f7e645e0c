"""Where a model comes from: the forms the MODEL argument takes.

    NAME, NAME.TAG               timm, e.g. resnet50.a1_in1k
    hf-hub:USER/REPO             timm, from the Hugging Face hub
    local-dir:FOLDER, FOLDER     timm, from a folder in the hub's layout; transformers, from one in its own
    torchvision:NAME[:WEIGHTS]   torchvision, e.g. torchvision:resnet50:IMAGENET1K_V2
    package.module:factory       a function or class of your own, or a method of one
    path/to/file.py:factory      the same, from a file
    FOLDER                       a folder that alphatune wrote

Only the two factory forms run code, and only code that the caller names.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torchvision
from torch import nn

from alphatune.core.errors import (
    AlphatuneError,
    CheckpointError,
    ConfigurationError,
    one_line,
    raise_if_machine_failed,
)
from alphatune.core.suggestions import closest, did_you_mean, did_you_mean_path, one_of
from alphatune.data.preprocessing import (
    Preprocessing,
    preprocessing_of_timm,
    preprocessing_of_torchvision,
    undeclared_by_timm,
)
from alphatune.models.foreign import as_network, refuse_graph
from alphatune.models.model_kwargs import Kwargs
from alphatune.models.neighbours import Neighbours, neighbours_in
from alphatune.models.output import is_bundle
from alphatune.models.third_party_weights import reading_safely
from alphatune.models.transformers_folder import (
    build_transformers,
    is_transformers,
    preprocessing_of_transformers,
    weights_file,
)

#: the only factories a tuned folder may name without the reader's consent, each in full:
#: a prefix would also trust whatever those modules import
TRUSTED_FACTORIES = frozenset(
    ["alphatune.models.digits:convnet"]
    + [f"alphatune.models.cifar:resnet{depth}" for depth in (18, 20, 32, 44, 56, 110)]
)

SCHEMES = ("torchvision", "hf-hub", "local-dir")
FORMS = "a timm name, torchvision:NAME, hf-hub:…, local-dir:…, package.module:factory or file.py:factory"
#: that timm's and torchvision's networks take, though the function called for them hands on whatever it gets
USUAL_ARGUMENTS = (
    "num_classes",
    "in_chans",
    "drop_rate",
    "drop_path_rate",
    "global_pool",
    "act_layer",
    "norm_layer",
)


@dataclass(frozen=True)
class Source:
    """An architecture, built: the module and what is known about it."""

    spec: str
    kind: str  # timm | torchvision | transformers | factory
    model: nn.Module
    model_kwargs: Kwargs = field(default_factory=dict)
    preprocessing: Preprocessing | None = None  # None: the source does not say
    undeclared: tuple[str, ...] = ()  # parts of it that are defaults, and nothing the source says
    weights: str = ""  # which pretrained weights came along, "" for none
    checkpoint: Path | None = (
        None  # a file of weights that belongs to the architecture and is still to be loaded
    )
    notes: tuple[str, ...] = ()  # what is worth saying of how it was made


def build(spec: str, *, pretrained: bool = True, model_kwargs: Mapping[str, Any] | None = None) -> Source:
    """Build the architecture that MODEL names, with its pretrained weights if it has any.

    Args:
        spec: any form above but a tuned folder (``alphatune.load`` reads those).
        pretrained: fetch the weights that timm or torchvision has for the name.
        model_kwargs: passed to the factory.

    Raises:
        ConfigurationError: an unknown name, or arguments the factory refuses.
        CheckpointError: pretrained weights that cannot be had.
        UnsupportedModelError: what a factory gives is no network to work on.
    """
    kwargs = dict(model_kwargs or {})
    scheme, _, rest = spec.partition(":")
    if scheme == "torchvision":
        return _torchvision(spec, rest, pretrained, kwargs)
    folder = Path(rest if scheme == "local-dir" else spec)
    if is_transformers(folder):
        model = build_transformers(folder, kwargs)
        weights = weights_file(folder) if pretrained else None
        return Source(
            spec, "transformers", model, kwargs, preprocessing_of_transformers(folder), checkpoint=weights
        )
    if scheme in ("hf-hub", "hf_hub", "local-dir"):
        return _timm(spec, pretrained, kwargs)
    if (Path(spec) / "config.json").is_file():
        return _timm(f"local-dir:{spec}", pretrained, kwargs)
    if Path(spec).is_dir() and not timm.is_model(spec.partition(".")[0]):
        if (Path(spec) / "checkpoint.pt").is_file() and (Path(spec) / "run.toml").is_file():
            raise ConfigurationError(
                f"the folder {spec} holds an unfinished training run",
                "finish it by the same train command with `resume`",
            )
        raise ConfigurationError(f"the folder {spec} was not written by alphatune and has no config.json")
    if Path(spec).is_file():
        refuse_graph(Path(spec))
        raise ConfigurationError(
            f"MODEL names an architecture, got the file {spec}",
            f"try: MODEL `checkpoint={spec}`" if not spec.endswith(".py") else f"try: {spec}:FACTORY",
        )
    if rest:
        location, _, attribute = spec.rpartition(":")
        return _factory(spec, location, attribute, kwargs)
    return _timm(spec, pretrained, kwargs)


def parse_model_kwargs(pairs: Sequence[str]) -> Kwargs:
    """``["num_classes=10", "act=relu"]`` -> {"num_classes": 10, "act": "relu"}.

    Values are Python literals; what is none is taken as text.
    """
    kwargs: Kwargs = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigurationError(f"`model_kwargs` takes name=value, got {pair!r}")
        try:
            kwargs[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            kwargs[key] = {"true": True, "false": False}.get(text.lower(), text)
    return kwargs


def format_model_kwargs(kwargs: Mapping[str, Any]) -> list[str]:
    """The inverse of ``parse_model_kwargs``; JSON would turn tuples into lists."""
    return [f"{key}={value!r}" for key, value in kwargs.items()]


def _timm(spec: str, pretrained: bool, kwargs: Kwargs) -> Source:
    if ":" not in spec:
        name = spec.partition(".")[0]
        if "/" in spec or not timm.is_model(name):
            raise ConfigurationError(
                f"unknown model {spec!r}, and no folder or file of that name", _suggest(spec, name)
            )
        if pretrained and not timm.is_model_pretrained(spec):
            tagged = timm.list_pretrained(f"{name}.*")
            tags = [n.partition(".")[2] for n in tagged]
            raise ConfigurationError(
                f"timm has no pretrained weights {spec!r}",
                one_of([f"{name}.{tag}" for tag in closest(spec.partition(".")[2], tags, 1)])
                or f"give `checkpoint=FILE`{', or one of the tags ' + ', '.join(tags[:8]) if tags else ''}",
            )
    with reading_safely():
        model = _call(timm.create_model, spec, spec, pretrained=pretrained, **kwargs)
    config = model.pretrained_cfg
    weights = f"{config.get('architecture')}.{config.get('tag') or 'default'}" if pretrained else ""
    undeclared = undeclared_by_timm(model)
    return Source(spec, "timm", model, kwargs, preprocessing_of_timm(model), undeclared, weights)


def _torchvision(spec: str, rest: str, pretrained: bool, kwargs: Kwargs) -> Source:
    name, _, weights_name = rest.partition(":")
    if name not in torchvision.models.list_models():
        raise ConfigurationError(
            f"unknown torchvision model {name!r}", did_you_mean(name, torchvision.models.list_models())
        )
    available = torchvision.models.get_model_weights(name)
    try:
        weights = available[weights_name or "DEFAULT"]
    except KeyError:
        names = [w.name for w in available]
        raise ConfigurationError(
            f"torchvision has no weights {weights_name!r} for {name}",
            did_you_mean(weights_name, names, f"it has: {', '.join(names) or 'none'}"),
        ) from None
    parameters = inspect.signature(torchvision.models.get_model_builder(name)).parameters
    # Of segmentation and detection models: no weights means none for the backbone either.
    backbone = {"weights_backbone": None} if "weights_backbone" in parameters and not pretrained else {}
    wanted = weights if pretrained else None
    with reading_safely():
        model = _call(torchvision.models.get_model, spec, name, weights=wanted, **{**backbone, **kwargs})
    # Weights imply constructor arguments, which building without them must repeat.
    if pretrained and "aux_loss" in parameters:
        kwargs = {"aux_loss": True, **kwargs}
    for implied in ("transform_input", "aux_logits"):
        if pretrained and hasattr(model, implied):
            kwargs = {**kwargs, implied: getattr(model, implied), "init_weights": False}
    preset = weights.transforms()
    preprocessing = preprocessing_of_torchvision(preset) if hasattr(preset, "crop_size") else None
    came_along = str(weights) if pretrained else ""
    return Source(spec, "torchvision", model, kwargs, preprocessing, weights=came_along)


def find_factory(spec: str, what: str = "MODEL", *, again: bool = True) -> Any:
    """Import what ``package.module:factory`` or ``file.py:factory`` names.

    Args:
        what: the argument or option that names it, for messages.
        again: run a file anew even if it was run before; without, what the model came from is
            found as the model saw it, with the same classes and constants.
    """
    location, _, attribute = spec.rpartition(":")  # there may be a drive before it
    module = _import(location, spec, what, again)
    factory: Any = module
    for part in attribute.split("."):
        if not hasattr(factory, part):
            known = [n for n in dir(factory) if not n.startswith("_") and callable(getattr(factory, n))]
            raise ConfigurationError(f"{location} has no {attribute!r}", did_you_mean(part, known))
        factory = getattr(factory, part)
    return factory


def beside(location: str) -> Neighbours:
    """What lies in the folder of ``file.py``, or where ``package.module`` of the user's own would lie."""
    return neighbours_in(str(Path(location).parent) if location.endswith(".py") else ".")


def _factory(spec: str, location: str, attribute: str, kwargs: Kwargs) -> Source:
    factory = find_factory(spec)
    if isinstance(factory, nn.Module) and kwargs:
        raise ConfigurationError(f"{spec} is a model already and takes no `model_kwargs`")
    called = callable(factory) and not isinstance(factory, nn.Module)
    model = _call(beside(location).calling(factory), spec, **kwargs) if called else factory
    if location.endswith(".py"):
        spec = f"{Path(location).absolute()}:{attribute}"  # so that a tuned folder finds it from anywhere
    model, notes = as_network(model, spec)
    preprocessing: Preprocessing | None = None
    undeclared: tuple[str, ...] = ()
    if getattr(model, "pretrained_cfg", None):
        with contextlib.suppress(Exception):  # a foreign pretrained_cfg may be anything
            undeclared = undeclared_by_timm(model)
            preprocessing = preprocessing_of_timm(model)
    return Source(spec, "factory", model, kwargs, preprocessing, undeclared, notes=notes)


def _import(location: str, spec: str, what: str = "MODEL", again: bool = True) -> Any:
    try:
        if location.endswith(".py"):
            path = Path(location)
            if not path.is_file():
                raise ConfigurationError(f"no such file: {location}", did_you_mean_path(location))
            name = "_alphatune_model_" + re.sub(r"\W", "_", path.stem)
            stamp = (path.resolve(), path.stat().st_mtime_ns)
            if not again and getattr(sys.modules.get(name), "_alphatune_stamp", None) == stamp:
                return sys.modules[name]
            with contextlib.redirect_stdout(sys.stderr):
                module = beside(location).load(name, location)
            module._alphatune_stamp = stamp  # type: ignore[attr-defined]
            return module
        if not all(part.isidentifier() for part in location.split(".")):
            forms = "package.module:function or file.py:function"
            raise ConfigurationError(
                f"cannot understand {what} {spec!r}",
                forms if what != "MODEL" else _meant_scheme(spec) or FORMS,
            )
        # As `python -m` does: a module beside the command line is the user's own.
        with contextlib.redirect_stdout(sys.stderr), beside(location).first():
            return importlib.import_module(location)
    except AlphatuneError:
        raise
    except ModuleNotFoundError as error:
        hint = (_meant_scheme(spec) if what == "MODEL" else "") or _meant_module(error.name or "", location)
        raise ConfigurationError(f"cannot import {location}: {error}", hint) from None
    except (Exception, SystemExit) as error:  # the user's module may raise anything while it is imported
        raise ConfigurationError(
            f"{location} failed to import: {type(error).__name__}: {one_line(error)}",
            _package_of(location, error),
        ) from None


def _call(factory: Callable[..., Any], spec: str, *args: Any, **kwargs: Any) -> Any:
    """Call a factory with stdout kept clean, its errors turned into ours."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return factory(*args, **kwargs)
    except AlphatuneError:
        raise
    except TypeError as error:
        if _takes(factory, args, kwargs):
            raise ConfigurationError(f"cannot build {spec}: TypeError: {one_line(error)}") from None
        raise ConfigurationError(
            f"{spec} does not take these arguments: {one_line(error)}", _meant_argument(error, factory)
        ) from None
    except (OSError, FileNotFoundError) as error:  # huggingface_hub's and urllib's errors are OSErrors
        raise CheckpointError(
            f"cannot get the pretrained weights of {spec}: {one_line(error)}",
            "give the weights as `checkpoint=FILE`",
        ) from None
    except (Exception, SystemExit) as error:  # any factory may raise anything
        raise_if_machine_failed(error)
        raise ConfigurationError(f"cannot build {spec}: {type(error).__name__}: {one_line(error)}") from None


def _takes(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: Kwargs) -> bool:
    """Whether a factory of somebody's own takes the arguments, so that it is not they that it fails of."""
    if getattr(factory, "__module__", "").partition(".")[0] in ("timm", "torchvision"):
        return False  # which hand on what they get
    try:
        signature = inspect.signature(factory)
        signature.bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def _suggest(spec: str, name: str) -> str:
    """Models of a similar name: timm's, torchvision's, our own, and tuned folders."""
    if "/" in spec:
        return did_you_mean_path(spec, FORMS)
    folders = [entry.name for entry in Path().iterdir() if is_bundle(entry)]
    elsewhere = {other: f"torchvision:{other}" for other in torchvision.models.list_models()}
    for factory in sorted(TRUSTED_FACTORIES):
        if (other := factory.partition(":")[2]).startswith("resnet"):
            alike = (other, f"cifar_{other}", f"cifar10_{other}", f"{other}_cifar", f"{other}_cifar10")
            elsewhere |= dict.fromkeys(alike, factory)
    known = {**elsewhere, **{other: other for other in (*timm.list_models(), *folders)}}
    return one_of(list(dict.fromkeys(known[other] for other in closest(name, known))), FORMS)


def _meant_scheme(spec: str) -> str:
    """``torchvison:resnet50`` -> did you mean torchvision:resnet50? And ``cifar:resnet56`` our own."""
    scheme, _, rest = spec.partition(":")
    if ours := [factory for factory in TRUSTED_FACTORIES if factory.endswith(f".{scheme}:{rest}")]:
        return one_of(ours)
    return did_you_mean(spec, [f"{known}:{rest}" for known in closest(scheme, SCHEMES, 1)])


def _meant_module(missing: str, location: str) -> str:
    """Neighbours of a module that is not there, if it is the one that was named."""
    package, _, name = missing.rpartition(".")
    if not (location == missing or location.startswith(f"{missing}.")):
        return "is its package installed?"
    paths = list(sys.modules[package].__path__) if package in sys.modules else [str(Path.cwd())]
    neighbours = [module.name for module in pkgutil.iter_modules(paths)]
    prefix = f"{package}." if package else ""
    meant = [prefix + neighbour for neighbour in closest(name, neighbours)]
    return did_you_mean(missing, meant, "is its package installed?")


def _package_of(location: str, error: BaseException) -> str:
    """How a file of a package is named, if it is for that that it cannot be read."""
    path = Path(location).absolute()
    if not isinstance(error, ImportError) or "relative import" not in str(error):
        return ""
    name, folder = path.stem, path.parent
    while True:
        name, folder = f"{folder.name}.{name}", folder.parent
        if not (folder / "__init__.py").is_file() or folder == folder.parent:
            break
    return f"a file that belongs to a package goes by its module's name: in {folder}, {name}:FACTORY"


def _meant_argument(error: TypeError, factory: Callable[..., Any]) -> str:
    """The factory's argument that a name it does not take looks like; Python 3.13 says so itself."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if not unknown or "Did you mean" in str(error):
        return "see `model_kwargs`"
    try:
        known = list(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        known = []
    return did_you_mean(unknown[1], {*known, *USUAL_ARGUMENTS}, "see `model_kwargs`")
