"""What ``train`` takes."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from alphatune.settings.images import DATA_OPTION, LIMIT, VAL_FRACTION, ImageSettings, LabelSettings
from alphatune.settings.model import DEVICE, MODEL_OPTION, PRETRAINED, ModelSettings
from alphatune.settings.option import DATA, NORMALISATION, OPTIMISATION, OUTPUT, RUNNING, Option
from alphatune.settings.running import DTYPE, LOG_TO, SEED, WORKERS


@dataclass(frozen=True, kw_only=True)
class TrainSettings(ModelSettings, LabelSettings, ImageSettings):
    """What to train on, how, and where to write."""

    OMITTED: ClassVar[tuple[str, ...]] = ("trust_code", "decoder")

    model: Annotated[
        str,
        MODEL_OPTION.but(
            help="A timm name, hf-hub:REPO, local-dir:FOLDER, torchvision:NAME[:WEIGHTS], package.module:factory or "
            "file.py:factory."
        ),
    ]
    pretrained: Annotated[
        bool,
        PRETRAINED.but(
            help="Start from the weights that timm or torchvision has for the name, with a new head."
        ),
    ] = False
    data: Annotated[
        str,
        DATA_OPTION.but(
            help="cifar10, cifar100, svhn, caltech256, flowers102, cub2011, imagenet; a folder or archive of class "
            "folders, arrays, or a timm dataset string."
        ),
    ] = field()  # is required
    download: Annotated[
        bool,
        Option(help="Download a dataset given by name if it is missing.", group=DATA, affects_result=False),
    ] = False
    train_split: Annotated[str | None, Option(help="Split to train on. Default: train.", group=DATA)] = None
    val_fraction: Annotated[
        float | None,
        VAL_FRACTION.but(
            common=True,
            help="Share of each class to validate on. Default: 0.1 without a validation split.",
        ),
    ] = None
    limit: Annotated[
        int | None,
        LIMIT.but(help="Train on a random sample of N images, stratified by class; validation stays whole."),
    ] = None
    val_data: Annotated[
        str | None, Option(help="Validate on another folder or archive.", group=DATA, metavar="DATA")
    ] = None
    augment: Annotated[
        Literal["auto", "none", "crop", "cifar", "imagenet"],
        Option(help="auto: cifar up to 64 pixels, imagenet above, crop for SVHN.", group=DATA),
    ] = "auto"
    classes_per_batch: Annotated[
        int | None,
        Option(
            help="Batches that are not i.i.d.: N random classes each, drawn with replacement.",
            group=DATA,
            metavar="N",
        ),
    ] = None
    batch_order: Annotated[
        Literal["shuffled", "blocks"],
        Option(help="Order within such a batch: mixed, or one class after the other.", group=DATA),
    ] = "shuffled"
    cache: Annotated[
        Literal["none", "device"],
        Option(help="device: decode once, keep all images on the device and augment there.", group=DATA),
    ] = "none"
    norm: Annotated[
        Literal["batch", "ghost", "batch-group", "group", "renorm"],
        Option(common=True, help="Normalisation in training.", group=NORMALISATION),
    ] = "batch"
    ghost_size: Annotated[
        int,
        Option(
            common=True,
            help="Examples per group (ghost).",
            group=NORMALISATION,
            applies_to=("ghost",),
            metavar="N",
            minimum=1,
        ),
    ] = 32
    groups: Annotated[
        int,
        Option(
            common=True,
            help="Most channel groups (group, batch-group).",
            group=NORMALISATION,
            applies_to=("group", "batch-group"),
            metavar="N",
            minimum=1,
        ),
    ] = 32
    examples_per_group: Annotated[
        int,
        Option(
            common=True,
            help="Examples per group (batch-group).",
            group=NORMALISATION,
            applies_to=("batch-group",),
            metavar="N",
            minimum=1,
        ),
    ] = 2
    averages: Annotated[
        Literal["paper", "group"],
        Option(
            help="Moving averages of x and x² of the batch, or of the groups' mean and variance.",
            group=NORMALISATION,
            applies_to=("ghost", "batch-group", "group"),
            before="group",
        ),
    ] = "paper"
    sync_bn: Annotated[
        bool,
        Option(
            help="Statistics over all processes (batch, CUDA).", group=NORMALISATION, applies_to=("batch",)
        ),
    ] = False
    decay_norm: Annotated[
        Literal["none", "gamma", "beta", "both"],
        Option(
            common=True,
            help="Weight decay on norm layers; see inspect --paths.",
            group=NORMALISATION,
        ),
    ] = "none"
    gamma_target: Annotated[Literal["0", "1"], Option(help="What gamma decays to.", group=NORMALISATION)] = (
        "0"
    )
    epochs: Annotated[
        int, Option(common=True, help="Passes over the training data.", group=OPTIMISATION, metavar="N")
    ] = 10
    batch_size: Annotated[
        int,
        Option(common=True, help="Examples per batch, over all processes.", group=OPTIMISATION, metavar="N"),
    ] = 128
    accumulate: Annotated[
        int, Option(help="Batches per optimiser step.", group=OPTIMISATION, metavar="N")
    ] = 1
    optimizer: Annotated[
        Literal["sgd", "adamw"], Option(help="SGD with Nesterov momentum, or AdamW.", group=OPTIMISATION)
    ] = "sgd"
    lr: Annotated[
        float | None,
        Option(
            common=True,
            help="Peak learning rate. Default: 0.1, AdamW 0.001.",
            group=OPTIMISATION,
            metavar="F",
        ),
    ] = None
    momentum: Annotated[float, Option(help="Momentum of SGD.", group=OPTIMISATION, metavar="F")] = 0.9
    schedule: Annotated[
        Literal["cosine", "step", "constant"],
        Option(help="Learning-rate schedule.", group=OPTIMISATION),
    ] = "cosine"
    warmup_epochs: Annotated[
        float,
        Option(
            help="Epochs over which the learning rate first rises from 0.", group=OPTIMISATION, metavar="N"
        ),
    ] = 0.0
    milestones: Annotated[
        str,
        Option(
            help="Fractions of the run at which schedule step divides by ten.",
            group=OPTIMISATION,
            metavar="F,F",
        ),
    ] = "0.5,0.75"
    weight_decay: Annotated[
        float, Option(help="Weight decay on weights.", group=OPTIMISATION, metavar="F")
    ] = 5e-4
    bias_decay: Annotated[
        float, Option(help="Weight decay on biases outside norm layers.", group=OPTIMISATION, metavar="F")
    ] = 0.0
    label_smoothing: Annotated[
        float, Option(help="Label smoothing, in [0, 1).", group=OPTIMISATION, metavar="F")
    ] = 0.0
    ema: Annotated[
        float,
        Option(
            help="Keep a moving average of the weights with this decay, e.g. 0.9998.",
            group=OPTIMISATION,
            metavar="F",
        ),
    ] = 0.0
    clip_grad: Annotated[
        float,
        Option(help="Clip the gradient to this norm; 0: never.", group=OPTIMISATION, metavar="F"),
    ] = 0.0
    device: Annotated[str, DEVICE.but(affects_result=False)] = "auto"
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], DTYPE] = "float32"
    channels_last: Annotated[bool, Option(help="Use the channels-last memory format.", group=RUNNING)] = False
    compile: Annotated[bool, Option(help="Run the model through torch.compile.", group=RUNNING)] = False
    eval_every: Annotated[
        int,
        Option(
            help="Epochs between validations; the last epoch is always validated.", group=RUNNING, metavar="N"
        ),
    ] = 1
    eval_batch_size: Annotated[
        str,
        Option(help="Batch size of validation.", group=RUNNING, metavar="auto|N", affects_result=False),
    ] = "auto"
    workers: Annotated[str, WORKERS] = "auto"
    seed: Annotated[int, SEED.but(help="Random seed for new weights, batches, augmentation and dropout.")] = 0
    output: Annotated[
        str,
        Option(
            common=True,
            help="Folder for the run and the trained model.",
            group=OUTPUT,
            metavar="FOLDER",
            short="-o",
            affects_result=False,
        ),
    ] = "alphatune-train"
    log_to: Annotated[tuple[str, ...], LOG_TO] = ()
    resume: Annotated[
        bool,
        Option(
            common=True,
            help="Continue the run in the output folder, if there is one.",
            group=OUTPUT,
            affects_result=False,
            saved=False,
        ),
    ] = False
    checkpoint_minutes: Annotated[
        float,
        Option(
            help="Save a checkpoint this often, and after every epoch.",
            group=OUTPUT,
            metavar="N",
            affects_result=False,
        ),
    ] = 15.0
    overwrite: Annotated[
        bool,
        Option(
            help="Delete the run in the output folder and start again.",
            group=OUTPUT,
            affects_result=False,
            saved=False,
        ),
    ] = False
