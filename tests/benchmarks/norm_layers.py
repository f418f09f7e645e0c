"""Example-weighted normalisation beside BatchNorm in eval mode: each kernel, and torch.var_mean.

    python tests/benchmarks/norm_layers.py

Over the shapes of ResNet-50 at batch 32, each as often as the network has it, and
of ResNet-20 at batch 250. Interleaved, medians, in multiples of ``F.batch_norm`` on
the same tensor; "with ReLU" in multiples of ``F.batch_norm`` and ``relu_``. On CUDA also in bfloat16.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from alphatune.cli.memory import keep_freed_memory
from alphatune.kernels import dispatch as kernels
from alphatune.kernels import moments

#: shape -> how many norm layers of ResNet-50 see it
RESNET50 = {
    (32, 64, 112, 112): 1, (32, 64, 56, 56): 6, (32, 256, 56, 56): 4, (32, 128, 56, 56): 1,
    (32, 128, 28, 28): 7, (32, 512, 28, 28): 5, (32, 256, 28, 28): 1, (32, 256, 14, 14): 11,
    (32, 1024, 14, 14): 7, (32, 512, 14, 14): 1, (32, 512, 7, 7): 5, (32, 2048, 7, 7): 4,
}  # fmt: skip
RESNET20 = {(250, 16, 32, 32): 7, (250, 32, 16, 16): 6, (250, 64, 8, 8): 6}


def var_mean_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    alpha: Tensor,
    eps: float,
) -> Tensor:
    variance, mean = torch.var_mean(x, (2, 3), correction=0)
    deviation = mean - running_mean
    mixed = (1 - alpha) * running_var + alpha * variance + alpha * (1 - alpha) * deviation * deviation
    scale = weight * torch.rsqrt(mixed + eps)
    shift = bias - (running_mean + alpha * deviation) * scale
    return torch.addcmul(shift[..., None, None], x, scale[..., None, None])


def forms_on(device: torch.device) -> dict[str, Callable[..., Tensor]]:
    """Ways to compute the layer; the first is BatchNorm, "+ReLU" ones are compared with BatchNorm and ReLU."""

    def batch_norm(x, mean, var, weight, bias, alpha, eps):
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    def by(kernel: kernels.Kernel, act: str | None = None) -> Callable[..., Tensor]:
        def form(*args: Tensor, alpha: Tensor, eps: float) -> Tensor:
            with kernels.use_kernel(kernel):
                return kernels.example_weighted_norm(*args, alpha, eps, act=act)

        return form

    fast: kernels.Kernel = "triton" if device.type == "cuda" else "compiled"
    return {
        "BatchNorm": batch_norm,
        "BatchNorm+ReLU": lambda *args, **kwargs: batch_norm(*args, **kwargs).relu_(),
        fast: by(fast),
        f"{fast}+ReLU": by(fast, "relu"),
        "eager": by("eager"),
        "plain": moments.example_weighted_norm,
        "var_mean": var_mean_norm,
    }


def measure(
    shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype, rounds: int, device
):
    """Median seconds of each form."""
    x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=memory_format)
    layer = [f(shape[1], device=device) for f in (torch.randn, torch.rand, torch.rand, torch.randn)]
    layer[1] += 0.5
    alpha = torch.tensor(0.1, device=device)
    forms = forms_on(device)
    repeats = max(1, 2**22 // x.numel())  # small layers are over too soon to be timed alone
    times: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        for i in range(rounds + 2):
            for name, form in forms.items():
                start = time.perf_counter()
                for _ in range(repeats):
                    form(x, *layer, alpha=alpha, eps=1e-5)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if i >= 2:
                    times[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = list(forms_on(device))[2:]
    lines = [
        f"{device}, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}, "
        f"medians of {args.rounds} interleaved rounds, in multiples of F.batch_norm (with ReLU: and relu_):",
        "",
        f"| shape | dtype | memory format | F.batch_norm (ms) | {' | '.join(names)} |",
        "|---|---|---|---:|" + "---:|" * len(names),
    ]
    for dtype in [torch.float32] + ([torch.bfloat16] if device.type == "cuda" else []):
        for memory_format, kind in (
            (torch.contiguous_format, "NCHW"),
            (torch.channels_last, "channels-last"),
        ):
            for network, shapes in (("ResNet-50", RESNET50), ("ResNet-20", RESNET20)):
                total: dict[str, float] = {}
                for shape, count in shapes.items():
                    found = measure(shape, memory_format, dtype, args.rounds, device)
                    total = {name: total.get(name, 0) + count * t for name, t in found.items()}
                    lines.append(row("×".join(map(str, shape)), dtype, kind, found, names))
                lines.append(row(f"all of {network}", dtype, kind, total, names))
    print("\n".join(lines))
    if args.output:
        with args.output.open("w", newline="", encoding="utf-8") as file:
            rows = [line[2:-2].split(" | ") for line in lines if line.startswith("| ")]
            csv.writer(file, lineterminator="\n").writerows(rows)


def row(label: str, dtype: torch.dtype, kind: str, seconds: dict[str, float], names: list[str]) -> str:
    cells = [
        f"{seconds[name] / seconds['BatchNorm+ReLU' if name.endswith('ReLU') else 'BatchNorm']:.2f}"
        for name in names
    ]
    return (
        f"| {label} | {str(dtype).removeprefix('torch.')} | {kind} | {1000 * seconds['BatchNorm']:.2f} | "
        f"{' | '.join(cells)} |"
    )


if __name__ == "__main__":
    main()
