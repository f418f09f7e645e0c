"""The model card of a folder for the Hugging Face hub: README.md with YAML front matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from alphatune.core.metrics import INFO, SCORE, Measure, shown
from alphatune.core.version import VERSION
from alphatune.reports.changes import Figure, value_text
from alphatune.reports.markdown import escape
from alphatune.reports.shift_tables import shift_tables
from alphatune.reports.summary import Summary, summarise_tune
from alphatune.reports.templating import open_templates
from alphatune.results.alpha import LayerAlpha, alpha_text, common_alpha
from alphatune.results.tune import Tuned

_TAGS = ["image-classification", "timm", "alphatune", "batch-normalization"]


@dataclass(frozen=True)
class CardFacts:
    """What the card says that result.json does not."""

    name: str
    architecture: str
    repo: str
    license: str | None
    alpha: Mapping[str, LayerAlpha]  # by layer, as in alphatune.json
    temperature: float  # to divide the logits by; 1 where it is in the weights, or there is none
    tuned_temperature: float
    head: str  # the layer whose weights hold the temperature, "" for none
    stock_is_unpatched: bool  # stock code gives the network as it was before tuning
    patchable: bool  # the plain lines give the tuned network
    tuned_weights_sha256: str


@dataclass(frozen=True)
class _Measured:
    """Metrics of the unpatched network and of this one, and on which images."""

    data: str
    n: int
    summary: Summary
    labels: dict[Measure, str]

    def now(self, figure: Figure) -> float:
        """The metric of the network that the card is of."""
        return figure.before if figure.after is None or not self.summary.taken else figure.after


def render_card(facts: CardFacts, result: Tuned | None, lines: str) -> str:
    """README.md.

    Args:
        result: of the tuned folder; the card has no metrics without one.
        lines: the function that patches a stock model.
    """
    environment = open_templates(html=False)
    environment.filters["escape"] = escape
    environment.globals["value_text"] = value_text
    measured = None if result is None else _measured(result)
    tables = {"tuned_parts": ""} if result is None else shift_tables(result)
    return environment.get_template("model_card.md.j2").render(
        **tables,
        front_matter=_front_matter(facts, measured),
        facts=facts,
        alpha=alpha_text(common_alpha(facts.alpha)),
        weighed=sum(value != 0 for value in facts.alpha.values()),
        measured=measured,
        lines=lines,
        version=VERSION,
    )


def _measured(result: Tuned) -> _Measured:
    """The metrics of a tune."""
    source = result.data.source
    return _Measured(
        data=Path(source.rpartition(":")[0] or source).name,
        n=result.data.n,
        summary=summarise_tune(result),
        labels={SCORE: result.score_name}
        if result.metric == SCORE
        else {m: INFO[m].label for m in shown(result.metric)},
    )


def _front_matter(facts: CardFacts, measured: _Measured | None) -> str:
    results = measured and [
        EvalResult(
            task_type="image-classification",
            dataset_type="image-folder",
            dataset_name=measured.data,
            metric_type=INFO[figure.metric].hub_name,
            metric_value=round(measured.now(figure), 6),
            metric_name=measured.labels[figure.metric] + (", tuned" if measured.summary.taken else ""),
        )
        for figure in measured.summary.figures
    ]
    data = ModelCardData(
        library_name="timm",
        tags=_TAGS,
        license=facts.license,
        pipeline_tag="image-classification",
        model_name=facts.name,
        eval_results=results or None,
    )
    return data.to_yaml().rstrip()
