"""Converting real architectures to each kind, training a step, and going back."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, convert_splitbn_model, freeze_batch_norm_2d
from tiny import OddNorm, no_norm, tiny
from torch import nn

from alphatune import Norm, convert_, patch_, unpatch_
from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.norms.conversion import CLASSES, groups_for, restore_stock_
from alphatune.norms.patching import unpatched_alpha

ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=4), 32),
    "mobilenetv3_small_050": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=4), 64),
    "regnetx_002": (lambda: timm.create_model("regnetx_002", num_classes=4), 32),
    "regnety_002": (lambda: timm.create_model("regnety_002", num_classes=4), 32),
    "levit_128s": (lambda: timm.create_model("levit_128s", num_classes=4), 224),
    "efficientnet_b0": (lambda: timm.create_model("efficientnet_b0", num_classes=4), 64),
    "torchvision densenet121": (lambda: torchvision.models.densenet121(num_classes=4), 64),
}
NORMS = [
    Norm("ghost", ghost_batch_size=2),
    Norm("batch-group", num_groups=8, examples_per_group=2),
    Norm("group", num_groups=8),
    Norm("renorm", renorm=(0, 10, 10)),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small batches: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def architectures() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    models = {name: make().eval() for name, (make, _) in ARCHITECTURES.items()}
    for model in models.values():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return models


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.kind)
def test_real_architectures(architectures: dict[str, nn.Module], name: str, norm: Norm) -> None:
    model = copy.deepcopy(architectures[name])
    x = torch.randn(3, 3, *[ARCHITECTURES[name][1]] * 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stock_output = model(x)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modules, parameters = dict(model.named_modules()), list(model.parameters())
    types = {n: type(m) for n, m in modules.items()}
    attributes = {n: set(m.__dict__) for n, m in modules.items()}
    norms = [n for n, t in types.items() if t in CLASSES["batch"]]

    assert list(convert_(model, norm)) == norms
    assert {n for n, m in model.named_modules() if type(m) is not types[n]} == set(norms)
    for n in norms:
        assert type(modules[n]) is CLASSES[norm.kind][types[n]]
    assert list(model.state_dict()) == list(state)
    with torch.no_grad():
        output = model(x)
    if norm.kind in ("ghost", "renorm"):
        assert torch.equal(output, stock_output)
    else:
        assert not torch.equal(output, stock_output)
    assert torch.isfinite(output).all()

    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2])).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    optimiser.step()
    moved = model.state_dict()
    assert all(
        torch.isfinite(v).all() and not torch.equal(v, state[k])
        for k, v in moved.items()
        if "running_mean" in k and k.rpartition(".")[0] in norms
    )

    model.eval()
    with torch.no_grad():
        expected = model(x)
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(x), expected)
        assert set(patch_(model, 0.2)) == set(norms)
        assert unpatched_alpha(model) == (1.0 if norm.kind == "group" else 0.0)
        assert not torch.equal(model(x), expected)
        patch_(model, unpatched_alpha(model))
        assert torch.equal(model(x), expected)
        unpatch_(model)
        assert torch.equal(model(x), expected)

    trained = {key: value.clone() for key, value in model.state_dict().items()}
    assert list(restore_stock_(model)) == norms
    assert {n: type(m) for n, m in model.named_modules()} == types
    assert {n: set(m.__dict__) for n, m in model.named_modules()} == attributes
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(m is modules[n] for n, m in model.named_modules())
    fresh = copy.deepcopy(architectures[name])
    fresh.load_state_dict(trained, strict=True)
    with torch.no_grad():
        if norm.kind in ("ghost", "renorm"):
            assert torch.equal(fresh(x), expected)
        assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize("first", NORMS, ids=lambda norm: norm.kind)
@pytest.mark.parametrize("second", NORMS, ids=lambda norm: norm.kind)
def test_from_any_kind_to_any_other(first: Norm, second: Norm) -> None:
    model, direct = tiny(), tiny()
    direct.load_state_dict(model.state_dict())
    convert_(model, first)
    convert_(model, second)
    convert_(direct, second)
    for a, b in zip(model.modules(), direct.modules(), strict=True):
        assert type(a) is type(b)
        assert a.__dict__.keys() == b.__dict__.keys()
    x = torch.randn(5, 3, 12, 12)
    assert torch.equal(model(x), direct(x))
    assert convert_(model, Norm()) == ("bn1", "bn2")
    assert [type(m) for m in model.modules()] == [type(m) for m in tiny().modules()]
    assert convert_(model, Norm()) == ()


def test_everything_about_a_layer_survives() -> None:
    layer = BatchNormAct2d(6, eps=1e-3, momentum=0.02, act_layer=nn.SiLU, drop_layer=nn.Dropout).double()
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    drop, act, weight = layer.drop, layer.act, layer.weight
    model = nn.Sequential(layer)
    for norm in NORMS:
        convert_(model, norm)
        assert model[0] is layer
        assert (layer.eps, layer.momentum, layer.num_features) == (1e-3, 0.02, 6)
        assert layer.drop is drop
        assert layer.act is act
        assert layer.weight is weight
        layer(torch.randn(4, 6, 3, 3).double())
    assert len(calls) == len(NORMS)
    assert layer.running_mean.dtype == torch.float64


def test_a_shared_layer_is_converted_once_and_stays_shared() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model.append(model[0])
    assert convert_(model, Norm("ghost")) == ("0",)
    assert model[0] is model[2]


def test_settings_reach_the_layers() -> None:
    model = nn.Sequential(nn.BatchNorm2d(24))
    convert_(model, Norm("ghost", ghost_batch_size=7))
    assert model[0].ghost_batch_size == 7
    convert_(model, Norm("batch-group", num_groups=16, examples_per_group=5))
    assert (model[0].num_groups, model[0].examples_per_group) == (12, 5)
    convert_(model, Norm("group"))
    assert model[0].num_groups == 24
    convert_(model, Norm("renorm", renorm=(1, 3, 2)))
    assert (model[0].start, model[0].r_end, model[0].d_end) == (1, 3, 2)
    assert (model[0].r_max, model[0].d_max) == (3, 5)
    convert_(model, Norm("renorm", renorm=(2, 4, 4)))  # the same kind again takes the new settings
    assert model[0].start == 2


@pytest.mark.parametrize(
    ("channels", "wanted", "groups"), [(24, 32, 24), (24, 16, 12), (7, 2, 1), (64, 32, 32), (1, 1, 1)]
)
def test_groups_for(channels: int, wanted: int, groups: int) -> None:
    assert groups_for(channels, wanted) == groups


@pytest.mark.parametrize(("channels", "wanted"), [(24, 32), (64, 8), (48, 16), (3, 1), (16, 16)])
def test_groups_are_those_of_the_authors_where_they_divide_the_channels(channels: int, wanted: int) -> None:
    """They count the channels of a group: at least one, and rounded down."""
    assert groups_for(channels, wanted) == channels // max(channels // wanted, 1)


@pytest.mark.parametrize(
    "relative",
    [
        lambda: nn.SyncBatchNorm(4),
        lambda: convert_splitbn_model(nn.Sequential(nn.BatchNorm2d(4)), 2),
        lambda: freeze_batch_norm_2d(nn.BatchNorm2d(4)),
        lambda: OddNorm(4),
        lambda: nn.LazyBatchNorm2d(),
        lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    ],
)
def test_unknown_relatives_are_refused_by_name(relative: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), relative())
    for norm in NORMS:
        with pytest.raises(UnsupportedModelError, match="1"):
            convert_(model, norm)
        assert type(model[0]) is nn.BatchNorm2d
    assert convert_(model, Norm()) == ()


def test_norms_of_another_family_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4))
    assert convert_(model, NORMS[0]) == ("0",)


def test_a_model_without_batch_norm_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="none"):
        convert_(no_norm(), NORMS[0])
    assert convert_(no_norm(), Norm()) == ()


def test_a_replaced_forward_is_not_overruled() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    model[0].forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModelError):
        convert_(model, NORMS[0])


@pytest.mark.parametrize("norm", [Norm(), *NORMS], ids=lambda norm: norm.kind)
@pytest.mark.parametrize("before", ["stock", "ghost"])
def test_patched_models_are_refused(norm: Norm, before: str) -> None:
    model = tiny()
    if before == "ghost":
        convert_(model, NORMS[0])
    patch_(model, 0.1)
    types = [type(m) for m in model.modules()]
    if norm.kind != "batch" or before == "ghost":
        with pytest.raises(UnsupportedModelError, match="unpatch_"):
            convert_(model, norm)
    assert [type(m) for m in model.modules()] == types


def test_layers_without_moving_averages() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(UnsupportedModelError, match=r"1.*moving averages"):
        convert_(model, NORMS[3])
    assert type(model[0]) is nn.BatchNorm2d
    for norm in NORMS[:3]:
        assert convert_(model, norm) == ("0", "1")
        model(torch.randn(5, 4, 3, 3))


@pytest.mark.parametrize("norm", [Norm(), *NORMS], ids=lambda norm: norm.kind)
def test_a_norm_goes_through_json(norm: Norm) -> None:
    assert Norm.from_dict(json.loads(json.dumps(norm.to_dict()))) == norm


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "layer"},
        {"ghost_batch_size": 0},
        {"num_groups": -1},
        {"examples_per_group": 1.5},
        {"num_groups": True},
        {"renorm": (1, 2)},
        {"renorm": (5, 2, 9)},
        {"renorm": (-1, 2, 9)},
        {"renorm": "abc"},
        {"kind": ["ghost"]},
        {"gruops": 1},
    ],
)
def test_norms_that_cannot_be_are_refused(values: dict) -> None:
    with pytest.raises(ConfigurationError):
        Norm.from_dict(values)
