"""Measuring moving averages: exact, whatever the batches, and without a trace but the averages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import reference
import timm
import torch
from conftest import needs_torch
from test_example_weighted import KINDS, starts_at_one, stock_layers
from tiny import grouped, mixed, tiny
from torch import nn

import alphatune
from alphatune import calibrate_, patch_, recalibrate_, uncalibrate_, unpatch_
from alphatune.core.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    InputError,
    NumericError,
    UnsupportedModelError,
)
from alphatune.core.versions import COMPILED
from alphatune.evaluation.predictor import Predictor
from alphatune.export.folding import fold
from alphatune.models.measurement import measure_moments
from alphatune.models.moments_file import MOMENTS
from alphatune.models.stats_drift import STALE, distance, distances, look_stale
from alphatune.norms.conversion import Norm, convert_
from alphatune.norms.patching import get_alpha, unpatched_alpha

X = torch.randn(65, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 + 1
SIZES = [1, 7, 64, 65]


def averages(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{buffer}": getattr(module, buffer).clone()
        for name, module in model.named_modules()
        for buffer in ("running_mean", "running_var")
        if getattr(module, buffer, None) is not None
    }


def inputs_of(model: nn.Module, names: tuple[str, ...], x: torch.Tensor) -> dict[str, np.ndarray]:
    """What layers see of one batch."""
    seen: dict[str, np.ndarray] = {}
    modules = dict(model.named_modules())
    handles = [
        modules[n].register_forward_pre_hook(lambda _, a, n=n: seen.__setitem__(n, a[0].double().numpy()))
        for n in names
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def trained() -> nn.Module:
    model = tiny().train()
    for _ in range(10):
        model(torch.randn(16, 3, 12, 12))
    return model.eval()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


# --- layers that keep no averages ------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_calibration_equals_the_reference_in_batches_of_any_size(size: int) -> None:
    model = grouped().eval()
    seen = inputs_of(model, ("bn1", "bn2"), X)
    done = calibrate_(model, [(part, None) for part in X.split(size)])
    assert (done.examples, done.layers, done.unreached) == (65, ("bn1", "bn2"), ())
    for name in ("bn1", "bn2"):
        mean, variance = reference.pooled_moments([seen[name]])
        layer = getattr(model, name)
        np.testing.assert_allclose((layer.running_mean.numpy() - mean) / np.sqrt(variance), 0, atol=1e-5)
        np.testing.assert_allclose(layer.running_var.numpy(), variance, rtol=1e-5)


def group_act() -> nn.Module:
    small = {"layers": (1, 1, 1, 1), "channels": (128, 128, 128, 128)}
    return timm.create_model("resnetv2_50", num_classes=7, norm_layer=timm.layers.GroupNormAct, **small)


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=7)


def instanced() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
        nn.InstanceNorm2d(8, affine=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7),
    )  # fmt: skip


#: a network, and at least how many of its layers can be calibrated
NETS = {
    "timm GroupNorm": (lambda: timm.create_model("resnet18", norm_layer="groupnorm", num_classes=7), 20),
    "timm GroupNormAct": (group_act, 10),
    "timm LayerNorm2d": (lambda: timm.create_model("convnext_atto", num_classes=7), 10),
    "torchvision LayerNorm2d": (convnext, 3),
    "InstanceNorm": (instanced, 2),
}


@pytest.mark.parametrize("net", NETS)
def test_promises_hold_for_real_networks(net: str, tmp_path: Path) -> None:
    build, layers = NETS[net]
    model = build().eval()
    x = torch.randn(6, 3, 64, 64)
    types, keys = {n: type(m) for n, m in model.named_modules()}, list(model.state_dict())
    with pytest.raises(UnsupportedModelError, match="`calibrate"):
        patch_(model)
    with torch.no_grad():
        before = model(x)
        done = calibrate_(model, [x[:4], x[4:]])
        assert len(done.layers) >= layers
        assert torch.equal(model(x), before)
        names = patch_(model)
        assert names == done.layers
        assert unpatched_alpha(model) == 1
        assert torch.equal(model(x), before)
        patch_(model, 0.9)
        together = model(x)
        assert torch.isfinite(together).all()
        assert not torch.equal(together, before)
        alone = torch.cat([model(part) for part in x.split(1)])
        torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-4 * together.abs().max().item())
        assert list(model.state_dict()) == keys

        alphatune.save(model, tmp_path / "out")
        again = alphatune.load(tmp_path / "out", model=build())
        assert get_alpha(again) == get_alpha(model)
        assert torch.equal(again(x), together)
        with pytest.raises(UnsupportedModelError, match="unpatch_"):
            uncalibrate_(model)
        unpatch_(model)
        assert torch.equal(model(x), before)
        uncalibrate_(model)
        assert {n: type(m) for n, m in model.named_modules()} == types
        assert torch.equal(model(x), before)
    build().load_state_dict(model.state_dict(), strict=True)


def test_alpha_zero_is_a_batch_norm_with_the_pooled_moments() -> None:
    model = instanced().eval()
    calibrate_(model, X.split(13))
    patch_(model, {"1": 0.0})
    twin = instanced().eval()
    twin.load_state_dict(model.state_dict())
    twin[1] = nn.BatchNorm2d(8, affine=False, eps=model[1].eps).eval()
    twin[1].running_mean.copy_(model[1].running_mean)
    twin[1].running_var.copy_(model[1].running_var)
    torch.testing.assert_close(model(X), twin(X), rtol=1e-4, atol=1e-5)


def test_a_calibrated_network_tunes_and_comes_back() -> None:
    model = grouped().eval()
    loader = [(part, torch.randint(4, (len(part),))) for part in X.split(20)]
    calibrate_(model, loader)
    before, found = model(X), averages(model)
    result = alphatune.tune(model, loader, alphas="0.9,0.95", metric="loss")
    assert result.baseline_alpha == 1
    assert result.curve[0].alpha == 1
    assert torch.equal(model(X), before)
    same(averages(model), found, 0)


def test_alphatunes_own_group_norms_get_pooled_moments_too() -> None:
    model = tiny()
    convert_(model, Norm("group", num_groups=4))
    before, seen = model.eval()(X), inputs_of(model, ("bn1",), X)
    calibrate_(model, X.split(30))
    mean, variance = reference.pooled_moments([seen["bn1"]])
    np.testing.assert_allclose(model.bn1.running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.bn1.running_var.numpy(), variance, rtol=1e-5)
    assert torch.equal(model(X), before)


def test_networks_of_both_kinds_keep_todays_rule() -> None:
    model = mixed().eval()
    assert patch_(model) == ("bn1",)
    unpatch_(model)
    calibrate_(model, X.split(20))
    assert patch_(model) == ("bn1", "bn2")
    with pytest.raises(UnsupportedModelError, match="no single α"):
        unpatched_alpha(model)
    unpatch_(model)
    assert patch_(model, exclude=["bn1"]) == ("bn2",)


def test_folding_takes_them_for_no_batch_norm() -> None:
    model = instanced().eval()
    calibrate_(model, X.split(20))
    folding = fold(model)
    assert folding.folded == ()
    assert torch.equal(folding.model(X), model(X))


def test_what_there_is_no_layer_for_is_an_error() -> None:
    with pytest.raises(UnsupportedModelError, match="recalibrate"):
        calibrate_(tiny(), X.split(20))
    with pytest.raises(UnsupportedModelError, match="calibrate_"):
        recalibrate_(grouped(), X.split(20))


# --- moving averages anew --------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 13, 64, 65])
def test_one_pass_equals_a_plain_loop(size: int) -> None:
    model, loop = trained(), trained()
    loop.load_state_dict(model.state_dict())
    stored = averages(model)
    done = recalibrate_(model, X.split(size))
    assert (done.layers, done.order) == (("bn1", "bn2"), "one-pass")
    parts: dict[str, list[np.ndarray]] = {"bn1": [], "bn2": []}
    for layer in (loop.bn1, loop.bn2):
        layer.train()
    for part in X.split(size):
        for name, values in inputs_of(loop, ("bn1", "bn2"), part).items():
            parts[name].append(values)
    for name, values in parts.items():
        mean, variance = reference.pooled_moments(values)
        np.testing.assert_allclose(getattr(model, name).running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(getattr(model, name).running_var.numpy(), variance, rtol=1e-5)
    assert all(not torch.equal(value, stored[name]) for name, value in averages(model).items())


def test_one_batch_of_everything_is_what_training_with_momentum_one_leaves() -> None:
    model, plain = trained(), trained()
    plain.load_state_dict(model.state_dict())
    recalibrate_(model, [X])
    for layer in (plain.bn1, plain.bn2):
        layer.momentum = 1.0
    plain.train()(X)
    same(averages(model), averages(plain))
    assert model.bn1.num_batches_tracked == 10  # counts training, which this is not
    assert model.bn1.momentum == 0.1


@pytest.mark.parametrize("size", SIZES)
def test_layer_by_layer_does_not_depend_on_batches_and_repeats(size: int) -> None:
    model, reference_model = trained(), trained()
    reference_model.load_state_dict(model.state_dict())
    for name in ("bn1", "bn2"):  # by hand: measure, set, go on
        layer = getattr(reference_model, name)
        mean, variance = reference.pooled_moments([inputs_of(reference_model, (name,), X)[name]])
        layer.running_mean.copy_(torch.from_numpy(mean))
        layer.running_var.copy_(torch.from_numpy(variance))
    recalibrate_(model, X.split(size), order="layer-by-layer")
    same(averages(model), averages(reference_model))
    again = averages(model)
    recalibrate_(model, X.split(size), order="layer-by-layer")
    same(averages(model), again, 1e-6)


def test_a_pass_ends_at_the_layer_in_question() -> None:
    model, calls = trained(), {"conv2": 0, "head": 0}
    for name in calls:
        getattr(model, name).register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
        )
    recalibrate_(model, X.split(13), order="layer-by-layer")
    assert calls == {"conv2": 6, "head": 1}  # once each to see the order, then for bn2 only


@pytest.mark.parametrize("kind", [k for k in KINDS if not starts_at_one(k)])
def test_every_kind_of_batch_norm(kind: str) -> None:
    layer, shape = stock_layers()[kind]
    model = nn.Sequential(layer)
    x = torch.randn(9, *shape[1:]) * 2 + 1
    mean, variance = reference.pooled_moments([x.double().numpy()])
    recalibrate_(model, x.split(4))  # the last batch is a single example
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.running_var.numpy(), variance, rtol=1e-5)
    if "Split" not in kind:
        recalibrate_(model, x.split(4), order="layer-by-layer")
        np.testing.assert_allclose(layer.running_var.numpy(), variance, rtol=1e-5)


def test_dropout_is_off_and_modes_come_back() -> None:
    model = nn.Sequential(
        nn.Dropout(0.9), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten()
    )
    model[2].eval()
    modes = [m.training for m in model.modules()]
    for order in ("one-pass", "layer-by-layer"):
        recalibrate_(model, X.split(20), order=order)
        mean, variance = reference.pooled_moments([model[1](X).detach().double().numpy()])
        np.testing.assert_allclose(model[2].running_mean.numpy(), mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(model[2].running_var.numpy(), variance, rtol=1e-5)
        assert [m.training for m in model.modules()] == modes


def test_a_patched_model_is_measured_as_if_it_were_not() -> None:
    model, plain = trained(), trained()
    plain.load_state_dict(model.state_dict())
    patch_(model, 0.4)
    model.bn1.set_alpha(torch.linspace(0, 1, 8))
    before = get_alpha(model)
    for order in ("one-pass", "layer-by-layer"):
        recalibrate_(model, X.split(20), order=order)
        recalibrate_(plain, X.split(20), order=order)
        same(averages(model), averages(plain), 0)
        assert get_alpha(model) == before


def test_layers_that_share_a_module_or_never_run() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.idle = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.norm(x) + self.norm(input=5 * x)).flatten(1)

    for order in ("one-pass", "layer-by-layer"):
        model = Net()
        done = recalibrate_(model, X.split(20), order=order)
        assert (done.layers, done.unreached) == (("norm",), ("idle",))
        mean, variance = reference.pooled_moments([X.double().numpy(), 5 * X.double().numpy()])
        np.testing.assert_allclose(model.norm.running_mean.numpy(), mean, rtol=1e-5)
        np.testing.assert_allclose(model.norm.running_var.numpy(), variance, rtol=1e-5)
        assert torch.equal(model.idle.running_var, torch.ones(3))


@pytest.mark.parametrize("order", ["one-pass", "layer-by-layer"])
@pytest.mark.parametrize("failure", ["not finite", "unreadable"])
def test_an_error_leaves_the_model_as_it_was(order: str, failure: str) -> None:
    model = trained().train()
    before, passes = averages(model), 0

    class Loader:
        def __iter__(self) -> Iterator[torch.Tensor]:
            nonlocal passes
            passes += 1
            yield X[:20]
            if order == "one-pass" or passes == 3:  # after bn1 has its new averages
                if failure == "unreadable":
                    raise DataError("unreadable image")
                yield torch.full((2, 3, 12, 12), float("inf"))

    with pytest.raises(NumericError if failure == "not finite" else DataError):
        recalibrate_(model, Loader(), order=order)
    same(averages(model), before, 0)
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules())
    group = grouped().eval()
    with pytest.raises(NumericError):
        calibrate_(group, [X[:5], torch.full((2, 3, 12, 12), float("nan"))])
    assert type(group.bn1) is nn.GroupNorm


def test_bad_data_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="iterator"):
        recalibrate_(tiny(), iter([X]), order="layer-by-layer")
    with pytest.raises(ConfigurationError, match=r"images as one of .* got a mapping of 'picture'"):
        recalibrate_(tiny(), [{"picture": X}])
    with pytest.raises(DataError, match="no example"):
        recalibrate_(tiny(), [])
    with pytest.raises(ConfigurationError, match="order"):
        recalibrate_(tiny(), [X], order="sideways")
    with pytest.raises(DataError, match="single value"):
        recalibrate_(nn.Sequential(nn.BatchNorm1d(3)), [torch.randn(1, 3)])


def test_a_batch_that_does_not_fit_is_cut_and_counted_once() -> None:
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            if len(x) > 5:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return self.second(x).flatten(1)

    for order in ("one-pass", "layer-by-layer"):
        cut, whole = Greedy().eval(), Greedy().eval()
        recalibrate_(cut, X.split(20), order=order)
        recalibrate_(whole, X.split(5), order=order)
        torch.testing.assert_close(cut.first.running_mean, whole.first.running_mean)
        torch.testing.assert_close(averages(cut), averages(whole), rtol=1e-4, atol=1e-5)


def test_low_precision_is_autocast() -> None:
    model, plain = trained(), trained()
    plain.load_state_dict(model.state_dict())
    recalibrate_(model, X.split(20), predictor=Predictor(model, torch.bfloat16))
    recalibrate_(plain, X.split(20))
    assert model.bn2.running_var.dtype == torch.float32
    for name, value in averages(model).items():
        torch.testing.assert_close(value, averages(plain)[name], rtol=0.03, atol=0.03)
    half = trained().bfloat16()
    recalibrate_(half, X.split(20), order="layer-by-layer")
    assert half.bn1.running_mean.dtype == torch.bfloat16


@needs_torch(COMPILED)
def test_a_compiled_model_is_measured() -> None:
    torch._dynamo.reset()
    model = trained()
    compiled = torch.compile(model, backend="eager")
    compiled(X[:4])
    before = averages(model)
    done = recalibrate_(compiled, X.split(20))
    assert len(done.layers) == 2
    assert all(not torch.equal(value, before[name]) for name, value in averages(model).items())


# --- the tuned folder ------------------------------------------------------------------------


def folder(tmp_path: Path, alpha: float | None = 0.8) -> Path:
    model = grouped().eval()
    calibrate_(model, X.split(20))
    if alpha is not None:
        patch_(model, alpha)
    alphatune.save(model, tmp_path / "out")
    return tmp_path / "out"


def test_moments_lie_beside_weights_of_stock_keys(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from alphatune.core.hashing import sha256

    for alpha in (None, 0.8):
        out = folder(tmp_path / str(alpha), alpha)
        assert set(load_file(out / "model.safetensors")) == set(grouped().state_dict())
        moments = load_file(out / MOMENTS)
        assert {k: v.dtype for k, v in moments.items()} == dict.fromkeys(
            [f"{n}.{b}" for n in ("bn1", "bn2") for b in ("running_mean", "running_var")], torch.float32
        )
        assert json.loads((out / "alphatune.json").read_text())["moments_sha256"] == sha256(out / MOMENTS)
        again = alphatune.load(out, model=grouped())
        same(averages(again), moments, 0)
        assert len(patch_(again)) == 2
    alphatune.save(tiny(), tmp_path / "plain")
    assert not (tmp_path / "plain" / MOMENTS).exists()
    alphatune.load(tmp_path / "plain", model=tiny())


def test_moments_that_changed_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save

    from alphatune.core.hashing import sha256

    out = folder(tmp_path)
    manifest = json.loads((out / "alphatune.json").read_text())
    (out / MOMENTS).write_bytes((out / MOMENTS).read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(CheckpointError, match="changed"):
        alphatune.load(out, model=grouped())
    for tensors, why in (
        ({"bn1.running_mean": torch.zeros(8)}, "bn1"),
        ({"bn1.running_mean": torch.zeros(5), "bn1.running_var": torch.ones(5)}, "bn1"),
        ({"bn7.running_mean": torch.zeros(8), "bn7.running_var": torch.ones(8)}, "bn7"),
    ):
        (out / MOMENTS).write_bytes(save(tensors))
        manifest["moments_sha256"] = sha256(out / MOMENTS)
        (out / "alphatune.json").write_text(json.dumps(manifest))
        with pytest.raises(InputError, match=why):
            alphatune.load(out, model=grouped())
    (out / MOMENTS).unlink()
    with pytest.raises(CheckpointError, match="no such"):
        alphatune.load(out, model=grouped())


# --- staleness -------------------------------------------------------------------------------


def test_the_distance_is_half_the_sum_of_two_divergences() -> None:
    m, v, n, w = (torch.rand(5, dtype=torch.float64) + 0.2 for _ in range(4))
    p, q = torch.distributions.Normal(m, (v + 0.1).sqrt()), torch.distributions.Normal(n, (w + 0.1).sqrt())
    kl = torch.distributions.kl_divergence
    torch.testing.assert_close(distance(m, v, n, w, 0.1), ((kl(p, q) + kl(q, p)) / 2).mean())
    assert distance(m, v, m, v, 0.1) == 0


def test_stale_averages_are_told_from_fresh_ones() -> None:
    model = trained()
    recalibrate_(model, X.split(20), order="layer-by-layer")
    before = averages(model)
    fresh = distances(model, measure_moments(model, X.split(20)))
    same(averages(model), before, 0)
    assert set(fresh) == {"bn1", "bn2"}
    assert max(fresh.values()) < 1e-6
    model.bn1.running_mean += 2 * model.bn1.running_var.sqrt()
    stale = distances(model, measure_moments(model, X.split(20)))
    assert stale["bn1"] == pytest.approx(2.0, rel=0.01)
    model.bn1.running_var[0] = -1
    assert distances(model, measure_moments(model, X.split(20)))["bn1"] == float("inf")
    assert distances(tiny().eval(), measure_moments(tiny().eval(), X.split(20)))["bn1"] > STALE


def test_a_few_layers_a_little_off_are_normal() -> None:
    fine = {str(i): 0.02 for i in range(9)}
    assert not look_stale({})
    assert not look_stale(fine | {"9": 0.5})
    assert look_stale(fine | {"9": 1.0})
    assert look_stale(fine | {"9": 0.1, "10": 0.1, "11": 0.1})
    assert look_stale(fine | {"9": float("inf")})


def test_what_layers_with_groups_normalise_by_is_compared() -> None:
    model = grouped().eval()
    calibrate_(model, X.split(20))
    assert max(distances(model, measure_moments(model, X.split(7))).values()) < 1e-6
    own = tiny()
    convert_(own, Norm("group", num_groups=1))
    own.train()
    own.bn1.momentum = 1.0
    own(X)  # the averages of a group, repeated over its channels
    assert distances(own.eval(), measure_moments(own, [X]))["bn1"] < 0.02
