"""Score every example at every α, decoding each batch once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from alphatune.data.loading import Batch
from alphatune.evaluation import Progress, Scores, concatenate, evaluation_mode, predict, score_logits
from alphatune.norms.patching import set_alpha_


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


def sweep(
    model: nn.Module,
    batches: Iterable[Batch],
    alphas: Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    total: int | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Run a *patched* model at every α on every batch.

    A batch is decoded and copied to the device once and sees every α before
    the next one comes. Memory grows with examples × α, by about 30 bytes each.

    Args:
        model: patched (``norms.patching.patched``); its α is left at the last one.
        alphas: starting with the unpatched model's (``alphas.resolve_alphas``).

    Raises:
        NumericError: an output that is not finite; example and α are named.
    """
    parts: list[list[Scores]] = [[] for _ in alphas]
    done = 0
    with evaluation_mode(model):
        for batch in batches:
            for alpha, scored in zip(alphas, parts, strict=True):
                set_alpha_(model, alpha)
                logits = predict(model, batch.inputs, dtype)
                scored.append(score_logits(logits, batch, where=f"at alpha = {alpha:g}"))
            done += len(batch)
            if progress:
                progress(done, total)
    return Sweep(tuple(alphas), tuple(concatenate(scored) for scored in parts))
