"""The options, each defined once. Importing this imports neither torch nor timm."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from alphatune.errors import ConfigurationError
from alphatune.jobs.settings import EvaluateSettings, ModelSettings, TrainSettings, TuneSettings

MODEL, DATA, INPUT, RUN, TUNE, OUT = "Model", "Data", "Preprocessing", "Running", "Tuning", "Output"
NORM, OPTIM = "Normalisation", "Optimisation"

S = TypeVar("S", bound=ModelSettings)


def settings_from(ctx: typer.Context, kind: type[S]) -> S:
    """The settings of a job from the parsed options of the same names."""
    given = {f.name: ctx.params.get(f.name) for f in fields(kind)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return kind(**{k: v for k, v in values.items() if v is not None})


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a run.toml the defaults of the options that were not given."""
    if path is None:
        return None
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read --config {path}: {error}") from None
    known = {f.name for kind in (TuneSettings, EvaluateSettings, TrainSettings) for f in fields(kind)}
    if unknown := sorted(values.keys() - known):
        raise ConfigurationError(f"{path} sets {unknown[0]!r}, which is no option")
    ctx.default_map = {**(ctx.default_map or {}), **values}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        is_eager=True,
        callback=_read_config,
        help="Take defaults from a run.toml; options given here win.",
        rich_help_panel=RUN,
    ),
]

# --- model -----------------------------------------------------------------------------------

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A timm name, hf-hub:REPO, local-dir:FOLDER, torchvision:NAME\\[:WEIGHTS], "
        "package.module:factory, file.py:factory, or a folder written by alphatune.",
        show_default=False,
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Weights: .safetensors, .pt, .pth, .th, .bin or .tar.", rich_help_panel=MODEL
    ),
]
ModelKwargs = Annotated[
    list[str] | None,
    typer.Option(metavar="K=V", help="Argument of the model's factory; repeatable.", rich_help_panel=MODEL),
]
Pretrained = Annotated[
    bool,
    typer.Option(help="Use the weights that timm or torchvision has for the name.", rich_help_panel=MODEL),
]
NormPaths = Annotated[
    bool,
    typer.Option(
        "--paths",
        help="Also say which norm layers have a path to the output that passes no further one: "
        "only there does weight decay of gamma and beta act on what the network computes.",
        rich_help_panel=MODEL,
    ),
]
UnsafePickle = Annotated[
    bool,
    typer.Option(
        "--unsafe-pickle", help="Unpickle the checkpoint even if that runs code in it.", rich_help_panel=MODEL
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Import the module that a tuned folder names as its model.",
        rich_help_panel=MODEL,
    ),
]

# --- data ------------------------------------------------------------------------------------

Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="Folder or archive of class folders, a timm dataset string (torch/..., hfds/..., wds/...), or with "
        "--data-root a name like cifar10.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="Split, or subfolder of that name. Default: validation, if there is one.", rich_help_panel=DATA
    ),
]
InputKey = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of the images (hfds/, wds/).", rich_help_panel=DATA)
]
TargetKey = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of the labels (hfds/, wds/).", rich_help_panel=DATA)
]
DataRoot = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER", help="Where data by name, torch/, tfds/ and wds/ lie.", rich_help_panel=DATA
    ),
]
ClassMap = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Class names, one a line, in the order of the model's outputs.",
        rich_help_panel=DATA,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Use N examples, drawn by seed, every class in proportion.", rich_help_panel=DATA
    ),
]

# --- preprocessing ---------------------------------------------------------------------------

Mean = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="Default: the weights'.", rich_help_panel=INPUT)
]
Std = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="Default: the weights'.", rich_help_panel=INPUT)
]
InputSize = Annotated[
    str | None, typer.Option(metavar="S|H,W|C,H,W", help="Default: the weights'.", rich_help_panel=INPUT)
]
CropPct = Annotated[
    float | None,
    typer.Option(
        metavar="P", help="Input size / size after resizing. Default: the weights'.", rich_help_panel=INPUT
    ),
]
CropMode = Annotated[
    Literal["center", "squash", "border"] | None,
    typer.Option(help="Default: the weights'.", rich_help_panel=INPUT),
]
Interpolation = Annotated[
    Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None,
    typer.Option(help="Default: the weights'.", rich_help_panel=INPUT),
]

# --- running ---------------------------------------------------------------------------------

Device = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda[:N]|mps", help="Where to run.", rich_help_panel=RUN)
]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"],
    typer.Option(help="float16 and bfloat16 mean autocast.", rich_help_panel=RUN),
]
BatchSize = Annotated[
    str, typer.Option(metavar="auto|N", help="Halved where it does not fit.", rich_help_panel=RUN)
]
Workers = Annotated[
    str, typer.Option(metavar="auto|N", help="Processes that decode images.", rich_help_panel=RUN)
]
Seed = Annotated[int, typer.Option(help="Of --limit, folds and bootstrap.", rich_help_panel=RUN)]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Open and check everything, show the plan, stop.", rich_help_panel=RUN),
]

# --- tuning ----------------------------------------------------------------------------------

Alphas = Annotated[
    str,
    typer.Option(
        metavar="auto|LIST|A:B:N",
        help="What to try: auto, 0,0.01,0.02 or 0:0.3:31. 0 is always included.",
        rich_help_panel=TUNE,
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        metavar="A", help="Evaluate at this alpha instead of the model's own.", rich_help_panel=TUNE
    ),
]
MetricOption = Annotated[
    Literal["top1", "top5", "loss", "ece"],
    typer.Option(help="What to choose alpha by.", rich_help_panel=TUNE),
]
AcceptOption = Annotated[
    Literal["significant", "best"],
    typer.Option(help="Keep 0 unless the gain is significant, or take the optimum.", rich_help_panel=TUNE),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB", help="Norm layers to leave alone, e.g. 'layer4.*'; repeatable.", rich_help_panel=TUNE
    ),
]
MinPositions = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        help="Leave layers alone that see fewer positions an example; 2 spares BatchNorm1d and 1x1 maps.",
        rich_help_panel=TUNE,
    ),
]
SkipUnknown = Annotated[
    bool,
    typer.Option(
        "--skip-unknown", help="Leave norm layers of unknown kind as they are.", rich_help_panel=TUNE
    ),
]

# --- training --------------------------------------------------------------------------------

TrainData = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="cifar10, cifar100, svhn, caltech256, flowers102, cub2011, imagenet; a folder or archive of class "
        "folders, or a timm dataset string.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
HeldOut = Annotated[
    float | None,
    typer.Option(
        "--val-fraction",
        metavar="F",
        help="Only the share of each class that train holds out by the same option and --split-seed.",
        rich_help_panel=DATA,
    ),
]
FineTune = Annotated[
    bool,
    typer.Option(
        help="Start from the weights that timm or torchvision has for the name; the head is made anew.",
        rich_help_panel=MODEL,
    ),
]
TrainSplit = Annotated[
    str | None, typer.Option(help="Split to train on. Default: train.", rich_help_panel=DATA)
]
ValFraction = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Hold out this share of each class for validation. Default: 0.1 where there is no validation split.",
        rich_help_panel=DATA,
    ),
]
ValData = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="Validate on another folder or archive.", rich_help_panel=DATA),
]
SplitSeed = Annotated[int, typer.Option(help="Decides which examples are held out.", rich_help_panel=DATA)]
Download = Annotated[
    bool,
    typer.Option("--download", help="Fetch data by name that are not there yet.", rich_help_panel=DATA),
]
Augment = Annotated[
    Literal["auto", "none", "crop", "cifar", "imagenet"],
    typer.Option(help="auto: cifar up to 64 pixels, imagenet above, crop for SVHN.", rich_help_panel=DATA),
]
ClassesPerBatch = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Batches that are not i.i.d.: N random classes each, examples drawn with replacement.",
        rich_help_panel=DATA,
    ),
]
BatchOrder = Annotated[
    Literal["shuffled", "blocks"],
    typer.Option(help="Within such a batch: mixed, or one class after the other.", rich_help_panel=DATA),
]
Cache = Annotated[
    Literal["none", "device"],
    typer.Option(
        help="device: decode once, keep all images in the device's memory, augment there.",
        rich_help_panel=DATA,
    ),
]
NormOption = Annotated[
    Literal["batch", "ghost", "batch-group", "group", "renorm"],
    typer.Option(help="What the BatchNorm layers become for training.", rich_help_panel=NORM),
]
GhostSize = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Examples that share statistics (ghost).", rich_help_panel=NORM),
]
Groups = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, help="Channel groups, at most (group, batch-group).", rich_help_panel=NORM
    ),
]
ExamplesPerGroup = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, help="Examples that share statistics (batch-group).", rich_help_panel=NORM
    ),
]
SyncBn = Annotated[
    bool,
    typer.Option("--sync-bn", help="Statistics over all processes (batch, CUDA).", rich_help_panel=NORM),
]
DecayNorm = Annotated[
    Literal["none", "gamma", "beta", "both"],
    typer.Option(
        help="Weight decay on norm layers' weight and bias; see inspect --paths.", rich_help_panel=NORM
    ),
]
GammaTarget = Annotated[Literal["0", "1"], typer.Option(help="What gamma decays to.", rich_help_panel=NORM)]
Epochs = Annotated[
    int, typer.Option(metavar="N", help="Passes over the training data.", rich_help_panel=OPTIM)
]
TrainBatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size", metavar="N", help="Examples of a batch, over all processes.", rich_help_panel=OPTIM
    ),
]
Accumulate = Annotated[
    int, typer.Option(metavar="N", help="Batches to one step of the optimiser.", rich_help_panel=OPTIM)
]
OptimizerOption = Annotated[
    Literal["sgd", "adamw"], typer.Option(help="SGD with Nesterov momentum, or AdamW.", rich_help_panel=OPTIM)
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr", metavar="F", help="Peak learning rate. Default: 0.1, AdamW 0.001.", rich_help_panel=OPTIM
    ),
]
Momentum = Annotated[float, typer.Option(metavar="F", help="Of SGD.", rich_help_panel=OPTIM)]
ScheduleOption = Annotated[
    Literal["cosine", "step", "constant"], typer.Option(help="Of the learning rate.", rich_help_panel=OPTIM)
]
WarmupEpochs = Annotated[float, typer.Option(metavar="N", help="Rise from 0 first.", rich_help_panel=OPTIM)]
Milestones = Annotated[
    str,
    typer.Option(
        metavar="F,F", help="Fractions of the run at which step divides by ten.", rich_help_panel=OPTIM
    ),
]
WeightDecay = Annotated[float, typer.Option(metavar="F", help="Of weights.", rich_help_panel=OPTIM)]
BiasDecay = Annotated[
    float, typer.Option(metavar="F", help="Of biases outside norm layers.", rich_help_panel=OPTIM)
]
LabelSmoothing = Annotated[float, typer.Option(metavar="F", help="In [0, 1).", rich_help_panel=OPTIM)]
Ema = Annotated[
    float,
    typer.Option(
        metavar="F",
        help="Keep a moving average of the weights with this decay, e.g. 0.9998.",
        rich_help_panel=OPTIM,
    ),
]
ClipGrad = Annotated[
    float, typer.Option(metavar="F", help="Largest norm of the gradient; 0: any.", rich_help_panel=OPTIM)
]
ChannelsLast = Annotated[
    bool, typer.Option("--channels-last", help="Memory format of images and weights.", rich_help_panel=RUN)
]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile the model.", rich_help_panel=RUN)]
EvalEvery = Annotated[
    int, typer.Option(metavar="N", help="Epochs between validations; the last always.", rich_help_panel=RUN)
]
EvalBatchSize = Annotated[
    str, typer.Option(metavar="auto|N", help="Batch size of validation.", rich_help_panel=RUN)
]
TrainSeed = Annotated[
    int, typer.Option("--seed", help="Of new weights, batches, augmentation, dropout.", rich_help_panel=RUN)
]
CheckpointMinutes = Annotated[
    float,
    typer.Option(metavar="N", help="Save this often, beside every epoch.", rich_help_panel=OUT),
]
RunFolder = Annotated[
    str,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="The run and the trained model.", rich_help_panel=OUT
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the run in the output folder, if there is one.", rich_help_panel=OUT
    ),
]
OverwriteRun = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Delete the run in the output folder and start anew.", rich_help_panel=OUT
    ),
]

# --- output ----------------------------------------------------------------------------------

Output = Annotated[
    str, typer.Option("--output", "-o", metavar="FOLDER", help="The tuned folder.", rich_help_panel=OUT)
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace an existing tuned folder.", rich_help_panel=OUT),
]
Format = Annotated[
    Literal["human", "json", "quiet"],
    typer.Option(help="stdout: a table, one JSON object, or one line.", rich_help_panel=OUT),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Nothing but errors on stderr.", rich_help_panel=OUT)
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="More on stderr; tracebacks of bugs.", rich_help_panel=OUT)
]
