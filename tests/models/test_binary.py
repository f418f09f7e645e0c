"""Networks that tell two classes apart by one number an example: a logit, or a probability."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from conftest import Run, needs_torch, write_images
from tiny import tiny

import alphatune
from alphatune.core.errors import ConfigurationError, UnsupportedModelError
from alphatune.core.versions import ONNX
from alphatune.data.label_order import near_chance
from alphatune.evaluation.reading import Reading, keep_reading_, kept_reading, logits_of
from alphatune.models.outputs import check_outputs_, find_reading_
from alphatune.models.temperature import fold_temperature_, set_temperature_
from alphatune.training.loop import training_loss

SIZE = ("--input-size", "12", "--crop-pct", "1", "--mean", "0.5", "--std", "0.25", "--device", "cpu")
KINDS = ["column", "row", "squeezed", "map", "probability", "column_in_dict"]


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("two"), per_class=61, classes=("cat", "dog"))


def command(what: str, kind: str, checkpoint: Path, data: Path, *more: Any) -> list[Any]:
    model = f"{foreign.__file__}:shaped"
    return [
        what,
        model,
        "--model-kwargs",
        f"kind={kind}",
        "--checkpoint",
        checkpoint,
        "--data",
        data,
        *SIZE,
        *more,
    ]


@pytest.fixture(scope="module")
def network(tiny_checkpoint: Path) -> Any:
    def made(kind: str) -> foreign.Shaped:
        model = foreign.shaped(kind)
        state = torch.load(tiny_checkpoint)["state_dict"]  # from several GPUs
        model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
        return model.eval()

    return made


@pytest.mark.parametrize("kind", KINDS)
def test_one_number_gives_the_figures_of_two_logits(
    kind: str, run: Run, tiny_checkpoint: Path, two_classes: Path, tmp_path: Path
) -> None:
    """Also in batches of one image, which some of them squeeze away."""
    found = {}
    for name in ("pair", kind):
        more = ("--batch-size", 11, "--scores", tmp_path / f"{name}.npz", "--format", "json")  # 122 images
        code, out, err = run(*command("evaluate", name, tiny_checkpoint, two_classes, *more))
        assert code == 0, err
        found[name] = json.loads(out)
    for metric in ("top1", "loss", "ece"):
        assert found[kind]["metrics"][metric] == pytest.approx(found["pair"]["metrics"][metric], abs=1e-5)
    assert any("one number an example" in text for text in found[kind]["warnings"])
    probabilities = kind == "probability"
    assert found[kind]["model"]["output"]["single"] is True
    assert found[kind]["model"]["output"]["probabilities"] is probabilities
    for name in ("predicted", "top1"):
        pair, one = (np.load(tmp_path / f"{k}.npz")[f"evaluated_{name}"] for k in ("pair", kind))
        assert (pair == one).all()


@pytest.mark.parametrize("kind", ["column", "probability"])
def test_a_tune_finds_the_same(
    kind: str, run: Run, tiny_checkpoint: Path, two_classes: Path, tmp_path: Path
) -> None:
    """α, temperature and gain; and the folder, read again, gives what was promised in the form that the model had."""
    found = {}
    for name in ("pair", kind):
        more = (
            "--alphas", "0,0.1,0.3", "--metric", "loss", "--temperature", "--accept", "best", "--no-cache",
            "-o", tmp_path / name, "--format", "json",
        )  # fmt: skip
        code, out, err = run(*command("tune", name, tiny_checkpoint, two_classes, *more))
        assert code == 0, err
        found[name] = json.loads(out)
    one, pair = found[kind], found["pair"]
    assert one["chosen"]["alpha"] == pair["chosen"]["alpha"]
    assert one["chosen"]["temperature"] == pair["chosen"]["temperature"] != 1
    assert one["gain"]["delta"] == pytest.approx(pair["gain"]["delta"], abs=1e-5)
    loaded = alphatune.load(tmp_path / kind, trust_code=True)
    reading = kept_reading(loaded)
    assert reading is not None
    assert reading.single
    images = torch.randn(5, 3, 12, 12)
    values = loaded(images)
    assert values.shape == (5, 1)
    logits = alphatune.load(tmp_path / "pair", trust_code=True)(images)
    expected = logits[:, 1:] - logits[:, :1]
    expected = expected.sigmoid() if kind == "probability" else expected
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
    code, out, err = run(
        "evaluate", tmp_path / kind, "--data", two_classes, "--trust-code", "--format", "json"
    )
    assert code == 0, err
    assert json.loads(out)["metrics"]["loss"] == pytest.approx(one["chosen"]["metrics"]["loss"], abs=1e-5)


def test_logits_between_0_and_1_are_no_probabilities() -> None:
    """Also where a temperature, of ours or in the model's own code, brought them there."""

    class Scaled(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.head, self.factor = torch.nn.Linear(3, 1), torch.nn.Parameter(torch.tensor(factor))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * self.head(x.mean((2, 3)) if x.ndim == 4 else x)

    x = torch.rand(8, 3)
    for model in (Scaled(1.0), torch.nn.Linear(3, 1)):
        layer = model.head if isinstance(model, Scaled) else model
        layer.weight.data = torch.tensor([[3.0, 1.0, 1.0]])
        layer.bias.data.zero_()
        find_reading_(model, model(x), 8)
        set_temperature_(model, float(model(x).max()) * 1.01)
        values = model(x)
        assert 0 < values.min() < 0.5 < values.max() < 1
        assert check_outputs_(model, x) == ()
        reading = kept_reading(model)
        assert reading is not None
        assert not reading.probabilities


def test_probabilities_of_any_making_are_seen() -> None:
    x = torch.randn(8, 3)
    two = torch.nn.Linear(3, 2)
    for last in (
        lambda z: z.softmax(1)[:, 1],
        lambda z: z.log_softmax(1).exp()[:, 1],
        lambda z: z[:, 0].sigmoid(),
    ):

        class Ends(torch.nn.Module):
            def forward(self, x: torch.Tensor, last: Any = last) -> torch.Tensor:
                return last(two(x))

        model = Ends()
        find_reading_(model, model(x), 8)
        assert "a sigmoid" in check_outputs_(model, x)[0]


@needs_torch(ONNX)
@pytest.mark.parametrize("kind", ["row", "map", "probability"])
def test_an_export_has_the_output_of_the_model(
    kind: str, run: Run, tiny_checkpoint: Path, two_classes: Path, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    words = ("--alphas", "0.1", "--accept", "best", "--no-cache", "-o", tmp_path / "tuned")
    assert run(*command("tune", kind, tiny_checkpoint, two_classes, *words))[0] == 0
    file = tmp_path / "out.onnx"
    code, _, err = run(
        "export", tmp_path / "tuned", "--trust-code", "--format", "onnx", "-o", file, "--seconds", 0
    )
    assert code == 0, err
    images = torch.randn(4, 3, 12, 12)
    session = onnxruntime.InferenceSession(file)
    (given,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = alphatune.load(tmp_path / "tuned", trust_code=True)(images)
    np.testing.assert_allclose(given, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_more_than_two_classes_are_refused(run: Run, tiny_checkpoint: Path, image_folder: Path) -> None:
    code, out, err = run(*command("evaluate", "column", tiny_checkpoint, image_folder))
    assert (code, out) == (4, "")
    assert "two classes apart, and the data has 4" in err


def test_labels_of_a_third_class_are_refused(network: Any) -> None:
    batches = [(torch.randn(8, 3, 12, 12), torch.arange(8) % 3) for _ in range(3)]
    with pytest.raises(UnsupportedModelError, match="two classes apart, and the data has 3"):
        alphatune.tune(network("column"), batches, alphas=[0.1])


def test_a_probability_that_is_none() -> None:
    model = torch.nn.Identity()
    keep_reading_(model, Reading(probabilities=True, single=True))
    torch.testing.assert_close(
        logits_of(model, torch.tensor([[0.25], [1.0]])).softmax(1), torch.tensor([[0.75, 0.25], [0.0, 1.0]])
    )
    with pytest.raises(ConfigurationError, match="outside of"):
        logits_of(model, torch.tensor([[1.5]]))


@pytest.mark.parametrize("kind", ["column", "probability"])
def test_the_temperature_divides_the_logit(kind: str, network: Any) -> None:
    model, x = network(kind), torch.randn(8, 3, 12, 12)
    find_reading_(model, model(x), 8)
    check_outputs_(model, x)
    with torch.no_grad():
        logits = logits_of(model, model(x))
        set_temperature_(model, 2.0)
        torch.testing.assert_close(
            logits_of(model, model(x)).log_softmax(1), (logits / 2).log_softmax(1), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_temperature_folds_into_the_layer_of_the_logit(sigmoid: bool) -> None:
    model, x = tiny(1).eval(), torch.randn(8, 3, 12, 12)
    whole = torch.nn.Sequential(model, torch.nn.Sigmoid()) if sigmoid else model
    find_reading_(whole, whole(x), 8)
    check_outputs_(whole, x)
    set_temperature_(whole, 2.0)
    with torch.no_grad():
        before = whole(x)
        assert fold_temperature_(whole, x).endswith("head")
        torch.testing.assert_close(whole(x), before, rtol=1e-4, atol=1e-5)


def test_training_minimises_the_binary_cross_entropy(network: Any) -> None:
    model = network("column").train()
    x, targets = torch.randn(8, 3, 12, 12), torch.arange(8) % 2
    output = model(x)
    find_reading_(model, output, 8)
    loss, logits = training_loss(model, output, targets)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.squeeze(1), targets.float())
    torch.testing.assert_close(loss, expected)
    assert logits.shape == (8, 2)


def test_two_classes_the_other_way_round() -> None:
    targets = np.arange(100) % 2
    assert "the other way round" in near_chance(targets, 0.1)[0]
    assert "close to chance" in near_chance(targets, 0.5)[0]
    assert near_chance(targets, 0.9) == []
    assert "close to chance" in near_chance(np.array([3, 5] * 50), 0.2)[0]  # of more outputs than two
