"""Export a tuned folder: one file, or a folder for the Hugging Face hub, written only if it computes the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from alphatune.jobs.describe import common_alpha, describe_source
from alphatune.jobs.export_job import INPUT, OUTPUT, ExportJob, open_export
from alphatune.jobs.exported_graph import Checked, write_graph
from alphatune.jobs.hub_folder import write_hub_folder
from alphatune.jobs.settings import ExportSettings
from alphatune.models.onnx import DEFAULT_OPSET
from alphatune.models.output import staged
from alphatune.models.output_file import staged_file
from alphatune.models.temperature import get_temperature
from alphatune.models.weights_file import write_weights
from alphatune.reports.export import describe_files, export_document
from alphatune.reports.result import environment


def run_export(settings: ExportSettings, *, model: nn.Module | None = None) -> dict[str, Any]:
    """Write what the settings ask for, and compare it with the tuned model before it gets its name.

    Args:
        model: an instance of the architecture, where the folder does not know how to build it.

    Returns:
        The document that ``--stdout json`` prints.

    Raises:
        AlphatuneError: in one of its kinds, and no file is left; NumericError where it computes something else.
    """
    job = open_export(settings, model)
    if settings.format == "hf":
        with staged(job.output, overwrite=settings.overwrite, keep=[settings.model]) as stage:
            checked = write_hub_folder(job, stage)
    else:
        with staged_file(job.output, overwrite=settings.overwrite) as path:
            if settings.format == "safetensors":
                write_weights(
                    job.opened.module, path, job.record("not in the weights: divide the logits by it")
                )
                checked = Checked(())
            else:
                checked = write_graph(job, path)
    return export_document(
        model=describe_source(job.opened)
        | {
            "alpha": common_alpha(job.opened.module),
            "temperature": job.bundle.temperature,
            "temperature_in": job.head or _unfolded(job),
            "num_classes": job.num_classes,
        },
        file=_describe(job, checked),
        images={"source": job.images.source, "n": len(job.images.images)},
        agreements=checked.agreements,
        tolerance=settings.tolerance,
        env=environment(job.opened.device, torch.float32) | {"seed": settings.seed},
        warnings=[*job.warnings, *checked.warnings],
    )


def _describe(job: ExportJob, checked: Checked) -> dict[str, Any]:
    settings = job.settings
    values: dict[str, Any] = {
        "format": settings.format,
        "path": str(job.output),
        "files": describe_files(job.output),
        "preprocessing": job.opened.preprocessing.to_dict(),
    }
    if settings.format in ("onnx", "pt2"):
        channels, *size = job.opened.preprocessing.input_size
        values["input"] = ["batch", channels, *(("height", "width") if checked.dynamic_size else size)]
    if settings.format == "onnx":
        values |= {
            "opset": settings.opset or DEFAULT_OPSET,
            "input_name": settings.input_name or INPUT,
            "output_name": settings.output_name or OUTPUT,
        }
    return values


def _unfolded(job: ExportJob) -> str | None:
    """Where a temperature is that is not in the weights of a layer; None if it is nowhere."""
    if get_temperature(job.opened.module) == 1:
        return None
    return "graph" if job.settings.format in ("onnx", "pt2") else None
