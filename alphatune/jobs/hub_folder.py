"""Write a tuned model as a folder for the Hugging Face hub, which stock timm reads, and compare it.

model.safetensors, config.json   timm's hub layout
alphatune.json                   a tuned folder's manifest: alphatune.load reads the folder
moments.safetensors              of calibrated layers, if there are any
README.md                        the model card
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from alphatune.core.progress import Meter
from alphatune.evaluation.predictor import evaluation_mode
from alphatune.evaluation.reading import output_of
from alphatune.export.agreement import Agreement, Expected, Run, compare_all, expect
from alphatune.jobs.export_job import ExportJob
from alphatune.jobs.exported_graph import Checked
from alphatune.kernels.dispatch import use_kernel
from alphatune.models.bundle import load, write_model
from alphatune.models.copying import stock_copy
from alphatune.models.sources import build
from alphatune.models.stock_patch import shown, weigh_examples_
from alphatune.models.temperature import get_temperature, set_temperature_
from alphatune.norms.conversion import layer_settings
from alphatune.norms.patching import example_weighted_layers, get_alpha
from alphatune.reports.model_card import CardFacts, render_card

CARD = "README.md"


def write_hub_folder(job: ExportJob, folder: Path, meter: Meter) -> Checked:
    """Write into an existing folder, and read everything back in each of the ways that the card shows.

    Raises:
        NumericError: stock timm, alphatune or the card's own lines compute something else.
    """
    module = job.opened.module
    source = replace(job.opened.source, spec=job.architecture)  # which may be a path of this machine
    write_model(module, folder, source=source, preprocessing=job.opened.preprocessing)
    facts = card_facts(job)
    (folder / CARD).write_text(render_card(facts, job.result, shown()), encoding="utf-8")
    meter.phase("comparing with PyTorch")
    found: list[tuple[str, Agreement]] = []

    def check(how: str, model: nn.Module, expected: tuple[Expected, ...]) -> None:
        found.extend((how, a) for a in compare_all(_run(model), expected, job.settings.tolerance))

    check("alphatune.load", load(folder), job.expected)
    if facts.stock_is_unpatched:
        plain = tuple(
            expect(stock_copy(module), job.images.images, len(part.batches[0])) for part in job.expected
        )
        timm_model = build(f"local-dir:{folder}").model.eval()
        check("stock timm", timm_model, plain)
        if facts.patchable:
            weigh_examples_(timm_model, {name: alpha for name, alpha in facts.alpha.items() if alpha})
            set_temperature_(timm_model, facts.temperature)
            check("the card's lines", timm_model, job.expected)
    return Checked(tuple(found))


def card_facts(job: ExportJob) -> CardFacts:
    """What the card has to tell apart."""
    module = job.opened.module
    own_norms = bool(layer_settings(module))
    unpatched = {layer.unpatched_alpha for _, layer in example_weighted_layers(module)}
    return CardFacts(
        name=job.settings.repo.rpartition("/")[2] if job.settings.repo else job.output.name,
        architecture=job.architecture,
        repo=job.settings.repo or "USER/REPO",
        license=job.settings.license,
        alpha=get_alpha(module),
        temperature=get_temperature(module),
        tuned_temperature=job.bundle.temperature,
        head=job.head,
        stock_is_unpatched=not own_norms,
        patchable=not own_norms and unpatched <= {0.0},
        tuned_weights_sha256=job.bundle.weights_sha256,
    )


def _run(model: nn.Module) -> Run:
    def run(images: Tensor) -> Tensor:
        with evaluation_mode(model), use_kernel("eager"):
            return output_of(model, model(images))

    return run
