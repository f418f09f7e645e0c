"""The options of ``alphatune train`` beside those of options.py. Imports neither torch nor timm."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from alphatune.cli.options import DATA, MODEL, MOST_SEED, OUT, RUN

NORM, OPTIM = "Normalisation", "Optimisation"

Architecture = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A timm name, hf-hub:REPO, local-dir:FOLDER, torchvision:NAME\\[:WEIGHTS], "
        "package.module:factory or file.py:factory.",
        show_default=False,
    ),
]
TrainData = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="cifar10, cifar100, svhn, caltech256, flowers102, cub2011, imagenet; a folder or archive of class "
        "folders, arrays, or a timm dataset string.",
        rich_help_panel=DATA,
        show_default=False,
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
    int,
    typer.Option(
        "--seed",
        min=0,
        max=MOST_SEED,
        help="Of new weights, batches, augmentation, dropout.",
        rich_help_panel=RUN,
    ),
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
