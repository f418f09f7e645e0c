"""What a repair sets on a patched model: α, and γ and β or running statistics of some layers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from alphatune.data.prefetch import Batch
from alphatune.norms.layer_tensors import LayerTensors, Names, get_tensors, set_tensors_, tensors_set
from alphatune.norms.patching import Alpha
from alphatune.statistics.scores import Scores, concatenate
from alphatune.tuning.passes import Passes
from alphatune.tuning.sweep import score_at
from alphatune.tuning.temperature import TemperatureScores, concatenate_temperatures, score_temperatures


@dataclass(frozen=True)
class Candidate:
    """A patched model's α, and tensors of its layers in place of those that are stored."""

    alpha: float | Mapping[str, Alpha]
    names: Names | None = None  # which tensors
    tensors: LayerTensors = field(default_factory=dict)

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """The tensors are in the model for the time of a ``with`` block; α is set by whoever runs it."""
        if self.names is None:
            yield
        else:
            with tensors_set(model, self.names, self.tensors):
                yield

    def apply_(self, model: nn.Module) -> None:
        """Put the tensors into the model."""
        if self.names is not None:
            set_tensors_(model, self.names, self.tensors)

    def nearer(self, share: float, passes: Passes) -> Candidate:
        """The candidate at a share of the way from the unpatched network, α and tensors alike."""
        if share == 1:
            return self
        if share == 0:
            return Candidate(passes.baseline)
        base = passes.baseline

        def number(alpha: float) -> float:
            return round(base + share * (alpha - base), 6)

        new: float | dict[str, Alpha]
        if isinstance(self.alpha, float):
            new = number(self.alpha)
        else:
            new = {
                layer: number(alpha) if isinstance(alpha, float) else base + share * (alpha - base)
                for layer, alpha in self.alpha.items()
            }
        if self.names is None:
            return Candidate(new)
        stored = get_tensors(passes.predictor.model, self.names, self.tensors)
        tensors = {
            layer: (before[0] + share * (after[0] - before[0]), before[1] + share * (after[1] - before[1]))
            for layer, after in self.tensors.items()
            for before in [stored[layer]]
        }
        return Candidate(new, self.names, tensors)

    @property
    def single_alpha(self) -> float:
        """The one α of all layers; raises ValueError where they have their own."""
        if not isinstance(self.alpha, float):
            raise ValueError("the layers have α of their own")
        return self.alpha

    def is_same_number(self, other: Candidate) -> bool:
        """Whether both are nothing but the same one α."""
        plain = self.names is None and other.names is None
        return plain and isinstance(self.alpha, float) and self.alpha == other.alpha

    @property
    def digest(self) -> str:
        """Tells candidates apart whose tensors differ; "" without any."""
        if self.names is None:
            return ""
        content = hashlib.sha256(repr(self.names).encode())
        for layer, pair in sorted(self.tensors.items()):
            content.update(layer.encode())
            for tensor in pair:
                content.update(tensor.detach().cpu().double().numpy().tobytes())
        return content.hexdigest()[:20]


#: gives what was fitted on the examples at some positions; the text names the fit for the journal
FitOn = Callable[[NDArray[np.int64], str], Candidate]


def exact_scores(passes: Passes, positions: NDArray[np.int64], candidate: Candidate) -> Scores:
    """Exact scores of some examples."""

    def scores(batch: Batch, logits: list[Tensor]) -> Scores:
        return score_at(candidate.alpha, logits[0], batch)

    question = f"candidate {candidate.digest}".rstrip()
    with candidate.on(passes.predictor.model):
        return concatenate(passes.run(question, positions, [candidate.alpha], scores))


def score(passes: Passes, positions: NDArray[np.int64], candidate: Candidate) -> TemperatureScores:
    """Exact scores of some examples, at every temperature as well."""

    def scores(batch: Batch, logits: list[Tensor]) -> TemperatureScores:
        at_alphas = score_at(candidate.alpha, logits[0], batch)
        return TemperatureScores(at_alphas, *score_temperatures(logits[0], batch.targets))

    question = f"temperatures {candidate.digest}".rstrip()
    with candidate.on(passes.predictor.model):
        return concatenate_temperatures(passes.run(question, positions, [candidate.alpha], scores))
