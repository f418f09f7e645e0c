"""ONNX by torch's current exporter, checked and run by onnxruntime.

The exporter takes the graph of program.py, folds what is constant and
BatchNorm into the convolution before it. It has been wrong about that in some
versions, and freezes a batch of 1: nothing is taken on trust, see agreement.py.

onnx, onnxscript and onnxruntime are optional: ``pip install "alphatune[onnx]"``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from alphatune.core.errors import (
    ConfigurationError,
    NumericError,
    UnsupportedModelError,
    one_line,
    raise_if_machine_failed,
)
from alphatune.core.extras import install_line
from alphatune.core.versions import ONNX, require_torch
from alphatune.export.agreement import Run
from alphatune.export.program import WITHOUT_A_GRAPH, quiet

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
#: of torch's exporter: the oldest that it writes itself, and the newest that it knows
OPSETS = range(18, 24)
DEFAULT_OPSET = 20
#: protobuf holds 2 GB; weights above this go into a second file
MOST_BYTES = 1_500_000_000
_AXES = {0: "batch", 2: "height", 3: "width"}


def require_onnx() -> None:
    """Raise ConfigurationError, with the line that helps, if an optional package is missing or torch too old."""
    require_torch(ONNX, WITHOUT_A_GRAPH)
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            absent = isinstance(error, ModuleNotFoundError) and error.name == name
            raise ConfigurationError(
                f"`format=onnx` needs the packages {', '.join(PACKAGES[:-1])} and {PACKAGES[-1]}; {name} "
                + ("is not installed" if absent else f"cannot be imported: {one_line(error)}"),
                install_line("onnx"),
            ) from None


def check_opset(opset: int) -> None:
    """Raise ConfigurationError for an opset that the exporter does not write."""
    if opset not in OPSETS:
        raise ConfigurationError(
            f"torch's exporter writes opset {OPSETS.start} to {OPSETS.stop - 1}, got `opset={opset}`"
        )


def write_onnx(
    program: ExportedProgram,
    path: Path,
    *,
    opset: int = DEFAULT_OPSET,
    input_name: str = "images",
    output_name: str = "logits",
    record: Mapping[str, str],
) -> None:
    """Convert a program and write it as one file; above MOST_BYTES its weights as ``path``.data beside it.

    Args:
        record: goes into the model's metadata_props.

    Raises:
        ConfigurationError: a package is missing, the exporter does not write this opset, or a name is taken.
        UnsupportedModelError: an operation has no ONNX form.
        NumericError: onnx.checker refuses what came out.
    """
    require_onnx()
    check_opset(opset)
    (images,) = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    sizes = images.meta["val"].shape
    axes = {axis: name for axis, name in _AXES.items() if isinstance(sizes[axis], torch.SymInt)}
    try:
        with quiet(), torch.no_grad():
            converted: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes={str(images.target): axes},
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # an operation without a translation, a pass that fails
        cause = error.__cause__ or error
        raise_if_machine_failed(cause)
        raise UnsupportedModelError(
            f"torch cannot convert the model to ONNX: {type(cause).__name__}: {one_line(cause)}"
        ) from None
    model = converted.model
    written = model.graph.opset_imports.get("")
    if written != opset:
        raise ConfigurationError(
            f"the model cannot be written with `opset={opset}`: torch's exporter gave {written}",
            f"`opset={written}`",
        )
    _sum_squares(model.graph)
    _name(model.graph, input_name, output_name)
    for part in (model.graph, *model.functions.values()):
        for node in part.all_nodes():
            node.metadata_props.clear()  # names of Python modules and lines of code on this machine
            node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.update(record)
    large = sum(value.const_value.nbytes for value in model.graph.initializers.values()) > MOST_BYTES
    with quiet():
        converted.save(str(path), external_data=large)
    _check(path)


def open_onnx(path: Path) -> Run:
    """The model in a file, in onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        (output,) = session.run(None, {name: images.numpy()})
        return torch.from_numpy(output)

    return run


def _sum_squares(graph: Any) -> None:
    """ReduceSumSquare for the square of a ReduceL2, which is slower by the root and by the square."""
    for node in list(graph):
        if node.op_type != "Pow" or (root := node.inputs[0].producer()) is None:
            continue
        exponent = node.inputs[1].const_value
        squares = exponent is not None and exponent.size == 1 and float(exponent.numpy()) == 2
        if squares and root.op_type == "ReduceL2" and len(root.outputs[0].uses()) == 1:
            root.op_type = "ReduceSumSquare"
            node.inputs[0].shape = node.outputs[0].shape
            for user, place in tuple(node.outputs[0].uses()):
                user.replace_input_with(place, root.outputs[0])
            graph.remove(node, safe=True)


def _name(graph: Any, input_name: str, output_name: str) -> None:
    """Rename input and output, which no other value of the graph may be called."""
    named = {"input": (graph.inputs[0], input_name), "output": (graph.outputs[0], output_name)}
    inner = [*graph.initializers.values(), *(value for node in graph.all_nodes() for value in node.outputs)]
    taken = {value.name for value in inner if all(value is not own for own, _ in named.values())}
    for which, (value, name) in named.items():
        if name in taken:
            raise ConfigurationError(
                f"a value inside the graph is called {name!r}", f"give another --{which}-name"
            )
        value.name = name


def _check(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # of onnx's own kinds, or protobuf's
        raise NumericError(f"onnx.checker refuses the exported model: {one_line(error)}") from None
