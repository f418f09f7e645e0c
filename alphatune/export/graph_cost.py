"""What α costs in an exported graph: onnxruntime on the CPU, beside the graph whose norm layers are folded."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from alphatune.core.errors import UnsupportedModelError
from alphatune.export.agreement import Run, compare, expect
from alphatune.export.deployment import COMPARED, DeploymentCost, Measured, alphas_of, example_weighted_copy
from alphatune.export.folding import fold
from alphatune.export.latency import time_graphs
from alphatune.export.onnx import open_onnx, require_onnx, write_onnx
from alphatune.export.program import export_program
from alphatune.kernels.graph import norm_for_onnx
from alphatune.norms.patching import Alpha

#: how far a graph's logits may be from PyTorch's, in units of the largest
TOLERANCE = 1e-3


def graph_costs(
    model: nn.Module,
    input_size: tuple[int, int, int],
    batch_sizes: Sequence[int],
    *,
    alpha: Alpha | Mapping[str, Alpha],
    seconds: float,
    exclude: Collection[str] = (),
    skip_unknown: bool = False,
    spent: Callable[[float], None] = lambda _: None,
) -> tuple[DeploymentCost, ...]:
    """Export a model twice, with α and folded, and time both graphs in turns, for each batch size.

    Args:
        model: a classifier with BatchNorm layers; it is not touched.
        input_size: (C, H, W) of an image.
        alpha, exclude, skip_unknown: as for ``deployment_cost``.
        seconds: budget of each batch size, less the first calls; at least three rounds.
        spent: called between the timings with the seconds that passed.

    Raises:
        ConfigurationError: an optional package is missing, or what ``deployment_cost`` raises.
        UnsupportedModelError: nothing to weigh or to fold, or a model that cannot be exported.
        NumericError: a graph computes something else than the model.
    """
    require_onnx()
    if any(p.device.type != "cpu" for p in model.parameters()):
        model = copy.deepcopy(model).cpu()
    weighted, folding = example_weighted_copy(model, alpha, exclude, skip_unknown), fold(model)
    if not folding.folded:
        raise UnsupportedModelError(
            "no norm layer of the model folds into a convolution, so that there is nothing to compare with",
            "`runtime=torch` compares with the plain model",
        )
    images = torch.randn((COMPARED, *input_size), generator=torch.Generator().manual_seed(0))
    graphs = [graph_in_onnxruntime(network, input_size) for network in (weighted, folding.model)]
    expected = (expect(network, images, COMPARED) for network in (weighted, folding.model))
    differences = [
        compare(graph, wanted, TOLERANCE).largest_difference
        for graph, wanted in zip(graphs, expected, strict=True)
    ]
    return tuple(
        DeploymentCost(
            alpha=alphas_of(weighted),
            batch_size=timed.batch_size,
            measured=(
                Measured("folded", None, False, timed.folded, 1.0, None),
                Measured("example-weighted", None, False, timed.weighted, timed.ratio, None),
            ),
            norms=folding.norms,
            folded=len(folding.folded),
            kept=folding.kept,
            largest_difference=differences[1],
            warnings=(),
            runtime="onnxruntime",
        )
        for timed in time_graphs(
            graphs[0], graphs[1], input_size, batch_sizes=batch_sizes, seconds=seconds, spent=spent
        )
    )


def graph_in_onnxruntime(model: nn.Module, input_size: tuple[int, int, int]) -> Run:
    """The graph of a model as onnxruntime runs it; no file of it stays.

    Raises:
        UnsupportedModelError: the model cannot be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(export_program(model, input_size, dynamic_size=False, norm=norm_for_onnx), path, record={})
        return open_onnx(path)
