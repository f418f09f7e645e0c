"""Tune α by a score of one's own: segmentation, detection, regression, whatever BatchNorm is found in.

Patching and sweeping know nothing of classes. A function of one's own makes of
the model's outputs and the loader's targets one number an example, larger is
better, and α is chosen by its mean; or rows of numbers, and α is chosen by a
statistic of all of them (set_score.py). Each α is measured exactly: a batch comes
from the loader once and sees all of them, so the loader is read once, in
whatever order it gives. The gain is cross-fitted and tested as in selection.py.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import default_collate

import alphatune
from alphatune.core.errors import (
    AlphatuneError,
    ConfigurationError,
    DataError,
    NumericError,
    ResourceError,
    is_out_of_memory,
    one_line,
    raise_if_machine_failed,
)
from alphatune.core.progress import Meter, ShowProgress, as_meter, shows_progress
from alphatune.data.checksums import check_repeats, checksums_of
from alphatune.data.custom_batches import as_loader
from alphatune.data.custom_pairs import count_examples, custom_pairs, examples_in, moved
from alphatune.evaluation.predictor import evaluation_mode, input_dtype
from alphatune.kernels.dispatch import COMPILED_FROM, Kernel, build_seconds, resolve_kernel, use_kernel
from alphatune.models.running_stats_check import require_health
from alphatune.norms.patching import patched, set_alpha_, unpatched_alpha
from alphatune.norms.survey import NormLayer, survey
from alphatune.norms.watching import Watched, leave_inactive, watched
from alphatune.results.gain import Gain
from alphatune.statistics.gain import paired_interval
from alphatune.tuning.alphas import resolve_alphas
from alphatune.tuning.curve import Interval
from alphatune.tuning.remarks import remark_on_end, remark_on_layers
from alphatune.tuning.selection import Accept, Decision, select_by_score
from alphatune.tuning.set_score import SetScore
from alphatune.tuning.shared_prefix import shared_prefix

#: called with the model's outputs and the loader's targets; gives one number an example, larger is better. A
#: ``SetScore`` gives a row of them
Score = Callable[[Any, Any], Tensor | NDArray[Any]]


@dataclass(frozen=True)
class ScorePoint:
    """The mean score at one α, with the paired interval of its difference to the unpatched model."""

    alpha: float
    score: float
    ci: Interval | None  # None for a single example


@dataclass(frozen=True, repr=False)
class ScoreResult:
    """Everything a tune by a score of one's own found out; ``alpha`` is the one to deploy."""

    name: str  # of the function
    accept: Accept
    seed: int
    curve: tuple[ScorePoint, ...]  # the unpatched model's α first
    decision: Decision
    scores: NDArray[
        Any
    ]  # (alphas, n), of each example in the loader's order; of a SetScore the rows (alphas, n, k)
    shares: NDArray[
        np.float64
    ]  # (alphas, n) the same, or of a SetScore the shares of groups of examples (alphas, G)
    batch_size: int  # of the longest batch
    layers: tuple[NormLayer, ...]
    patched: tuple[str, ...]
    kernel: Kernel  # the code that normalised
    kernel_build_seconds: float  # what compiling it took this time
    seconds: float  # of all passes
    warnings: tuple[str, ...]

    @property
    def alpha(self) -> float:
        return next(point.alpha for point in self.curve if point.alpha == self.decision.alpha)

    @property
    def gain(self) -> Gain | None:
        """What choosing α is worth on examples that did not choose; None with too few examples."""
        return self.decision.gain

    @property
    def baseline_alpha(self) -> float:
        """The α of the unpatched model: 0, or 1 where all layers are GroupNorm."""
        return self.curve[0].alpha

    @property
    def baseline(self) -> float:
        """The unpatched model's mean score."""
        return self.curve[0].score

    @property
    def chosen(self) -> float:
        """The mean score at the α that is deployed."""
        return next(point.score for point in self.curve if point.alpha == self.alpha)

    def __len__(self) -> int:
        """The number of examples."""
        return int(self.scores.shape[1])

    def __repr__(self) -> str:
        return alphatune.to_text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return alphatune.to_html(self)


@shows_progress
def tune_score(
    model: nn.Module,
    loader: Iterable[Any],
    score: Score,
    *,
    alphas: str | Sequence[float] = "auto",
    accept: Accept = "significant",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    kernel: Kernel = "auto",
    exclude: Collection[str] = (),
    skip_unknown: bool = False,
    progress: ShowProgress = None,
) -> ScoreResult:
    """Sweep α by a score of one's own, choose one, and decide whether it helps.

    The model is patched for the time of the call and comes back as it was;
    ``patch_(model, result.alpha)`` makes the choice take effect.

    Args:
        model: any module with BatchNorm layers, on the device to run on.
        loader: any iterable of (inputs, targets), or a dataset of such pairs, read once. The model is called with the inputs
            on its device; targets stay as and where they are.
        score: called as ``score(outputs, targets)`` with what the model returned; gives a tensor
            or array (N,), one number an example, larger is better. It must change neither argument. Or a ``SetScore``,
            such as ``alphatune.mean_iou``.
        alphas: measured exactly; ``"auto"`` is the grid of alphas.py. The unpatched model's is always added.
        accept: ``"significant"`` keeps α = 0 unless the gain is; ``"best"`` takes the optimum.
        seed: of folds and bootstrap. Where targets are class indices (N,), every class is spread over the folds.
        dtype: float32, or float16/bfloat16 for autocast.
        kernel: ``kernels.dispatch``.
        exclude, skip_unknown: as for ``patch_``.
        progress: as for ``tune``.

    Raises:
        UnsupportedModelError: no BatchNorm layer, or one of unknown kind.
        ConfigurationError: α outside [0, 1]; a score that fails or is not (N,); inputs the model does
            not take; a loader that yields something else.
        NumericError: a score that is not finite, or impossible moving averages.
        DataError: no example, or a loader that fails.
        ResourceError: a batch that does not fit into memory.
    """
    if accept not in get_args(Accept):
        raise ConfigurationError(f"unknown accept {accept!r}", f"one of: {', '.join(get_args(Accept))}")
    if not callable(score):
        raise ConfigurationError(f"expected a function score(outputs, targets), got {type(score).__name__}")
    resolve_alphas(alphas)  # an error in them should not wait for the model
    loader = as_loader(loader, default_collate)
    layers = survey(model)
    with patched(model, exclude=exclude, skip_unknown=skip_unknown) as names:
        require_health(model)
        values = resolve_alphas(alphas, unpatched_alpha(model))
        expected = count_examples(loader)
        used = resolve_kernel(kernel, _device(model), worth_compiling=(expected or 0) >= COMPILED_FROM)
        meter = as_meter(progress)
        meter.phase("sweeping alpha")
        meter.expect(None if expected is None else expected * len(values))
        started = time.perf_counter()
        with use_kernel(used):
            scores, strata, batch_size, watch, repeats = _score_all(
                model, loader, score, values, dtype, meter
            )
        layers = watch.account(layers)
        acting = tuple(name for name in names if name not in watch.inactive)
        seconds = time.perf_counter() - started
    decision, shares = select_by_score(
        scores, values, strata, score if isinstance(score, SetScore) else None, accept=accept, seed=seed
    )
    means = scores.mean(axis=1) if shares is scores else shares.mean(axis=1)
    notes = [repeats] if repeats else []
    notes += remark_on_end(decision.candidate, values[-1], values[0])
    if decision.gain is None:
        notes.append(decision.reason)
    return ScoreResult(
        name=_name(score),
        accept=accept,
        seed=seed,
        curve=tuple(
            ScorePoint(alpha, float(mean), paired_interval(row - shares[0]) if len(row) > 1 else None)
            for alpha, mean, row in zip(values, means, shares, strict=True)
        ),
        decision=decision,
        scores=scores,
        shares=shares,
        batch_size=batch_size,
        layers=layers,
        patched=acting,
        kernel=used,
        kernel_build_seconds=build_seconds(used),
        seconds=seconds,
        warnings=(*notes, *remark_on_layers(model, layers, len(acting))),
    )


def _score_all(
    model: nn.Module,
    loader: Iterable[Any],
    score: Score,
    alphas: Sequence[float],
    dtype: torch.dtype,
    meter: Meter,
) -> tuple[NDArray[np.float64], NDArray[np.int64], int, Watched, str]:
    """Scores (alphas, n), what to spread over the folds (n,), the length of the longest batch, which layers the
    first batch ran, and a remark on repeats."""
    parts: list[NDArray[np.float64]] = []
    strata: list[NDArray[np.int64] | None] = []
    sums: list[NDArray[np.int64]] = []
    device, wanted, done = _device(model), input_dtype(model), 0
    watch = Watched()
    with evaluation_mode(model), shared_prefix(model) as prefix:
        for inputs, targets in custom_pairs(loader):
            count = examples_in(inputs)
            if (found := checksums_of(inputs)) is not None:
                sums.append(found)
            inputs = moved(inputs, device, wanted)
            rows: list[NDArray[np.float64]] = []
            for alpha in alphas:
                if rows:
                    prefix.begin_pass(replay=True)
                else:
                    prefix.forget()
                set_alpha_(model, alpha)
                if done or rows:
                    outputs = _outputs(model, inputs, dtype)
                else:
                    with watched(model) as watch:
                        outputs = _outputs(model, inputs, dtype)
                    leave_inactive(watch.account(survey(model)))  # raises where no layer acts
                rows.append(_scores(score, outputs, targets, count, alpha, done))
                count = len(rows[0])
            prefix.forget()
            parts.append(np.stack(rows))
            strata.append(_classes(targets, len(rows[0])))
            done += len(rows[0])
            meter.add(len(rows[0]) * len(alphas))
    if done == 0:
        raise DataError("the data holds no example")
    known = [part for part in strata if part is not None]
    spread = np.concatenate(known) if len(known) == len(strata) else np.zeros(done, dtype=np.int64)
    seen = np.concatenate(sums) if sums else np.empty(0, dtype=np.int64)
    repeats = check_repeats(seen, spread, loader) if len(seen) == done else ""
    longest = max(part.shape[1] for part in parts)
    return np.concatenate(parts, axis=1), spread, longest, watch, repeats


def _outputs(model: nn.Module, inputs: Any, dtype: torch.dtype) -> Any:
    """What the model returns, as it returns it."""
    low_precision = dtype in (torch.float16, torch.bfloat16)
    try:
        with torch.autocast(_device(model).type, dtype) if low_precision else contextlib.nullcontext():
            return model(inputs)
    except AlphatuneError:
        raise
    except Exception as error:  # a model that gets inputs it was not made for raises anything
        _raise_if_not_at_fault(error)
        raise ConfigurationError(
            f"the model failed on the loader's inputs, {_described(inputs)}: "
            f"{type(error).__name__}: {one_line(error)}",
            "it is called as model(inputs), with the first of what the loader yields",
        ) from error


def _scores(
    score: Score, outputs: Any, targets: Any, count: int | None, alpha: float, start: int
) -> NDArray[np.float64]:
    """The scores (N,) of one batch, checked.

    Args:
        count: N, None where only the score knows.
        alpha, start: where it is, for messages: the α, and the examples before this batch.
    """
    name = _name(score)
    try:
        value = score(outputs, targets)
    except AlphatuneError:
        raise
    except Exception as error:  # a function of one's own may raise anything
        _raise_if_not_at_fault(error)
        raise ConfigurationError(
            f"{name} failed: {type(error).__name__}: {one_line(error)}",
            "it is called as score(outputs, targets), with what the model returns and the loader yields",
        ) from error
    if torch.is_tensor(value):
        value = value.detach().cpu()
        value = value.double().numpy() if value.is_floating_point() else value.numpy()
    size, whole = "N" if count is None else count, isinstance(score, SetScore)
    shape = f"({size}, k)" if whole else f"({size},)"
    what = "a row of numbers" if whole else "one score"
    expected = f"expected {name} to return {what} an example, a tensor or array of shape {shape}"
    hint = "leave out the mean over the batch; larger is better"
    if not isinstance(value, np.ndarray):
        raise ConfigurationError(f"{expected}, got {type(value).__name__}", hint)
    if value.ndim != 1 + whole or (count is not None and len(value) != count):
        raise ConfigurationError(f"{expected}, got shape {tuple(value.shape)}", hint)
    if value.dtype.kind not in "biuf":
        raise ConfigurationError(f"{expected}, got {value.dtype}", "scores are real numbers")
    scores = value.astype(np.float64)
    if not np.isfinite(scores).all():
        worst = int(np.argwhere(~np.isfinite(scores))[0][0])
        bad = scores[worst] if not whole else scores[worst][~np.isfinite(scores[worst])][0]
        raise NumericError(
            f"{name} is {bad:g} for example {start + worst} at α = {alpha:g}",
            "a score must be finite for every example",
        )
    return scores


def _classes(targets: Any, count: int) -> NDArray[np.int64] | None:
    """Targets that are class indices (N,); None for any other."""
    if torch.is_tensor(targets) and not targets.is_floating_point():
        targets = targets.detach().cpu().numpy()
    classes = isinstance(targets, np.ndarray) and targets.shape == (count,) and targets.dtype.kind in "biu"
    return targets.astype(np.int64) if classes else None


def _raise_if_not_at_fault(error: Exception) -> None:
    """Before an error is put down to somebody's model or score."""
    if is_out_of_memory(error):
        raise ResourceError(
            "a batch does not fit into the device's memory",
            "let the loader give smaller batches, or use `dtype=bfloat16` or `device=cpu`",
        ) from error
    raise_if_machine_failed(error)


def _device(model: nn.Module) -> torch.device:
    return next(iter((*model.parameters(), *model.buffers())), torch.zeros(())).device


def _name(score: Score) -> str:
    return str(getattr(score, "__name__", type(score).__name__))


def _described(inputs: Any) -> str:
    return f"a tensor of shape {tuple(inputs.shape)}" if torch.is_tensor(inputs) else type(inputs).__name__
