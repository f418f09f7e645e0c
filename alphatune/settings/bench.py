"""What ``bench`` takes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from alphatune.settings.images import BATCH_SIZE, SEED
from alphatune.settings.model import ModelSettings
from alphatune.settings.option import OUTPUT, RUNNING, TUNING, Option


@dataclass(frozen=True, kw_only=True)
class BenchSettings(ModelSettings):
    """What to time, and for how long."""

    OMITTED: ClassVar[tuple[str, ...]] = ("mean", "std", "crop_pct", "crop_mode", "interpolation")

    alpha: Annotated[
        float | None,
        Option(common=True, help="Default: those of a tuned folder, else 0.05.", group=TUNING, metavar="A"),
    ] = None
    exclude: Annotated[
        tuple[str, ...],
        Option(help="Norm layers to leave alone, e.g. 'layer4.*'; repeatable.", group=TUNING, metavar="GLOB"),
    ] = ()
    skip_unknown: Annotated[
        bool, Option(help="Leave norm layers of unknown kind as they are.", group=TUNING)
    ] = False
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        Option(help="float16 and bfloat16 mean autocast.", group=RUNNING),
    ] = "float32"
    batch_size: Annotated[str, BATCH_SIZE.but(help="Numbers of images.", metavar="LIST")] = "1,32"
    channels_last: Annotated[
        bool, Option(help="Weights and images in the channels-last memory format.", group=RUNNING)
    ] = False
    compile: Annotated[
        bool,
        Option(
            help="Run the whole model through torch.compile; on CUDA as CUDA graphs. Takes a minute to begin.",
            group=RUNNING,
        ),
    ] = False
    threads: Annotated[
        int | None,
        Option(common=True, help="Of the CPU. Default: torch's.", group=RUNNING, metavar="N", minimum=1),
    ] = None
    seconds: Annotated[
        float,
        Option(
            help="Time a batch size, less each variant's first call; there are at least three rounds.",
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
