"""Export a tuned folder: one file, or a folder for the Hugging Face hub, written only if it computes the same."""

from __future__ import annotations

import torch
from torch import nn

from alphatune.core.progress import ShowProgress, as_meter
from alphatune.core.version import VERSION
from alphatune.export.onnx import DEFAULT_OPSET
from alphatune.export.output_file import staged_file
from alphatune.jobs.describe import describe_preprocessing, describe_source, model_alpha
from alphatune.jobs.export_job import INPUT, OUTPUT, ExportJob, open_export
from alphatune.jobs.exported_graph import Checked, write_graph
from alphatune.jobs.hub_folder import write_hub_folder
from alphatune.jobs.preparation import Say
from alphatune.models.output import staged
from alphatune.models.temperature import get_temperature
from alphatune.models.weights_file import write_weights
from alphatune.reports.export import describe_check, describe_files, describe_timing
from alphatune.reports.result import environment
from alphatune.results.environment import SeededEnvironment
from alphatune.results.export import (
    CheckImages,
    Export,
    ExportDocument,
    ExportedModel,
    HubExport,
    OnnxExport,
    ProgramExport,
    WeightsExport,
)
from alphatune.settings import ExportSettings


def run_export(
    settings: ExportSettings,
    progress: ShowProgress = None,
    *,
    model: nn.Module | None = None,
    say: Say | None = None,
) -> ExportDocument:
    """Write what the settings ask for, and compare it with the tuned model before it gets its name.

    Args:
        model: an instance of the architecture, where the folder does not know how to build it.
        say: told how the images to check on are prepared, before anything is run.

    Returns:
        What is printed as JSON.

    Raises:
        AlphatuneError: in one of its kinds, and no file is left; NumericError where it computes something else.
    """
    meter = as_meter(progress)
    job = open_export(settings, model, say)
    meter.phase(f"exporting as {settings.format}")
    if settings.format == "hf":
        with staged(job.output, overwrite=settings.overwrite, keep=[settings.model]) as stage:
            checked = write_hub_folder(job, stage, meter)
    else:
        with staged_file(job.output, overwrite=settings.overwrite) as path:
            if settings.format == "safetensors":
                write_weights(
                    job.opened.module, path, job.record("not in the weights: divide the logits by it")
                )
                checked = Checked(())
            else:
                checked = write_graph(job, path, meter)
    images = CheckImages(source=job.images.source, n=len(job.images.images))
    return ExportDocument(
        alphatune=VERSION,
        model=describe_source(job.opened).extended(
            ExportedModel,
            alpha=model_alpha(job.opened.module),
            temperature=job.bundle.temperature,
            temperature_in=job.head or _unfolded(job),
            num_classes=job.num_classes,
        ),
        export=_describe(job, checked),
        check=describe_check(images, checked.agreements, settings.tolerance),
        timing=describe_timing(settings.format, checked.latencies),
        env=environment(job.opened.device, torch.float32).extended(SeededEnvironment, seed=settings.seed),
        warnings=(*job.warnings, *checked.warnings),
    )


def _describe(job: ExportJob, checked: Checked) -> ProgramExport | OnnxExport | WeightsExport | HubExport:
    settings, preprocessing = job.settings, job.opened.preprocessing
    written = Export(
        path=str(job.output),
        files=describe_files(job.output),
        preprocessing=describe_preprocessing(preprocessing),
    )
    if settings.format == "hf":
        return written.extended(HubExport)
    if settings.format == "safetensors":
        return written.extended(WeightsExport)
    channels, *size = preprocessing.input_size
    axes = ("batch", channels, *(("height", "width") if checked.dynamic_size else size))
    if settings.format == "pt2":
        return written.extended(ProgramExport, input=axes)
    return written.extended(
        OnnxExport,
        input=axes,
        opset=settings.opset or DEFAULT_OPSET,
        input_name=settings.input_name or INPUT,
        output_name=settings.output_name or OUTPUT,
    )


def _unfolded(job: ExportJob) -> str | None:
    """Where a temperature is that is not in the weights of a layer; None if it is nowhere."""
    if get_temperature(job.opened.module) == 1:
        return None
    return "graph" if job.settings.format in ("onnx", "pt2") else None
