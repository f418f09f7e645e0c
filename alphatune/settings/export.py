"""What ``export`` takes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from alphatune.settings.images import DATA_OPTION, ImageSettings
from alphatune.settings.model import DEVICE, MODEL_OPTION, ModelSettings
from alphatune.settings.option import CHECK, FILE, Option
from alphatune.settings.running import SEED


@dataclass(frozen=True, kw_only=True)
class ExportSettings(ModelSettings, ImageSettings):
    """What to write from a tuned folder, ``model``, and what to check it on."""

    OMITTED: ClassVar[tuple[str, ...]] = (
        "checkpoint", "checkpoint_key", "checkpoint_prefix", "model_kwargs", "pretrained", "unsafe_pickle", "device",
        "val_fraction", "limit",
    )  # fmt: skip

    model: Annotated[str, MODEL_OPTION.but(help="The tuned folder.", metavar="OUT")]
    format: Annotated[
        Literal["onnx", "pt2", "safetensors", "hf"],
        Option(
            common=True,
            help="onnx; pt2: torch.export's program; safetensors: weights, and the rest as metadata; hf: a folder for "
            "the Hugging Face hub that timm loads.",
            group=FILE,
            show_default=False,
        ),
    ]
    output: Annotated[
        str | None,
        Option(
            common=True,
            help="Default: OUT's name with .onnx, .pt2 or .safetensors, or -hf, in the current folder.",
            group=FILE,
            metavar="PATH",
            short="-o",
            show_default=False,
        ),
    ] = None
    overwrite: Annotated[
        bool, Option(common=True, help="Replace an older export.", group=FILE, saved=False)
    ] = False
    opset: Annotated[
        int | None,
        Option(
            common=True,
            help="ONNX opset, 18 to 23. Default: 20.",
            group=FILE,
            metavar="N",
            show_default=False,
            applies_to=("onnx",),
        ),
    ] = None
    input_name: Annotated[
        str | None,
        Option(
            help="Name of ONNX's input. Default: images.",
            group=FILE,
            metavar="NAME",
            show_default=False,
            applies_to=("onnx",),
        ),
    ] = None
    output_name: Annotated[
        str | None,
        Option(
            help="Name of ONNX's output. Default: logits.",
            group=FILE,
            metavar="NAME",
            show_default=False,
            applies_to=("onnx",),
        ),
    ] = None
    fixed_size: Annotated[
        bool,
        Option(
            help="Fix height and width to the input size (onnx, pt2); otherwise they stay open if the model allows.",
            group=FILE,
            applies_to=("onnx", "pt2"),
        ),
    ] = False
    license: Annotated[
        str | None,
        Option(
            help="License in the model card (hf), e.g. apache-2.0.",
            group=FILE,
            metavar="ID",
            applies_to=("hf",),
        ),
    ] = None
    repo: Annotated[
        str | None,
        Option(
            help="Repository named in the model card (hf).",
            group=FILE,
            metavar="USER/REPO",
            applies_to=("hf",),
        ),
    ] = None
    data: Annotated[
        str | None,
        DATA_OPTION.but(
            help="Images to check on, as for tune. Default: those OUT was tuned on if they still exist, else "
            "random ones.",
            applies_to=("onnx", "pt2", "hf"),
        ),
    ] = None
    check_images: Annotated[int, Option(help="Number of images to check on.", group=CHECK, metavar="N")] = 12
    tolerance: Annotated[
        float,
        Option(
            help="Allowed difference of a logit from PyTorch's, relative to the largest logit.",
            group=CHECK,
            metavar="E",
        ),
    ] = 1e-3
    seconds: Annotated[
        float,
        Option(
            help="Seconds per batch size to time the graph beside that of the folded network; 0: not at all.",
            group=CHECK,
            metavar="S",
            applies_to=("onnx", "pt2"),
        ),
    ] = 2.0
    seed: Annotated[int, SEED.but(help="Random seed for drawing the images.", group=CHECK)] = 0
    device: Annotated[str, DEVICE] = "cpu"
