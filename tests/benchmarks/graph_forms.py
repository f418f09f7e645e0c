"""What α costs in an exported graph, by the form in which it is written: onnxruntime and torch on the CPU.

    python tests/benchmarks/graph_forms.py --output docs/benchmarks/graph-forms.csv

Each network has random weights and α in all of its norm layers. Forms are timed in turns, each against the network
whose norm layers are folded; the ratio is the median of those of the rounds. One thread.
"""

from __future__ import annotations

import argparse
import csv
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor, nn

import alphatune
from alphatune.core.timing import interleave, ratio
from alphatune.evaluation.predictor import evaluation_mode
from alphatune.export.folding import fold
from alphatune.export.onnx import open_onnx, write_onnx
from alphatune.export.program import export_program, open_program, write_program
from alphatune.kernels import graph, moments
from alphatune.models.sources import build
from alphatune.norms.patching import patch_

ALPHA = 0.1
NETWORKS = {
    "resnet20": ("alphatune.models.cifar:resnet20", 32),
    "resnet56": ("alphatune.models.cifar:resnet56", 32),
    "mobilenetv2": ("mobilenetv2_100", 224),
    "resnet50": ("resnet50", 224),
}
Norm = Callable[..., Tensor]


def instance_norm(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, eps: float
) -> Tensor:
    """InstanceNormalization over rows (n, c), undone and done anew by what it multiplies and adds."""
    mixed, variance = graph._mixed_moments(x, mean, var, alpha)
    n, channels, *spatial = x.shape
    own = x.mean((2, 3), keepdim=True)
    squares = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True).square() / (spatial[0] * spatial[1])
    scale = weight.reshape(1, -1, 1, 1) * torch.rsqrt(variance + eps)
    wide = torch.sqrt((squares - own * own).clamp_min(0) + eps) * scale
    shift = bias.reshape(1, -1, 1, 1) + (own - mixed) * scale
    rows = x.reshape(1, n * channels, *spatial)
    return F.instance_norm(rows, weight=wide.reshape(-1), bias=shift.reshape(-1), eps=eps).reshape(x.shape)


#: form -> the function that computes a layer, and a change to make to the ONNX file afterwards
FORMS: dict[str, tuple[Norm, Callable[[Any], None] | None]] = {
    "centred, Mul and Add (before)": (moments.example_weighted_norm, None),
    "raw moments, Mul and Add": (graph.norm_for_torch, None),
    "raw moments, InstanceNormalization": (instance_norm, None),
    "raw moments, BatchNormalization (now)": (graph.norm_for_onnx, None),
    "the same, GlobalAveragePool": (graph.norm_for_onnx, lambda model: _pool(model, squares=False)),
    "the same, GlobalAveragePool of squares, too": (graph.norm_for_onnx, lambda model: _pool(model, squares=True)),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [int(size) for size in args.batches.split(",")]
    rows: list[dict[str, Any]] = []
    for name in args.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            runs, differences = _runs(name, Path(folder))
            print(f"{name}: exported", flush=True)
            for size in sizes:
                images = torch.randn(size, 3, NETWORKS[name][1], NETWORKS[name][1])
                timed = interleave(
                    {key: partial(run, images) for key, run in runs.items()},
                    seconds=args.seconds,
                    rounds=5,
                )
                for key in runs:
                    runtime, form = key
                    rows.append(
                        {
                            "network": name,
                            "batch": size,
                            "runtime": runtime,
                            "form": form,
                            "ms": round(1e3 * timed[key].median, 2),
                            "ratio": round(ratio(timed[key], timed[runtime, "folded"]), 3),
                            "largest difference": f"{differences[key]:.1e}",
                        }
                    )
                    print(*rows[-1].values(), flush=True)
        with args.output.open("w", newline="") as file:  # after every network
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(
        f"{platform.machine()}, one thread, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    )
    _print_tables(rows)


def _print_tables(rows: list[dict[str, Any]]) -> None:
    """As docs/benchmarks/graph-forms.md has them: one row a form, one column a network and batch size."""
    for runtime in ("onnxruntime", "pt2"):
        ratios = {(r["network"], r["batch"], r["form"]): r["ratio"] for r in rows if r["runtime"] == runtime}
        columns = list(dict.fromkeys((network, batch) for network, batch, _ in ratios))
        forms = list(dict.fromkeys(form for *_, form in ratios if form != "folded"))
        print(f"\n|{runtime}|" + "|".join(f"{network}, {batch}" for network, batch in columns) + "|")
        print("|---|" + "---:|" * len(columns))
        for form in forms:
            cells = "|".join(f"{ratios[network, batch, form]:.2f}" for network, batch in columns)
            print(f"|{form}|{cells}|")


def _runs(
    name: str, folder: Path
) -> tuple[dict[tuple[str, str], Callable[[Tensor], Tensor]], dict[tuple[str, str], float]]:
    """What runs each form in each runtime, and how far it is from PyTorch, in units of the largest logit."""
    runs, differences = {}, {}
    plain, weighted = (_network(name) for _ in range(2))
    patch_(weighted, ALPHA)
    size = NETWORKS[name][1]
    images = torch.randn(3, 3, size, size)
    for form, (norm, change) in {"folded": (graph.norm_for_torch, None), **FORMS}.items():
        model = fold(plain).model if form == "folded" else weighted
        with evaluation_mode(model):
            wanted = model(images)
        program = export_program(model, (3, size, size), dynamic_size=False, norm=norm)
        path = folder / f"{len(runs)}"
        write_onnx(program, path.with_suffix(".onnx"), record={})
        if change is not None:
            file = onnx.load(str(path.with_suffix(".onnx")))
            change(file)
            onnx.save(file, str(path.with_suffix(".onnx")))
        runs["onnxruntime", form] = open_onnx(path.with_suffix(".onnx"))
        if form == "folded" or norm in (moments.example_weighted_norm, graph.norm_for_torch):
            write_program(program, path.with_suffix(".pt2"), {})
            runs["pt2", form] = _without_gradients(open_program(path.with_suffix(".pt2")))
        for runtime in ("onnxruntime", "pt2"):
            if (runtime, form) in runs:
                difference = (runs[runtime, form](images) - wanted).abs().max() / wanted.abs().max()
                differences[runtime, form] = float(difference)
    return runs, differences


def _without_gradients(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def quietly(images: Tensor) -> Tensor:
        return run(images)

    return quietly


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = build(NETWORKS[name][0], pretrained=False).model
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():  # moving averages of the network's own, so that its numbers stay in range
        alphatune.recalibrate_(model, [torch.randn(16, 3, NETWORKS[name][1], NETWORKS[name][1])])
    return model.eval()


def _pool(model: Any, *, squares: bool) -> None:
    """Averages over height and width by GlobalAveragePool, and those of squares if that is asked for."""
    nodes = []
    for node in model.graph.node:
        if node.op_type == "ReduceMean":
            nodes.append(helper.make_node("GlobalAveragePool", node.input[:1], node.output))
        elif node.op_type == "ReduceSumSquare" and squares:
            (out,) = node.output
            positions = f"{out}_positions"
            nodes += [
                helper.make_node("Mul", [node.input[0], node.input[0]], [f"{out}_squares"]),
                helper.make_node("GlobalAveragePool", [f"{out}_squares"], [f"{out}_average"]),
                helper.make_node("Shape", [node.input[0]], [f"{positions}_shape"], start=2),
                helper.make_node("ReduceProd", [f"{positions}_shape"], [f"{positions}_whole"], keepdims=0),
                helper.make_node("Cast", [f"{positions}_whole"], [positions], to=1),
                helper.make_node("Mul", [f"{out}_average", positions], [out]),
            ]
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


if __name__ == "__main__":
    main()
