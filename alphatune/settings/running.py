"""Options that several jobs share: how to run, and which norm layers to leave alone."""

from alphatune.settings.option import IMAGES, MAX_SEED, OUTPUT, RUNNING, TUNING, Option

SEED = Option(
    help="Random seed for sampling, folds and bootstrap.",
    group=RUNNING,
    metavar="N",
    minimum=0,
    maximum=MAX_SEED,
)
WORKERS = Option(
    help="Number of processes that decode images.",
    group=RUNNING,
    metavar="auto|N",
    affects_result=False,
    applies_to=IMAGES,
)
BATCH_SIZE = Option(
    help="Images per batch; halved if they do not fit into memory.",
    group=RUNNING,
    metavar="auto|N",
    applies_to=IMAGES,
)
DTYPE = Option(help="float16 and bfloat16 mean autocast.", group=RUNNING)
CHANNELS_LAST = Option(help="Use the channels-last memory format.", group=RUNNING, applies_to=IMAGES)
RUNTIME = Option(
    help="Where inference is timed: torch, or onnx: the graph that export writes, in onnxruntime on the CPU.",
    group=RUNNING,
)
COMPILE = Option(
    help="Run the model through torch.compile, on CUDA with CUDA graphs; takes a minute to start.",
    group=RUNNING,
    applies_to=IMAGES,
)
EXCLUDE = Option(
    help="Norm layers to leave alone, e.g. 'layer4.*'; repeatable.", group=TUNING, metavar="GLOB"
)
SKIP_UNKNOWN = Option(help="Leave norm layers of unknown kind as they are.", group=TUNING)
LOG_TO = Option(
    help="Log the run to tensorboard, wandb or mlflow as well; repeatable.",
    group=OUTPUT,
    metavar="TRACKER",
    suggestions=("tensorboard", "wandb", "mlflow"),
    affects_result=False,
)
