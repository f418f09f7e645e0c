"""Real architectures of every BatchNorm family: what patching promises holds for each."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from breadth import with_moving_averages_
from torch import nn

from alphatune import patch_, set_alpha_, unpatch_
from alphatune.norms.survey import survey

#: name -> input size; families differ in layer kinds, activations, eps and topology
TIMM = {
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "seresnet50": 64,
    "res2net50_26w_4s": 64,
    "regnety_002": 64,
    "mobilenetv2_050": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small": 64,
    "efficientnet_lite0": 64,
    "tf_efficientnetv2_b0": 64,
    "mnasnet_small": 64,
    "densenet121": 64,
    "dla34": 64,
    "hrnet_w18_small": 64,
    "inception_v3": 96,
    "repvgg_a0": 64,
    "vgg11_bn": 64,
    "ghostnet_050": 64,
    "hardcorenas_a": 64,
    "levit_128s": 224,
    "efficientvit_b0": 64,
    "fastvit_t8": 64,
    "darknet53": 64,
    "cs3darknet_s": 64,
    "xception41": 96,
}
TORCHVISION = {
    "resnet18": 64,
    "wide_resnet50_2": 64,
    "resnext50_32x4d": 64,
    "densenet121": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "mnasnet0_5": 64,
    "regnet_y_400mf": 64,
    "shufflenet_v2_x0_5": 64,
    "googlenet": 64,
    "vgg11_bn": 64,
}


def build(source: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    if source == "timm":
        return timm.create_model(name, num_classes=7)
    extra = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, num_classes=7, **extra)


CASES = [("timm", n, s) for n, s in TIMM.items()] + [("torchvision", n, s) for n, s in TORCHVISION.items()]


def test_there_are_enough_families() -> None:
    assert len(TIMM) >= 20
    assert len(TORCHVISION) >= 10


@pytest.mark.parametrize(("source", "name", "size"), CASES, ids=[f"{s}:{n}" for s, n, _ in CASES])
def test_promises_hold(source: str, name: str, size: int) -> None:
    model = with_moving_averages_(build(source, name))
    x = torch.randn(8, 3, size, size)
    types = {n: type(m) for n, m in model.named_modules()}
    keys = list(model.state_dict())
    assert not [layer for layer in survey(model) if layer.status == "unsupported"]
    with torch.no_grad():
        before = model(x)

        names = patch_(model)
        assert len(names) >= 5
        assert list(model.state_dict()) == keys
        assert torch.equal(model(x), before)  # α = 0, bit for bit

        set_alpha_(model, 0.1)
        together = model(x)
        alone = torch.cat([model(x[i : i + 1]) for i in (0, 5)])  # batch of 1 against batch of 8
        assert not torch.equal(together, before)
        assert torch.isfinite(together).all()
        torch.testing.assert_close(
            alone, together[[0, 5]], rtol=1e-3, atol=1e-4 * together.abs().max().item()
        )

        unpatch_(model)
        assert {n: type(m) for n, m in model.named_modules()} == types
        assert torch.equal(model(x), before)
    build(source, name).load_state_dict(model.state_dict(), strict=True)
