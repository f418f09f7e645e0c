"""Time a model on this machine: plain, conv-folded, and example-weighted with each kernel."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from alphatune.core.errors import ConfigurationError, ResourceError, is_out_of_memory, one_line
from alphatune.core.progress import Meter, ShowProgress, as_meter
from alphatune.data.preprocessing import parse_numbers
from alphatune.export.deployment import DeploymentCost, deployment_cost
from alphatune.export.graph_cost import graph_costs
from alphatune.export.layer_costs import LayerCosts, LayerTimer
from alphatune.export.onnx import require_onnx
from alphatune.jobs.describe import describe_source
from alphatune.jobs.opening import DTYPES, OpenedModel, digits, open_model
from alphatune.models.probe import Probe, probe
from alphatune.models.running_stats_check import require_health
from alphatune.norms.patching import Alpha, get_alpha
from alphatune.norms.survey import moving_averages, survey
from alphatune.reports.deployment import bench_document
from alphatune.reports.file import check_file, write_file
from alphatune.reports.result import environment
from alphatune.results.bench import BenchDocument
from alphatune.results.environment import BenchEnvironment
from alphatune.settings import BenchSettings
from alphatune.tuning.remarks import remark_on_inactive

#: α of a model that has none of its own
USUAL_ALPHA = 0.05
MOST_IMAGES = 2**20
#: share of ``seconds`` for which each kind of layer is timed
LAYER_SHARE = 0.2
#: distance of the quartiles, in units of the median, above which timings are called unsteady
UNSTEADY = 0.5


def run_bench(settings: BenchSettings, progress: ShowProgress = None) -> BenchDocument:
    """Time a model or tuned folder on random images, and write ``output`` if one is named.

    Args:
        progress: shown what is being measured.

    Raises:
        AlphatuneError: in one of its kinds; nothing is left half written.
    """
    output = None if settings.output is None else Path(settings.output)
    if output is not None:
        check_file(output, "bench", overwrite=settings.overwrite)
    sizes = parse_batch_sizes(settings.batch_size)
    if settings.dtype not in DTYPES:
        raise ConfigurationError(f"unknown dtype {settings.dtype!r}", f"one of: {', '.join(DTYPES)}")
    if not (settings.seconds > 0 and math.isfinite(settings.seconds)):
        raise ConfigurationError(f"`seconds` must be positive, got {settings.seconds:g}")
    _check_runtime(settings)
    settings = _of_any_channels(settings)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    with _threads(settings.threads):
        opened = open_model(settings)
        require_health(opened.module)
        seen = probe(opened.module, opened.preprocessing.input_size, opened.device, wanted=settings.logits)
        if settings.channels_last:
            opened.module.to(memory_format=torch.channels_last)
        meter = as_meter(progress)
        meter.begin("timing", round(1000 * settings.seconds) * len(sizes), "")
        costs = _costs(settings, opened, sizes, meter)
        layers = _layer_costs(settings, opened, seen, sizes, meter) if settings.per_layer else ()
        document = bench_document(
            costs,
            layers,
            model=describe_source(opened),
            env=environment(opened.device, DTYPES[settings.dtype]).extended(
                BenchEnvironment,
                input_size=opened.preprocessing.input_size,
                channels_last=settings.channels_last,
                seconds=settings.seconds,
                seed=settings.seed,
                runtime=costs[0].runtime,
            ),
            warnings=[
                *_warnings(opened, seen),
                *seen.warnings,
                *_busy(opened.device, load),
                *_unsteady(costs),
            ],
        )
    if output is not None:
        check_file(output, "bench", overwrite=settings.overwrite)  # it may have appeared meanwhile
        write_file(output, document)
    return document


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """``"1,32"`` -> (1, 32), each once."""
    sizes = [digits(part.strip()) or 0 for part in text.split(",")]
    if not all(1 <= size <= MOST_IMAGES for size in sizes):
        raise ConfigurationError(
            f"`batch_size` takes whole numbers from 1 to {MOST_IMAGES}, separated by commas, got {one_line(text, 80)!r}"
        )
    return tuple(dict.fromkeys(sizes))


def _costs(
    settings: BenchSettings, opened: OpenedModel, sizes: Sequence[int], meter: Meter
) -> Sequence[DeploymentCost]:
    """One for each batch size."""
    alpha: Alpha | dict[str, Alpha] = USUAL_ALPHA if settings.alpha is None else settings.alpha
    if settings.alpha is None and (own := get_alpha(opened.module)):
        alpha = {name: torch.tensor(value) for name, value in own.items()}

    def spent(seconds: float) -> None:
        meter.add(round(1000 * seconds))

    if settings.runtime == "onnx":
        return graph_costs(
            opened.module,
            opened.preprocessing.input_size,
            sizes,
            alpha=alpha,
            seconds=settings.seconds,
            exclude=settings.exclude,
            skip_unknown=settings.skip_unknown,
            spent=spent,
        )
    costs = []
    for place, size in enumerate(sizes):
        meter.phase(f"timing batches of {size}")
        cost = deployment_cost(
            opened.module,
            _random_inputs(opened, size, settings),
            alpha=alpha,
            budget_seconds=settings.seconds,
            kernels=None,
            dtype=DTYPES[settings.dtype],
            torch_compile=settings.compile,
            exclude=settings.exclude,
            skip_unknown=settings.skip_unknown,
            spent=spent,
        )
        costs.append(cost)
        meter.expect(round(1000 * settings.seconds) * (len(sizes) - place - 1))
    return costs


def _layer_costs(
    settings: BenchSettings, opened: OpenedModel, seen: Probe, sizes: Sequence[int], meter: Meter
) -> tuple[LayerCosts, ...]:
    """One for each batch size."""
    meter.begin("timing layers", None, "")
    averages = {name: moving_averages(opened.module.get_submodule(name)) for name in seen.layers}
    shapes = {name: (len(pair[0]), *seen.layers[name].spatial) for name, pair in averages.items() if pair}
    alpha = USUAL_ALPHA if settings.alpha is None else settings.alpha

    def costs(size: int) -> LayerCosts:
        timer = LayerTimer(
            opened.module,
            opened.preprocessing.input_size,
            size,
            runtime=settings.runtime,
            alpha=alpha or USUAL_ALPHA,
            seconds=settings.seconds * LAYER_SHARE,
            dtype=DTYPES[settings.dtype],
            channels_last=settings.channels_last,
            seed=settings.seed,
            exclude=settings.exclude,
            skip_unknown=settings.skip_unknown,
            spent=lambda seconds: meter.add(round(1000 * seconds)),
        )
        return timer.costs(shapes)

    return tuple(map(costs, sizes))


def _check_runtime(settings: BenchSettings) -> None:
    """Raise ConfigurationError for what onnxruntime on the CPU does not do."""
    if settings.runtime == "torch":
        return
    for name, only in (("dtype", "float32"), ("compile", False), ("channels_last", False)):
        if getattr(settings, name) != only:
            raise ConfigurationError(f"`{name}` does not go with `runtime=onnx`")
    require_onnx()


def _random_inputs(opened: OpenedModel, size: int, settings: BenchSettings) -> Tensor:
    """Normalised noise, which for timing is as good as images."""
    generator = torch.Generator().manual_seed(settings.seed)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    shape = (size, *opened.preprocessing.input_size)
    try:
        inputs = torch.randn(shape, generator=generator)
        return inputs.to(opened.device).contiguous(memory_format=layout)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(f"{size} images do not fit into memory", "use a smaller `batch_size`") from None


def _of_any_channels(settings: BenchSettings) -> BenchSettings:
    """The settings with a mean and deviation that fit the channels asked for: noise needs neither."""
    size = parse_numbers(settings.input_size, "`input_size`") if settings.input_size else ()
    if len(size) != 3 or size[0] not in range(1, 1025):  # whatever else is wrong with it is said later
        return settings
    channels = int(size[0])
    return replace(settings, mean=",".join(["0"] * channels), std=",".join(["1"] * channels))


def _warnings(opened: OpenedModel, seen: Probe) -> list[str]:
    notes = [*opened.warnings, *opened.preparation.warnings(("input_size",))]
    layers = seen.watched.account(survey(opened.module))
    unknown = [layer for layer in layers if layer.status == "unsupported"]
    if unknown:
        notes.append(
            f"{len(unknown)} norm layer(s) were left alone, e.g. {unknown[0].name}: {unknown[0].reason}"
        )
    return notes + remark_on_inactive(layers, sum(x.status in ("patchable", "patched") for x in layers))


def _busy(device: torch.device, load: float) -> list[str]:
    """A remark where threads had to wait for cores, and so for each other: that can take a hundred times as long."""
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    if device.type != "cpu" or load + threads <= 1.5 * cores:
        return []
    return [
        f"{threads} threads were timed on {cores} cores that were busy already (load average {load:.1f}): "
        "trust ratios from an idle machine, or with fewer `threads`"
    ]


def _unsteady(costs: Sequence[DeploymentCost]) -> list[str]:
    timings = [m.timing for cost in costs for m in cost.measured]
    spread = max((t.high - t.low) / t.median for t in timings)
    if spread <= UNSTEADY:
        return []
    return [
        f"timings are unsteady (quartiles up to {spread:.1f} medians apart): something else uses this machine; "
        "a longer `seconds` or fewer `threads` help"
    ]


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """So many threads of the CPU for the time of a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
