"""What a model gives: which output holds the logits, whether they are logits, and whether they hold still."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import foreign
import pytest
import timm
import torch
import torchvision
from conftest import CLASSES, Run, needs_torch
from tiny import tiny
from torch import nn

import alphatune
from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.core.versions import EXPORTED_PROGRAM, torch_allows
from alphatune.evaluation.predictor import Predictor
from alphatune.evaluation.reading import (
    Reading,
    are_probabilities,
    keep_reading_,
    kept_reading,
    log_of,
    logits_of,
)
from alphatune.models.outputs import check_outputs_, find_reading_
from alphatune.models.stability import preserved, require_stable
from alphatune.training.loop import AUXILIARY_WEIGHT, training_loss

FOREIGN = f"{Path(foreign.__file__)}"
SIZE = ("--input-size", "12", "--crop-pct", "1", "--mean", "0.5", "--std", "0.25", "--device", "cpu")
GOOD = [
    "features_first", "logits_first", "dict", "dict_aux", "dict_other", "nested", "record", "named", "maps_beside",
    "softmax", "log_softmax", "softmax_half", "softmax_rounded", "softmax_tuple", "softmax_dict",
]  # fmt: skip
PROBABILITIES = [kind for kind in GOOD if kind.startswith("softmax")]


def command(kind: str, checkpoint: Path, data: Path, *more: str, what: str = "evaluate") -> list[Any]:
    return [
        what, f"{FOREIGN}:shaped", "--model-kwargs", f"kind={kind}", "--checkpoint", checkpoint, "--data", data,
        *SIZE, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def plain(image_folder: Path, tiny_checkpoint: Path) -> dict[str, float]:
    import contextlib
    import io

    from alphatune.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        main(
            [str(a) for a in command("tensor", tiny_checkpoint, image_folder, "--format", "json", "--quiet")]
        )
    metrics: dict[str, float] = json.loads(out.getvalue())["metrics"]
    return metrics


@pytest.mark.parametrize("kind", GOOD)
def test_every_layout_of_outputs_gives_the_plain_figures(
    kind: str, run: Run, plain: dict[str, float], image_folder: Path, tiny_checkpoint: Path
) -> None:
    code, out, err = run(*command(kind, tiny_checkpoint, image_folder, "--format", "json"))
    assert code == 0, err
    document = json.loads(out)
    loose = {"softmax_half": 1e-3, "softmax_rounded": 5e-3}.get(kind, 1e-5)
    for name in ("top1", "loss"):
        assert document["metrics"][name] == pytest.approx(plain[name], abs=loose)
    said = "\n".join(document["warnings"])
    assert ("probabilities" in said) == (kind in PROBABILITIES)
    assert document["model"]["output"]["probabilities"] == (kind in PROBABILITIES)
    single = kind in ("softmax", "log_softmax", "softmax_half", "softmax_rounded", "softmax_dict", "dict")
    assert ("took output" in said) == (not single and kind not in ("record", "named"))


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("exits", 2, ("0 (4 columns)", "2 (4 columns)", "--logits")),
        ("exits_dict", 2, ("early (4 columns)", "late (4 columns)")),
        ("sigmoid", 4, ("by itself", "sigmoids", "--score")),
        ("one", 4, ("one number an example", "the data has 4")),
        ("flat", 4, ("one number an example",)),
        ("none", 2, ("no tensor of logits",)),
        ("text", 2, ("no tensor of logits",)),
        ("maps", 2, ("one row of logits per example",)),
        ("background", 2, ("4 classes", "5 outputs")),
    ],
)
@pytest.mark.parametrize("what", ["evaluate", "tune"])
def test_what_are_no_logits_is_refused(
    kind: str,
    code: int,
    words: tuple[str, ...],
    what: str,
    run: Run,
    image_folder: Path,
    tiny_checkpoint: Path,
) -> None:
    found, out, err = run(*command(kind, tiny_checkpoint, image_folder, what=what))
    assert (found, out) == (code, "")
    assert all(word in err for word in words), err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("kind", "choice"), [("exits", "2"), ("exits_dict", "late"), ("exits_dict", "1"), ("nested", "1.head")]
)
def test_a_choice_is_taken_and_said(
    kind: str, choice: str, run: Run, plain: dict[str, float], image_folder: Path, tiny_checkpoint: Path
) -> None:
    code, out, err = run(
        *command(kind, tiny_checkpoint, image_folder, "--logits", choice, "--format", "json")
    )
    assert code == 0, err
    assert json.loads(out)["metrics"]["loss"] == pytest.approx(plain["loss"], abs=1e-5)
    assert "took output" in err


@pytest.mark.parametrize(
    ("kind", "choice"), [("exits", "3"), ("exits", "late"), ("tensor", "0"), ("dict", "aux")]
)
def test_a_choice_that_is_not_there(
    kind: str, choice: str, run: Run, image_folder: Path, tiny_checkpoint: Path
) -> None:
    code, _, err = run(*command(kind, tiny_checkpoint, image_folder, "--logits", choice))
    assert code == 2
    assert f"no output '{choice}'" in err


def test_a_tuned_folder_remembers_its_output(
    run: Run, image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tuned"
    tune = command(
        "exits", tiny_checkpoint, image_folder, "--logits", "2", "--alphas", "0,0.1", "--accept", "best",
        "--output", str(folder), what="tune",
    )  # fmt: skip
    code, _, err = run(*tune)
    assert code == 0, err
    assert json.loads((folder / "alphatune.json").read_text())["output"] == {
        "path": [2],
        "probabilities": False,
        "single": False,
    }
    code, out, err = run(
        "evaluate", folder, "--trust-code", "--data", image_folder, "--format", "json", "--device", "cpu"
    )
    assert code == 0, err
    tuned = json.loads((folder / "result.json").read_text())
    assert json.loads(out)["metrics"]["loss"] == pytest.approx(tuned["chosen"]["metrics"]["loss"], abs=1e-5)
    if not torch_allows(EXPORTED_PROGRAM):
        pytest.skip(f"the rest is {EXPORTED_PROGRAM}, which torch {torch.__version__} is too old for")
    code, _, err = run("export", folder, "--trust-code", "--format", "pt2", "-o", tmp_path / "m.pt2")
    assert code == 0, err
    assert "took output 2" in err
    loaded = alphatune.load(folder, trust_code=True)
    x = torch.randn(3, 3, 12, 12)
    exported = torch.export.load(tmp_path / "m.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), loaded(x)[2])


@needs_torch(EXPORTED_PROGRAM)
def test_an_export_of_probabilities_gives_probabilities(
    run: Run, image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tuned"
    tune = command(
        "softmax", tiny_checkpoint, image_folder, "--alphas", "0,0.1", "--accept", "best", "--output", str(folder),
        what="tune",
    )  # fmt: skip
    assert run(*tune)[0] == 0
    code, _, err = run("export", folder, "--trust-code", "--format", "pt2", "-o", tmp_path / "m.pt2")
    assert code == 0, err
    assert "so does the export" in err
    with torch.no_grad():
        rows = torch.export.load(tmp_path / "m.pt2").module()(torch.randn(3, 3, 12, 12)).sum(1)
    torch.testing.assert_close(rows, torch.ones(3))


@pytest.mark.parametrize(("lines", "code"), [(CLASSES, 2), (("background", *CLASSES), 0)])
def test_a_class_map_names_every_output(
    lines: tuple[str, ...], code: int, run: Run, image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "map.txt"
    path.write_text("\n".join(lines))
    found, _, err = run(*command("background", tiny_checkpoint, image_folder, "--class-map", str(path)))
    assert found == code, err
    assert not code or ("4 classes" in err and "5 outputs" in err)


def test_the_library_asks_as_the_command_does() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(16, 3, 12, 12), torch.arange(16) % 4)]
    with pytest.raises(ConfigurationError, match="several outputs"):
        alphatune.tune(foreign.shaped("exits"), data, alphas="0,0.1")
    model = foreign.shaped("exits")
    result = alphatune.tune(model, data, alphas="0,0.1", logits=2)
    same = tiny()
    same.load_state_dict(model.state_dict())
    assert result.baseline == alphatune.tune(same, data, alphas="0,0.1").baseline
    assert any("took output 2" in warning for warning in result.warnings)
    soft = foreign.shaped("softmax")
    soft.load_state_dict(model.state_dict())
    found = alphatune.tune(soft, data, alphas="0,0.1")
    assert found.baseline.loss == pytest.approx(result.baseline.loss, abs=1e-5)
    assert any("probabilities" in warning for warning in found.warnings)


def test_a_temperature_of_probabilities_is_one_of_their_logits() -> None:
    soft, x = foreign.shaped("softmax_tuple").eval(), torch.randn(5, 3, 12, 12)
    keep_reading_(soft, Reading((1,), probabilities=True))
    plain = copy.deepcopy(soft)
    alphatune.set_temperature_(soft, 2.0)
    with torch.no_grad():
        warm = logits_of(soft, soft(x))
        expected = (logits_of(plain, plain(x)) / 2).log_softmax(1)
        torch.testing.assert_close(warm, expected)
        assert alphatune.fold_temperature_(soft, x) == "head"
        torch.testing.assert_close(logits_of(soft, soft(x)), expected, rtol=1e-4, atol=1e-4)


def test_a_probability_of_nothing_is_a_finite_loss() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        logs = log_of(torch.tensor([[1.0, 0.0]], dtype=dtype))
        assert logs[0, 0] == 0
        assert -800 < float(logs[0, 1]) < -10
    small = torch.tensor(
        [[6e-8, 3e-7]], dtype=torch.float16
    )  # below the smallest normal number, and still in order
    assert float(log_of(small)[0, 0]) < float(log_of(small)[0, 1])


def test_probabilities_have_to_stay_probabilities() -> None:
    model = nn.Identity()
    keep_reading_(model, Reading((), probabilities=True))
    logits_of(model, torch.tensor([[0.5, 0.5]]))
    for rows in ([[0.5, 0.6]], [[-0.5, 1.5]]):
        with pytest.raises(ConfigurationError, match="something else for later ones"):
            logits_of(model, torch.tensor(rows))
    assert are_probabilities(torch.tensor([[float("nan"), 0.5]]))  # for others to report


def test_small_logits_are_no_sigmoids() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Unflatten(1, (2, 1)), nn.Flatten())
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = torch.tensor([0.1, 0.8])
    x = torch.randn(8, 4)
    assert check_outputs_(model, x) == ()
    for frozen in (False, True):
        sigmoid = nn.Sequential(model, nn.Sigmoid(), nn.Flatten()).requires_grad_(not frozen)
        with pytest.raises(UnsupportedModelError, match="sigmoids"):
            check_outputs_(sigmoid, x)


@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0])
def test_logits_are_not_taken_for_probabilities(scale: float) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        model = tiny()
        model.head.weight.data *= scale
        classes, notes = find_reading_(model, model.eval()(torch.zeros(2, 3, 12, 12)), 2)
        assert (classes, notes) == (4, ())
        assert check_outputs_(model, torch.randn(8, 3, 12, 12)) == ()
        assert kept_reading(model) == Reading()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("functional", "the model's own forward (Always), in its own code before head"),
        ("module", "drop (Dropout)"),
        ("noise", "the model's own forward (Always), in its own code before conv"),
        ("rare", "change from one call to the next"),
    ],
)
def test_outputs_that_change_from_call_to_call(kind: str, words: str) -> None:
    with pytest.raises(UnsupportedModelError, match="change from one call to the next") as error:
        require_stable(foreign.always(kind).eval(), torch.randn(4, 3, 12, 12))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("forced", ("bn2 (BatchNorm2d)", "bn2")),
        ("stays", ("bn1 (BatchNorm2d)", "training mode")),
        ("hidden", ("hidden in training mode",)),
    ],
)
def test_a_norm_that_eval_does_not_reach(kind: str, words: tuple[str, ...]) -> None:
    model = foreign.always(kind).eval()
    if kind == "stays":
        model.drop.p = 0.0
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(UnsupportedModelError, match=r"others in the batch|one image alone") as error:
        require_stable(model, torch.randn(4, 3, 12, 12))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_an_operation_over_the_batch_is_said() -> None:
    (note,) = require_stable(foreign.always("centred").eval(), torch.randn(4, 3, 12, 12))
    assert "others in the batch" in note
    assert "before conv2" in note


def test_what_holds_still_is_left_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for model in (tiny(), foreign.always("seeded"), torchvision.models.resnet18(num_classes=4)):
        training = [module.training for module in model.modules()]
        assert require_stable(model, torch.randn(4, 3, 32, 32, generator=torch.Generator())) == ()
        assert [module.training for module in model.modules()] == training
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_buffers_come_back() -> None:
    model = tiny().train()
    before = copy.deepcopy(model.state_dict())
    with preserved(model):
        model(torch.randn(8, 3, 12, 12))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("kind", "code"), [("functional", 4), ("forced", 4), ("centred", 0)])
def test_the_commands_say_what_does_not_hold_still(
    kind: str, code: int, run: Run, image_folder: Path, tmp_path: Path
) -> None:
    model = (f"{FOREIGN}:always", "--model-kwargs", f"kind={kind}")
    found, _, err = run("evaluate", *model, "--data", image_folder, *SIZE)
    assert found == code, err
    assert ("from one call to the next" if kind == "functional" else "others in the batch") in err
    found, _, err = run("inspect", *model, "--input-size", "12")
    assert found == 0
    assert ("from one call to the next" if kind == "functional" else "others in the batch") in err


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [(("exits",), 2, "several outputs"), (("exits", "--logits", "1"), 0, "took output 1")],
)
def test_bench_asks_as_well(given: tuple[str, ...], code: int, words: str, run: Run) -> None:
    found, _, err = run(
        "bench", f"{FOREIGN}:shaped", "--model-kwargs", f"kind={given[0]}", *given[1:], "--input-size", "12",
        "--seconds", "0.01", "--batch-size", "2", "--device", "cpu",
    )  # fmt: skip
    assert found == code, err
    assert words in err


@pytest.mark.parametrize(
    ("kind", "classes", "words"),
    [("exits", None, "several outputs"), ("maps", None, ""), ("one", 2, "one number")],
)
def test_inspect_takes_any_model(kind: str, classes: int | None, words: str, run: Run) -> None:
    model = (f"{FOREIGN}:shaped", "--model-kwargs", f"kind={kind}")
    code, out, err = run("inspect", *model, "--input-size", "12", "--format", "json")
    assert code == 0, err
    assert json.loads(out)["model"]["num_classes"] == classes
    assert words in err


def test_a_score_of_ones_own_takes_no_logits(run: Run, tmp_path: Path) -> None:
    code, _, err = run("tune", "x.py:m", "--data", "d.py:l", "--score", "s.py:s", "--logits", "1")
    assert code == 2
    assert "--logits does not go with --score" in err


def test_training_looks_at_heads_of_its_width_only() -> None:
    targets = torch.tensor([0, 1, 2])
    z, aux, features = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 9)
    model = nn.Identity()
    wanted = nn.functional.cross_entropy(z, targets)
    with_aux = wanted + AUXILIARY_WEIGHT * nn.functional.cross_entropy(aux, targets)
    for output, loss in (((z, aux), with_aux), ((z, features), wanted), ({"aux": aux, "out": z}, with_aux)):
        torch.testing.assert_close(training_loss(model, output, targets)[0], loss)
    keep_reading_(model, Reading((1,)))
    torch.testing.assert_close(training_loss(model, (features, z), targets)[0], wanted)
    keep_reading_(model, Reading((), probabilities=True))
    torch.testing.assert_close(training_loss(model, z.softmax(1), targets)[0], wanted)


def test_torchvisions_auxiliary_heads() -> None:
    model = torchvision.models.googlenet(num_classes=5, init_weights=False)
    x = torch.randn(2, 3, 64, 64)
    _, logits = training_loss(model, model.train()(x), torch.tensor([0, 1]))
    assert logits.shape == (2, 5)
    assert find_reading_(model, model.eval()(x), 2) == (5, ())
    assert Predictor(model)(x).shape == (2, 5)


def test_timms_auxiliary_heads_come_after_the_logits() -> None:
    model = timm.create_model("inception_v3", num_classes=5, aux_logits=True).eval()
    output = model(torch.randn(2, 3, 299, 299))
    classes, notes = find_reading_(model, output, 2)
    assert (classes, kept_reading(model)) == (5, Reading((0,)))
    assert "took output 0" in notes[0]
    assert logits_of(model, output) is output[0]
