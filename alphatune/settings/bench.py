"""What ``bench`` takes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from alphatune.settings.model import ModelSettings
from alphatune.settings.option import OUTPUT, RUNNING, TUNING, Option
from alphatune.settings.running import (
    BATCH_SIZE,
    CHANNELS_LAST,
    COMPILE,
    DTYPE,
    EXCLUDE,
    RUNTIME,
    SEED,
    SKIP_UNKNOWN,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BenchSettings(ModelSettings):
    """What to time, and for how long."""

    OMITTED: ClassVar[tuple[str, ...]] = ("mean", "std", "crop_pct", "crop_mode", "interpolation")

    alpha: Annotated[
        float | None,
        Option(
            common=True,
            help="Alpha to time. Default: the tuned folder's, else 0.05.",
            group=TUNING,
            metavar="A",
        ),
    ] = None
    exclude: Annotated[tuple[str, ...], EXCLUDE] = ()
    skip_unknown: Annotated[bool, SKIP_UNKNOWN] = False
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], DTYPE] = "float32"
    batch_size: Annotated[str, BATCH_SIZE.but(help="Batch sizes to time.", metavar="LIST")] = "1,32"
    runtime: Annotated[Literal["torch", "onnx"], RUNTIME.but(common=True)] = "torch"
    per_layer: Annotated[
        bool,
        Option(
            common=True,
            help="Also time what alpha costs in each kind of layer; with --runtime onnx that takes minutes.",
            group=RUNNING,
        ),
    ] = False
    channels_last: Annotated[bool, CHANNELS_LAST] = False
    compile: Annotated[bool, COMPILE] = False
    threads: Annotated[
        int | None,
        Option(common=True, help="CPU threads. Default: torch's.", group=RUNNING, metavar="N", minimum=1),
    ] = None
    seconds: Annotated[
        float,
        Option(
            help="Seconds per batch size, not counting first calls; at least three rounds.",
            group=RUNNING,
            metavar="S",
        ),
    ] = 10.0
    seed: Annotated[int, SEED.but(help="Random seed for the images.")] = 0
    output: Annotated[
        str | None,
        Option(
            common=True, help="Also write the JSON object there.", group=OUTPUT, metavar="FILE", short="-o"
        ),
    ] = None
    overwrite: Annotated[
        bool, Option(common=True, help="Replace an older result of bench.", group=OUTPUT, saved=False)
    ] = False
