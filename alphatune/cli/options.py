"""The options, each defined once. Importing this imports neither torch nor timm."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from alphatune.cli.stderr import tell
from alphatune.cli.usage import require_utf8
from alphatune.errors import ConfigurationError
from alphatune.jobs.settings import (
    ASKED_ANEW,
    BenchSettings,
    EvaluateSettings,
    ExportSettings,
    InspectSettings,
    ModelSettings,
    TrainSettings,
    TuneSettings,
)
from alphatune.suggestions import did_you_mean
from alphatune.toml import tomllib

MODEL, DATA, INPUT, RUN, TUNE, OUT = "Model", "Data", "Preprocessing", "Running", "Tuning", "Output"
AVERAGES = "Moving averages"
GATES = "Gates (exit code 1 if one fails)"

MOST_SEED = 2**32 - 1

S = TypeVar("S", bound=ModelSettings)

_KINDS: dict[str, type[ModelSettings]] = {
    "tune": TuneSettings, "train": TrainSettings, "evaluate": EvaluateSettings, "inspect": InspectSettings,
    "bench": BenchSettings, "export": ExportSettings,
}  # fmt: skip
_OPTIONS = {command: {f.name for f in fields(kind)} for command, kind in _KINDS.items()}
#: what libraries that download and convert look at when they are imported
_NO_BARS = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
_PASSED_OVER = "alphatune.passed_over"  # of a configuration, in the context


def settings_from(ctx: typer.Context, kind: type[S]) -> S:
    """The settings of a job from the parsed options of the same names."""
    if ctx.params.get("quiet") or not (sys.stderr and sys.stderr.isatty()):
        for name in _NO_BARS:
            os.environ.setdefault(name, "1")
    if (passed_over := ctx.meta.get(_PASSED_OVER)) and not ctx.params.get("quiet"):
        tell(f"warning: {passed_over}")
    with contextlib.suppress(FileNotFoundError):
        require_utf8(str(Path.cwd()))  # paths are written as they hold from anywhere
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
    command = ctx.info_name or ""
    # What tune writes holds all that evaluate and inspect take, and more.
    wider = set().union(*(names for names in _OPTIONS.values() if names >= _OPTIONS[command]))
    for name in sorted(values.keys() - wider):
        owners = [other for other, names in _OPTIONS.items() if name in names]
        if owners:
            raise ConfigurationError(
                f"{path} sets {name!r}, which is an option of {', '.join(owners)}, not of {command}"
            )
        raise ConfigurationError(
            f"{path} sets {name!r}, which is no option", did_you_mean(name, _OPTIONS[command])
        )
    if foreign := sorted(values.keys() - _OPTIONS[command]):
        ctx.meta[_PASSED_OVER] = f"options of other commands in {path} were passed over: {', '.join(foreign)}"
    values = {name: value for name, value in values.items() if name not in ASKED_ANEW}
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
        metavar="FILE",
        help="Weights: a file of PyTorch or safetensors, or the index or folder of several.",
        rich_help_panel=MODEL,
    ),
]
CheckpointKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Which weights of a file that holds several: the keys to them, joined by dots, e.g. model_ema.",
        rich_help_panel=MODEL,
    ),
]
CheckpointPrefix = Annotated[
    str | None,
    typer.Option(
        metavar="PREFIX",
        help="What the names of the weights begin with in the file, e.g. student.backbone. Default: found.",
        rich_help_panel=MODEL,
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
        "--unsafe-pickle",
        help="Run the code in the checkpoint if its weights cannot be read without.",
        rich_help_panel=MODEL,
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

Logits = Annotated[
    str | None,
    typer.Option(
        metavar="N|KEY",
        help="Which output of a model that returns several holds the logits: its number, from 0, or its name.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]

# --- data ------------------------------------------------------------------------------------

Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="Folder or archive of class folders, arrays (.npz, .npy, .pt), a file of paths and labels, a timm dataset "
        "string (torch/..., "
        "hfds/..., wds/...), or with --data-root a name like cifar10.",
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
    str | None,
    typer.Option(
        metavar="NAME", help="Column of the images (arrays, tables, hfds/, wds/).", rich_help_panel=DATA
    ),
]
TargetKey = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Column of the labels (arrays, tables, hfds/, wds/).", rich_help_panel=DATA
    ),
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
        help="Which output each class is: names, one a line in the order of the outputs, or index and name "
        "(CSV, JSON, YAML, synset words).",
        rich_help_panel=DATA,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The class of each image of a folder or archive without class folders: CSV, JSON, JSON lines, parquet "
        "or text of path and label.",
        rich_help_panel=DATA,
    ),
]
PathColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|N",
        help="Column of the images in such a file. Default: by content.",
        rich_help_panel=DATA,
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|N",
        help="Column of the labels in such a file. Default: by its name.",
        rich_help_panel=DATA,
    ),
]
ClassesOnlyPresent = Annotated[
    bool,
    typer.Option(
        "--classes-only-present",
        help="Score the outputs of the classes that the data hold, and leave out the others (ImageNet-R, -A).",
        rich_help_panel=DATA,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Use N examples, drawn by seed, every class in proportion.", rich_help_panel=DATA
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
SplitSeed = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, max=MOST_SEED, help="Decides which examples are held out.", rich_help_panel=DATA
    ),
]
Decoder = Annotated[
    Literal["pil", "torchcodec"],
    typer.Option(
        help="What reads the images; torchcodec turns photos upright, PIL does not.", rich_help_panel=DATA
    ),
]
MaxPixels = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="The most pixels of an image that is read; a small file can unpack to more than memory holds.",
        rich_help_panel=DATA,
    ),
]
OnBadImage = Annotated[
    Literal["fail", "skip"],
    typer.Option(
        help="What an image that cannot be read does: end the run, or be left out of all of it. skip decodes "
        "every image once more.",
        rich_help_panel=DATA,
    ),
]
Download = Annotated[
    bool,
    typer.Option("--download", help="Fetch data by name that are not there yet.", rich_help_panel=DATA),
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


def _devices(incomplete: str) -> list[str]:
    """What a shell may complete."""
    return [name for name in ("auto", "cpu", "cuda", "mps") if name.startswith(incomplete)]


Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda[:N]|mps", help="Where to run.", rich_help_panel=RUN, autocompletion=_devices
    ),
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
Cache = Annotated[
    Literal["auto", "none", "ram", "disk"],
    typer.Option(
        help="Where decoded images are kept for a further pass; auto: ram if they take at most 2 GiB "
        "(evaluate makes one pass: none).",
        rich_help_panel=RUN,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, max=MOST_SEED, help="Of --limit, folds and bootstrap.", rich_help_panel=RUN
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Open and check everything, show the plan, stop.", rich_help_panel=RUN),
]

Kernel = Annotated[
    Literal["auto", "eager", "compiled", "triton"],
    typer.Option(
        help="Code of the example-weighted layers: compiled is C++ on a CPU, triton for CUDA, eager plain torch.",
        rich_help_panel=RUN,
    ),
]
ChannelsLast = Annotated[
    bool,
    typer.Option(
        "--channels-last", help="Weights and images in the channels-last memory format.", rich_help_panel=RUN
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Run the whole model through torch.compile; on CUDA as CUDA graphs. Takes a minute to begin.",
        rich_help_panel=RUN,
    ),
]

# --- tuning ----------------------------------------------------------------------------------

Alphas = Annotated[
    str,
    typer.Option(
        metavar="auto|LIST|A:B:N",
        help="What to try: auto looks for the best; 0,0.01,0.02 or 0:0.3:31 is measured exactly. "
        "0 (1 for GroupNorm) is always included.",
        rich_help_panel=TUNE,
    ),
]
CurveOption = Annotated[
    Literal["auto", "full"],
    typer.Option(
        help="With --alphas auto: the curve from the part of the examples that chooses, or from all.",
        rich_help_panel=TUNE,
    ),
]
CurveTolerance = Annotated[
    float,
    typer.Option(
        metavar="E",
        help="Error of the interpolated curve, in nats and as a fraction, that is good enough.",
        rich_help_panel=TUNE,
    ),
]
RaceDelta = Annotated[
    float,
    typer.Option(
        metavar="D",
        help="Probability of dropping the best alpha early, to save time; 0 drops nothing.",
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
ScoreOption = Annotated[
    str | None,
    typer.Option(
        metavar="FUNCTION",
        help="Any task: package.module:score or file.py:score, which takes the model's outputs and the targets and "
        "returns one number an example, larger is better. --data then names a loader of yours in the same way.",
        rich_help_panel=TUNE,
    ),
]
BatchStats = Annotated[
    bool,
    typer.Option(
        "--batch-stats",
        help="For comparison, also evaluate with the test batch's statistics, which make predictions depend on "
        "the rest of the batch; never chosen.",
        rich_help_panel=TUNE,
    ),
]
GranularityOption = Annotated[
    Literal["global", "stage", "layer", "channel"],
    typer.Option(
        help="How many alphas to tune, by gradient: finer ones are tried down to this one, and taken only "
        "if they win out of fold.",
        rich_help_panel=TUNE,
    ),
]
Temperature = Annotated[
    bool,
    typer.Option(
        "--temperature",
        help="Tune a temperature as well, and tell what alpha is worth beyond it.",
        rich_help_panel=TUNE,
    ),
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

# --- moving averages -------------------------------------------------------------------------

InspectData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Images to measure what the norm layers see: says whose stored averages look stale.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
Calibrate = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="For GroupNorm, InstanceNorm and LayerNorm2d, which keep no moving averages: measure them on these "
        "images; labels are not looked at.",
        rich_help_panel=AVERAGES,
    ),
]
Recalibrate = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Replace the moving averages of BatchNorm layers by exact ones over these images.",
        rich_help_panel=AVERAGES,
    ),
]
RecalibrateOrder = Annotated[
    Literal["one-pass", "layer-by-layer"],
    typer.Option(
        help="one-pass: every layer normalises by the batch; layer-by-layer: by the new averages of the layers "
        "before it, in a pass for each.",
        rich_help_panel=AVERAGES,
    ),
]
RecalibrateAugment = Annotated[
    Literal["none", "auto", "crop", "cifar", "imagenet"],
    typer.Option(help="Augmentation of these images, as in training.", rich_help_panel=AVERAGES),
]
CalibrateSplit = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Split of the images to measure on. Default: train, if there is one.",
        rich_help_panel=AVERAGES,
    ),
]
CalibrateLimit = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Measure on N examples, drawn by seed, every class in proportion.",
        rich_help_panel=AVERAGES,
    ),
]

# --- gates -----------------------------------------------------------------------------------

MinGain = Annotated[
    float | None,
    typer.Option(
        metavar="G",
        help="Fail unless the gain in --metric, measured on examples that did not choose, is at least G "
        "(a fraction, or nats).",
        rich_help_panel=GATES,
    ),
]
MaxRegression = Annotated[
    list[str] | None,
    typer.Option(
        metavar="METRIC=V",
        help="Fail if the tuned model is worse than the plain one by more than V in top1, top5, loss or ece; "
        "repeatable.",
        rich_help_panel=GATES,
    ),
]
RequireSignificant = Annotated[
    bool,
    typer.Option("--require-significant", help="Fail unless the gain is significant.", rich_help_panel=GATES),
]
MaxLatencyRatio = Annotated[
    float | None,
    typer.Option(
        metavar="R",
        help="Fail if a forward pass takes more than R times that of the plain model.",
        rich_help_panel=GATES,
    ),
]

# --- output ----------------------------------------------------------------------------------

Output = Annotated[
    str, typer.Option("--output", "-o", metavar="FOLDER", help="The tuned folder.", rich_help_panel=OUT)
]
Thumbnails = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="Pictures in the report of examples whose prediction flipped, at most so many each way.",
        rich_help_panel=OUT,
    ),
]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        help="Measure anew, even if the same model was tuned in the same way on the same data before.",
        rich_help_panel=OUT,
    ),
]
TuneCheckpointMinutes = Annotated[
    float,
    typer.Option(metavar="N", help="Save this often what was found, for --resume.", rich_help_panel=OUT),
]
TuneResume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on where the same command was interrupted, if it was, to the same result.",
        rich_help_panel=OUT,
    ),
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
