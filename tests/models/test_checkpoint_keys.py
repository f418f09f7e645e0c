"""Matching keys: the right weights, every one of them, or a refusal that leaves the model as it was."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from conftest import TINY, Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import Tiny, tiny
from torch import nn
from torch.nn.utils import parametrizations

from alphatune.core.errors import (
    AlphatuneError,
    ConfigurationError,
    NumericError,
    UnsupportedModelError,
)
from alphatune.models import checkpoint_architectures, checkpoint_refusal
from alphatune.models.checkpoint_containers import container_at, find_containers
from alphatune.models.checkpoint_loading import Loaded, load_weights_
from alphatune.models.checkpoints import Checkpoint, read_checkpoint
from alphatune.models.cifar import resnet20, resnet32

State = dict[str, torch.Tensor]


def randomised(model: nn.Module) -> nn.Module:
    """The model with other values in every parameter and buffer; variances stay positive, counts whole."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        else:
            tensor.random_(1, 1000)
    return model


def full(seed: int = 1) -> State:
    torch.manual_seed(seed)
    return OrderedDict(randomised(tiny()).state_dict())


def under(prefix: str, state: State | None = None) -> State:
    return {prefix + key: value for key, value in (full() if state is None else state).items()}


def load(
    model: nn.Module, content: Any, *, key: str | None = None, prefix: str | None = None, **how: Any
) -> Loaded:
    containers = find_containers(content) if key is None else [container_at(content, key)]
    return load_weights_(model, Checkpoint("x.pth", "", tuple(containers), prefix=prefix), **how)


def assert_holds(model: nn.Module, wanted: State) -> None:
    state = model.state_dict()
    assert state.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(state[key], value), key


def assert_refuses(model: nn.Module, content: Any, match: str | None = None, **how: Any) -> AlphatuneError:
    before = copy.deepcopy(model.state_dict())
    structure = repr(model)
    with pytest.raises(AlphatuneError, match=match) as error:
        load(model, content, **how)
    assert_holds(model, before)
    assert repr(model) == structure
    assert error.value.exit_code in (2, 3, 4, 6)
    return error.value


def averaged() -> State:
    average = torch.optim.swa_utils.AveragedModel(tiny(), use_buffers=True)
    average.module.load_state_dict(full())
    return average.state_dict()


def compiled_inside() -> State:
    return {
        k.replace("conv.", "conv._orig_mod.").replace("bn2.", "bn2._orig_mod."): v for k, v in full().items()
    }


def everywhere(*names: str) -> State:
    """Wrappers around the model and around each of its layers."""
    inner = ".".join(names)
    return {f"{inner}.{k.replace('.', f'.{inner}.')}": v for k, v in full().items()}


FLOAT = torch.rand(3)
# content, the container that must be said, words of the notes; every file holds full()
LAYOUTS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "bare": (full, "", ""),
    "reference ema": (lambda: {"model": under("x."), "model_ema": averaged(), "optimizer": {}}, "model_ema", "n_averaged"),
    "swa": (averaged, "", "n_averaged"),
    "lightning, compiled": (lambda: {"state_dict": under("model._orig_mod.")}, "state_dict", "'model._orig_mod.'"),
    "ddp, then compiled": (lambda: under("_orig_mod.module."), "", ""),
    "compiled, then ddp": (lambda: under("module._orig_mod.module."), "", ""),
    "compiled inside": (compiled_inside, "", ""),
    "fsdp": (lambda: everywhere("_fsdp_wrapped_module", "_checkpoint_wrapped_module"), "", ""),
    "fairscale": (lambda: everywhere("_fpw_module"), "", ""),
    "profiled": (
        lambda: {**full(), "total_ops": torch.zeros(1, dtype=torch.float64), "conv.total_params": torch.zeros(1)},
        "", "total_ops, conv.total_params",
    ),
    **{
        f"container {key}": (lambda key=key: {"epoch": 3, key: full(), "optimizer": {"state": {0: FLOAT}}}, key, "")
        for key in ("ema", "ema_state_dict", "params_ema", "module", "teacher", "generator", "EMA")
    },
    "nested": (lambda: {"checkpoint": {"model": {"weights": full()}}}, "checkpoint.model.weights", ""),
    "ema callback": (
        lambda: {"state_dict": under("", full(7)), "callbacks": {"EMA": {"decay": 0.9, "shadow": full()}}},
        "callbacks.EMA.shadow", "'state_dict' fit, too",
    ),
    "a list": (lambda: [3, full(), "sgd"], "1", ""),
    **{
        f"prefix {prefix}": (lambda prefix=prefix: {"state_dict": under(prefix)}, "state_dict", repr(prefix))
        for prefix in ("backbone.", "encoder.", "resnet.", "student.backbone.", "a.b.c.d.")
    },
    "deepspeed": (lambda: {"module": under("module."), "ds_version": "0.9"}, "module", ""),
    "moco": (
        lambda: {"state_dict": {**under("module.encoder_q."), "module.queue": FLOAT, "module.queue_ptr": torch.zeros(1)}},
        "state_dict", "'module.encoder_q.'",
    ),
    "dino": (
        lambda: {"student": under("x."), "teacher": {**under("backbone."), "head.mlp.weight": FLOAT}},
        "teacher", "head.mlp.weight",
    ),
    "lightning with a loss": (
        lambda: {"state_dict": {**under("model."), "criterion.weight": FLOAT, "val_acc.tp": torch.ones(3)}},
        "state_dict", "criterion.weight, val_acc.tp",
    ),
    "a module that is the model, with a loss": (
        lambda: {**full(), "criterion.weight": FLOAT, "train_acc.correct": torch.ones(2), "global_step": torch.tensor(3)},
        "", "criterion.weight, train_acc.correct, global_step",
    ),
    "extras": (lambda: {**full(), "epoch": 90, "acc": 91.2}, "", "epoch, acc"),
    "numpy": (lambda: {k: v.numpy() for k, v in full().items()}, "", ""),
    "extra state": (lambda: {**full(), "bn1._extra_state": {"x": 1}}, "", "bn1._extra_state"),
    "a copy beside it": (lambda: {**full(), **under("ema.", full(7))}, "", "'ema.'"),
    "a copy within a wrapper": (lambda: {**full(), **under("module.", full(7))}, "", "'module.'"),
    "two that are equal": (lambda: {**under("student."), **under("teacher.")}, "", "'student.'"),
    "without counters": (
        lambda: {k: v for k, v in full().items() if "num_batches" not in k}, "", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    build, key, words = LAYOUTS[layout]
    model, content = tiny(), build()
    loaded = load(model, content)
    counters = {k: v for k, v in model.state_dict().items() if layout == "without counters" and "num_b" in k}
    assert_holds(model, full() | counters)
    assert loaded.weights_key == key
    notes = " | ".join(loaded.notes)
    assert words in notes
    assert bool(notes) == bool(words)


class Wrapper(nn.Module):
    """A model of which all weights are in ``net``."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


class Shadowed(nn.Module):
    """A model in which ``module`` tells keys apart."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)
        self.module = nn.Sequential(OrderedDict(bn=nn.BatchNorm1d(4)))
        self.fc = nn.Linear(4, 2)


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, Wrapper, lambda m: nn.DataParallel(Wrapper(m)), torch.optim.swa_utils.AveragedModel],
)
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod.", "backbone."])
def test_a_wrapped_model(wrap: Callable[[nn.Module], nn.Module], prefix: str) -> None:
    inner = tiny()
    load(wrap(inner), under(prefix))
    if wrap is not torch.optim.swa_utils.AveragedModel:  # it deep-copies
        assert_holds(inner, full())


def test_a_compiled_layer_in_the_model() -> None:
    model = tiny()
    model.conv2 = torch.compile(model.conv2)
    load(model, under("module."))
    assert torch.equal(model.conv2._orig_mod.weight, full()["conv2.weight"])


def test_a_name_that_the_model_needs_is_not_dropped() -> None:
    wanted = randomised(Shadowed()).state_dict()
    for prefix in ("", "module.", "_orig_mod."):
        model = Shadowed()
        load(model, {prefix + k: v for k, v in wanted.items()})
        assert_holds(model, wanted)
    assert_refuses(Shadowed(), {k: v for k, v in wanted.items() if not k.startswith("module.")}, "missing")


def test_one_tensor_under_two_names() -> None:
    def tied() -> Tiny:
        model = tiny()
        model.bn2 = model.bn1
        return model

    wanted = randomised(tied()).state_dict()
    model = tied()
    load(model, {k: v for k, v in wanted.items() if not k.startswith("bn2.")})  # as safetensors saves it
    assert_holds(model, wanted)
    other = {**wanted, "bn2.weight": wanted["bn1.weight"] + 1}
    assert_refuses(tied(), other, "different tensors")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a key is missing": (lambda: {k: v for k, v in full().items() if k != "bn1.running_var"}, "bn1.running_var"),
    "another layer": (lambda: {**full(), "conv3.weight": FLOAT}, "unknown"),
    "another layer under the prefix": (lambda: under("model.", {**full(), "conv3.weight": FLOAT}), "unknown"),
    "another shape": (lambda: {**full(), "bn1.weight": torch.rand(9)}, r"bn1\.weight has shape \(9,\)"),
    "transposed": (lambda: {**full(), "head.weight": full()["head.weight"].T}, "head.weight"),
    "whole numbers": (lambda: {**full(), "bn1.weight": torch.ones(8, dtype=torch.int8)}, "int8"),
    "complex numbers": (lambda: {**full(), "bn1.weight": torch.ones(8, dtype=torch.complex64)}, "complex64"),
    "student and teacher": (lambda: {**under("student.", full(7)), **under("teacher.")}, "'student.', 'teacher.'"),
    "byol": (
        lambda: {**under("online_encoder.net."), **under("target_encoder.net.", full(7)), "online_encoder.head.w": FLOAT},
        "'online_encoder.net.', 'target_encoder.net.'",
    ),
    "student in a wrapper": (lambda: {**under("student.module.", full(7)), **under("student.")}, "'student.module.'"),
    "half in a wrapper": (
        lambda: {**full(), **{f"module.{k}": v + 1 for k, v in list(full(7).items())[:3]}}, "different tensors",
    ),
    "a wrapper inside one of two": (
        lambda: {**under("module.net.", compiled_inside()), **under("net.", full(7))}, "'module.net.', 'net.'",
    ),
    "containers without a usual name": (lambda: {"first": full(7), "last": full()}, "'last'"),
    "gradients": (lambda: {"grads": full()}, ""),
}  # fmt: skip


@pytest.mark.parametrize("layout", REFUSED)
def test_refused(layout: str) -> None:
    build, words = REFUSED[layout]
    if layout == "gradients":
        assert find_containers(build()) == []
    else:
        assert_refuses(tiny(), build(), words)


def test_a_single_layer_is_not_looked_for_in_a_network() -> None:
    assert_refuses(nn.BatchNorm2d(8), under("net."))
    assert_refuses(Wrapper(nn.BatchNorm2d(8)), full())
    load(nn.BatchNorm2d(8), {k: v for k, v in under("net.").items() if "bn1" in k}, prefix="net.bn1.")


def test_a_deeper_network_of_the_same_names_does_not_fit() -> None:
    """Every key of a ResNet-20 is one of a ResNet-32, in the same shape."""
    error = assert_refuses(resnet20(), resnet32().state_dict(), "another architecture")
    assert "alphatune.models.cifar:resnet32" in error.hint


def test_not_finite_leaves_the_model_as_it_was() -> None:
    state = full()
    state["bn2.weight"][3] = torch.nan
    assert isinstance(assert_refuses(tiny(), state, r"bn2\.weight"), NumericError)


# --- chosen by hand --------------------------------------------------------------------------


def test_a_container_is_chosen() -> None:
    content = {"state_dict": full(7), "epochs": {"best": {"net": full()}}, "optim_state": {"conv": FLOAT}}
    model = tiny()
    assert load(model, content, key="epochs.best.net").weights_key == "epochs.best.net"
    assert_holds(model, full())
    with pytest.raises(
        ConfigurationError, match=r"'state_dict', 'epochs\.best\.net', 'optim_state'"
    ) as error:
        load(model, content, key="state_dct")
    assert "state_dict" in error.value.hint


@pytest.mark.parametrize("prefix", ["teacher", "teacher.", "module.teacher.module."])
def test_a_prefix_is_chosen(prefix: str) -> None:
    content = {**under("module.student.", full(7)), **under("module.teacher.module.")}
    model = tiny()
    assert "'module.teacher.module.'" in load(model, content, prefix=prefix).notes[0]
    assert_holds(model, full())
    assert_refuses(tiny(), content, "prefix", prefix="other.")
    assert_refuses(tiny(), content, prefix="")


def test_a_prefix_tells_copies_apart() -> None:
    content = {**under("a.", full(7)), **under("a.module.")}
    model = tiny()
    load(model, content, prefix="a.module.")
    assert_holds(model, full())
    load(model, content, prefix="a.")
    assert_holds(model, full(7))


# --- older keys ------------------------------------------------------------------------------


def normed(norm: Callable[[nn.Module], nn.Module]) -> Tiny:
    model = tiny()
    model.conv2, model.head = norm(model.conv2), norm(model.head)
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_old_weight_norm(prefix: str) -> None:
    old = randomised(normed(nn.utils.weight_norm))
    model = normed(parametrizations.weight_norm)
    state = {prefix + k: v for k, v in old.state_dict().items()}
    loaded = load(model, state)
    assert "load hooks" in loaded.notes[0]
    assert torch.equal(model.conv2.parametrizations.weight.original0, old.conv2.weight_g)
    assert torch.equal(model.conv2.parametrizations.weight.original1, old.conv2.weight_v)
    assert torch.equal(model.bn1.running_mean, old.bn1.running_mean)
    del state[f"{prefix}head.weight_g"]
    assert_refuses(normed(parametrizations.weight_norm), state)


@pytest.mark.parametrize(
    "build",
    [
        lambda: torchvision.models.densenet121(num_classes=3),
        lambda: timm.create_model("densenet121", num_classes=3),
    ],
)
def test_old_densenet(build: Callable[[], nn.Module]) -> None:
    wanted = randomised(build()).state_dict()
    old = {}
    for key, value in wanted.items():
        for name, number in itertools.product(("norm", "conv"), "12"):
            key = key.replace(f".{name}{number}.", f".{name}.{number}.") if "denselayer" in key else key
        old[f"module.{key}"] = value
    model = build()
    load(model, old)
    assert_holds(model, wanted)


def test_converters_of_timm() -> None:
    model = timm.create_model("convnext_atto", num_classes=3)
    state = randomised(copy.deepcopy(model)).state_dict()
    old = {k.replace("head.norm.", "norm.").replace("head.fc.", "head."): v for k, v in state.items()}
    assert old.keys() != state.keys()
    assert "timm" in load(model, old).notes[0]
    assert_holds(model, state)


class Versioned(nn.Module):
    """A layer that keeps its weight negated since version 2, and converts what is older."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4))

    def _load_from_state_dict(self, state: dict, prefix: str, metadata: dict, *rest: Any) -> None:
        if metadata.get("version", 1) < 2:
            state[f"{prefix}weight"] = -state[f"{prefix}weight"]
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_versions_in_the_file_reach_the_hooks(tmp_path: Path) -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 4), Versioned())

    old = net()
    old[1]._version = 1
    wanted = old[1].weight.detach()
    torch.save(nn.DataParallel(old).state_dict(), tmp_path / "x.pt")
    model = net()
    load_weights_(model, read_checkpoint(tmp_path / "x.pt"))
    assert torch.equal(model[1].weight, -wanted)
    load(model, dict(old.state_dict().items()))  # no versions: taken to be this one
    assert torch.equal(model[1].weight, wanted)


def test_mnasnet_of_another_version() -> None:
    state = torchvision.models.mnasnet0_5().state_dict()
    load(torchvision.models.mnasnet0_5(), dict(state))
    state._metadata[""] = {"version": 1}
    assert_refuses(torchvision.models.mnasnet0_5(), state)


def test_hooks_that_fail_leave_nothing_behind() -> None:
    class Failing(Tiny):
        def _load_from_state_dict(self, *args: Any) -> None:
            self.bn1 = nn.BatchNorm2d(3)
            raise KeyError("no")

    assert_refuses(Failing(), full(), "cannot load")


def test_buffers_that_are_not_saved_any_more() -> None:
    model = tiny()
    model.register_buffer("table", torch.rand(5), persistent=False)
    loaded = load(model, {**full(), "table": torch.rand(7)})
    assert_holds(model, full())
    assert "table" in loaded.notes[0]


def test_a_state_dict_that_leaves_weights_out() -> None:
    class Partial(Tiny):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            state = super().state_dict(*args, **kwargs)
            return OrderedDict((k, v) for k, v in state.items() if not k.startswith("head."))

        def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
            result = super().load_state_dict(state, strict=False, assign=assign)
            result.missing_keys[:] = [k for k in result.missing_keys if not k.startswith("head.")]
            return result

    loaded = load(Partial(), {k: v for k, v in full().items() if not k.startswith("head.")})
    assert "leaves out 2" in loaded.notes[0]
    # Those that a file has nevertheless are taken, from the weights that fit and from no others.
    other = {f"head.{name}": torch.rand_like(full()[f"head.{name}"]) for name in ("weight", "bias")}
    for content in ({"model_ema": other, "state_dict": full()}, {"model_ema": full(), "state_dict": other}):
        model = Partial()
        load(model, content)
        assert torch.equal(model.head.weight, full()["head.weight"])
    model = Partial()
    kept = model.head.weight.clone()
    notes = load(
        model, {"model_ema": other, "state_dict": {k: v for k, v in full().items() if "head" not in k}}
    ).notes
    assert torch.equal(model.head.weight, kept)
    assert "leaves out 2" in notes[0]
    state = full()
    state["head.bias"][0] = torch.nan
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(NumericError, match=r"head\.bias"):
        load(model, state)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("device", ["meta", "lazy"])
def test_models_without_values(device: str) -> None:
    if device == "lazy":
        model: nn.Module = nn.Sequential(nn.LazyConv2d(8, 3), nn.BatchNorm2d(8))
    else:
        model = tiny().to("meta")
    with pytest.raises(UnsupportedModelError):
        load(model, full())


# --- another head ----------------------------------------------------------------------------


def test_a_new_head_through_the_same_matcher() -> None:
    model = tiny(num_classes=9)
    before = copy.deepcopy(model.head.state_dict())
    loaded = load(model, {"state_dict": {**under("module.backbone."), "epoch": 3}}, num_classes=9)
    assert loaded.new == ("head.weight", "head.bias")
    assert_holds(model, full() | {f"head.{k}": v for k, v in before.items()})
    twice = {**under("student.", full(7)), **under("teacher.")}
    assert_refuses(tiny(num_classes=9), twice, "'student.', 'teacher.'", num_classes=9)
    assert_refuses(tiny(num_classes=9), {**full(), "bn1.weight": torch.rand(7)}, "bn1.weight", num_classes=9)


# --- what a refusal says ---------------------------------------------------------------------


def test_the_nearest_keys_are_named() -> None:
    state = full()
    state["bn2.running_avg"] = state.pop("bn2.running_mean")
    error = assert_refuses(tiny(), state)
    assert "'bn2.running_mean' ~ 'bn2.running_avg'" in error.message


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: torchvision.models.mobilenet_v2(num_classes=7), "torchvision:mobilenet_v2 `model_kwargs=num_classes=7`"),
        (lambda: torchvision.models.resnet34(), "torchvision:resnet34"),
        (lambda: timm.create_model("efficientnet_b0", num_classes=11), "efficientnet_b0 `model_kwargs=num_classes=11`"),
        (lambda: resnet32(num_classes=100), "alphatune.models.cifar:resnet32 `model_kwargs=num_classes=100`"),
    ],
)  # fmt: skip
def test_the_architecture_that_fits_is_named(build: Callable[[], nn.Module], name: str) -> None:
    state = {f"module.{k}": v for k, v in build().state_dict().items()}
    assert name in assert_refuses(tiny(), {"state_dict": state}, "another architecture").hint


def test_no_architecture_is_named_where_none_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_architectures, "SECONDS", 0.5)
    state = {f"{k}x": v for k, v in torchvision.models.resnet18().state_dict().items()}
    assert assert_refuses(tiny(), state).hint == "name the architecture it was trained with as MODEL"


# --- the command line ------------------------------------------------------------------------


def test_options(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": {**under("student."), **under("teacher.", full(7))}, "b": FLOAT}, path)
    words = ("inspect", TINY, "--checkpoint", path, "--input-size", "16")
    code, _, err = run(*words)
    assert code == 3
    assert "--checkpoint-prefix" in err
    code, _, err = run(*words, "--checkpoint-prefix", "student", "--checkpoint-key", "a")
    assert code == 0
    assert "'a'" in err
    assert "'student.'" in err
    code, _, err = run(*words, "--checkpoint-key", "c")
    assert code == 2
    assert "'a'" in err
    code, _, err = run("inspect", TINY, "--checkpoint-key", "c")
    assert code == 2
    assert "--checkpoint-key" in err


# --- any layout ------------------------------------------------------------------------------


class Net(nn.Module):
    """Layers of equal shapes at several depths, so that there is much to confuse."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.body = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(2)))
        self.head = nn.Linear(3, 3)


MODELS: list[Callable[[], nn.Module]] = [
    Net,
    lambda: nn.DataParallel(Net()),
    lambda: Wrapper(Net()),
    Shadowed,
]
PREFIXES = ["", "module.", "model.", "backbone.", "student.", "module.net.", "a.b.", "body.", "net."]
NAMES = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
HARMLESS = {"n_averaged": torch.tensor(3), "total_ops": torch.zeros(1), "criterion.weight": FLOAT, "epoch": 3}


def wrapped(state: State, places: dict[str, list[str]]) -> State:
    """The state dict of the model with wrappers around some of its modules."""
    result = {}
    for key, value in state.items():
        parts = key.split(".")
        renamed = [*places.get("", [])]
        for i, part in enumerate(parts[:-1]):
            renamed += [part, *places.get(".".join(parts[: i + 1]), [])]
        result[".".join([*renamed, parts[-1]])] = value
    return result


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_right_weights_or_none(data: st.DataObject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_refusal, "fitting_architectures", lambda *_: ())
    build = data.draw(st.sampled_from(MODELS))
    wanted = randomised(build()).state_dict()
    modules = sorted({"", *(".".join(k.split(".")[:i]) for k in wanted for i in range(1, k.count(".") + 1))})
    places = data.draw(
        st.dictionaries(st.sampled_from(modules), st.lists(st.sampled_from(NAMES), max_size=3), max_size=4)
    )
    prefix = data.draw(st.sampled_from(PREFIXES))
    state = under(prefix, wrapped(wanted, places))
    state |= {
        prefix * data.draw(st.booleans()) + k: HARMLESS[k]
        for k in data.draw(st.sets(st.sampled_from(sorted(HARMLESS))))
    }
    good = not (build is Shadowed and any("module" in names for names in places.values()))
    names = sorted(k for k in state if isinstance(state[k], torch.Tensor))
    damage = data.draw(st.sampled_from(["", "drop", "add", "reshape", "swap", "rename", "copy", "collide"]))
    key = data.draw(st.sampled_from(names))
    matters = not any(word in key for word in ("num_batches", *HARMLESS))
    decoy = randomised(build()).state_dict()
    if damage == "drop":
        del state[key]
    elif damage == "add":
        state[f"{key}.more"] = torch.rand(3)
    elif damage == "reshape":
        state[key] = torch.rand(*state[key].shape, 2)
    elif damage == "swap":
        other = data.draw(st.sampled_from(names))
        if state[key].shape == state[other].shape:  # nobody could tell
            damage = ""
        else:
            state[key], state[other] = state[other], state[key]
    elif damage == "rename":
        state[f"{key}_"] = state.pop(key)
    elif damage == "copy" and good:  # a complete other model, elsewhere
        where = data.draw(st.sampled_from([p for p in PREFIXES[1:] if p != prefix]))
        state = under(where, decoy) | state
    elif damage == "collide":
        at = data.draw(st.sampled_from(NAMES))
        spot = key.rfind(".", 0, key.rfind(".")) + 1
        state.setdefault(f"{key[:spot]}{at}.{key[spot:]}", torch.rand_like(state[key].double()).float())
    content = {"epoch": 3, data.draw(st.sampled_from(["state_dict", "model", "ema", "odd"])): state}
    model = build()
    before = copy.deepcopy(model.state_dict())
    try:
        load(model, content if data.draw(st.booleans()) else state)
    except AlphatuneError:
        assert_holds(model, before)
        assert damage or not good, "a file without a fault was refused"
    else:
        kept = {
            k: before[k]
            for k in wanted
            if damage in ("drop", "rename", "reshape", "swap") and not matters and "num_batches" in k
        }
        state_now = model.state_dict()
        for name, value in wanted.items():
            assert torch.equal(state_now[name], value) or torch.equal(
                state_now[name], kept.get(name, value)
            ), name
        assert not (matters and damage in ("drop", "add", "reshape", "rename", "swap")), damage
