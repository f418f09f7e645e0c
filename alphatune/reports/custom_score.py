"""The result of a tune by a score of one's own: the layout of any tune, with ``score`` for its metrics."""

from __future__ import annotations

from alphatune.core.metrics import SCORE
from alphatune.core.version import VERSION
from alphatune.reports.measured_power import score_power
from alphatune.reports.result import describe_decision
from alphatune.results.data import ScoredData
from alphatune.results.environment import ScoreEnvironment
from alphatune.results.metrics import BestScore, ScoreMetrics
from alphatune.results.model import Model
from alphatune.results.tune import Score, ScoreChosen, ScorePoint, ScoreTuneDocument
from alphatune.tuning.custom_score import ScoreResult


def score_document(
    result: ScoreResult,
    *,
    command_line: str,
    model: Model,
    data: ScoredData,
    env: ScoreEnvironment,
    source: str,
    warnings: tuple[str, ...],
) -> ScoreTuneDocument:
    """The result, less its gates and artifacts, which are known only later.

    Args:
        source: where the score comes from, as the user named it.
    """
    decision, n = result.decision, len(result)
    return ScoreTuneDocument(
        alphatune=VERSION,
        command_line=command_line,
        model=model,
        data=data,
        env=env,
        score=Score(source=source, name=result.name),
        baseline_alpha=result.baseline_alpha,
        accept=result.accept,
        curve=tuple(
            ScorePoint(
                alpha=point.alpha, n=n, score=point.score, ci={} if point.ci is None else {SCORE: point.ci}
            )
            for point in result.curve
        ),
        baseline=ScoreMetrics(n=n, score=result.baseline),
        best=BestScore(score=decision.best[SCORE]),
        chosen=ScoreChosen(alpha=result.alpha, metrics=ScoreMetrics(n=n, score=result.chosen)),
        passes=float(len(result.curve)),
        seconds=result.seconds,
        gain=decision.gain,
        power=score_power(result),
        decision=describe_decision(decision, result.alpha == result.baseline_alpha),
        artifacts=(),
        warnings=warnings,
    )
