"""Which model, and how its images are prepared."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from alphatune.settings.option import IMAGES, MODEL, PREPROCESSING, RUNNING, Option, check_values

#: of the positional argument
MODEL_OPTION = Option(
    common=True,
    help="A timm name, hf-hub:REPO, local-dir:FOLDER, torchvision:NAME[:WEIGHTS], package.module:factory, "
    "file.py:factory, or a folder written by alphatune.",
    group=MODEL,
    metavar="MODEL",
    show_default=False,
)
PRETRAINED = Option(
    help="Use the weights that timm or torchvision has for the name.", group=MODEL, can_be_negated=True
)
DEVICE = Option(
    common=True,
    help="Where to run.",
    group=RUNNING,
    metavar="auto|cpu|cuda[:N]|mps",
    suggestions=("auto", "cpu", "cuda", "mps"),
)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What every job with a model takes."""

    #: fields that are no options of the command
    OMITTED: ClassVar[tuple[str, ...]] = ()

    model: Annotated[str, MODEL_OPTION]
    checkpoint: Annotated[
        str | None,
        Option(
            common=True,
            help="Weights: a PyTorch or safetensors file, or the index or folder of a sharded one.",
            group=MODEL,
            metavar="FILE",
        ),
    ] = None
    checkpoint_key: Annotated[
        str | None,
        Option(
            help="Which weights to take from a file with several: keys joined by dots, e.g. model_ema.",
            group=MODEL,
            metavar="KEY",
        ),
    ] = None
    checkpoint_prefix: Annotated[
        str | None,
        Option(
            help="Prefix of the weights' names in the file, e.g. student.backbone. Default: found.",
            group=MODEL,
            metavar="PREFIX",
        ),
    ] = None
    model_kwargs: Annotated[
        tuple[str, ...],
        Option(help="Argument for the model's factory; repeatable.", group=MODEL, metavar="K=V"),
    ] = ()
    pretrained: Annotated[bool, PRETRAINED] = True
    unsafe_pickle: Annotated[
        bool,
        Option(
            help="Run the code in the checkpoint if its weights cannot be read without it.",
            group=MODEL,
            saved=False,
        ),
    ] = False
    trust_code: Annotated[
        bool,
        Option(
            help="Import the module that a tuned folder names as its architecture.", group=MODEL, saved=False
        ),
    ] = False
    logits: Annotated[
        str | None,
        Option(
            help="Which of several outputs holds the logits: its number, from 0, or its name.",
            group=MODEL,
            metavar="N|KEY",
            show_default=False,
            applies_to=IMAGES,
        ),
    ] = None
    mean: Annotated[
        str | None,
        Option(
            common=True,
            help="Mean of each channel. Default: the model's.",
            group=PREPROCESSING,
            metavar="R,G,B",
            applies_to=IMAGES,
        ),
    ] = None
    std: Annotated[
        str | None,
        Option(
            common=True,
            help="Standard deviation. Default: the model's.",
            group=PREPROCESSING,
            metavar="R,G,B",
            applies_to=IMAGES,
        ),
    ] = None
    input_size: Annotated[
        str | None,
        Option(
            common=True,
            help="Image size. Default: the model's.",
            group=PREPROCESSING,
            metavar="S|H,W|C,H,W",
            applies_to=IMAGES,
        ),
    ] = None
    crop_pct: Annotated[
        float | None,
        Option(
            help="Input size / size after resizing; 1 cuts off no margin. Default: the model's.",
            group=PREPROCESSING,
            metavar="P",
            applies_to=IMAGES,
        ),
    ] = None
    crop_mode: Annotated[
        Literal["center", "squash", "border"] | None,
        Option(
            help="How an image becomes a square. Default: the model's.",
            group=PREPROCESSING,
            applies_to=IMAGES,
        ),
    ] = None
    interpolation: Annotated[
        Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None,
        Option(
            help="How images are resized. Default: the model's.",
            group=PREPROCESSING,
            applies_to=IMAGES,
        ),
    ] = None
    device: Annotated[str, DEVICE] = "auto"

    def __post_init__(self) -> None:
        check_values(self)
