"""Every architecture that timm and torchvision build, with random weights, and what patching promises for it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import timm
import torch
import torchvision
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn

from alphatune import patch_, set_alpha_, unpatch_
from alphatune.norms.survey import survey

#: An architecture whose parameters alone take more than this, in float32, is left out.
MOST_BYTES = 5.5e9
#: Side lengths that are tried in turn, then the architecture's own. At 32 the last stage of nearly every
#: network sees one position, where an example's variance is 0.
SIDES = range(64, 225, 32)
EXAMPLES = 3
ALPHA = 0.1
#: Largest difference that rounding may make in an output, in multiples of the largest number in it.
TOLERANCE = 1e-4

#: torchvision's architectures that take no images of any size, by family: shapes of one example, tried in turn
SHAPES = {
    "detection": [(3, 128, 128)],
    "optical_flow": [(3, 128, 128)],
    "video": [(3, 8, 64, 64), (3, 16, 224, 224)],
}
#: arguments without which these fetch weights, warn, or detect nothing
ARGUMENTS: dict[str, dict[str, Any]] = {
    "segmentation": {"weights_backbone": None},
    "rcnn": {"weights_backbone": None, "min_size": 128, "max_size": 128, "box_score_thresh": 0.0},
    "retinanet": {"weights_backbone": None, "min_size": 128, "max_size": 128, "score_thresh": 0.0},
    "fcos": {"weights_backbone": None, "min_size": 128, "max_size": 128, "score_thresh": 0.0},
    "ssd": {"weights_backbone": None, "score_thresh": 0.0},
    "fcn": {"aux_loss": True},
    "deeplab": {"aux_loss": True},
    "googlenet": {"init_weights": False},
    "inception": {"init_weights": False},
}

#: what users turn trained networks into: kinds of BatchNorm that no architecture is built with
CONVERSIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "frozen": freeze_batch_norm_2d,
    "sync": convert_sync_batchnorm,
    "split": convert_splitbn_model,
}


@dataclass(frozen=True)
class Architecture:
    """A name that timm or torchvision builds."""

    source: str  # timm | torchvision
    family: str
    name: str


@dataclass(frozen=True)
class Record:
    """What became of one architecture."""

    source: str
    family: str
    name: str
    parameters: int = 0
    shape: tuple[int, ...] = ()  # of one example
    patched: dict[str, int] = field(default_factory=dict)  # number of layers by kind
    unreached: int = 0  # patched layers that no example goes through in eval mode
    by_row: int = 0  # patched layers whose rows are not examples, but tokens or regions
    apart: float = 0.0  # largest difference of an example alone from the same one in a batch
    off: float = 0.0  # largest difference from the definition
    left_out: str = ""  # why it was not tried
    failure: str = ""
    seconds: float = 0.0


class Broken(Exception):
    """A promise that does not hold."""


def architectures() -> dict[tuple[str, str], list[Architecture]]:
    """All of them, by source and family."""
    found: dict[tuple[str, str], list[Architecture]] = {}
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        found["timm", family] = [Architecture("timm", family, name) for name in names]
    for name in torchvision.models.list_models():
        where = torchvision.models.get_model_builder(name).__module__.split(".")
        family = where[2] if len(where) > 3 else "classification"
        found.setdefault(("torchvision", family), []).append(Architecture("torchvision", family, name))
    return {key: members for key, members in found.items() if members}


def least(members: list[Architecture]) -> Architecture:
    """The one with the fewest parameters, of those with BatchNorm if there are any."""

    def rank(architecture: Architecture) -> tuple[bool, int]:
        empty = skeleton(architecture)
        plain = not any(layer.status == "patchable" for layer in survey(empty))
        return plain, sum(p.numel() for p in empty.parameters())

    return min(members, key=rank)


def check(architecture: Architecture, conversion: str = "", **kwargs: Any) -> Record:
    """Try an architecture, converted and built with other arguments if told to; what fails is in the record."""
    start = time.perf_counter()
    facts: dict[str, Any] = {}
    try:
        _check(architecture, facts, CONVERSIONS.get(conversion, nn.Module.eval), kwargs)
    except Exception as error:
        facts["failure"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    seconds = round(time.perf_counter() - start, 2)
    return Record(architecture.source, architecture.family, architecture.name, seconds=seconds, **facts)


def check_by_itself(architecture: Architecture) -> Record:
    """``check`` in a process of its own, in which no architecture before has taken any memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(check, architecture).result()


def _check(
    architecture: Architecture,
    facts: dict[str, Any],
    convert: Callable[[nn.Module], nn.Module],
    kwargs: dict[str, Any],
) -> None:
    empty = skeleton(architecture, **kwargs)
    layers = survey(empty)
    facts["parameters"] = sum(p.numel() for p in empty.parameters())
    if not any(layer.status in ("patchable", "unsupported") for layer in layers):
        facts["left_out"] = "no BatchNorm"
        return
    if 4 * facts["parameters"] > MOST_BYTES:
        facts["left_out"] = f"more than {MOST_BYTES / 1e9:g} GB of parameters"
        return
    for layer in layers:
        if layer.status == "unsupported":
            raise Broken(f"{layer.name} is unsupported: {layer.reason}")
    del empty  # not always without numbers
    shape, sized = smallest(architecture)
    facts["shape"] = shape
    torch.manual_seed(0)
    model = convert(with_moving_averages_(build(architecture, "cpu", **kwargs, **sized))).eval()
    x = torch.randn(EXAMPLES, *shape)
    with torch.inference_mode():
        hold_promises(model, x, architecture, facts)
    fresh = skeleton(architecture, **kwargs, **sized)
    with next(fresh.parameters()).device:
        fresh = convert(fresh)
    fresh.load_state_dict(model.state_dict(), strict=True, assign=True)


def hold_promises(model: nn.Module, x: Tensor, architecture: Architecture, facts: dict[str, Any]) -> None:
    """Patch, change α, unpatch, and compare.

    Raises:
        Broken: what was promised is not so.
    """

    def outputs_of(examples: Tensor) -> list[Tensor]:
        return run(model, examples, architecture)

    def compared_of(examples: Tensor) -> list[Tensor]:
        # How many boxes are found may hang on the last bit of a score: compare what they are found in.
        if architecture.family == "detection":
            return tensors_of(model.backbone(examples))  # type: ignore[operator]
        return outputs_of(examples)

    types = {name: type(module) for name, module in model.named_modules()}
    bits = fingerprint(model)
    before = outputs_of(x)
    if not all(bool(torch.isfinite(t).all()) for t in before):
        raise Broken("the unpatched network's output is not finite")
    if not equal(outputs_of(x), before):
        raise Broken("the unpatched network's output is not deterministic")
    one = slice(1, 2)
    unpatched = compared_of(x)
    defined = by_definition(model, lambda: compared_of(x[one]))

    names = patch_(model)
    facts["patched"] = dict(Counter(layer.kind for layer in survey(model) if layer.status == "patched"))
    if not names:
        raise Broken("no layer was patched")
    if list(model.state_dict()) != list(bits):
        raise Broken("patching changes the keys of the state dict")
    if not equal(outputs_of(x), before):
        raise Broken("alpha = 0 is not eval() bit for bit")

    set_alpha_(model, ALPHA)
    with watched(model, names) as reached:
        outputs_of(x)
    facts["unreached"] = len(names) - len(reached)
    facts["by_row"] = sum(rows != EXAMPLES for rows in reached.values())
    together = compared_of(x)
    alone = compared_of(x[one])
    if not all(bool(torch.isfinite(t).all()) for t in together):
        raise Broken(f"at alpha = {ALPHA} the output is not finite")
    if equal(together, unpatched):
        raise Broken(f"alpha = {ALPHA} changes no output")
    facts["apart"] = apart(alone, [t[one] for t in together])
    if not facts["apart"] <= TOLERANCE:
        raise Broken(f"an output depends on what else is in the batch: {facts['apart']:.1e}")
    facts["off"] = apart(alone, defined)
    if not facts["off"] <= TOLERANCE:
        raise Broken(f"an output differs from the definition by {facts['off']:.1e}")
    if list(model.state_dict()) != list(bits):
        raise Broken("alpha changes the keys of the state dict")

    unpatch_(model)
    if {name: type(module) for name, module in model.named_modules()} != types:
        raise Broken("unpatching does not restore the types")
    if fingerprint(model) != bits:
        raise Broken("the weights are not what they were")
    if not equal(outputs_of(x), before):
        raise Broken("unpatching does not restore the output bit for bit")


def build(architecture: Architecture, device: str, **kwargs: Any) -> nn.Module:
    """The architecture with random weights, in eval mode."""
    name = architecture.name
    with torch.device(device):
        if architecture.source == "timm":
            return timm.create_model(name, pretrained=False, **kwargs).eval()
        for part, arguments in ARGUMENTS.items():
            if part in name or part == architecture.family:
                kwargs = {**arguments, **kwargs}
        return torchvision.models.get_model(name, weights=None, **kwargs).eval()


def skeleton(architecture: Architecture, **kwargs: Any) -> nn.Module:
    """The architecture without numbers, which takes no time and memory, where it can be built so."""
    try:
        return build(architecture, "meta", **kwargs)
    except NotImplementedError:  # torchvision's RegNets compute their widths with tensors
        return build(architecture, "cpu", **kwargs)


def smallest(architecture: Architecture) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The first shape of an example that an architecture takes, and the arguments it takes it with."""
    empty = skeleton(architecture)
    shapes = SHAPES.get(architecture.family)
    if architecture.source == "timm" or shapes is None:
        own = (3, 224, 224) if architecture.source == "torchvision" else empty.default_cfg["input_size"]
        shapes = [*((3, side, side) for side in SIDES), own]
    if architecture.family in ("detection", "optical_flow"):
        return shapes[0], {}  # what they do depends on numbers, which are not there on "meta"
    for shape in shapes:
        for kwargs in ({}, {"img_size": shape[-1]}) if architecture.source == "timm" else ({},):
            try:
                model = skeleton(architecture, **kwargs) if kwargs else empty
                device = next(model.parameters()).device
                model(torch.empty(EXAMPLES, *shape, device=device))
            except Exception:  # a network that gets an input it was not made for raises anything
                continue
            return tuple(shape), kwargs
    raise Broken("it takes none of the shapes that were tried")


def run(model: nn.Module, x: Tensor, architecture: Architecture) -> list[Tensor]:
    """All tensors of the output, in order."""
    if architecture.family == "detection":
        return tensors_of(model(list(x)))
    if architecture.family == "optical_flow":
        return tensors_of(model(x, x.roll(4, -1)))
    return tensors_of(model(x))


def by_definition(model: nn.Module, call: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What example weighting means, by stock layers only: each gets the averages mixed for one row as its own."""
    modules = [model.get_submodule(layer.name) for layer in survey(model) if layer.status == "patchable"]
    for module in modules:
        module.forward = _mixing(module)
    try:
        return call()
    finally:
        for module in modules:
            del module.forward


def _mixing(module: Any) -> Callable[[Tensor], Tensor]:
    stock = module.forward

    def forward(x: Tensor) -> Tensor:
        mean, var = module.running_mean, module.running_var
        rows = []
        for row in x.split(1):
            values = row.transpose(0, 1).flatten(1).double()
            mixed = ALPHA * values.mean(1) + (1 - ALPHA) * mean.double()
            squares = ALPHA * values.square().mean(1) + (1 - ALPHA) * (var.double() + mean.double() ** 2)
            module.running_mean, module.running_var = mixed.float(), (squares - mixed**2).float()
            rows.append(stock(row))
        module.running_mean, module.running_var = mean, var
        return torch.cat(rows)

    return forward


@contextmanager
def watched(model: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, int]]:
    """How many rows each layer that runs during a ``with`` block is given."""
    reached: dict[str, int] = {}
    modules = dict(model.named_modules())

    def watch(name: str) -> Any:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            reached[name] = len(inputs[0])

        return modules[name].register_forward_pre_hook(hook)

    handles = [watch(name) for name in names]
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def with_moving_averages_(model: nn.Module) -> nn.Module:
    """Averages other than 0 and 1, near what the layers really see, so that depth does not blow up."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model.eval()


def tensors_of(output: object) -> list[Tensor]:
    """All tensors in what a network returns, in order: of tuples, lists and dicts, too."""
    if torch.is_tensor(output):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in tensors_of(part)]  # type: ignore[attr-defined]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether they are the same bit for bit."""
    return len(some) == len(others) and all(map(torch.equal, some, others))


def apart(some: list[Tensor], others: list[Tensor]) -> float:
    """The largest difference, in multiples of the largest number of the output it is in."""
    return max(((s - t).abs().max() / t.abs().max()).item() for s, t in zip(some, others, strict=True))


def fingerprint(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Every key of the state dict with the sum of its bits; no copy of the weights is kept."""
    found = {}
    for key, tensor in model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        words = flat.view(torch.int32 if flat.element_size() % 4 == 0 else torch.uint8)
        found[key] = (tensor.dtype, tuple(tensor.shape), int(words.sum()))
    return found
