"""patch_, set_alpha_, unpatch_ and the context manager."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
from tiny import no_norm, odd, tiny
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from alphatune import patch_, set_alpha_, unpatch_
from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.norms.patching import get_alpha, patched

X = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def model_and_types() -> tuple[nn.Module, dict[str, type]]:
    model = tiny().eval()
    return model, {n: type(m) for n, m in model.named_modules()}


def test_patch_returns_names_and_unpatch_is_the_identity() -> None:
    model, types = model_and_types()
    modules, before = list(model.modules()), model(X)
    assert patch_(model, 0.4) == ("bn1", "bn2")
    assert not torch.equal(model(X), before)
    unpatch_(model)
    assert {n: type(m) for n, m in model.named_modules()} == types
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert torch.equal(model(X), before)


def test_state_dict_never_changes() -> None:
    model, _ = model_and_types()
    keys, metadata = list(model.state_dict()), copy.deepcopy(model.state_dict()._metadata)
    patch_(model, 0.4)
    assert list(model.state_dict()) == keys
    assert model.state_dict()._metadata == metadata
    tiny().load_state_dict(model.state_dict(), strict=True)


def test_alpha_per_layer() -> None:
    model, _ = model_and_types()
    patch_(model, {"bn2": 0.25})
    assert get_alpha(model) == {"bn1": 0.0, "bn2": 0.25}
    set_alpha_(model, {"bn1": 0.5})
    assert get_alpha(model) == {"bn1": 0.5, "bn2": 0.0}


def test_patching_twice_sets_the_new_alpha() -> None:
    model, _ = model_and_types()
    patch_(model, 0.5)
    patch_(model, 0.25)
    assert set(get_alpha(model).values()) == {0.25}
    unpatch_(model)
    assert get_alpha(model) == {}
    unpatch_(model)  # nothing to undo is fine


def test_exclude_by_name_and_glob() -> None:
    model, _ = model_and_types()
    assert patch_(model, 0.1, exclude=["*1"]) == ("bn2",)
    unpatch_(model)
    with pytest.raises(ConfigurationError, match="layer9"):
        patch_(model, exclude=["layer9.*"])
    with pytest.raises(UnsupportedModelError):
        patch_(model, exclude=["*"])


def test_one_pattern_may_be_a_plain_string() -> None:
    model, _ = model_and_types()
    assert patch_(model, 0.1, exclude="*1") == ("bn2",)


def test_patching_in_inference_mode_can_be_changed_after_it() -> None:
    model, _ = model_and_types()
    with torch.inference_mode():
        patch_(model, 0.1)
    set_alpha_(model, 0.2)
    assert get_alpha(model) == pytest.approx({"bn1": 0.2, "bn2": 0.2})


def test_no_norm_layer() -> None:
    with pytest.raises(UnsupportedModelError, match="no normalisation layer"):
        patch_(no_norm())


def test_only_group_norm() -> None:
    with pytest.raises(UnsupportedModelError, match="GroupNorm"):
        patch_(nn.Sequential(nn.GroupNorm(1, 4)))


def test_unknown_kind_needs_consent() -> None:
    model = odd().eval()
    before = model(X)
    with pytest.raises(UnsupportedModelError, match="bn2: OddNorm") as error:
        patch_(model)
    assert "`skip_unknown`" in error.value.hint
    assert torch.equal(model(X), before)
    assert patch_(model, skip_unknown=True) == ("bn1",)


@pytest.mark.parametrize("alpha", [1.5, "a", {"bn1": 0.1, "bn2": -1.0}, {"conv": 0.1}])
def test_a_refused_patch_leaves_the_model_alone(alpha: object) -> None:
    model, types = model_and_types()
    before = model(X)
    with pytest.raises(ConfigurationError):
        patch_(model, alpha)  # type: ignore[arg-type]
    assert {n: type(m) for n, m in model.named_modules()} == types
    assert torch.equal(model(X), before)


def test_a_refused_alpha_leaves_all_alpha_alone() -> None:
    model, _ = model_and_types()
    patch_(model, 0.3)
    with pytest.raises(ConfigurationError):
        set_alpha_(model, {"bn1": 0.1, "bn2": 2.0})
    assert get_alpha(model) == pytest.approx({"bn1": 0.3, "bn2": 0.3})


def test_set_alpha_needs_a_patched_model() -> None:
    with pytest.raises(UnsupportedModelError, match="no example-weighted layer"):
        set_alpha_(tiny(), 0.1)


def test_shared_module_is_patched_once_and_stays_shared() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model.append(model[0])
    assert patch_(model, {"2": 0.2}) == ("0",)  # any of its names will do
    assert model[0] is model[2]
    assert get_alpha(model) == pytest.approx({"0": 0.2})
    assert copy.deepcopy(model)[0].alpha.item() == pytest.approx(0.2)


def test_a_bare_norm_layer_is_a_model() -> None:
    layer = nn.BatchNorm2d(3)
    assert patch_(layer, 0.2) == ("",)
    unpatch_(layer)
    assert type(layer) is nn.BatchNorm2d


def test_hooks_and_optimisers_keep_hold_of_the_layer() -> None:
    model, _ = model_and_types()
    seen = []
    model.bn1.register_forward_hook(lambda *_: seen.append(1))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    patch_(model, 0.2)
    model(X).sum().backward()
    before = model.bn1.weight.clone()
    optimiser.step()
    assert seen
    assert not torch.equal(model.bn1.weight, before)


def test_gradients_flow_through_a_patched_model() -> None:
    model, _ = model_and_types()
    patch_(model, 0.3)
    model(X).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_pickle_and_deep_copy_of_a_model() -> None:
    model, _ = model_and_types()
    patch_(model, 0.3)
    expected = model(X)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(X), expected)
    unpatch_(again)
    assert torch.equal(copy.deepcopy(model)(X), expected)


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_context_manager_undoes_on_any_exit(error: type[BaseException]) -> None:
    model, types = model_and_types()
    with pytest.raises(error), patched(model) as names:
        assert names == ("bn1", "bn2")
        raise error
    assert {n: type(m) for n, m in model.named_modules()} == types


def test_context_manager_gives_back_the_alpha_of_a_patched_model() -> None:
    model, _ = model_and_types()
    patch_(model, 0.5, exclude=["bn2"])
    with patched(model):
        set_alpha_(model, 0.9)
    assert get_alpha(model) == {"bn1": 0.5}


def test_a_traced_model_can_be_patched() -> None:
    """As docs/limitations.md says: a patched one cannot be traced."""
    model = torchvision.models.resnet18(num_classes=3).eval()
    traced = torch.fx.symbolic_trace(model)
    extractor = create_feature_extractor(model, ["fc"])
    x = torch.randn(2, 3, 32, 32)
    stock = model(x)
    patch_(traced, 0.1)  # it shares its layers with the model and the extractor
    patch_(extractor, 0.1)
    assert not torch.equal(traced(x), stock)
    assert torch.equal(traced(x), model(x))
    assert torch.equal(extractor(x)["fc"], model(x))
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(model)
