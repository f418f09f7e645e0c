"""What ``tune`` takes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from alphatune.core.metrics import Metric
from alphatune.settings.evaluate import EvaluateSettings
from alphatune.settings.option import AVERAGES, GATES, IMAGES, OUTPUT, TUNING, Option
from alphatune.settings.running import EXCLUDE, LOG_TO, RUNTIME


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
            help="With --alphas auto: 40 % of the examples choose alpha and draw the curve, or all (full).",
            group=TUNING,
            applies_to=IMAGES,
        ),
    ] = "auto"
    curve_tolerance: Annotated[
        float,
        Option(
            help="Allowed error of the interpolated curve, in nats and as a fraction.",
            group=TUNING,
            metavar="E",
            applies_to=IMAGES,
        ),
    ] = 0.002
    race_delta: Annotated[
        float,
        Option(
            help="Chance that a first look, which narrows the range, leaves out the best alpha; 0 never narrows it.",
            group=TUNING,
            metavar="D",
            applies_to=IMAGES,
        ),
    ] = 0.05
    metric: Annotated[
        Metric,
        Option(
            common=True,
            help="By top1, top5, loss, ece, macro_recall, macro_f1, auroc or average_precision.",
            group=TUNING,
            metavar="METRIC",
            applies_to=IMAGES,
        ),
    ] = "top1"
    accept: Annotated[
        Literal["significant", "best"],
        Option(help="Keep α = 0 unless the gain is significant, or always take the best α.", group=TUNING),
    ] = "significant"
    granularity: Annotated[
        Literal["global", "stage", "layer", "channel"],
        Option(
            common=True,
            help="One α (global), or one per stage, layer or channel where that wins out of fold.",
            group=TUNING,
            applies_to=IMAGES,
        ),
    ] = "global"
    temperature: Annotated[
        bool,
        Option(
            common=True,
            help="Also fit a temperature, and report what α adds beyond it.",
            group=TUNING,
            applies_to=IMAGES,
        ),
    ] = False
    objective: Annotated[
        Literal["mean", "worst"],
        Option(
            help="Of several conditions, improve their mean or the worst of them.",
            group=TUNING,
            applies_to=IMAGES,
        ),
    ] = "mean"
    guard: Annotated[
        tuple[str, ...],
        Option(
            help="What a condition may lose, e.g. clean:top1=0.005, surely no more than that; repeatable. Without one "
            "the clean images' top-1 may not be significantly worse; none: no limit.",
            group=TUNING,
            metavar="CONDITION:METRIC[=M]",
            applies_to=IMAGES,
        ),
    ] = ()
    rivals: Annotated[
        Literal["none", "free"],
        Option(
            help="Compare finer alpha, or alpha over several conditions, with what is free at inference: a "
            "temperature, running statistics measured anew, tuned γ and β.",
            group=TUNING,
            applies_to=IMAGES,
        ),
    ] = "free"
    choose: Annotated[
        Literal["alpha", "cheapest"],
        Option(
            help="Of these, deploy the cheapest that none beats significantly, or alpha in any case.",
            group=TUNING,
            applies_to=IMAGES,
        ),
    ] = "cheapest"
    label_counts: Annotated[
        str,
        Option(
            help="Also compare all of them when tuned on only so many labelled images, e.g. 50,200,1000.",
            group=TUNING,
            metavar="N,N,...",
            applies_to=IMAGES,
        ),
    ] = ""
    score: Annotated[
        str | None,
        Option(
            help="Any task: package.module:score or file.py:score, called with outputs and targets, returns one "
            "number per example, larger is better; or alphatune:mean_iou, alphatune:mean_average_precision. --data "
            "then names your loader in the same way.",
            group=TUNING,
            metavar="FUNCTION",
        ),
    ] = None
    batch_stats: Annotated[
        bool,
        Option(
            help="Also evaluate with the test batch's statistics, for comparison; never chosen.",
            group=TUNING,
            applies_to=IMAGES,
        ),
    ] = False
    layers: Annotated[
        tuple[str, ...],
        Option(
            help="Norm layers that may take an alpha, e.g. 'layer4.*'; repeatable. Default: all. auto: leave alpha out "
            "of layers that are not worth what they cost at inference.",
            group=TUNING,
            metavar="auto|all|GLOB",
        ),
    ] = ()
    latency_budget: Annotated[
        float | None,
        Option(
            common=True,
            help="Let inference take R times as long as with all layers folded: 1.05.",
            group=TUNING,
            metavar="R",
            applies_to=IMAGES,
        ),
    ] = None
    budget_batch: Annotated[
        int,
        Option(
            help="Images per batch when the cost of layers is timed for --latency-budget or --layers auto.",
            group=TUNING,
            metavar="N",
            minimum=1,
            applies_to=IMAGES,
        ),
    ] = 1
    exclude: Annotated[tuple[str, ...], EXCLUDE] = ()
    min_positions: Annotated[
        int,
        Option(
            help="Leave out layers that see fewer positions per example; 2 leaves out BatchNorm1d and 1x1 maps.",
            group=TUNING,
            metavar="N",
            minimum=1,
            applies_to=IMAGES,
        ),
    ] = 1
    calibrate: Annotated[
        str | None,
        Option(
            help="Measure moving averages on these images, for GroupNorm, InstanceNorm and LayerNorm2d, which "
            "keep none; labels are not used.",
            group=AVERAGES,
            metavar="DATA",
            applies_to=IMAGES,
        ),
    ] = None
    recalibrate: Annotated[
        str | None,
        Option(
            help="Replace the moving averages of BatchNorm layers with exact ones over these images.",
            group=AVERAGES,
            metavar="DATA",
            applies_to=IMAGES,
        ),
    ] = None
    recalibrate_order: Annotated[
        Literal["one-pass", "layer-by-layer"],
        Option(
            help="Measure all layers in one pass, normalising by the batch; or each in its own pass, with the new "
            "averages before it.",
            group=AVERAGES,
            applies_to=IMAGES,
        ),
    ] = "one-pass"
    recalibrate_augment: Annotated[
        Literal["none", "auto", "crop", "cifar", "imagenet"],
        Option(help="Augment these images, as in training.", group=AVERAGES, applies_to=IMAGES),
    ] = "none"
    calibrate_split: Annotated[
        str | None,
        Option(
            help="Split to measure on. Default: train, if there is one.",
            group=AVERAGES,
            metavar="NAME",
            applies_to=IMAGES,
        ),
    ] = None
    calibrate_limit: Annotated[
        int | None,
        Option(
            help="Measure on a random sample of N examples, stratified by class.",
            group=AVERAGES,
            metavar="N",
            applies_to=IMAGES,
        ),
    ] = None
    min_gain: Annotated[
        float | None,
        Option(
            help="Fail unless the gain in --metric, measured on examples that did not choose, is at least G (a "
            "fraction, or nats). --plan says how many images that takes.",
            group=GATES,
            metavar="G",
            affects_result=False,
        ),
    ] = None
    max_regression: Annotated[
        tuple[str, ...],
        Option(
            help="Fail if the tuned model is worse than the plain one by more than V in one of the metrics; "
            "repeatable.",
            group=GATES,
            metavar="METRIC=V",
            affects_result=False,
        ),
    ] = ()
    max_class_regression: Annotated[
        tuple[str, ...],
        Option(
            help="Fail if any class gets worse by more than V in top1 (V alone), top5 or loss; repeatable.",
            group=GATES,
            metavar="[METRIC=]V",
            affects_result=False,
            applies_to=IMAGES,
        ),
    ] = ()
    gate_on: Annotated[
        Literal["estimate", "interval"],
        Option(
            help="Hold the three limits above against the estimate, or pass only if the whole 95 % interval keeps "
            "to them: the gain is surely at least G, the loss surely at most V. With too few images to tell, they fail "
            "and say how many it takes.",
            group=GATES,
            affects_result=False,
        ),
    ] = "estimate"
    require_significant: Annotated[
        bool,
        Option(
            help="Fail unless the gain is significant. For pipelines that want a gain: without it a run that "
            "keeps alpha = 0 because nothing helps succeeds.",
            group=GATES,
            affects_result=False,
        ),
    ] = False
    max_latency_ratio: Annotated[
        float | None,
        Option(
            help="Fail if a forward pass takes more than R times that of the plain model (see --runtime).",
            group=GATES,
            metavar="R",
            affects_result=False,
        ),
    ] = None
    runtime: Annotated[
        Literal["torch", "onnx", "counted"],
        RUNTIME.but(
            help=f"{RUNTIME.help[:-1]}; or counted: the cost of layers is not timed, but comes from multiply-adds and "
            "bytes moved.",
            applies_to=IMAGES,
        ),
    ] = "torch"
    thumbnails: Annotated[
        int,
        Option(
            help="Pictures of changed predictions in the report, at most N each way.",
            group=OUTPUT,
            metavar="N",
            minimum=0,
        ),
    ] = 12
    no_cache: Annotated[
        bool,
        Option(
            help="Measure again, even if the result of the same job is cached.",
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
    log_to: Annotated[tuple[str, ...], LOG_TO] = ()
    checkpoint_minutes: Annotated[
        float,
        Option(
            help="Save progress this often, for --resume.",
            group=OUTPUT,
            metavar="N",
            affects_result=False,
            applies_to=IMAGES,
        ),
    ] = 1.0
    resume: Annotated[
        bool,
        Option(
            help="Continue where the same command was interrupted.",
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

    @property
    def chooses_layers(self) -> bool:
        """Whether α may be left out of layers for what it costs there."""
        return self.latency_budget is not None or "auto" in self.layers

    @property
    def layer_globs(self) -> tuple[str, ...]:
        """Names and globs of layers that may take an α; none: all."""
        return () if "all" in self.layers else tuple(each for each in self.layers if each != "auto")
