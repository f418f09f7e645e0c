"""What ``tune`` takes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from alphatune.settings.evaluate import EvaluateSettings
from alphatune.settings.option import AVERAGES, GATES, IMAGES, OUTPUT, TUNING, Option
from alphatune.settings.running import EXCLUDE


@dataclass(frozen=True, kw_only=True)
class TuneSettings(EvaluateSettings):
    """What to try, how to decide, where to write."""

    OMITTED: ClassVar[tuple[str, ...]] = ("alpha",)

    alphas: Annotated[
        str,
        Option(
            common=True,
            help="auto searches; 0,0.01,0.02 or 0:0.3:31 is measured exactly, with 0 (1 for GroupNorm).",
            group=TUNING,
            metavar="auto|LIST|A:B:N",
        ),
    ] = "auto"
    curve: Annotated[
        Literal["auto", "full"],
        Option(
            help="With --alphas auto: the curve from the part of the examples that chooses, or from all.",
            group=TUNING,
            applies_to=IMAGES,
        ),
    ] = "auto"
    curve_tolerance: Annotated[
        float,
        Option(
            help="Error of the interpolated curve, in nats and as a fraction, that is good enough.",
            group=TUNING,
            metavar="E",
            applies_to=IMAGES,
        ),
    ] = 0.002
    race_delta: Annotated[
        float,
        Option(
            help="Probability of dropping the best alpha early, to save time; 0 drops nothing.",
            group=TUNING,
            metavar="D",
            applies_to=IMAGES,
        ),
    ] = 0.05
    metric: Annotated[
        Literal["top1", "top5", "loss", "ece"],
        Option(common=True, help="What to choose alpha by.", group=TUNING, applies_to=IMAGES),
    ] = "top1"
    accept: Annotated[
        Literal["significant", "best"],
        Option(help="Keep 0 unless the gain is significant, or take the optimum.", group=TUNING),
    ] = "significant"
    granularity: Annotated[
        Literal["global", "stage", "layer", "channel"],
        Option(
            common=True,
            help="How many alphas to tune: finer ones, down to this one, are taken only if they win out of fold.",
            group=TUNING,
            applies_to=IMAGES,
        ),
    ] = "global"
    temperature: Annotated[
        bool,
        Option(
            common=True,
            help="Tune a temperature as well, and tell what alpha is worth beyond it.",
            group=TUNING,
            applies_to=IMAGES,
        ),
    ] = False
    score: Annotated[
        str | None,
        Option(
            help="Any task: package.module:score or file.py:score, which takes the model's outputs and the targets "
            "and returns one number an example, larger is better. --data then names a loader of yours in the same way.",
            group=TUNING,
            metavar="FUNCTION",
        ),
    ] = None
    batch_stats: Annotated[
        bool,
        Option(
            help="For comparison, also evaluate with the test batch's statistics, which make predictions depend on "
            "the rest of the batch; never chosen.",
            group=TUNING,
            applies_to=IMAGES,
        ),
    ] = False
    exclude: Annotated[tuple[str, ...], EXCLUDE] = ()
    min_positions: Annotated[
        int,
        Option(
            help="Leave layers alone that see fewer positions an example; 2 spares BatchNorm1d and 1x1 maps.",
            group=TUNING,
            metavar="N",
            minimum=1,
            applies_to=IMAGES,
        ),
    ] = 1
    calibrate: Annotated[
        str | None,
        Option(
            help="For GroupNorm, InstanceNorm and LayerNorm2d, which keep no moving averages: measure them on these "
            "images; labels are not looked at.",
            group=AVERAGES,
            metavar="DATA",
            applies_to=IMAGES,
        ),
    ] = None
    recalibrate: Annotated[
        str | None,
        Option(
            help="Replace the moving averages of BatchNorm layers by exact ones over these images.",
            group=AVERAGES,
            metavar="DATA",
            applies_to=IMAGES,
        ),
    ] = None
    recalibrate_order: Annotated[
        Literal["one-pass", "layer-by-layer"],
        Option(
            help="one-pass: every layer normalises by the batch; layer-by-layer: by the new averages of the layers "
            "before it, in a pass for each.",
            group=AVERAGES,
            applies_to=IMAGES,
        ),
    ] = "one-pass"
    recalibrate_augment: Annotated[
        Literal["none", "auto", "crop", "cifar", "imagenet"],
        Option(help="Augmentation of these images, as in training.", group=AVERAGES, applies_to=IMAGES),
    ] = "none"
    calibrate_split: Annotated[
        str | None,
        Option(
            help="Split of the images to measure on. Default: train, if there is one.",
            group=AVERAGES,
            metavar="NAME",
            applies_to=IMAGES,
        ),
    ] = None
    calibrate_limit: Annotated[
        int | None,
        Option(
            help="Measure on N examples, drawn by seed, every class in proportion.",
            group=AVERAGES,
            metavar="N",
            applies_to=IMAGES,
        ),
    ] = None
    min_gain: Annotated[
        float | None,
        Option(
            help="Fail unless the gain in --metric, measured on examples that did not choose, is at least G (a "
            "fraction, or nats).",
            group=GATES,
            metavar="G",
            affects_result=False,
        ),
    ] = None
    max_regression: Annotated[
        tuple[str, ...],
        Option(
            help="Fail if the tuned model is worse than the plain one by more than V in top1, top5, loss or ece; "
            "repeatable.",
            group=GATES,
            metavar="METRIC=V",
            affects_result=False,
        ),
    ] = ()
    require_significant: Annotated[
        bool,
        Option(help="Fail unless the gain is significant.", group=GATES, affects_result=False),
    ] = False
    max_latency_ratio: Annotated[
        float | None,
        Option(
            help="Fail if a forward pass takes more than R times that of the plain model.",
            group=GATES,
            metavar="R",
            affects_result=False,
        ),
    ] = None
    thumbnails: Annotated[
        int,
        Option(
            help="Pictures in the report of examples whose prediction flipped, at most so many each way.",
            group=OUTPUT,
            metavar="N",
            minimum=0,
        ),
    ] = 12
    no_cache: Annotated[
        bool,
        Option(
            help="Measure anew, even if the same model was tuned in the same way on the same data before.",
            group=OUTPUT,
            affects_result=False,
            saved=False,
        ),
    ] = False
    output: Annotated[
        str,
        Option(
            common=True,
            help="The tuned folder.",
            group=OUTPUT,
            metavar="FOLDER",
            short="-o",
            affects_result=False,
        ),
    ] = "alphatune-out"
    checkpoint_minutes: Annotated[
        float,
        Option(
            help="Save this often what was found, for --resume.",
            group=OUTPUT,
            metavar="N",
            affects_result=False,
            applies_to=IMAGES,
        ),
    ] = 1.0
    resume: Annotated[
        bool,
        Option(
            help="Go on where the same command was interrupted, if it was, to the same result.",
            group=OUTPUT,
            affects_result=False,
            saved=False,
            applies_to=IMAGES,
        ),
    ] = False
    overwrite: Annotated[
        bool,
        Option(
            common=True,
            help="Replace an existing tuned folder.",
            group=OUTPUT,
            affects_result=False,
            saved=False,
        ),
    ] = False
