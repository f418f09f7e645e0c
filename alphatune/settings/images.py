"""Which images, and which class each of them is."""

from dataclasses import dataclass
from typing import Annotated, Literal

from alphatune.settings.option import DATA, IMAGES, MAX_SEED, Option

#: of an image that is read: where PIL begins to refuse
MAX_PIXELS = 178_956_970

DATA_OPTION = Option(
    common=True,
    help="Folder or archive of class folders, arrays (.npz, .npy, .pt), a file of paths and labels, a timm dataset "
    "string (torch/..., hfds/..., wds/...), or with --data-root a name like cifar10.",
    group=DATA,
    metavar="DATA",
    show_default=False,
)
VAL_FRACTION = Option(
    help="Use only the part of each class that train held out, with the same --val-fraction and --split-seed.",
    group=DATA,
    metavar="F",
    applies_to=IMAGES,
)
LIMIT = Option(
    common=True,
    help="Use a random sample of N examples, stratified by class.",
    group=DATA,
    metavar="N",
    applies_to=IMAGES,
)


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Where the images lie, and how they are read."""

    data: Annotated[str | None, DATA_OPTION] = None
    split: Annotated[
        str | None,
        Option(
            help="Split or subfolder to use. Default: validation, if there is one.",
            group=DATA,
            applies_to=IMAGES,
        ),
    ] = None
    val_fraction: Annotated[float | None, VAL_FRACTION] = None
    split_seed: Annotated[
        int,
        Option(
            help="Random seed for which examples are held out.",
            group=DATA,
            metavar="N",
            minimum=0,
            maximum=MAX_SEED,
            applies_to=IMAGES,
        ),
    ] = 0
    data_root: Annotated[
        str | None,
        Option(
            help="Folder of datasets given by name or as torch/, tfds/ or wds/.",
            group=DATA,
            metavar="FOLDER",
            applies_to=IMAGES,
        ),
    ] = None
    input_key: Annotated[
        str | None,
        Option(
            help="Column of the images (arrays, tables, hfds/, wds/).",
            group=DATA,
            metavar="NAME",
            applies_to=IMAGES,
        ),
    ] = None
    target_key: Annotated[
        str | None,
        Option(
            help="Column of the labels (arrays, tables, hfds/, wds/).",
            group=DATA,
            metavar="NAME",
            applies_to=IMAGES,
        ),
    ] = None
    limit: Annotated[int | None, LIMIT] = None
    decoder: Annotated[
        Literal["pil", "torchcodec"],
        Option(
            help="Image decoder; only torchcodec applies EXIF orientation.",
            group=DATA,
            applies_to=IMAGES,
        ),
    ] = "pil"
    max_pixels: Annotated[
        int,
        Option(
            help="Refuse larger images, which could exhaust memory.",
            group=DATA,
            metavar="N",
            applies_to=IMAGES,
        ),
    ] = MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Where the class of each image is said, if its folder does not say it."""

    class_map: Annotated[
        str | None,
        Option(
            common=True,
            help="File of the model's classes: names in its order, or index and name (CSV, JSON, YAML).",
            group=DATA,
            metavar="FILE",
            applies_to=IMAGES,
        ),
    ] = None
    labels: Annotated[
        str | None,
        Option(
            help="The class of each image of a folder or archive without class folders: CSV, JSON, JSON lines, "
            "parquet or text of path and label.",
            group=DATA,
            metavar="FILE",
            applies_to=IMAGES,
        ),
    ] = None
    path_column: Annotated[
        str | None,
        Option(
            help="Column of the images in that file. Default: found by its content.",
            group=DATA,
            metavar="NAME|N",
            applies_to=IMAGES,
        ),
    ] = None
    label_column: Annotated[
        str | None,
        Option(
            help="Column of the labels in that file. Default: found by its name.",
            group=DATA,
            metavar="NAME|N",
            applies_to=IMAGES,
        ),
    ] = None
