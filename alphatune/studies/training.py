"""Train the network of an experiment, and measure it over α."""

from __future__ import annotations

import copy
import math
import platform
import time
from dataclasses import dataclass, field

import torch
from torch import nn

from alphatune.core.errors import NumericError
from alphatune.data.sampling import Sampling, steps_per_epoch
from alphatune.data.training_batches import DeviceBatches, TrainingBatches
from alphatune.evaluation.predictor import evaluate
from alphatune.norms.conversion import Norm, convert_
from alphatune.norms.patching import patched, set_alpha_
from alphatune.results.study import AlphaCurve, StudyRun
from alphatune.statistics.scores import summarise
from alphatune.studies.experiment import Experiment
from alphatune.studies.images import Part, StudyImages
from alphatune.studies.networks import SMALL, build_network
from alphatune.studies.scale import ALPHAS, SCALES, ScaleName
from alphatune.training.loop import train
from alphatune.training.recipe import Recipe
from alphatune.training.state import start

#: learning rate for a batch of 128; others in proportion
LEARNING_RATE = 0.1


@dataclass
class Trainer:
    """Trains the networks of a scale on images in memory."""

    scale: ScaleName
    images: StudyImages
    device: torch.device
    _pretrained: dict[int, nn.Module] = field(default_factory=dict)  # by seed, for fine-tuning

    def run(self, experiment: Experiment, seed: int) -> StudyRun:
        """Train a network from a seed and measure it.

        A loss or an output that is NaN or infinite is a finding: the network counts as one that guesses.

        Raises:
            ConfigurationError: the images do not suit the experiment.
        """
        began = time.monotonic()
        scale, images = SCALES[self.scale], self.images
        parts = (images.train, images.choosing, images.reporting)
        old, new = _halves(images.num_classes)
        classes = images.num_classes
        if experiment.pretrained:
            classes = len(new)
            parts = tuple(
                part.of_classes(new, count, seed)
                for part, count in zip(parts, (scale.few_images, None, None), strict=True)
            )  # type: ignore[assignment]
        diverged = False
        try:
            if experiment.pretrained:
                model = copy.deepcopy(self._trained_before(seed, old))
                torch.manual_seed(seed)
                model.linear = nn.Linear(model.linear.in_features, classes).to(self.device)  # type: ignore
            else:
                torch.manual_seed(seed)
                model = build_network(experiment, scale, classes)
            self._train(model, experiment, parts[0], seed)
            curves = [_curve(model, images.batches(part)) for part in parts[1:]]
        except NumericError:
            diverged = True
            curves = [_guessing(len(images.batches(part)), classes) for part in parts[1:]]
        return StudyRun(
            scale=self.scale,
            experiment=experiment.to_dict(),
            seed=seed,
            alphas=ALPHAS,
            choosing=curves[0],
            reporting=curves[1],
            seconds=round(time.monotonic() - began, 1),
            machine=f"{_machine(self.device)}, torch {torch.__version__}",
            diverged=diverged,
        )

    def _trained_before(self, seed: int, classes: range) -> nn.Module:
        if seed not in self._pretrained:
            torch.manual_seed(seed)
            model = build_network(Experiment(), SCALES[self.scale], len(classes))
            self._train(model, Experiment(), self.images.train.of_classes(classes), seed)
            self._pretrained[seed] = model
        return self._pretrained[seed]

    def _train(self, model: nn.Module, experiment: Experiment, part: Part, seed: int) -> None:
        scale, size = SCALES[self.scale], experiment.batch_size
        sampling = Sampling(size, seed, experiment.classes_per_batch)
        if size < SMALL and (most := scale.small_batch_steps * size) < len(part.examples):
            part = part.limit(most, seed)
        batches = TrainingBatches(
            part.examples,
            self.images.preprocessing,
            "cifar" if self.images.mirrored else "crop",
            sampling,
            self.device,
            cache=part.cache,
        )
        each = steps_per_epoch(len(part.examples), sampling)
        epochs = scale.epochs if size >= SMALL else max(1, scale.small_batch_steps // each)
        if experiment.norm.kind != "batch":
            convert_(model, _scheduled(experiment.norm, epochs * each))
        model.to(self.device)
        recipe = Recipe(
            epochs=epochs,
            learning_rate=LEARNING_RATE * max(size, 4) / 128,
            warmup_epochs=min(1.0, epochs / 10),
            decay_norm=experiment.decay_norm,
            gamma_target=experiment.gamma_target,
            seed=seed,
        )
        train(start(model, recipe, self.device), batches, recipe)


def _scheduled(norm: Norm, steps: int) -> Norm:
    """Batch Renormalisation's schedule as its share of a run (Ioffe 2017: of 160 000 steps)."""
    if norm.kind != "renorm":
        return norm
    return Norm("renorm", renorm=(steps // 32, steps // 4, 5 * steps // 32))


def _halves(num_classes: int) -> tuple[range, range]:
    middle = num_classes // 2
    return range(middle), range(middle, num_classes)


def _curve(model: nn.Module, batches: DeviceBatches) -> AlphaCurve:
    """Accuracy and loss at each α."""
    top1, loss = [], []
    with patched(model.eval()):
        for alpha in ALPHAS:
            set_alpha_(model, alpha)
            found = summarise(evaluate(model, batches))
            top1.append(found.top1)
            loss.append(found.loss)
    return AlphaCurve(images=len(batches), top1=tuple(top1), loss=tuple(loss))


def _guessing(images: int, num_classes: int) -> AlphaCurve:
    """Accuracy and loss of a network that gives every class the same probability."""
    points = len(ALPHAS)
    return AlphaCurve(images=images, top1=(1 / num_classes,) * points, loss=(math.log(num_classes),) * points)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} thread(s)"
