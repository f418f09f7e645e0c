"""Write the graph of a tuned model, as ONNX or as torch's exported program, and compare it before it is taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch.export import ExportedProgram

from alphatune.core.errors import NumericError, UnsupportedModelError
from alphatune.core.progress import Meter
from alphatune.export.agreement import Agreement, compare_all
from alphatune.export.onnx import DEFAULT_OPSET, open_onnx, write_onnx
from alphatune.export.output_file import data_beside
from alphatune.export.program import export_program, open_program, write_program
from alphatune.jobs.export_job import INPUT, OUTPUT, ExportJob


@dataclass(frozen=True)
class Checked:
    """How near what was written comes: by what read it back, one agreement a batch size."""

    agreements: tuple[tuple[str, Agreement], ...]
    dynamic_size: bool = False
    warnings: tuple[str, ...] = ()


def write_graph(job: ExportJob, path: Path, meter: Meter) -> Checked:
    """Write a graph with height and width left open if the model allows, else at one size.

    Raises:
        UnsupportedModelError: it cannot be exported.
        NumericError: what was written computes something else.
    """
    settings = job.settings
    reader = "onnxruntime" if settings.format == "onnx" else "torch.export.load"
    warnings: tuple[str, ...] = ()
    height, width = job.opened.preprocessing.input_size[1:]
    if job.elsewhere is not None:
        try:
            found = _attempt(job, path, meter, dynamic_size=True)
            return Checked(tuple((reader, agreement) for agreement in found), dynamic_size=True)
        except (UnsupportedModelError, NumericError) as error:
            warnings = (f"height and width are fixed at {height}x{width}: {error.message}",)
            for file in (path, data_beside(path)):
                file.unlink(missing_ok=True)
    elif not settings.fixed_size:
        warnings = (f"height and width are fixed at {height}x{width}: the model takes no other",)
    found = _attempt(job, path, meter, dynamic_size=False)
    return Checked(tuple((reader, agreement) for agreement in found), warnings=warnings)


def _attempt(job: ExportJob, path: Path, meter: Meter, *, dynamic_size: bool) -> tuple[Agreement, ...]:
    settings = job.settings
    input_size = job.opened.preprocessing.input_size
    program = export_program(job.opened.module, input_size, dynamic_size=dynamic_size)
    _write(job, program, path)
    meter.phase("comparing with PyTorch")
    run = open_onnx(path) if settings.format == "onnx" else open_program(path)
    wanted = [*job.expected, *([job.elsewhere] if dynamic_size and job.elsewhere else [])]
    return compare_all(run, wanted, settings.tolerance)


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
