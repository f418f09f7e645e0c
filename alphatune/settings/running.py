"""Options that several jobs share: how to run, and which norm layers to leave alone."""

from alphatune.settings.option import IMAGES, MAX_SEED, RUNNING, TUNING, Option

SEED = Option(
    help="Random seed for sampling, folds and bootstrap.",
    group=RUNNING,
    metavar="N",
    minimum=0,
    maximum=MAX_SEED,
)
WORKERS = Option(
    help="Processes that decode images.",
    group=RUNNING,
    metavar="auto|N",
    affects_result=False,
    applies_to=IMAGES,
)
BATCH_SIZE = Option(
    common=True,
    help="Images in a batch; halved where they do not fit into memory.",
    group=RUNNING,
    metavar="auto|N",
    applies_to=IMAGES,
)
DTYPE = Option(help="float16 and bfloat16 mean autocast.", group=RUNNING)
CHANNELS_LAST = Option(
    help="Weights and images in the channels-last memory format.", group=RUNNING, applies_to=IMAGES
)
COMPILE = Option(
    help="Run the whole model through torch.compile; on CUDA as CUDA graphs. Takes a minute to begin.",
    group=RUNNING,
    applies_to=IMAGES,
)
EXCLUDE = Option(
    help="Norm layers to leave alone, e.g. 'layer4.*'; repeatable.", group=TUNING, metavar="GLOB"
)
SKIP_UNKNOWN = Option(help="Leave norm layers of unknown kind as they are.", group=TUNING)
