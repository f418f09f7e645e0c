"""What ``inspect`` takes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from alphatune.settings.images import DATA_OPTION, ImageSettings
from alphatune.settings.model import DEVICE, ModelSettings
from alphatune.settings.running import BATCH_SIZE, SEED, WORKERS


@dataclass(frozen=True, kw_only=True)
class InspectSettings(ModelSettings, ImageSettings):
    """Which images to measure the norm layers' inputs on, if any."""

    OMITTED: ClassVar[tuple[str, ...]] = ("val_fraction",)

    data: Annotated[
        str | None,
        DATA_OPTION.but(help="Compare the stored averages with what the layers see of these images."),
    ] = None
    batch_size: Annotated[str, BATCH_SIZE] = "auto"
    workers: Annotated[str, WORKERS] = "auto"
    seed: Annotated[int, SEED] = 0
    device: Annotated[str, DEVICE] = "cpu"
