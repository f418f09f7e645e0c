"""What ``evaluate`` takes."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from alphatune.settings.images import DATA_OPTION, ImageSettings, LabelSettings
from alphatune.settings.model import ModelSettings
from alphatune.settings.option import DATA, IMAGES, RUNNING, TUNING, Option
from alphatune.settings.running import BATCH_SIZE, CHANNELS_LAST, COMPILE, DTYPE, SEED, SKIP_UNKNOWN, WORKERS


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(ModelSettings, LabelSettings, ImageSettings):
    """Which data, and how to run over them."""

    data: Annotated[
        str,
        DATA_OPTION.but(help=f"{DATA_OPTION.help} Repeatable: NAME=DATA."),
    ] = field()  # is required
    conditions: Annotated[
        tuple[str, ...],
        Option(
            help="Further data: images under other conditions than --data's; repeatable.",
            group=DATA,
            metavar="NAME=DATA",
            applies_to=IMAGES,
            given_by="data",
        ),
    ] = ()
    shift: Annotated[
        tuple[str, ...],
        Option(
            common=True,
            help="Also shifts of these images: common, all, or e.g. contrast:3,jpeg:2-4.",
            group=DATA,
            metavar="SHIFTS",
            applies_to=IMAGES,
        ),
    ] = ()
    classes_only_present: Annotated[
        bool,
        Option(
            help="Score only the outputs of classes that are in the data (ImageNet-R, -A).",
            group=DATA,
            applies_to=IMAGES,
        ),
    ] = False
    on_bad_image: Annotated[
        Literal["fail", "skip"],
        Option(
            help="Stop at an image that cannot be read, or leave it out everywhere; skip decodes every image once "
            "more.",
            group=DATA,
            applies_to=IMAGES,
        ),
    ] = "fail"
    alpha: Annotated[
        float | None,
        Option(
            common=True, help="Evaluate at this alpha instead of the model's own.", group=TUNING, metavar="A"
        ),
    ] = None
    skip_unknown: Annotated[bool, SKIP_UNKNOWN] = False
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], DTYPE] = "float32"
    batch_size: Annotated[str, BATCH_SIZE] = "auto"
    workers: Annotated[str, WORKERS] = "auto"
    cache: Annotated[
        Literal["auto", "none", "ram", "disk"],
        Option(
            help="Where to keep decoded images for further passes; auto: RAM up to 2 GiB (evaluate makes one "
            "pass: none).",
            group=RUNNING,
            affects_result=False,
            applies_to=IMAGES,
        ),
    ] = "auto"
    seed: Annotated[int, SEED] = 0
    kernel: Annotated[
        Literal["auto", "eager", "compiled", "triton"],
        Option(
            help="Code of the example-weighted layers: C++ on a CPU (compiled), CUDA (triton), plain torch (eager).",
            group=RUNNING,
        ),
    ] = "auto"
    channels_last: Annotated[bool, CHANNELS_LAST] = False
    compile: Annotated[bool, COMPILE] = False
