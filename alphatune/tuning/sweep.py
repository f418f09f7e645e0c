"""Run a patched model at several α over every batch, decoding and copying it once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from alphatune.core.errors import NumericError
from alphatune.core.progress import Meter
from alphatune.data.prefetch import Batch
from alphatune.evaluation.predictor import Predictor, evaluation_mode, score_logits
from alphatune.norms.patching import Alpha, set_alpha_
from alphatune.statistics.scores import Scores
from alphatune.tuning.choosing import Choices
from alphatune.tuning.curve_scores import CurveScores
from alphatune.tuning.shared_prefix import SharedPrefix, shared_prefix

#: called with a batch and its logits (N, classes) at each α
Consume = Callable[[Batch, list[Tensor]], None]


class NotFiniteError(NumericError):
    """An output that is NaN or infinite at ``alpha``; nearer to the unpatched model it may be finite."""

    alpha: float


@dataclass(frozen=True)
class Sweep:
    """Scores of the same examples at each α; ``alphas[0]`` is the unpatched model's, 0 but for GroupNorm."""

    alphas: tuple[float, ...]
    scores: tuple[Scores, ...]

    @property
    def baseline_alpha(self) -> float:
        return self.alphas[0]

    @property
    def baseline(self) -> Scores:
        return self.scores[0]

    def choices(self) -> Choices:
        """Each of the α can be chosen, by all examples."""
        return Choices(self.alphas, CurveScores.stacked(self.scores), self.baseline)


def score_at(alpha: float | Mapping[str, Alpha], logits: Tensor, batch: Batch) -> Scores:
    """Score one batch's logits at an α, which an error names, or at the α of each layer.

    Raises:
        NotFiniteError: a logit that is NaN or infinite.
        ConfigurationError: as ``score_logits``.
    """
    if isinstance(alpha, Mapping):
        return score_logits(logits, batch, where="at the α of each layer")
    try:
        return score_logits(logits, batch, where=f"at α = {alpha:g}")
    except NumericError as error:
        named = NotFiniteError(error.message, error.hint)
        named.alpha = alpha
        raise named from None


def run(
    predictor: Predictor,
    batches: Iterable[Batch],
    alphas: Sequence[float | Mapping[str, Alpha]],
    consume: Consume,
    meter: Meter,
) -> None:
    """Hand every batch's logits at all α to ``consume``; what precedes the first layer runs once a batch."""
    model = predictor.model
    with evaluation_mode(model), _prefix(predictor) as prefix:
        for batch in batches:
            inputs = predictor.prepare(batch.inputs)
            logits: list[Tensor] = []
            most = predictor.max_batch
            for alpha in alphas:
                # A batch that was just cut in two for lack of memory makes other calls than those recorded.
                if not logits or predictor.max_batch != most:
                    prefix.forget()
                else:
                    prefix.begin_pass(replay=True)
                most = predictor.max_batch
                set_alpha_(model, alpha)
                logits.append(predictor(inputs))
            prefix.forget()
            consume(batch, logits)
            meter.add(len(batch) * len(alphas))


def _prefix(predictor: Predictor) -> contextlib.AbstractContextManager[SharedPrefix]:
    # A compiled model is one piece.
    return contextlib.nullcontext(SharedPrefix()) if predictor.compile else shared_prefix(predictor.model)
