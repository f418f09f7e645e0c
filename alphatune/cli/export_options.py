"""The options of ``alphatune export`` beside those of options.py. Imports neither torch nor timm."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from alphatune.cli.options import DATA, MOST_SEED, OUT

CHECK, FILE = "Check", "File"

Folder = Annotated[str, typer.Argument(metavar="OUT", help="The tuned folder.", show_default=False)]
FileFormat = Annotated[
    Literal["onnx", "pt2", "safetensors", "hf"],
    typer.Option(
        "--format",
        help="onnx; pt2: torch.export's program; safetensors: weights, and the rest as metadata; hf: a folder for the "
        "Hugging Face hub that timm loads.",
        rich_help_panel=FILE,
        show_default=False,
    ),
]
OutputFile = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="Default: OUT's name with .onnx, .pt2 or .safetensors, or -hf, in the current folder.",
        rich_help_panel=FILE,
        show_default=False,
    ),
]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace an older export.", rich_help_panel=FILE)]
Opset = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Of ONNX, 18 to 23. Default: 20.", rich_help_panel=FILE, show_default=False
    ),
]
InputName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Of ONNX's input. Default: images.", rich_help_panel=FILE, show_default=False
    ),
]
OutputName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Of ONNX's output. Default: logits.", rich_help_panel=FILE, show_default=False
    ),
]
FixedSize = Annotated[
    bool,
    typer.Option(
        "--fixed-size",
        help="Height and width of the input size alone (onnx, pt2); without it they are left open if the model allows.",
        rich_help_panel=FILE,
    ),
]
License = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Of the model card (hf), e.g. apache-2.0.", rich_help_panel=FILE),
]
Repo = Annotated[
    str | None,
    typer.Option(
        metavar="USER/REPO", help="Where the folder will be, for the model card (hf).", rich_help_panel=FILE
    ),
]
CheckData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Images to check on, as for tune. Default: what OUT was tuned on, if that is still there, else noise.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
CheckImages = Annotated[int, typer.Option(metavar="N", help="Images to check on.", rich_help_panel=CHECK)]
Tolerance = Annotated[
    float,
    typer.Option(
        metavar="E",
        help="Allowed difference of a logit from PyTorch's, in units of the largest logit.",
        rich_help_panel=CHECK,
    ),
]
ImageSeed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Which images.", rich_help_panel=CHECK)]
Stdout = Annotated[
    Literal["human", "json", "quiet"],
    typer.Option(
        "--stdout",
        help="A table, one JSON object, or the path: what --format is in other commands.",
        rich_help_panel=OUT,
    ),
]
