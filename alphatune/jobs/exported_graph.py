"""Write the graph of a tuned model, as ONNX or as torch's exported program, and compare it before it is taken."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.export import ExportedProgram

from alphatune.core.errors import NumericError, ResourceError, UnsupportedModelError
from alphatune.core.progress import Meter
from alphatune.export.agreement import Agreement, Run, compare_all
from alphatune.export.folding import fold
from alphatune.export.latency import BATCH_SIZES, Latency, time_graphs
from alphatune.export.onnx import DEFAULT_OPSET, open_onnx, write_onnx
from alphatune.export.output_file import data_beside
from alphatune.export.program import export_program, open_program, write_program
from alphatune.jobs.export_job import INPUT, OUTPUT, ExportJob
from alphatune.kernels.graph import norm_for_onnx, norm_for_torch
from alphatune.norms.patching import example_weighted_layers


@dataclass(frozen=True)
class Checked:
    """How near what was written comes: by what read it back, one agreement a batch size."""

    agreements: tuple[tuple[str, Agreement], ...]
    dynamic_size: bool = False
    latencies: tuple[Latency, ...] = ()
    warnings: tuple[str, ...] = ()


def write_graph(job: ExportJob, path: Path, meter: Meter) -> Checked:
    """Write a graph with height and width left open if the model allows, else at one size; compare it, and time it.

    Raises:
        UnsupportedModelError: it cannot be exported.
        NumericError: what was written computes something else.
    """
    settings, warnings = job.settings, list[str]()
    height, width = job.opened.preprocessing.input_size[1:]
    found, dynamic_size = None, False
    if job.elsewhere is not None:
        try:
            found, dynamic_size = _attempt(job, path, meter, dynamic_size=True), True
        except (UnsupportedModelError, NumericError) as error:
            warnings.append(f"height and width are fixed at {height}x{width}: {error.message}")
            for file in (path, data_beside(path)):
                file.unlink(missing_ok=True)
    elif not settings.fixed_size:
        warnings.append(f"height and width are fixed at {height}x{width}: the model takes no other")
    if found is None:
        found = _attempt(job, path, meter, dynamic_size=False)
    latencies: tuple[Latency, ...] = ()
    if settings.seconds and any(
        layer.weighs_example for _, layer in example_weighted_layers(job.opened.module)
    ):
        try:
            latencies = _time(job, path, meter, dynamic_size=dynamic_size)
        except (UnsupportedModelError, NumericError, ResourceError) as error:
            warnings.append(f"the graph was not timed: {error.message}")
    reader = "onnxruntime" if settings.format == "onnx" else "torch.export.load"
    agreements = tuple((reader, agreement) for agreement in found)
    return Checked(agreements, dynamic_size, latencies, tuple(warnings))


def _time(job: ExportJob, path: Path, meter: Meter, *, dynamic_size: bool) -> tuple[Latency, ...]:
    """Beside the graph of the network whose norm layers are folded; nothing where none can be."""
    folding, input_size = fold(job.opened.module), job.opened.preprocessing.input_size
    if not folding.folded:
        return ()
    meter.phase("exporting the folded network")
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / path.name
        _write(job, _trace(job, folding.model, dynamic_size=dynamic_size), folded)
        meter.begin("timing", round(1000 * job.settings.seconds * len(BATCH_SIZES)), "")
        return time_graphs(
            _open(job, path),
            _open(job, folded),
            input_size,
            seconds=job.settings.seconds,
            spent=lambda seconds: meter.add(round(1000 * seconds)),
        )


def _attempt(job: ExportJob, path: Path, meter: Meter, *, dynamic_size: bool) -> tuple[Agreement, ...]:
    _write(job, _trace(job, job.opened.module, dynamic_size=dynamic_size), path)
    meter.phase("comparing with PyTorch")
    wanted = [*job.expected, *([job.elsewhere] if dynamic_size and job.elsewhere else [])]
    return compare_all(_open(job, path), wanted, job.settings.tolerance)


def _trace(job: ExportJob, model: nn.Module, *, dynamic_size: bool) -> ExportedProgram:
    norm = norm_for_onnx if job.settings.format == "onnx" else norm_for_torch
    input_size = job.opened.preprocessing.input_size
    return export_program(model, input_size, dynamic_size=dynamic_size, norm=norm)


def _open(job: ExportJob, path: Path) -> Run:
    return open_onnx(path) if job.settings.format == "onnx" else open_program(path)


def _write(job: ExportJob, program: ExportedProgram, path: Path) -> None:
    settings, record = job.settings, job.record("in the graph")
    if settings.format == "pt2":
        write_program(program, path, record)
        return
    write_onnx(
        program,
        path,
        opset=settings.opset or DEFAULT_OPSET,
        input_name=settings.input_name or INPUT,
        output_name=settings.output_name or OUTPUT,
        record=record,
    )
