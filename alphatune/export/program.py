"""A model as one graph of plain torch operations: the ``pt2`` file, and what ONNX is made from.

torch.export runs the model once on symbols and writes down every operation.
Example-weighted layers go through plain operations then, in few passes (kernels/graph.py) or
as they are in PyTorch (kernels/dispatch.py), so that the graph knows nothing of alphatune; a
layer at α = 0 is the stock BatchNorm.

The graph takes images (N, C, H, W) and gives the logits, or what a model gives in
their place (probabilities): what else it returns, an auxiliary head's output say, is left out.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from alphatune.core.errors import UnsupportedModelError, one_line, raise_if_machine_failed
from alphatune.evaluation.predictor import evaluation_mode
from alphatune.evaluation.reading import output_of
from alphatune.export.agreement import Run
from alphatune.kernels.dispatch import use_kernel
from alphatune.kernels.graph import is_accurate, norm_for_torch
from alphatune.models.temperature import get_temperature
from alphatune.norms.patching import example_weighted_layers

#: more than one, or the batch would be frozen at it
EXAMPLES = 2
#: the file inside a .pt2 that says what it is
RECORD = "alphatune.json"
#: said where torch is too old for a graph
WITHOUT_A_GRAPH = "`format=safetensors` and hf work with every torch"


class _Logits(nn.Module):
    """The logits alone of a model that returns more than that, or has hooks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return output_of(self.model, self.model(images))


def export_program(
    model: nn.Module,
    input_size: tuple[int, int, int],
    *,
    dynamic_size: bool,
    norm: Callable[..., Tensor] = norm_for_torch,
) -> ExportedProgram:
    """Trace a model in eval mode, for batches of any number of images.

    Args:
        input_size: (C, H, W) of an image.
        dynamic_size: leave height and width open as well.
        norm: what computes example-weighted layers, of kernels/graph.py.

    Raises:
        UnsupportedModelError: torch.export cannot follow the model, or only for fixed sizes.
    """
    images = torch.rand((EXAMPLES, *input_size), generator=torch.Generator().manual_seed(0))
    dims = {0: Dim.DYNAMIC} | ({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if dynamic_size else {})
    with evaluation_mode(model), use_kernel("eager"), _few_passes(model, norm), quiet():
        plain = get_temperature(model) == 1 and torch.is_tensor(model(images))
        root = model if plain else _Logits(model).eval()
        try:
            program = torch.export.export(root, (images,), dynamic_shapes=(dims,))
        except Exception as error:  # whatever tracing somebody's forward raises
            raise_if_machine_failed(error)
            raise UnsupportedModelError(
                f"torch.export cannot trace the model: {type(error).__name__}: {one_line(error)}"
            ) from None
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # lines of code, with the paths of this machine
    return program


@contextlib.contextmanager
def _few_passes(model: nn.Module, norm: Callable[..., Tensor]) -> Iterator[None]:
    """Layers whose numbers allow it are computed in few passes for the time of a ``with`` block."""
    layers = [
        layer
        for _, layer in example_weighted_layers(model)
        if layer.num_groups is None
        and is_accurate(layer.running_mean, layer.running_var, layer.alpha, layer.eps)
    ]
    try:
        for layer in layers:
            layer.norm_in_graph = norm
        yield
    finally:
        for layer in layers:
            del layer.norm_in_graph


def write_program(program: ExportedProgram, path: Path, record: Mapping[str, str]) -> None:
    """Write a program as .pt2, with what it is in an extra file ``alphatune.json`` inside.

    Raises:
        UnsupportedModelError: it holds an operation that cannot be written.
    """
    buffer = io.BytesIO()
    text = json.dumps(dict(record), indent=2)
    try:
        with quiet():
            torch.export.save(program, buffer, extra_files={RECORD: text})
    except Exception as error:  # of an operator that somebody registered, say
        raise UnsupportedModelError(
            f"torch.export cannot save the model: {type(error).__name__}: {one_line(str(error).partition(chr(10))[0])}"
        ) from None
    path.write_bytes(buffer.getbuffer())


def open_program(path: Path) -> Run:
    """A program from a file, ready to run."""
    with quiet():
        module: Any = torch.export.load(str(path)).module()

    def run(images: Tensor) -> Tensor:
        output: Tensor = module(images)
        return output

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what exporters print, warn of and log, unless it is an error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
