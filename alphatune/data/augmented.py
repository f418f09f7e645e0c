"""Every example once, augmented as in training: the images that moving averages were made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alphatune.core.errors import ConfigurationError
from alphatune.data.augmentation import Augmentation, derived_seed, training_transform
from alphatune.data.examples import Unreadable
from alphatune.data.loading import Batches, IndexedImages, load_image


@dataclass(frozen=True)
class AugmentedBatches(Batches):
    """Batches of examples in order, each augmented in its own way.

    An example's augmentation is a function of the seed and its place in the
    source, whatever the batch size and the workers, and the same in every pass.

    Raises:
        ConfigurationError: the examples are a stream, which decodes by itself.
    """

    augmentation: Augmentation = field(kw_only=True)
    seed: int = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.examples.load is None:
            raise ConfigurationError(
                f"{self.examples.source} is read as a stream, whose images are not augmented",
                "leave augmentation out",
            )

    def images(self) -> Any:
        return _AugmentedImages(self)


class _AugmentedImages(IndexedImages):
    def __init__(self, batches: AugmentedBatches) -> None:
        super().__init__(batches.examples, batches.preprocessing)
        self._transform = training_transform(batches.augmentation, batches.preprocessing)
        self._seed = batches.seed

    def __getitem__(self, position: int) -> tuple[Tensor | Unreadable, int]:
        index = int(self._examples.indices[position])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self._seed, index))
            return load_image(self._examples, position, self._mode, self._transform), index
