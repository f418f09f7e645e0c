"""What the survey calls each layer, and why."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import EvoNorm2dB0, convert_splitbn_model
from timm.layers.inplace_abn import InplaceAbn
from tiny import OddNorm, tiny
from torch import nn

from alphatune.norms.patching import patch_
from alphatune.norms.survey import NormLayer, survey


def only(module: nn.Module) -> NormLayer:
    (layer,) = survey(module)
    return layer


def test_describes_a_batch_norm() -> None:
    layer = survey(tiny())[0]
    assert layer == NormLayer("bn1", "BatchNorm2d", "patchable", "", 8, 1e-3, 0.1, True)


@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm(4),
        nn.RMSNorm(4),
        timm.layers.LayerNorm(4),
        *([timm.layers.LayerNorm2dFp32(4)] if hasattr(timm.layers, "LayerNorm2dFp32") else []),
    ],
)
def test_norms_without_moving_averages_are_skipped(module: nn.Module) -> None:
    assert only(module).status == "skipped"
    assert "no moving averages" in only(module).reason


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.BatchNorm2d(4, track_running_stats=False), "track_running_stats=False"),
        (nn.InstanceNorm2d(4, track_running_stats=True), "InstanceNorm"),
        (nn.LazyBatchNorm2d(), "run one batch first"),
        (OddNorm(4), "subclass"),
        (EvoNorm2dB0(4), "no moving mean"),
        (InplaceAbn(4), "InplaceAbn"),
        (torch.ao.nn.quantized.BatchNorm2d(4), "known kind|subclass"),
        (
            torch.nn.utils.parametrize.register_parametrization(nn.BatchNorm2d(4), "running_mean", nn.Tanh()),
            "computes its moving averages anew",
        ),
    ],
)
def test_unsupported_kinds_say_why(module: nn.Module, why: str) -> None:
    import re

    layer = survey(module)[0]
    assert layer.status == "unsupported"
    assert re.search(why, layer.reason)


def test_foreign_frozen_norm_is_found_by_its_buffers() -> None:
    class FrozenBatchNorm2d(nn.Module):  # as detection libraries define their own
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(4))
            self.register_buffer("running_var", torch.ones(4))

    layer = only(FrozenBatchNorm2d())
    assert layer.status == "unsupported"
    assert layer.num_features == 4


def test_replaced_forward_is_not_overruled() -> None:
    layer = nn.BatchNorm2d(4)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert only(layer).status == "unsupported"


def test_lazy_norm_becomes_patchable_after_a_batch() -> None:
    layer = nn.LazyBatchNorm2d()
    layer(torch.randn(2, 3, 4, 4))
    assert only(layer).status == "patchable"


def test_auxiliary_norms_of_split_batch_norm_are_skipped() -> None:
    statuses = {x.name: x.status for x in survey(convert_splitbn_model(tiny(), 2))}
    assert statuses == {
        "bn1": "patchable", "bn1.aux_bn.0": "skipped", "bn2": "patchable", "bn2.aux_bn.0": "skipped",
    }  # fmt: skip


def test_shared_module_is_listed_once_with_its_names() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model.append(model[0])
    assert only(model).name == "0"
    assert only(model).aliases == ("2",)


def test_functional_batch_norm_on_weights_is_no_layer() -> None:
    """timm's StdConv normalises its *weights* by F.batch_norm; nothing there is an activation."""
    model = timm.create_model("resnetv2_50x1_bit", num_classes=3)
    assert {x.kind for x in survey(model)} <= {"GroupNormAct", "GroupNorm"}


def test_patched_layers_keep_their_kind() -> None:
    model = tiny()
    patch_(model, 0.1)
    assert [(x.kind, x.status) for x in survey(model)] == [("BatchNorm2d", "patched")] * 2
