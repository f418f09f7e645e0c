"""The layers: limits, independence of the batch, and the traps of other implementations."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import timm.layers
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_splitbn_model, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.layers.norm_act import GroupNorm1Act, GroupNormAct, LayerNormAct2d
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops.misc import FrozenBatchNorm2d

from alphatune import ExampleWeightedBatchNorm2d
from alphatune.core.errors import ConfigurationError
from alphatune.core.versions import is_at_least
from alphatune.norms.conversion import CLASSES, Norm, NormKind, convert_
from alphatune.norms.example_weighted import EXAMPLE_WEIGHTED, ExampleWeighted
from alphatune.norms.surgery import become_calibrated_, become_example_weighted_, become_stock_


def stock_layers() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """One of every kind, with the shape of an input it takes."""

    def act() -> nn.Module:
        return BatchNormAct2d(6, eps=1e-3, act_layer=nn.SiLU, drop_layer=nn.Dropout)

    return {
        "BatchNorm1d on (N, C)": (nn.BatchNorm1d(6), (4, 6)),
        "BatchNorm1d on (N, C, L)": (nn.BatchNorm1d(6), (4, 6, 9)),
        "BatchNorm2d": (nn.BatchNorm2d(6, eps=1e-3), (4, 6, 5, 7)),
        "BatchNorm2d without affine": (nn.BatchNorm2d(6, affine=False), (4, 6, 5, 7)),
        "BatchNorm2d without bias": (nn.BatchNorm2d(6), (4, 6, 5, 7)),
        "BatchNorm2d on one position": (nn.BatchNorm2d(6), (4, 6, 1, 1)),
        "BatchNorm3d": (nn.BatchNorm3d(6), (4, 6, 3, 4, 5)),
        "SyncBatchNorm": (nn.SyncBatchNorm(6), (4, 6, 5, 7)),
        "BatchNormAct2d": (act(), (4, 6, 5, 7)),
        "SyncBatchNormAct": (convert_sync_batchnorm(act()), (4, 6, 5, 7)),
        "SplitBatchNorm2d": (convert_splitbn_model(act(), 2), (4, 6, 5, 7)),
        "FrozenBatchNorm2d": (FrozenBatchNorm2d(6, eps=1e-3), (4, 6, 5, 7)),
        "frozen BatchNorm2d of timm": (freeze_batch_norm_2d(nn.BatchNorm2d(6)), (4, 6, 5, 7)),
        "FrozenBatchNormAct2d": (freeze_batch_norm_2d(act()), (4, 6, 5, 7)),
        **{
            f"{kind} {stock.__name__}": converted(kind, stock)
            for kind in ("ghost", "batch-group", "group", "renorm")
            for stock in CLASSES[kind]
        },
        **{
            f"calibrated {name}": (calibrated(layer), shape)
            for name, (layer, shape) in uncalibrated().items()
        },
    }


def uncalibrated() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Norms that keep no moving averages, one of every kind that can be calibrated."""
    fused = {"act_layer": nn.SiLU, "drop_layer": nn.Dropout}
    return {
        "GroupNorm": (nn.GroupNorm(3, 6, eps=1e-3), (4, 6, 5, 7)),
        "GroupNorm on (N, C)": (nn.GroupNorm(1, 6), (4, 6)),
        "GroupNorm of timm": (timm.layers.GroupNorm(6, 3), (4, 6, 5, 7)),
        "GroupNorm1 of timm": (timm.layers.GroupNorm1(6), (4, 6, 5, 7)),
        "GroupNormAct": (GroupNormAct(6, 2, **fused), (4, 6, 5, 7)),
        "GroupNorm1Act": (GroupNorm1Act(6, **fused), (4, 6, 5, 7)),
        "InstanceNorm1d": (nn.InstanceNorm1d(6, affine=True), (4, 6, 9)),
        "InstanceNorm2d": (nn.InstanceNorm2d(6, affine=True), (4, 6, 5, 7)),
        "InstanceNorm2d without affine": (nn.InstanceNorm2d(6), (4, 6, 5, 7)),
        "InstanceNorm3d": (nn.InstanceNorm3d(6, affine=True), (4, 6, 3, 4, 5)),
        "LayerNorm2d of torchvision": (LayerNorm2d(6, eps=1e-3), (4, 6, 5, 7)),
        "LayerNorm2d of timm": (timm.layers.LayerNorm2d(6), (4, 6, 5, 7)),
        "LayerNorm2d on one position": (timm.layers.LayerNorm2d(6), (4, 6, 1, 1)),
        "LayerNormAct2d": (LayerNormAct2d(6, **fused), (4, 6, 5, 7)),
    }


def calibrated(layer: nn.Module) -> nn.Module:
    become_calibrated_(layer, torch.zeros(6), torch.ones(6))
    return layer


def starts_at_one(kind: str) -> bool:
    """Whether the layer without example weighting is α = 1."""
    return kind.startswith(("group ", "calibrated "))


def converted(kind: NormKind, stock: type[nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    model = nn.Sequential(stock(6))
    convert_(model, Norm(kind, ghost_batch_size=2, num_groups=3))
    return model[0], (4, 6, *SPATIAL.get(stock, (5, 7)))


SPATIAL = {nn.BatchNorm1d: (9,), nn.BatchNorm3d: (3, 4, 5)}


def randomise_(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.3, 2)
        if layer.weight is not None:
            layer.weight.normal_()
            layer.bias.normal_()
    return layer.eval()


KINDS = list(stock_layers())


def layer_and_input(kind: str) -> tuple[nn.Module, torch.Tensor]:
    layer, shape = stock_layers()[kind]
    randomise_(layer)
    if "without bias" in kind:
        layer.bias = None
    return layer, torch.randn(shape) * 2 + 1


def after(layer: nn.Module, y: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, SplitBatchNorm2d) and not is_at_least("timm", "1.0.31"):
        return y  # its own forward leaves out the activation that it was given
    return layer.act(y) if hasattr(layer, "act") else y


def test_every_known_kind_is_tested() -> None:
    assert {type(stock_layers()[k][0]) for k in KINDS} == set(EXAMPLE_WEIGHTED)


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_may_be_named(kind: str) -> None:
    """As the stock layer names it: torch ``input``, timm ``x``."""
    layer, x = layer_and_input(kind)
    original = next(c for c in type(layer).__mro__ if not c.__module__.startswith("alphatune"))
    name = list(inspect.signature(original.forward).parameters)[1]
    assert name in ("input", "x")
    expected = layer(x)
    assert torch.equal(layer(**{name: x}), expected)
    start = EXAMPLE_WEIGHTED[type(layer)].unpatched_alpha
    become_example_weighted_(layer, start)
    assert torch.equal(layer(**{name: x}), expected)
    layer.set_alpha(0.3)
    assert torch.equal(layer(**{name: x}), layer(x))
    layer.train()
    if x[0, 0].numel() * len(x) > 1 and not isinstance(layer, nn.SyncBatchNorm):
        torch.manual_seed(0)
        trained = copy.deepcopy(layer)(x)
        torch.manual_seed(0)
        assert torch.equal(layer(**{name: x}), trained)
    for wrong in ({}, {name: x, "other": x}):
        with pytest.raises(TypeError):
            layer(**wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_unpatched_alpha_is_eval_bit_for_bit(kind: str) -> None:
    layer, x = layer_and_input(kind)
    before = layer(x)
    become_example_weighted_(layer, EXAMPLE_WEIGHTED[type(layer)].unpatched_alpha)
    assert layer.unpatched_alpha == (1 if starts_at_one(kind) else 0)
    assert torch.equal(layer(x), before)
    layer.set_alpha(0.5)
    assert not torch.equal(layer(x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_one_is_instance_norm(kind: str) -> None:
    layer, x = layer_and_input(kind)
    become_example_weighted_(layer, 1.0)
    if isinstance(layer, nn.LayerNorm):  # each position by itself
        y = F.layer_norm(x.movedim(1, -1), (6,), layer.weight, layer.bias, layer.eps).movedim(-1, 1)
    elif (
        x[0, 0].numel() == 1 and layer.num_groups is None
    ):  # nothing but β is left when an example is its own mean
        y = torch.zeros_like(x) + (0 if layer.bias is None else layer.bias.view(1, -1, *[1] * (x.ndim - 2)))
    else:
        y = F.group_norm(x, layer.num_groups or x.shape[1], layer.weight, layer.bias, layer.eps)
    torch.testing.assert_close(layer(x), after(layer, y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_output_does_not_depend_on_companions(kind: str) -> None:
    layer, x = layer_and_input(kind)
    become_example_weighted_(layer, 0.3)
    with torch.no_grad():
        together = layer(x)
        for i in range(len(x)):
            torch.testing.assert_close(layer(x[i : i + 1]), together[i : i + 1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_to_the_unpatched_one_is_continuous(kind: str) -> None:
    layer, x = layer_and_input(kind)
    before = layer(x)
    become_example_weighted_(layer, 1 - 1e-7 if starts_at_one(kind) else 1e-7)
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_undoing_restores_class_state_and_output(kind: str) -> None:
    layer, x = layer_and_input(kind)
    before, cls, attributes = layer(x), type(layer), set(layer.__dict__)
    unsaved = set(layer._non_persistent_buffers_set)
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    parameters = list(layer.parameters())
    become_example_weighted_(layer, 0.5)
    assert list(layer.state_dict()) == list(state)
    become_stock_(layer)
    assert type(layer) is cls
    assert set(layer.__dict__) == attributes
    assert "alpha" not in layer._buffers
    assert layer._non_persistent_buffers_set == unsaved
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_stock_layers(kind: str) -> None:
    stock, x = layer_and_input(kind)
    layer = copy.deepcopy(stock)
    become_example_weighted_(layer, 0.5)
    stock.train()
    layer.train()
    torch.manual_seed(3)
    expected = stock(x)
    torch.manual_seed(3)
    if x[0, 0].numel() * len(x) > 1:
        assert torch.equal(layer(x), expected)
    assert torch.equal(layer.running_mean, stock.running_mean)
    assert torch.equal(layer.running_var, stock.running_var)


@pytest.mark.parametrize("kind", KINDS)
def test_deep_copy_and_pickle(kind: str) -> None:
    layer, x = layer_and_input(kind)
    become_example_weighted_(layer, 0.2)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)


def test_eps_survives() -> None:
    layer, x = layer_and_input("BatchNorm2d")
    become_example_weighted_(layer, 1.0)
    tiny = x * 1e-3  # ε dominates the variance
    y = F.instance_norm(tiny, weight=layer.weight, bias=layer.bias, eps=1e-3)
    torch.testing.assert_close(layer(tiny), y, rtol=1e-4, atol=1e-6)


def test_fused_activation_and_drop_are_kept() -> None:
    layer = randomise_(BatchNormAct2d(6, act_layer=nn.ReLU, drop_layer=nn.Dropout))
    become_example_weighted_(layer, 0.1)
    x = torch.randn(2, 6, 4, 4)
    plain = randomise_(nn.BatchNorm2d(6))
    plain.load_state_dict(layer.state_dict())
    become_example_weighted_(plain, 0.1)
    assert layer(x).min().item() == 0
    assert torch.equal(layer(x), plain(x).relu())
    layer.drop.train()  # Monte-Carlo dropout: the fused drop still acts
    assert int((layer(x) == 0).sum()) > int((plain(x).relu() == 0).sum())


@pytest.mark.parametrize("momentum", [None, 0.0, 0.1])
def test_momentum_is_training_only(momentum: float | None) -> None:
    layer = randomise_(nn.BatchNorm2d(6, momentum=momentum))
    become_example_weighted_(layer, 0.3)
    mean, count = layer.running_mean.clone(), layer.num_batches_tracked.clone()
    layer(torch.randn(2, 6, 4, 4))
    assert torch.equal(layer.running_mean, mean)
    assert torch.equal(layer.num_batches_tracked, count)


def test_biased_and_unbiased_variance_are_told_apart() -> None:
    """running_var averages unbiased variances, the example's own is biased: neither is rescaled."""
    layer = nn.BatchNorm2d(1, affine=False, eps=0).eval()
    x = torch.tensor([[[[1.0, 3.0]]]])  # biased variance 1, unbiased 2
    become_example_weighted_(layer, 1.0)
    torch.testing.assert_close(layer(x), torch.tensor([[[[-1.0, 1.0]]]]))


def test_half_precision_model_keeps_alpha_exact() -> None:
    layer = randomise_(nn.BatchNorm2d(6))
    become_example_weighted_(layer, 0.1)
    layer.half()
    assert layer.running_mean.dtype == torch.float16
    assert layer.alpha.dtype == torch.float32
    assert layer.alpha.item() == pytest.approx(0.1, abs=1e-8)
    assert layer(torch.randn(2, 6, 4, 4).half()).dtype == torch.float16


@pytest.mark.parametrize("alpha", [0.1, torch.linspace(0, 1, 6)])
def test_double_and_meta_models_move(alpha: float | torch.Tensor) -> None:
    layer = randomise_(nn.BatchNorm2d(6))
    become_example_weighted_(layer, alpha)
    assert layer.double()(torch.randn(2, 6, 4, 4).double()).dtype == torch.float64
    layer.to("meta")
    assert layer(torch.randn(2, 6, 4, 4, device="meta")).shape == (2, 6, 4, 4)


@pytest.mark.parametrize("alpha", [0.1, torch.linspace(0, 1, 6)])
def test_alpha_outlives_the_meta_device(alpha: float | torch.Tensor) -> None:
    """A layer made or patched on the meta device gets its weights later; α is not among them."""
    kept, x = randomise_(nn.BatchNorm2d(6)), torch.randn(2, 6, 4, 4)
    state = kept.state_dict()
    become_example_weighted_(kept, alpha)
    with torch.device("meta"):
        layers = [nn.BatchNorm2d(6).eval() for _ in range(2)]
        for layer in layers:
            become_example_weighted_(layer, alpha)
    layers[0].to_empty(device="cpu").load_state_dict(state)
    layers[1].load_state_dict(state, assign=True)
    with torch.device("meta"):
        layers.append(copy.deepcopy(kept))
        layers[2].set_alpha(alpha)
    for layer in layers:
        assert torch.equal(layer(x), kept(x))
        assert layer.alpha.device == layer.running_mean.device
    with pytest.raises(ConfigurationError, match="meta"):
        kept.set_alpha(torch.zeros((), device="meta"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), randomise_(nn.BatchNorm2d(6)), nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 8)
    become_example_weighted_(model[1], 0.2)
    expected = model(x)
    with torch.autocast("cpu", dtype):
        y = model(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


def test_wrong_dimensions_are_refused_as_by_the_stock_layer() -> None:
    layer = randomise_(nn.BatchNorm2d(6))
    become_example_weighted_(layer, 0.5)
    with pytest.raises(ValueError, match="4D"):
        layer(torch.randn(2, 6, 4))


def test_constructor_and_repr() -> None:
    layer = ExampleWeightedBatchNorm2d(6, eps=1e-3, alpha=0.25)
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.weighs_example
    assert "alpha=0.25" in repr(layer)
    assert list(layer.state_dict()) == list(nn.BatchNorm2d(6).state_dict())
    assert layer.load_state_dict(nn.BatchNorm2d(6).state_dict(), strict=True)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf")])
def test_alpha_outside_the_unit_interval_is_refused(alpha: float) -> None:
    layer = ExampleWeightedBatchNorm2d(6, alpha=0.25)
    with pytest.raises(ConfigurationError, match=r"\[0, 1\]"):
        layer.set_alpha(alpha)
    assert layer.alpha.item() == 0.25


def test_one_alpha_per_channel() -> None:
    layer, x = layer_and_input("BatchNorm2d")
    become_example_weighted_(layer)
    alphas = torch.linspace(0, 1, 6)
    layer.set_alpha(alphas)
    y = layer(x)
    for c, alpha in enumerate(alphas):
        layer.set_alpha(alpha)
        torch.testing.assert_close(layer(x)[:, c], y[:, c])
    with pytest.raises(ConfigurationError, match="per channel"):
        layer.set_alpha(torch.zeros(5))


def test_empty_batch() -> None:
    layer = ExampleWeightedBatchNorm2d(6, alpha=0.5).eval()
    assert layer(torch.randn(0, 6, 4, 4)).shape == (0, 6, 4, 4)


def test_channels_last_stays_channels_last() -> None:
    layer, x = layer_and_input("BatchNorm2d")
    become_example_weighted_(layer, 0.3)
    expected = layer(x)
    y = layer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected)


def test_input_is_not_written_to() -> None:
    for kind in KINDS:
        layer, x = layer_and_input(kind)
        become_example_weighted_(layer, 0.3)
        before = x.clone()
        with torch.no_grad():
            layer(x)
        assert torch.equal(x, before), kind


def test_compiles_once_for_all_alpha() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    layer, x = layer_and_input("BatchNormAct2d")
    become_example_weighted_(layer, 0.1)
    compiled = torch.compile(layer, backend=counter)
    with torch.no_grad():
        for alpha in (0.1, 0.2, 0.7):
            layer.set_alpha(alpha)
            torch.testing.assert_close(compiled(x), layer(x))
    assert counter.frame_count == 1


def test_exports_with_a_dynamic_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), randomise_(nn.BatchNorm2d(6)), nn.ReLU()).eval()
    become_example_weighted_(model[1], 0.2)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    for n in (1, 5):
        x = torch.randn(n, 3, 8, 8)
        torch.testing.assert_close(program.module()(x), model(x))


def test_all_layers_are_torch_modules_of_their_stock_class() -> None:
    for stock, weighted in EXAMPLE_WEIGHTED.items():
        assert issubclass(weighted, stock)
        assert issubclass(weighted, ExampleWeighted)
