"""The result of a training run."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from alphatune.results.data import Preprocessing
from alphatune.results.document import Artifact, Part, VersionedDocument
from alphatune.results.environment import TrainEnvironment
from alphatune.results.metrics import Metrics, Validation
from alphatune.results.values import (
    Count,
    Dtype,
    Fraction,
    ModelKind,
    Names,
    NonNegative,
    Open,
    Size,
    Warnings,
)


class TrainedNorm(Part, frozen=True, kw_only=True):
    """Which normalisation the model trains with, and its parameters."""

    kind: Literal["batch", "ghost", "batch-group", "group", "renorm"]
    ghost_batch_size: Size
    num_groups: Size
    examples_per_group: Size
    renorm: tuple[Count, Count, Count]
    averages: Literal["paper", "group"] = "group"


class TrainedModel(Part, frozen=True, kw_only=True):
    """Where the model started from; new_weights were newly made although others were loaded."""

    source: str
    kind: ModelKind
    model_kwargs: Open
    checkpoint: str
    new_weights: Names
    parameters: Count
    norm_layers: Count
    norm: TrainedNorm


class TrainData(Part, frozen=True, kw_only=True):
    """Numbers of examples, and how they were split and prepared."""

    source: str
    classes: Count
    train: Size
    validation: Size
    test: Count
    validation_split: str
    val_fraction: Fraction | None
    split_seed: Count
    class_map: str = ""
    labels: str = ""
    preprocessing: Preprocessing
    augmentation: str
    decoder: str


class Recipe(Part, frozen=True, kw_only=True):
    """The hyperparameters."""

    epochs: Size
    optimizer: Literal["sgd", "adamw"]
    learning_rate: NonNegative
    momentum: Fraction
    weight_decay: NonNegative
    bias_decay: NonNegative
    decay_norm: Literal["none", "gamma", "beta", "both"]
    gamma_target: Literal[0, 1]
    schedule: Literal["cosine", "step", "constant"]
    warmup_epochs: NonNegative
    milestones: tuple[Fraction, ...]
    label_smoothing: Fraction
    ema_decay: Fraction
    clip_grad: NonNegative
    accumulate: Size
    dtype: Dtype
    channels_last: bool
    compile: bool
    eval_every: Size
    seed: Count
    batch_size: Size
    classes_per_batch: Size | None
    batch_order: Literal["shuffled", "blocks"]


class Epoch(Part, frozen=True, kw_only=True):
    """A row of log.csv; epochs that were not validated have no val_ fields."""

    epoch: Size
    step: Size
    learning_rate: NonNegative
    train_loss: NonNegative
    train_top1: Fraction
    val_top1: Fraction | UnsetType = UNSET
    val_top5: Fraction | UnsetType = UNSET
    val_loss: NonNegative | UnsetType = UNSET
    val_ece: Fraction | UnsetType = UNSET
    seconds: NonNegative

    @property
    def was_validated(self) -> bool:
        return self.val_top1 is not UNSET

    def validation(self) -> Validation:
        """Its metrics of the validation examples."""
        return Validation(
            **{name.removeprefix("val_"): v for name, v in self.items() if name.startswith("val_")}
        )


class TrainDocument(VersionedDocument, frozen=True, kw_only=True):
    """result.json of a training run."""

    command: Literal["train"] = "train"
    model: TrainedModel
    data: TrainData
    env: TrainEnvironment
    recipe: Recipe
    epochs: Annotated[tuple[Epoch, ...], Meta(min_length=1)]
    validation: Validation
    test: Metrics | None
    seconds: NonNegative
    artifacts: tuple[Artifact, ...] = ()
    warnings: Warnings
