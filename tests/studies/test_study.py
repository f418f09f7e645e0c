"""The paper's figures and tables at the smallest scale, and what is said of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import TINY, Run
from jsonschema import Draft202012Validator
from scipy import stats

from alphatune.cli import study as command
from alphatune.core.errors import ConfigurationError, InputError
from alphatune.results.schemas import read_schema
from alphatune.results.study import AlphaCurve, StudyRun
from alphatune.studies import repeat, training
from alphatune.studies.catalogue import STUDIES
from alphatune.studies.checkpoints import CHECKPOINT_ALPHAS, read_checkpoints
from alphatune.studies.experiment import Claim, Experiment, Study
from alphatune.studies.images import open_images
from alphatune.studies.output_range import output_ranges
from alphatune.studies.repeat import NAMES, RUNS, run_study
from alphatune.studies.runs import key_of, read_runs
from alphatune.studies.scale import ALPHAS, SCALES
from alphatune.studies.summary import check_claims, estimate, summarise_variants

pytest.importorskip("sklearn")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all studies, as a user would have it."""
    return tmp_path_factory.mktemp("studies")


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs(name: str, folder: Path) -> None:
    document = run_study(name, "smoke", seeds=1, output=str(folder))
    assert [variant.name for variant in document.variants] == list(STUDIES[name].variants)
    assert len(document.claims) == len(STUDIES[name].claims)
    assert all(claim.verdict == "cannot be told" for claim in document.claims)  # with one seed
    for variant in document.variants:
        assert 0.05 < variant.plain.mean < 1
        assert len(variant.curve) == len(document.alphas)
    page = (folder / f"{name}-smoke.md").read_text()
    assert all(f"|{variant}|" in page for variant in STUDIES[name].variants)
    for artifact in document.artifacts:
        assert (folder / artifact.path).is_file()


def test_every_claim_is_about_networks_of_its_study() -> None:
    for study in STUDIES.values():
        assert study.claims
        for claim in study.claims:
            assert {claim.better, claim.than} <= study.variants.keys()


def test_what_was_trained_is_not_trained_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ghost-weight nothing is missing after ghost; a line cut short by a kill is trained anew."""
    before = run_study("ghost", "smoke", seeds=1, output=str(folder))
    with monkeypatch.context() as patch:
        patch.setattr(repeat, "open_images", None)  # would be called to train
        again = run_study("ghost-weight", "smoke", seeds=1, output=str(folder))
    assert [v.plain for v in again.variants] == [v.plain for v in before.variants]
    lines = (folder / RUNS).read_bytes()
    (folder / RUNS).write_bytes(lines[:-40])
    assert len(read_runs(folder / RUNS)) == lines.count(b"\n") - 1
    (experiment, seed) = (json.loads(lines.splitlines()[-1])[key] for key in ("experiment", "seed"))
    name = next(n for n, s in STUDIES.items() if any(e.to_dict() == experiment for e in s.variants.values()))
    run_study(name, "smoke", seeds=seed + 1, output=str(folder))
    assert read_runs(folder / RUNS).keys() == {
        key_of(r["scale"], r["experiment"], r["seed"]) for r in map(json.loads, lines.splitlines())
    }


@pytest.mark.slow
def test_a_run_depends_on_its_seed_alone(folder: Path, tmp_path: Path) -> None:
    """Whatever was trained before it in the process, and in processes of their own."""
    one = run_study("averages", "smoke", seeds=1, output=str(folder))
    other = run_study("averages", "smoke", seeds=1, processes=2, output=str(tmp_path))
    assert [v.curve for v in other.variants] == [v.curve for v in one.variants]


def test_fine_tuning_starts_from_the_same_weights() -> None:
    """Whether the network that it starts from was trained just now, or for a run before it."""
    trainer = training.Trainer("smoke", open_images(SCALES["smoke"], None, None, CPU), CPU)
    experiment = Experiment(pretrained=True)
    assert trainer.run(experiment, 0).reporting == trainer.run(experiment, 0).reporting


def test_a_run_that_diverges_counts_as_guessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are trained, and pages say how many did not train."""
    monkeypatch.setattr(training, "LEARNING_RATE", 1e30)
    said: list[str] = []
    document = run_study("group-norm", "smoke", seeds=2, output=str(tmp_path), say=said.append)
    (variant,) = document.variants
    assert variant.diverged == 2
    assert variant.plain.mean == pytest.approx(0.1)  # of ten digits
    assert "2 of GroupNorm" in (tmp_path / "group-norm-smoke.md").read_text()
    assert all("diverged" in line for line in said)
    monkeypatch.undo()
    again = run_study("group-norm", "smoke", seeds=2, output=str(tmp_path))  # it is a finding, and is kept
    assert again.variants == document.variants


def test_checkpoints_that_were_measured_are_not_measured_again(
    tiny_checkpoint: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(tiny_checkpoint, tmp_path / "a.pth")
    file = tmp_path / "networks.toml"
    file.write_text(
        "".join(
            f"[[network]]\nname = '{name}'\nmodel = '{TINY}'\ncheckpoint = '{tmp_path}/a.pth'\n"
            f"data = '{image_folder}'\ninput_size = '12'\ncrop_pct = 1.0\nmean = '{mean}'\nstd = '0.25'\n"
            for name, mean in (("one", 0.5), ("other", 0.4))
        )
    )

    def curves() -> dict[str, tuple[float, ...]]:
        found = run_study("inference-weight", checkpoints=str(file), output=str(tmp_path / "out"))
        assert found.networks[0].alphas == CHECKPOINT_ALPHAS
        return {each.name: each.loss for each in found.networks}

    first = curves()
    assert first["one"] != first["other"]
    assert "|one|48|top1|" in (tmp_path / "out" / "inference-weight-smoke.md").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(repeat, "measure_checkpoint", None)
        file.write_text(file.read_text().replace("'other'", "'renamed'"))
        assert curves() == {"one": first["one"], "renamed": first["other"]}
    weights = torch.load(tmp_path / "a.pth")
    weights["state_dict"]["module.head.bias"] += 1
    torch.save(weights, tmp_path / "a.pth")
    assert curves()["one"] != first["one"]  # other weights under the same name


def test_the_command(run: Run, tmp_path: Path) -> None:
    words = ("study", "group-norm", "--seeds", "2", "-o", str(tmp_path))
    code, out, _ = run(*words, "--format", "json", "--quiet")
    assert code == 0
    document = json.loads(out)
    assert document["command"] == "study"
    assert document["variants"][0]["seeds"] == [0, 1]
    Draft202012Validator(read_schema("study")).validate(document)
    code, out, _ = run(*words)
    assert code == 0
    assert "GroupNorm" in out
    assert "Written:" in out


def test_the_command_knows_every_study() -> None:
    assert get_args(command.Name) == NAMES


def test_bad_input_is_refused(run: Run, tmp_path: Path) -> None:
    code, _, err = run("study", "ghost", "--checkpoints", "x.toml", "-o", str(tmp_path))
    assert (code, "--checkpoints is for inference-weight, not for ghost" in err) == (2, True)
    file = tmp_path / "networks.toml"
    for text, message in (
        ("", "names no network"),
        ("[[network]]\nmodel='x'\ndata='y'", "has no name"),
        ("[[network]]\nname='a'\nmodel='x'", "gives a no data"),
        ("[[network]]\nname='a'\nmodel='x'\ndata='y'\nmetrik='loss'", "no setting of tune"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=message):
            read_checkpoints(file)
    with pytest.raises(InputError, match="cannot read"):
        read_checkpoints(tmp_path / "missing.toml")
    with pytest.raises(ConfigurationError, match="no scale"):
        run_study("ghost", "large", output=str(tmp_path))  # type: ignore[arg-type]
    (tmp_path / RUNS).write_text('{"scale": 1}\n')
    with pytest.raises(InputError, match="line 1"):
        run_study("ghost", "smoke", output=str(tmp_path))


# Eq. 2


def test_outputs_of_training_are_within_the_bound() -> None:
    ranges = output_ranges()
    assert [each.values for each in ranges] == [2**k for k in range(1, 15)]
    for each in ranges:
        assert each.bound == pytest.approx((each.values - 1) ** 0.5)
        assert all(-each.bound * (1 + 1e-9) <= value <= 0 for value in each.lowest.values())
        assert each.lowest["one value differs"] == pytest.approx(-each.bound)  # tight
        assert each.inference["log-normal"] < -each.bound or each.values > 2**12
    assert ranges[0].lowest["normal"] == pytest.approx(-1)  # of two values both are one deviation away


# What runs say together


def made_up(experiment: Experiment, seed: int, plain: float, best: float) -> StudyRun:
    """A network whose top-1 is ``plain`` at α = 0 and ``best`` at α = 0.1, on both parts."""
    top1 = tuple(best if alpha == 0.1 else plain for alpha in ALPHAS)
    curve = AlphaCurve(images=100, top1=top1, loss=(1.0,) * len(ALPHAS))
    return StudyRun(
        scale="cpu", experiment=experiment.to_dict(), seed=seed, alphas=ALPHAS, choosing=curve, reporting=curve,
        seconds=1.0, machine="made up",
    )  # fmt: skip


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ by far more than the variants, whose difference is the same in all."""
    one, other = Experiment(), Experiment(decay_norm="both")
    study = Study(
        shows="x", question="y", variants={"one": one, "other": other},
        claims=(
            Claim(text="a", better="other", than="one"),
            Claim(text="b", better="one", than="other"),
            Claim(text="c", better="one", than="one", better_weighted=True),
        ),
    )  # fmt: skip
    levels = (0.2, 0.5, 0.8, 0.3)
    noise = (0.001, -0.001, 0.002, 0.0)
    runs = [made_up(one, seed, level, level) for seed, level in enumerate(levels)]
    runs += [made_up(other, s, a + 0.02 + e, 0.9) for s, (a, e) in enumerate(zip(levels, noise, strict=True))]
    known = {key_of(r.scale, r.experiment, r.seed): r for r in runs}
    first, second = summarise_variants(study, known, "cpu", range(4))
    assert first.difference is None
    assert second.difference is not None
    expected = stats.ttest_1samp(np.add(0.02, noise), 0).confidence_interval()
    assert second.difference.interval == pytest.approx(tuple(expected))
    assert second.alphas == (0.1,) * 4
    assert second.weighted.mean == pytest.approx(0.9)
    assert [claim.verdict for claim in check_claims(study, known, "cpu", range(4))] == [
        "holds", "does not", "cannot be told",
    ]  # fmt: skip
    # With a seed of one variant only, what is left is compared.
    del known[key_of("cpu", other.to_dict(), 3)]
    _, second = summarise_variants(study, known, "cpu", range(4))
    assert second.difference is not None
    assert second.difference.mean == pytest.approx(0.02 + np.mean(noise[:3]))


def test_one_seed_has_no_interval() -> None:
    assert estimate([0.5]).interval is None
    assert estimate([0.4, 0.6]).interval == pytest.approx(
        tuple(stats.ttest_1samp([0.4, 0.6], 0).confidence_interval())
    )
