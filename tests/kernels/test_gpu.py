"""On a CUDA device: run with ``pytest -m gpu``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reference
import timm
import torch
from conftest import TINY
from torch import nn

import alphatune
from alphatune.jobs.train import run_train
from alphatune.kernels.moments import example_weighted_norm
from alphatune.norms.conversion import Norm, convert_
from alphatune.settings import TrainSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layer_equals_the_reference(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = (torch.randn(4, 6, 9, 7) * 3 + 1).to(dtype).contiguous(memory_format=memory_format)
    mean, variance, weight, bias = torch.randn(6), torch.rand(6) + 0.3, torch.randn(6), torch.randn(6)
    layer = [t.cuda() for t in (mean, variance, weight, bias)]
    y = example_weighted_norm(x.cuda(), *layer, alpha=torch.tensor(0.25, device="cuda"), eps=1e-3)
    expected = reference.example_weighted(
        x.double().numpy(),
        *(t.double().numpy() for t in (mean, variance, weight, bias)),
        alpha=0.25,
        eps=1e-3,
    )
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    np.testing.assert_allclose(y.float().cpu().numpy(), expected, rtol=tolerance, atol=tolerance)


def test_tune_equals_the_cpu() -> None:
    model = timm.create_model("mobilenetv3_small_050", num_classes=4).eval()
    batches = [(torch.randn(8, 3, 64, 64), torch.randint(0, 4, (8,))) for _ in range(3)]
    on_cpu = alphatune.tune(model, batches, alphas="0,0.1")
    on_gpu = alphatune.tune(model.cuda(), batches, alphas="0,0.1")
    for a, b in zip(on_cpu.sweep.scores, on_gpu.sweep.scores, strict=True):
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("norm", [Norm("ghost", 4), Norm("batch-group", num_groups=2, examples_per_group=3)])
def test_training_norms_agree_with_the_cpu(norm: Norm, memory_format: torch.memory_format) -> None:
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm2d(8))
        convert_(model, norm)
        x = torch.randn(10, 8, 9, 9).to(memory_format=memory_format)
        model, x = model.to(device), x.to(device).requires_grad_()
        y = model(x)
        y.square().sum().backward()
        results.append(
            [t.cpu() for t in (y, x.grad, model[0].weight.grad, model[0].running_mean, model[0].running_var)]
        )
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_training_on_the_gpu_learns(image_folder: Path, tmp_path: Path, dtype: str) -> None:
    settings = TrainSettings(
        model=TINY, data=str(image_folder), val_fraction=0.25, batch_size=12, epochs=20, lr=0.05, input_size="12",
        crop_pct=1.0, norm="ghost", ghost_size=4, cache="device", channels_last=True, dtype=dtype, device="cuda",
        workers="0", output=str(tmp_path / "run"),
    )  # fmt: skip
    document = run_train(settings)
    assert document["epochs"][-1]["train_top1"] > 0.7
    assert document["env"]["device"].startswith("cuda")
