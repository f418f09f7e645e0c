"""What a patched or converted layer is given that BatchNorm refuses is refused, whatever code would have run.

The compiled kernels take pointers: an activation with more channels than the layer once made them
read memory beyond the layer's tensors.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import alphatune
from alphatune.kernels import dispatch as kernels
from alphatune.norms import ghost
from alphatune.norms.batch_group import BatchGroupNorm2d
from alphatune.norms.conversion import Norm, convert_
from alphatune.norms.group import GroupNorm2d
from alphatune.norms.renorm import BatchRenorm2d


def patched(layer: nn.Module, alpha: float = 0.1) -> nn.Module:
    model = nn.Sequential(layer).eval()
    alphatune.patch_(model, alpha)
    return model


@pytest.fixture(params=["eager", "compiled", "auto"])
def kernel(request: pytest.FixtureRequest) -> str:
    if request.param == "compiled" and kernels.cpu.load_library() is None:
        pytest.skip("no C++ compiler")
    return str(request.param)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5, 7, 12, 600])
@pytest.mark.parametrize("last", [False, True])
def test_other_channels_are_refused(kernel: str, grad: bool, channels: int, last: bool) -> None:
    model, x = patched(nn.BatchNorm2d(6)), torch.zeros(2, channels, 16, 16)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    with kernels.use_kernel(kernel), torch.set_grad_enabled(grad):  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match=f"expected 6 channels.*{channels}"):
            model(x)
        with pytest.raises(RuntimeError):  # as the stock layer does
            nn.BatchNorm2d(6).eval()(x)


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(6), nn.BatchNorm2d(6), nn.BatchNorm3d(6), nn.BatchNorm2d(6, affine=False)],
    ids=["1d", "2d", "3d", "no affine"],
)
def test_in_every_dimension(kernel: str, layer: nn.Module) -> None:
    sizes = {nn.BatchNorm1d: (9,), nn.BatchNorm2d: (4, 4), nn.BatchNorm3d: (3, 4, 4)}[type(layer)]
    model = patched(copy.deepcopy(layer))
    with (
        kernels.use_kernel(kernel),
        torch.no_grad(),
        pytest.raises(RuntimeError, match="expected 6 channels"),
    ):  # type: ignore[arg-type]
        model(torch.zeros(2, 12, *sizes))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64])
def test_dtypes_that_batchnorm_refuses(kernel: str, dtype: torch.dtype) -> None:
    x = torch.ones(2, 6, 16, 16, dtype=dtype)
    with torch.no_grad():
        with pytest.raises(
            RuntimeError, match="not implemented"
        ):  # NotImplementedError in a newer torch, which is one
            nn.BatchNorm2d(6).eval()(x)
        with kernels.use_kernel(kernel), pytest.raises(NotImplementedError, match="floating-point"):  # type: ignore[arg-type]
            patched(nn.BatchNorm2d(6))(x)


@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias", "alpha"])
def test_tensors_of_the_layer_that_were_cut_short(kernel: str, name: str) -> None:
    model = patched(nn.BatchNorm2d(6))
    setattr(
        model[0], name, torch.nn.Parameter(torch.ones(5)) if name in ("weight", "bias") else torch.ones(5)
    )
    with kernels.use_kernel(kernel), torch.no_grad(), pytest.raises(RuntimeError, match="channels"):  # type: ignore[arg-type]
        model(torch.zeros(2, 6, 16, 16))


@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "alpha"])
def test_tensors_on_another_device(kernel: str, name: str) -> None:
    model = patched(nn.BatchNorm2d(6))
    there = torch.ones((), device="meta") if name == "alpha" else torch.ones(6, device="meta")
    setattr(model[0], name, nn.Parameter(there) if name == "weight" else there)
    with kernels.use_kernel(kernel), torch.no_grad(), pytest.raises(RuntimeError, match="meta"):  # type: ignore[arg-type]
        model(torch.zeros(2, 6, 16, 16))


def training_layers() -> list[nn.Module]:
    return [
        ghost.GhostBatchNorm2d(6, 2),
        BatchGroupNorm2d(3, 6, 2),
        GroupNorm2d(3, 6),
        BatchRenorm2d(6, start=0, r_end=0, d_end=0),
    ]


@pytest.mark.parametrize("layer", training_layers(), ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("last", [False, True])
def test_layers_of_training(layer: nn.Module, training: bool, last: bool) -> None:
    x = torch.randn(4, 12, 8, 8)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError):
        layer.train(training)(x)
    with pytest.raises(RuntimeError):  # NotImplementedError is one
        layer.train(training)(torch.ones(4, 6, 8, 8, dtype=torch.int64))


def test_converted_layer() -> None:
    model = nn.Sequential(nn.BatchNorm2d(6))
    convert_(model, Norm("ghost", ghost_batch_size=2))
    with pytest.raises(RuntimeError, match="expected 6 channels"):
        model(torch.randn(4, 12, 8, 8).contiguous(memory_format=torch.channels_last))


def test_what_is_right_still_runs(kernel: str) -> None:
    x: Tensor = torch.randn(2, 6, 16, 16)
    with kernels.use_kernel(kernel), torch.no_grad():  # type: ignore[arg-type]
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            assert patched(nn.BatchNorm2d(6))(x.to(dtype)).dtype == dtype
