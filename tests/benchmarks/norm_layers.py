"""Example-weighted normalisation beside BatchNorm in eval mode, and beside torch.var_mean.

    python tests/benchmarks/norm_layers.py

Interleaved, medians, in multiples of ``F.batch_norm`` on the same tensor.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from alphatune.cli.memory import keep_freed_memory
from alphatune.norms.moments import example_weighted_norm

#: ResNet-20 at batch 128, ResNet-50 at batch 32
SHAPES = [
    (128, 16, 32, 32),
    (128, 64, 8, 8),
    (32, 64, 112, 112),
    (32, 256, 56, 56),
    (32, 512, 28, 28),
    (32, 2048, 7, 7),
]


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


def batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    alpha: Tensor,
    eps: float,
) -> Tensor:
    return F.batch_norm(x, running_mean, running_var, weight, bias, False, 0.0, eps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    forms = {"batch_norm": batch_norm, "alphatune": example_weighted_norm, "var_mean": var_mean_norm}
    lines = [
        f"{device}, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}, float32, "
        f"medians of {args.rounds} interleaved rounds, in multiples of F.batch_norm:",
        "",
        "| shape | memory format | F.batch_norm (ms) | alphatune | torch.var_mean |",
        "|---|---|---:|---:|---:|",
    ]
    for shape in SHAPES:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape, device=device).contiguous(memory_format=memory_format)
            layer = [f(shape[1], device=device) for f in (torch.randn, torch.rand, torch.rand, torch.randn)]
            layer[1] += 0.5
            alpha = torch.tensor(0.1, device=device)
            times: dict[str, list[float]] = {name: [] for name in forms}
            with torch.inference_mode():
                for i in range(args.rounds + 3):
                    for name, form in forms.items():
                        start = time.perf_counter()
                        form(x, *layer, alpha=alpha, eps=1e-5)
                        if device.type == "cuda":
                            torch.cuda.synchronize()
                        if i >= 3:
                            times[name].append(time.perf_counter() - start)
            base, ours, naive = (statistics.median(times[name]) for name in forms)
            kind = "NCHW" if memory_format == torch.contiguous_format else "channels-last"
            lines.append(
                f"| {'×'.join(map(str, shape))} | {kind} | {1000 * base:.2f} | {ours / base:.2f} | {naive / base:.2f} |"
            )
    print("\n".join(lines))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
