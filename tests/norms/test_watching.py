"""Every norm layer is patched or listed with the reason, and nothing that does not act counts as patched."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import layer_kinds
import numpy as np
import pytest
import torch
from conftest import TESTS, needs_torch
from layer_kinds import ACTING, FOREIGN, INACTIVE, SUBCLASSES, UNSUPPORTED, WIDTH, Net, with_statistics_
from reference import example_weighted
from torch import nn

import alphatune
from alphatune import patch_, set_alpha_, unpatch_
from alphatune.core.errors import UnsupportedModelError
from alphatune.core.versions import COMPILED, is_at_least
from alphatune.evaluation.predictor import evaluation_mode
from alphatune.norms import example_weighted as module_of_classes
from alphatune.norms.example_weighted import EXAMPLE_WEIGHTED
from alphatune.norms.patching import get_alpha
from alphatune.norms.survey import NormLayer, survey
from alphatune.norms.watching import watched
from alphatune.tuning.custom_score import tune_score

X = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def accounted(model: nn.Module) -> dict[str, NormLayer]:
    with evaluation_mode(model), watched(model) as watch:
        model(X)
    return {layer.name: layer for layer in watch.account(survey(model))}


def changed(model: nn.Module, name: str) -> bool:
    """Whether α of one layer changes what the model gives."""
    before = model(X)
    names = patch_(model, skip_unknown=True)
    if name in names:
        set_alpha_(model, {name: 0.5})
    after = model(X)
    unpatch_(model)
    return not torch.equal(before, after)


# Subclasses -------------------------------------------------------------------


@pytest.mark.parametrize("kind", SUBCLASSES)
def test_a_subclass_that_inherits_forward_gives_what_the_paper_says(kind: str) -> None:
    layer = with_statistics_(SUBCLASSES[kind]())
    x = torch.randn(3, WIDTH, 5, 7) * 2 + 1
    cls, state, before = type(layer), list(layer.state_dict()), layer(x)
    assert patch_(layer) == ("",)
    assert torch.equal(layer(x), before)
    assert isinstance(layer, cls)
    assert list(layer.state_dict()) == state
    for alpha in (0.1, torch.linspace(0, 1, WIDTH)):
        set_alpha_(layer, alpha)
        stored = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
        tensors = [None if t is None else t.detach().numpy() for t in stored]
        wanted = torch.from_numpy(example_weighted(x.numpy(), *tensors, np.asarray(alpha), layer.eps)).float()
        wanted = wanted.relu() if hasattr(layer, "act") else wanted
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    unpatch_(layer)
    assert type(layer) is cls
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("kind", [kind for kind in SUBCLASSES if kind != "parametrized"])
@pytest.mark.parametrize("how", ["pickle", "oldest pickle", "torch.save"])
def test_a_patched_subclass_pickles(kind: str, how: str) -> None:
    model = with_statistics_(Net(SUBCLASSES[kind]()))
    patch_(model, 0.3)
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
    else:
        again = pickle.loads(pickle.dumps(model, protocol=0 if how == "oldest pickle" else None))
    assert torch.equal(again(X), model(X))
    assert type(again.block) is type(model.block)
    unpatch_(again)
    unpatch_(model)
    assert type(again.block) is type(model.block)


def test_a_pickle_names_known_classes_only_or_the_users() -> None:
    layer = SUBCLASSES["Grandchild"]()
    patch_(layer, 0.3)
    assert b"ExampleWeightedGrandchild" not in pickle.dumps(layer)
    for cls in EXAMPLE_WEIGHTED.values():  # as pickles of earlier versions name them
        assert cls.__name__ == f"ExampleWeighted{cls.stock.__name__}"
        assert pickle.loads(pickle.dumps(cls)) is getattr(module_of_classes, cls.__name__) is cls


def test_one_class_for_all_layers_of_a_kind() -> None:
    """So that compiled code is not compiled anew."""
    first, second = SUBCLASSES["Grandchild"](), SUBCLASSES["Grandchild"]()
    patch_(first)
    met = type(first)
    unpatch_(first)
    patch_(second)
    assert type(second) is met


def test_check_input_dim_of_a_subclass_is_asked() -> None:
    layer = with_statistics_(SUBCLASSES["Strict"]())
    patch_(layer, 0.2)
    layer(torch.randn(2, WIDTH, 2, 2))
    with pytest.raises(ValueError, match="two rows"):
        layer(torch.randn(2, WIDTH, 1, 9))
    counting = with_statistics_(SUBCLASSES["AnyShape"]())
    patch_(counting, 0.2)
    counting(torch.randn(2, WIDTH, 3))
    assert counting.checked == 1


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_what_may_normalise_differently_is_reported(kind: str) -> None:
    build, why = UNSUPPORTED[kind]
    layer = build()
    (found,) = survey(layer)
    assert found.status == "unsupported"
    assert why in found.reason
    with pytest.raises(UnsupportedModelError, match="cannot be example-weighted"):
        patch_(layer)
    assert layer_kinds.Counting.made == []


def test_a_subclass_compiles_and_exports() -> None:
    model = with_statistics_(Net(SUBCLASSES["Constructor"]()))
    patch_(model, 0.3)
    wanted = model(X)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(X), wanted)
    torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), wanted)


def test_a_layer_that_became_something_else_while_patched_is_not_undone_by_guess() -> None:
    layer = with_statistics_(nn.BatchNorm2d(WIDTH))
    patch_(layer, 0.3)
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Softplus())
    with pytest.raises(UnsupportedModelError, match="another class"):
        unpatch_(layer)
    assert get_alpha(layer) == pytest.approx({"": 0.3})
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    unpatch_(layer)
    assert type(layer) is nn.BatchNorm2d


# Which layers act ----------------------------------------------------------------


@pytest.mark.parametrize("kind", SUBCLASSES)
def test_subclasses_act(kind: str) -> None:
    model = with_statistics_(Net(SUBCLASSES[kind]()))
    assert accounted(model)["block"].status == "patchable"
    assert changed(model, "block")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=needs_torch(COMPILED) if kind == "compiled" else ()) for kind in ACTING]
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_layer_acts_whatever_way_it_is_called(kind: str) -> None:
    model = with_statistics_(Net(ACTING[kind]()))
    before = model(X)
    layers = accounted(model)
    assert {layer.status for layer in layers.values()} == {"patchable"}
    assert torch.equal(model(X), before)
    (name,) = layers.keys() - {"bn"}
    assert changed(model, name)


@pytest.mark.parametrize("kind", INACTIVE)
def test_a_layer_that_does_not_act_is_found(kind: str) -> None:
    build, why = INACTIVE[kind]
    model = with_statistics_(Net(build()))
    layers = accounted(model)
    (name,) = layers.keys() - {"bn"}
    assert layers["bn"].status == "patchable"
    assert layers[name].status == "inactive"
    assert why in layers[name].reason
    assert not changed(model, name)


@pytest.mark.parametrize("kind", FOREIGN)
def test_norms_of_another_make_are_listed(kind: str) -> None:
    build, why = FOREIGN[kind]
    layers = accounted(with_statistics_(Net(build())))
    assert layers["block"].status == "unsupported"
    assert why in layers["block"].reason
    assert layers["block"].num_features == WIDTH


@pytest.mark.skipif(not is_at_least("torch", "2.5"), reason="torch 2.4 fills no lazy layer that is watched")
def test_a_lazy_layer_is_what_its_first_input_makes_it() -> None:
    model = layer_kinds.lazy().eval()
    assert [layer.status for layer in survey(model)] == ["patchable", "unsupported"]
    assert accounted(model)["block.1"].status == "patchable"
    assert changed(model, "block.1")


def test_watching_leaves_no_trace() -> None:
    model = with_statistics_(Net(ACTING["position"]()))
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}

    class Stop(Exception):
        pass

    with pytest.raises(Stop), watched(model):
        model(X)
        raise Stop
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before
    replaced = with_statistics_(Net(UNSUPPORTED["forward of the instance"][0]()))
    own = replaced.block.__dict__["forward"]
    assert accounted(replaced)["block"].status == "unsupported"
    assert replaced.block.__dict__["forward"] is own


def test_functions_without_averages_are_no_norm_layer() -> None:
    """timm's StdConv normalises its weights by F.batch_norm."""
    from timm.layers import ScaledStdConv2d, StdConv2d

    model = Net(nn.Sequential(StdConv2d(WIDTH, WIDTH, 1), ScaledStdConv2d(WIDTH, WIDTH, 1)))
    assert accounted(with_statistics_(model)).keys() == {"bn"}


# What tunes count ----------------------------------------------------------------


def batches(n: int = 24) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(8, 3, 12, 12, generator=generator), torch.arange(8) % 4) for _ in range(n // 8)]


@pytest.mark.parametrize(
    "kind", [k for k in INACTIVE if "unknown" not in k and k != "stays in training mode"]
)
def test_tune_counts_what_acts_only(kind: str) -> None:
    model = with_statistics_(Net(INACTIVE[kind][0]()))
    (name,) = [n for n in (layer.name for layer in survey(model)) if n != "bn"]
    result = alphatune.tune(model, batches(), alphas=[0, 0.1])
    assert result.patched == ("bn",)
    assert any(f"1 of 2 norm layers are example-weighted; not acting: {name} (" in w for w in result.warnings)
    assert get_alpha(model) == {}
    scored = tune_score(model, batches(), lambda y, t: y[:, 0], alphas=[0, 0.1])
    assert scored.patched == ("bn",)
    assert any(f"not acting: {name} (" in w for w in scored.warnings)


def test_finer_alpha_is_of_layers_that_act() -> None:
    model = layer_kinds.bypassed()
    result = alphatune.tune(model, batches(104), alphas=[0, 0.1], granularity="layer", accept="best")
    assert result.refinement is not None
    alpha = result.refinement.alpha
    assert not isinstance(alpha, dict) or set(alpha) == {"bn"}


def test_no_layer_acts() -> None:
    model = layer_kinds.all_bypassed()
    with pytest.raises(UnsupportedModelError, match=r"none of the model's 2 norm layers acts.*F\.batch_norm"):
        alphatune.tune(model, batches(), alphas=[0, 0.1])
    with pytest.raises(UnsupportedModelError, match="none of the model's 2 norm layers acts"):
        tune_score(model, batches(), lambda y, t: y[:, 0], alphas=[0, 0.1])
    assert get_alpha(model) == {}


def test_a_layer_that_some_images_reach_acts() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = [self.norms[int(row[0, 2, 2] > row[0, 5, 5])](row[None]) for row in x]
            return torch.cat(parts)

    result = alphatune.tune(with_statistics_(Net(Routed())), batches(), alphas=[0, 0.1])
    assert result.patched == ("bn", "block.norms.0", "block.norms.1")


def test_excluding_a_layer_of_unknown_kind_is_consent() -> None:
    model = Net(UNSUPPORTED["forward"][0]())
    assert patch_(model, 0.1, exclude=["block"]) == ("bn",)


# The command line -----------------------------------------------------------------


KINDS = TESTS / "layer_kinds.py"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    from PIL import Image

    generator = np.random.default_rng(0)
    for label in "abcd":
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for i in range(6):
            Image.fromarray(generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


def options(images: Path) -> list[object]:
    return ["--data", images, "--input-size", 12, "--crop-pct", 1, "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2",
            "--workers", 0, "--format", "json"]  # fmt: skip


@pytest.mark.parametrize(
    ("network", "patched", "status", "said"),
    [
        ("bypassed", ["bn"], "inactive", "1 of 2 norm layers are example-weighted; not acting: block.norm"),
        (
            "unknown_for_training",
            ["bn"],
            "inactive",
            "not acting: block.norm (not reached by the forward pass)",
        ),
        ("function", ["bn"], "unsupported", "block: Function calls F.batch_norm"),
        ("subclassed", ["bn", "block"], None, None),
    ],
)
def test_tune_and_inspect_account_for_every_layer(
    run: Any,
    images: Path,
    tmp_path: Path,
    network: str,
    patched: list[str],
    status: str | None,
    said: str | None,
) -> None:
    model, out = f"{KINDS}:{network}", tmp_path / "tuned"
    code, stdout, stderr = run("inspect", model, "--input-size", 12, "--format", "json")
    rows = json.loads(stdout)["layers"]
    assert code == 0
    assert [row["name"] for row in rows if row["status"] == "patchable"] == patched
    code, stdout, stderr = run(
        "tune", model, *options(images), "--alphas", "0,0.2", "--accept", "best", "-o", out
    )
    assert code == 0, stderr
    document = json.loads(stdout)
    assert document["model"]["patched"] == patched
    assert document["model"]["norm_layers"] == 2
    assert [layer["status"] for layer in document["model"]["skipped"]] == ([status] if status else [])
    page = "".join(" ".join(w.split()) for w in document["warnings"])
    assert said is None or (said in page and said in " ".join(stderr.split()))
    report = (out / "report.md").read_text(encoding="utf-8").replace("\\", "")
    assert f"2, of which {len(patched)} example-weighted" in report
    for layer in document["model"]["skipped"]:
        assert layer["reason"] in report
        assert layer["reason"] in (out / "report.html").read_text(encoding="utf-8")
    if document["chosen"]["alpha"]:
        assert list(json.loads((out / "alphatune.json").read_text())["alpha"]) == patched
    code, stdout, _ = run("tune", model, *options(images), "--dry-run", "-o", tmp_path / "other")
    assert code == 0
    assert json.loads(stdout)["model"] | {"patched": patched, "norm_layers": 2} == json.loads(stdout)["model"]


def test_evaluate_at_an_alpha_counts_what_acts(run: Any, images: Path) -> None:
    code, stdout, stderr = run("evaluate", f"{KINDS}:bypassed", *options(images), "--alpha", 0.1)
    assert code == 0
    assert json.loads(stdout)["model"]["patched"] == ["bn"]
    assert "1 of 2 norm layers" in stderr
    _, stdout, stderr = run("evaluate", f"{KINDS}:bypassed", *options(images))
    assert "norm layers" not in stderr


@pytest.mark.parametrize("command", ["tune", "evaluate"])
def test_where_no_layer_acts_the_reason_is_said(run: Any, images: Path, tmp_path: Path, command: str) -> None:
    more = ["-o", tmp_path / "t"] if command == "tune" else ["--alpha", 0.1]
    code, _, stderr = run(command, f"{KINDS}:all_bypassed", *options(images), *more)
    assert code == 4
    assert "none of the model's 2 norm layers acts" in stderr
    assert "F.batch_norm" in stderr


def test_a_tuned_folder_of_subclassed_layers_comes_back(tmp_path: Path) -> None:
    model = layer_kinds.subclassed()
    patch_(model, 0.3)
    alphatune.save(model, tmp_path / "t")
    again = alphatune.load(tmp_path / "t", model=layer_kinds.subclassed())
    assert torch.equal(again(X), model(X))
    assert get_alpha(again) == get_alpha(model)
