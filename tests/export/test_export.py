"""Exports compute what the tuned model computes, say what they are, and appear whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, Run, slow, write_images
from safetensors import safe_open
from safetensors.torch import load_file
from test_architectures import with_moving_averages_
from tiny import Tiny, grouped, tiny
from torch import Tensor, nn

import alphatune
from alphatune.core.errors import NumericError, UnsupportedModelError
from alphatune.core.versions import EXPORTED_PROGRAM, ONNX, TORCH_FOR, torch_allows
from alphatune.data.preprocessing import Preprocessing
from alphatune.export import onnx as onnx_export
from alphatune.export.agreement import Expected, compare, expect
from alphatune.export.onnx import open_onnx
from alphatune.jobs import export_job, exported_graph
from alphatune.jobs.export import run_export
from alphatune.models.sources import build
from alphatune.results.serialisation import to_json
from alphatune.settings import ExportSettings

#: a small network of timm's with norm, drop and activation in one layer
NETWORK = "test_efficientnet"
SIZE = Preprocessing(input_size=(3, 64, 64))
SMALL = Preprocessing(input_size=(3, 12, 12), crop_pct=1.0)


class Square(Tiny):
    """Takes one image size only."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv(x)).relu()
        return self.head(self.bn2(self.conv2(x)).relu().flatten(1))


class Dense(Tiny):
    """Logits for each position, among other things."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        y = self.bn2(self.conv2(self.bn1(self.conv(x)).relu())).relu()
        return {"out": F.interpolate(self.head(y), x.shape[2:], mode="bilinear"), "aux": y}


class Cosine(Tiny):
    """No linear layer gives the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x), dim=1) * 10


def square() -> nn.Module:
    return Square()


def dense() -> nn.Module:
    return Dense()


def cosine() -> nn.Module:
    return Cosine()


def tuned(folder: Path, spec: str = TINY, alpha: Any = 0.05, temperature: float = 1.0, **kwargs: Any) -> Path:
    """A tuned folder; ``alpha`` may be "channel": some layers 0, some with one number a channel."""
    torch.manual_seed(0)
    source = build(spec, pretrained=False, model_kwargs=kwargs)
    model = with_moving_averages_(source.model)
    names = alphatune.patch_(model, 0.0 if alpha == "channel" else alpha)
    if alpha == "channel":
        channels = {name: len(model.get_submodule(name).running_mean) for name in names[1::2]}
        alphatune.set_alpha_(model, {name: torch.rand(count) * 0.2 for name, count in channels.items()})
    alphatune.set_temperature_(model, temperature)
    alphatune.save(model, folder, source=source, preprocessing=SMALL if spec.endswith(".py:tiny") else SIZE)
    return folder


def own(name: str) -> str:
    return f"{__file__}:{name}"


GRAPHS = {"onnx": ONNX, "pt2": EXPORTED_PROGRAM}


def works(kind: str) -> bool:
    return kind not in GRAPHS or torch_allows(GRAPHS[kind])


def needs(kind: str) -> None:
    if not works(kind):
        pytest.skip(f"{GRAPHS[kind]} needs torch {TORCH_FOR[GRAPHS[kind]]}, this is {torch.__version__}")


def exported(folder: Path, kind: str, output: Path | None = None, **settings: Any) -> dict[str, Any]:
    needs(kind)
    output = output or folder.with_name(folder.name + {"hf": "-hf"}.get(kind, f".{kind}"))
    untimed = {"seconds": 0} if kind in ("onnx", "pt2") else {}
    settings = {"trust_code": True, "check_images": 4, **untimed, **settings}
    document = run_export(ExportSettings(model=str(folder), format=kind, output=str(output), **settings))  # type: ignore[arg-type]
    plain: dict[str, Any] = json.loads(to_json(document))
    return plain


def kinds_of_nodes(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


# --- without alphatune -----------------------------------------------------------------------

WITHOUT_ALPHATUNE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "alphatune":
            raise ImportError("alphatune is not installed here")

sys.meta_path.insert(0, Blocked())
import onnxruntime, re, torch
from pathlib import Path

images, found = torch.load("images.pt"), {}
with torch.no_grad():
    for size in (1, 3, 5):
        batch = images[:size]
        if Path("channel.pt2").exists():
            found["pt2", size] = torch.export.load("channel.pt2").module()(batch)
        if Path("channel.onnx").exists():
            session = onnxruntime.InferenceSession("channel.onnx", providers=["CPUExecutionProvider"])
            found["onnx", size] = torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])
    for name in ("channel-hf", "scalar-hf"):
        card = Path(name, "README.md").read_text()
        code = re.findall(r"```python\\n(.*?)```", card, re.DOTALL)[-1]
        names = {}
        exec(code.replace('snapshot_download("me/x")', repr(name)), names)
        found[name] = names["model"](images)
torch.save(found, "found.pt")
assert not [name for name in sys.modules if name.startswith("alphatune")]
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timm network with one α, and one with α by channel, exported in every form; run without alphatune."""
    root = tmp_path_factory.mktemp("exports")
    tuned(root / "scalar", NETWORK, 0.05, num_classes=5)
    tuned(root / "channel", NETWORK, "channel", 1.7, num_classes=5)
    for name in ("scalar", "channel"):
        exported(root / name, "hf", repo="me/x", license="apache-2.0")
    data = str(write_images(root / "images", per_class=3))
    for kind in filter(works, GRAPHS):
        document = exported(root / "channel", kind, data=data, check_images=6)
        (root / f"{kind}.json").write_text(json.dumps(document))
    torch.save(torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1)), root / "images.pt")
    subprocess.run([sys.executable, "-c", WITHOUT_ALPHATUNE], cwd=root, check=True, timeout=300)
    return root


@pytest.fixture(scope="module")
def logits(folders: Path) -> dict[str, Tensor]:
    images = torch.load(folders / "images.pt")
    with torch.no_grad():
        return {name: alphatune.load(folders / name)(images) for name in ("scalar", "channel")}


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_graphs_run_without_alphatune_at_any_batch_size(
    folders: Path, logits: dict[str, Tensor], kind: str
) -> None:
    needs(kind)
    found = torch.load(folders / "found.pt")
    for size in (1, 3, 5):
        torch.testing.assert_close(found[kind, size], logits["channel"][:size], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["scalar", "channel"])
def test_the_lines_of_the_card_give_the_tuned_logits(
    folders: Path, logits: dict[str, Tensor], name: str
) -> None:
    found = torch.load(folders / "found.pt")[f"{name}-hf"]
    torch.testing.assert_close(found, logits[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_the_check_is_on_the_images_named_and_at_another_size(folders: Path, kind: str) -> None:
    needs(kind)
    check = json.loads((folders / f"{kind}.json").read_text())["check"]
    assert check["images"] == {"source": str(folders / "images"), "n": 6}
    assert [(r["batch_size"], r["size"]) for r in check["results"]] == [
        (1, [64, 64]),
        (3, [64, 64]),
        (3, [96, 128]),
    ]
    for row in check["results"]:
        assert row["different"] == 0
        assert row["largest_difference"] <= row["allowed"] == 1e-3 * row["largest_logit"]
    assert check["largest_difference"] == max(row["largest_difference"] for row in check["results"])


def test_onnx_says_what_it_is(folders: Path) -> None:
    needs("onnx")
    model = onnx.load(str(folders / "channel.onnx"))
    record = {entry.key: entry.value for entry in model.metadata_props}
    manifest = json.loads((folders / "channel" / "alphatune.json").read_text())
    assert json.loads(record["alpha"]) == manifest["alpha"]
    assert record["alphatune_version"] == alphatune.__version__
    assert record["tuned_weights_sha256"] == manifest["weights_sha256"]
    assert json.loads(record["preprocessing"]) == manifest["preprocessing"]
    assert record["num_classes"] == "5"
    assert record["architecture"] == NETWORK
    assert (record["temperature"], record["temperature_place"]) == ("1.7", "in the weights of classifier")
    (images,), (logits,) = model.graph.input, model.graph.output
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]
    assert (images.name, logits.name) == ("images", "logits")
    content = (folders / "channel.onnx").read_bytes()
    assert str(Path(timm.__file__).parent).encode() not in content  # no paths of this machine
    assert b"site-packages" not in content


def test_the_exported_program_says_what_it_is(folders: Path) -> None:
    needs("pt2")
    extra = {"alphatune.json": ""}
    torch.export.load(str(folders / "channel.pt2"), extra_files=extra)
    assert json.loads(extra["alphatune.json"])["alphatune_version"] == alphatune.__version__
    assert b"site-packages" not in (folders / "channel.pt2").read_bytes()


def test_stock_timm_loads_the_hub_folder_as_alpha_0(folders: Path) -> None:
    images = torch.load(folders / "images.pt")
    stock = timm.create_model(f"local-dir:{folders / 'channel-hf'}", pretrained=True).eval()
    plain = alphatune.load(folders / "channel")
    alphatune.set_alpha_(plain, 0.0)
    again = alphatune.load(folders / "channel-hf")
    with torch.no_grad():
        torch.testing.assert_close(stock(images), plain(images))
        torch.testing.assert_close(
            again(images), alphatune.load(folders / "channel")(images), rtol=1e-4, atol=1e-6
        )
    assert alphatune.get_temperature(again) == 1  # it is in the weights


def test_the_model_card(folders: Path) -> None:
    from huggingface_hub import ModelCard

    text = (folders / "channel-hf" / "README.md").read_text()
    data = ModelCard(text).data
    facts = [getattr(data, name) for name in ("library_name", "license", "pipeline_tag")]
    assert facts == ["timm", "apache-2.0", "image-classification"]
    assert "alphatune" in data.tags
    assert data.model_name == "x"
    assert 'timm.create_model("hf-hub:me/x", pretrained=True)' in text
    assert "in the weights of `classifier`" in text
    assert sorted(file.name for file in (folders / "channel-hf").iterdir()) == [
        "README.md", "alphatune.json", "config.json", "model.safetensors",
    ]  # fmt: skip


# --- formats ---------------------------------------------------------------------------------


def test_at_alpha_0_nothing_of_example_weighting_is_left(tmp_path: Path) -> None:
    exported(tuned(tmp_path / "plain", alpha=0.0), "onnx", fixed_size=True)
    exported(tuned(tmp_path / "weighed", alpha=0.1), "onnx", fixed_size=True)
    plain, weighed = (kinds_of_nodes(tmp_path / f"{name}.onnx") for name in ("plain", "weighed"))
    assert plain["ReduceMean"] == 1  # the network's own pooling
    assert not {"ReduceSumSquare", "Sqrt", "BatchNormalization"} & set(plain)  # folded into the convolutions
    assert (
        weighed["ReduceSumSquare"] == weighed["BatchNormalization"] == 2
    )  # three passes over each activation
    assert weighed["ReduceMean"] == 3


@pytest.mark.parametrize("kind", [slow("onnx"), "pt2"])
def test_a_graph_is_timed_beside_the_folded_networks(kind: str, tmp_path: Path, run: Run) -> None:
    folder = tuned(tmp_path / "t", alpha=0.1)
    document = exported(folder, kind, seconds=0.05)
    assert [each["batch_size"] for each in document["timing"]] == [1, 8]
    for each in document["timing"]:
        assert each["runtime"] == {"onnx": "onnxruntime", "pt2": "torch"}[kind]
        assert each["threads"] == torch.get_num_threads()
        assert 0.1 < each["ratio_to_folded"] < 100
        assert each["ratio_to_folded"] == pytest.approx(each["median_s"] / each["folded_s"], rel=0.9)
    _, out, _ = run(
        "export", folder, "--trust-code", "--format", kind, "--seconds", 0.05, "-o", tmp_path / f"x.{kind}"
    )
    assert "in multiples of the folded network's time" in out
    assert list(tmp_path.glob("*folded*")) == []


def test_what_cannot_be_timed_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise UnsupportedModelError("no folded graph today")

    monkeypatch.setattr(exported_graph, "time_graphs", fails)
    document = exported(tuned(tmp_path / "t", alpha=0.1), "pt2", seconds=0.05)
    assert "the graph was not timed: no folded graph today" in document["warnings"]
    assert document["timing"] == []
    plain = exported(tuned(tmp_path / "plain", alpha=0.0), "pt2", seconds=0.05)
    assert plain["timing"] == []
    assert not any("timed" in warning for warning in plain["warnings"])


def test_names_opset_and_a_fixed_size_can_be_chosen(tmp_path: Path) -> None:
    document = exported(
        tuned(tmp_path / "t"), "onnx", opset=18, input_name="x", output_name="y", fixed_size=True
    )
    model = onnx.load(str(tmp_path / "t.onnx"))
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        3,
        12,
        12,
    ]
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("x", "y")
    assert document["export"]["input"] == ["batch", 3, 12, 12]
    assert document["warnings"][0].startswith("checked on random images")
    assert len(document["warnings"]) == 1


def test_a_network_for_one_size_is_exported_for_it(tmp_path: Path) -> None:
    model = build(own("square"), pretrained=False)
    alphatune.patch_(with_moving_averages_(model.model), 0.1)
    alphatune.save(model.model, tmp_path / "t", source=model, preprocessing=SMALL)
    document = exported(tmp_path / "t", "pt2")
    assert document["export"]["input"] == ["batch", 3, 12, 12]
    assert any("fixed at 12x12" in warning for warning in document["warnings"])


def test_where_open_sizes_cannot_be_traced_the_size_is_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exported_graph.export_program

    def only_fixed(model: nn.Module, size: Any, *, dynamic_size: bool, **options: Any) -> Any:
        if dynamic_size:
            raise UnsupportedModelError("no symbols, please")
        return real(model, size, dynamic_size=False, **options)

    monkeypatch.setattr(exported_graph, "export_program", only_fixed)
    document = exported(tuned(tmp_path / "t"), "pt2")
    assert document["export"]["input"] == ["batch", 3, 12, 12]
    assert "height and width are fixed at 12x12: no symbols, please" in document["warnings"]


def test_a_dense_output_is_the_logits_alone(tmp_path: Path) -> None:
    model = build(own("dense"), pretrained=False)
    alphatune.patch_(with_moving_averages_(model.model), 0.1)
    alphatune.set_temperature_(model.model, 2.0)
    alphatune.save(model.model, tmp_path / "t", source=model, preprocessing=SMALL)
    document = exported(tmp_path / "t", "onnx")
    assert document["model"]["temperature_in"] == "head"
    assert document["check"]["results"][0]["predictions"] == 4 * 12 * 12
    images = torch.randn(2, 3, 20, 28)
    with torch.no_grad():
        wanted = alphatune.load(tmp_path / "t", trust_code=True)(images)["out"]
    torch.testing.assert_close(open_onnx(tmp_path / "t.onnx")(images), wanted, rtol=1e-4, atol=1e-5)


def test_a_temperature_that_fits_no_layer_is_in_the_graph(tmp_path: Path) -> None:
    model = build(own("cosine"), pretrained=False)
    alphatune.patch_(with_moving_averages_(model.model), 0.1)
    alphatune.set_temperature_(model.model, 2.0)
    alphatune.save(model.model, tmp_path / "t", source=model, preprocessing=SMALL)
    assert exported(tmp_path / "t", "pt2")["model"]["temperature_in"] == "graph"
    assert exported(tmp_path / "t", "safetensors")["model"]["temperature_in"] is None
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        assert file.metadata()["temperature_place"] == "not in the weights: divide the logits by it"
    images = torch.randn(1, 3, 12, 12)
    with torch.no_grad():
        got = torch.export.load(str(tmp_path / "t.pt2")).module()(images)
        torch.testing.assert_close(got, alphatune.load(tmp_path / "t", trust_code=True)(images))


def test_safetensors_hold_the_weights_and_the_rest_as_text(tmp_path: Path) -> None:
    folder = tuned(tmp_path / "t", alpha="channel", temperature=2.0)
    document = exported(folder, "safetensors")
    assert document["check"] is None
    stock = tiny()
    stock.load_state_dict(load_file(tmp_path / "t.safetensors"), strict=True)
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        record = file.metadata()
    alphas = json.loads(record["alpha"])
    assert alphas["bn1"] == 0
    assert len(alphas["bn2"]) == 8
    assert record["temperature_place"] == "in the weights of head"
    images = torch.randn(2, 3, 12, 12)
    alphatune.patch_(stock.eval(), {name: torch.tensor(a) for name, a in alphas.items()})
    with torch.no_grad():
        torch.testing.assert_close(
            stock(images), alphatune.load(folder, trust_code=True)(images), rtol=1e-4, atol=1e-6
        )


@pytest.mark.slow
def test_a_large_model_has_its_weights_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tuned(tmp_path / "t", width=64)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "MOST_BYTES", 1000)
        document = exported(folder, "onnx", fixed_size=True)
    data = tmp_path / "t.onnx.data"
    assert [Path(file["path"]).name for file in document["export"]["files"]] == ["t.onnx", "t.onnx.data"]
    assert data.stat().st_size > 64 * 64 * 9 * 4
    assert (tmp_path / "t.onnx").stat().st_size < 100_000
    open_onnx(tmp_path / "t.onnx")(torch.randn(2, 3, 12, 12))
    exported(folder, "onnx", overwrite=True, fixed_size=True)  # in one file again
    assert not data.exists()
    assert (tmp_path / "t.onnx").stat().st_size > 64 * 64 * 9 * 4


def calibrated(folder: Path, spec: str, preprocessing: Preprocessing, **kwargs: Any) -> Path:
    source = build(spec, pretrained=False, model_kwargs=kwargs)
    model = source.model.eval()
    alphatune.calibrate_(model, [torch.randn(8, *preprocessing.input_size) + 0.5])
    alphatune.patch_(model, 0.8)
    alphatune.save(model, folder, source=source, preprocessing=preprocessing)
    return folder


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_calibrated_groupnorm(tmp_path: Path, kind: str) -> None:
    folder = calibrated(tmp_path / "t", TINY.replace(":tiny", ":grouped"), SMALL)
    document = exported(folder, kind, fixed_size=True)
    assert document["check"]["largest_difference"] < 1e-5
    plain = alphatune.load(folder, trust_code=True)
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        wanted = plain(images)
        alphatune.unpatch_(plain)
        assert not torch.allclose(plain(images), wanted, atol=1e-3)  # or the check would see nothing


def test_calibrated_moments_go_along_as_text(tmp_path: Path) -> None:
    folder = calibrated(tmp_path / "t", TINY.replace(":tiny", ":grouped"), SMALL)
    exported(folder, "safetensors")
    grouped().load_state_dict(load_file(tmp_path / "t.safetensors"), strict=True)
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        moments = json.loads(file.metadata()["moments"])
    kept = load_file(folder / "moments.safetensors")
    assert moments.keys() == kept.keys()
    assert all(torch.equal(torch.tensor(moments[key]), kept[key]) for key in kept)


def test_a_calibrated_network_on_the_hub(tmp_path: Path) -> None:
    folder = calibrated(tmp_path / "t", "test_resnet", SIZE, num_classes=5, norm_layer="groupnorm1")
    document = exported(folder, "hf")
    card = (tmp_path / "t-hf" / "README.md").read_text()
    assert (tmp_path / "t-hf" / "moments.safetensors").exists()
    assert [r["read_by"] for r in document["check"]["results"]] == ["alphatune.load"] * 2 + ["stock timm"] * 2
    assert "weigh_examples_" not in card
    assert "Without alphatune there is no short way" in card
    assert "as at α = 0" not in card


# --- a check that finds something ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_mismatch_is_exit_6_and_leaves_nothing(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    needs(kind)
    folder = tuned(tmp_path / "t")
    for name in ("open_onnx", "open_program"):
        real = getattr(exported_graph, name)
        monkeypatch.setattr(
            exported_graph, name, lambda path, real=real: lambda images: real(path)(images) + 0.01
        )
    code, out, err = run(
        "export", folder, "--format", kind, "-o", tmp_path / f"x.{kind}", "--trust-code", "--fixed-size", "--stdout", "json",
        "--check-images", 3,
    )  # fmt: skip
    assert code == 6
    assert json.loads(out)["error"]["code"] == 6
    assert "logits differ by up to 0.01" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t"]


def test_a_hub_folder_that_disagrees_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alphatune.jobs import hub_folder

    folder = tuned(tmp_path / "t", NETWORK, num_classes=5)
    monkeypatch.setattr(hub_folder, "weigh_examples_", lambda model, alphas: None)
    with pytest.raises(NumericError, match="something else"):
        exported(folder, "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t"]


def test_what_the_comparison_refuses() -> None:
    torch.manual_seed(0)
    images = torch.randn(6, 3, 12, 12)
    model = with_moving_averages_(tiny())
    wanted = expect(model, images, 3)
    right = compare(lambda batch: model(batch), wanted, 1e-4)
    assert (right.images, right.predictions, right.different, right.largest_difference) == (6, 6, 0, 0)
    assert right.bound == pytest.approx(1e-4 * wanted.largest_logit)

    def frozen(batch: Tensor) -> Tensor:
        if len(batch) != 1:
            raise RuntimeError("Got invalid dimensions for input: index 0 Got: 3 Expected: 1")
        return model(batch)

    with pytest.raises(NumericError, match="does not run with batches of 3 at 12x12: Got invalid"):
        compare(frozen, wanted, 1e-4)
    with pytest.raises(NumericError, match=r"shape \(1, 4\)"):
        compare(lambda batch: model(batch)[:1], wanted, 1e-4)
    with pytest.raises(NumericError, match="NaN"):
        compare(lambda batch: model(batch) * float("nan"), wanted, 1e-4)
    with pytest.raises(NumericError, match=r"where .* is allowed"):
        compare(lambda batch: model(batch) * 1.001, wanted, 1e-4)


def test_another_prediction_is_refused_even_within_the_tolerance() -> None:
    tie = torch.tensor([[1.0, 1.0 + 1e-6, 0.0]])
    image = torch.zeros(1, 3, 2, 2)
    with pytest.raises(NumericError, match="predicts another class than the model for 1 of 1"):
        compare(lambda _: tie[:, [1, 0, 2]], Expected((image,), (tie,)), 1e-4)
    dense = tie[:, :, None, None].expand(1, 3, 2, 2)
    found = compare(lambda _: dense[:, [1, 0, 2]], Expected((image,), (dense,)), 1e-4)
    assert (found.different, found.predictions) == (4, 4)  # a tie among positions is counted


# --- the command -----------------------------------------------------------------------------


def test_the_images_it_was_tuned_on_are_the_default(
    tmp_path: Path, run: Run, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("pt2")
    images = write_images(tmp_path / "images")
    options = ["--checkpoint", tiny_checkpoint, "--data", images, "--input-size", 12, "--crop-pct", 1]
    code, _, err = run("tune", TINY, *options, "--alphas", "0,0.1", "--accept", "best", "--metric", "loss",
                       "--workers", 0, "-o", tmp_path / "tuned")  # fmt: skip
    assert code == 0, err
    monkeypatch.chdir(tmp_path)
    words = ["export", "tuned", "--format", "pt2", "--trust-code", "--seconds", 0, "--stdout"]
    code, out, err = run(*words, "json")
    assert code == 0, err
    document = json.loads(out)
    assert document["check"]["images"] == {"source": str(images), "n": 12}
    assert document["warnings"] == []
    assert document["export"]["files"][0]["path"] == "tuned.pt2"
    extra = {"alphatune.json": ""}
    torch.export.load("tuned.pt2", extra_files=extra)
    result = json.loads(Path("tuned/result.json").read_text())
    record = json.loads(extra["alphatune.json"])
    assert record["checkpoint_sha256"] == result["model"]["checkpoint_sha256"]
    assert record["architecture"] == "tiny.py:tiny"

    (tmp_path / "tuned" / "run.toml").unlink()  # result.json says so, too
    code, out, err = run(*words, "quiet", "--overwrite")
    assert (code, out.strip()) == (0, "tuned.pt2")
    assert err.startswith("preprocessing: from the folder tuned --input-size 3,12,12 ")
    assert err.count("\n") == 1
    shutil.rmtree(images)
    code, out, err = run(*words, "human", "--overwrite")
    assert code == 0
    assert "random images" in out
    assert f"{images}, which the folder was tuned on, is not there" in err


@pytest.mark.parametrize("kept", [False, True])
def test_the_card_has_the_metrics_of_the_result(
    tmp_path: Path, run: Run, image_folder: Path, kept: bool
) -> None:
    from huggingface_hub import ModelCard

    code, _, err = run(
        "tune", NETWORK, "--no-pretrained", "--model-kwargs", "num_classes=4", "--data", image_folder,
        "--input-size", 32, "--alphas", "0" if kept else "0,0.1,0.5,1", "--accept", "best", "--metric", "ece",
        "--workers", 0, "-o", tmp_path / "tuned", "--seed", 0,
    )  # fmt: skip
    assert code == 0, err
    exported(tmp_path / "tuned", "hf")
    result = json.loads((tmp_path / "tuned" / "result.json").read_text())
    text = (tmp_path / "tuned-hf" / "README.md").read_text()
    results = {r.metric_name: r for r in ModelCard(text).data.eval_results}
    before, after = result["baseline"]["top1"], result["chosen"]["metrics"]["top1"]
    found = results["top-1" if kept else "top-1, tuned"]
    assert found.metric_value == pytest.approx(after, abs=1e-6)
    assert found.dataset_name == image_folder.name
    assert str(image_folder) not in text
    assert (f"| top-1 | {before:.4f} |\n" if kept else f"| top-1 | {before:.4f} | {after:.4f} |\n") in text
    assert ("kept the layers as" in text) == kept
    assert ("whose inference weighs the example in" in text) != kept
    assert "it tuned a temperature" not in text


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_line(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    needs("onnx")
    folder = tuned(tmp_path / "t")
    monkeypatch.setitem(sys.modules, name, None)
    code, out, err = run("export", folder, "--format", "onnx", "--trust-code", "-o", tmp_path / "x.onnx")
    assert (code, out) == (2, "")
    assert 'pip install "alphatune[onnx]"' in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--format", "hf"], 4, "for timm's architectures"),
        (["--format", "pt2", "--opset", 20], 2, "--opset does not go with --format pt2"),
        (["--format", "onnx", "--license", "mit"], 2, "--license does not go with --format onnx"),
        (["--format", "safetensors", "--data", "x"], 2, "--data does not go with --format safetensors"),
        (["--format", "onnx", "--opset", 9], 2, "opset 18 to 23"),
        (["--format", "onnx", "--check-images", 2], 2, "at least 3"),
        (["--format", "onnx", "--split", "val"], 2, "--split needs --data"),
        (["--format", "onnx", "--tolerance", -1], 2, "--tolerance"),
        (["--format", "onnx", "--data", "missing"], 3, "missing"),
        (["--format", "onnx", "-o", "x.pt2"], 2, "ending in .onnx"),
        (["--format", "json"], 2, "--format"),
        (["--format", "onnx", "--input-name", "logits"], 2, "two different names"),
        (["--format", "onnx", "--input-name", "x", "--output-name", "x"], 2, "two different names"),
        (["--format", "onnx", "--output-name", ""], 2, "two different names"),
        (["--format", "onnx", "--input-name", "head.weight"], 2, "inside the graph is called 'head.weight'"),
        (["--format", "onnx", "--output-name", "relu"], 2, "inside the graph is called 'relu'"),
        (["--format", "hf", "--repo", "me"], 2, "--repo takes USER/REPO"),
        (["--format", "onnx", "--tolerance", "nan"], 2, "--tolerance must be a number"),
        (["--format", "pt2", "--seconds", -1], 2, "--seconds must be a number"),
        (["--format", "safetensors", "--seconds", 3], 2, "--seconds"),
    ],
)
def test_usage_errors(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, words: list[Any], code: int, message: str
) -> None:
    needs("onnx" if "onnx" in words else "pt2")
    monkeypatch.chdir(tmp_path)
    tuned(tmp_path / "t")
    found, out, err = run("export", "t", "--trust-code", *words, "--stdout=json")
    assert found == code
    assert message in err
    assert json.loads(out)["error"]["code"] == code
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_torch_that_is_too_old_is_one_line(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tuned(tmp_path / "t")
    monkeypatch.setattr("alphatune.core.versions.metadata.version", {"torch": "2.4.1+cpu"}.__getitem__)
    code, out, err = run("export", folder, "--format", kind, "--trust-code")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(
        f"error: {GRAPHS[kind]} needs torch {TORCH_FOR[GRAPHS[kind]]} or newer; this is 2.4.1+cpu"
    )


def test_code_of_ones_own_needs_consent(tmp_path: Path, run: Run) -> None:
    needs("pt2")
    code, _, err = run("export", tuned(tmp_path / "t"), "--format", "pt2", "-o", tmp_path / "x.pt2")
    assert code == 3
    assert "--trust-code" in err
    assert run("export", tmp_path, "--format", "pt2")[0] == 3  # no tuned folder


def test_a_model_of_ones_own_is_handed_in(tmp_path: Path) -> None:
    needs("pt2")
    model = with_moving_averages_(tiny())
    alphatune.patch_(model, 0.1)
    alphatune.save(model, tmp_path / "t", preprocessing=SMALL)
    settings = ExportSettings(model=str(tmp_path / "t"), format="pt2", output=str(tmp_path / "t.pt2"))
    run_export(settings, model=tiny())
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(str(tmp_path / "t.pt2")).module()(images), model(images))


def test_outputs_that_are_refused(tmp_path: Path, run: Run) -> None:
    folder = tuned(tmp_path / "t")
    inside = folder / "model.safetensors"
    before = inside.read_bytes()

    def export(output: Path, *words: Any) -> str:
        code, _, err = run("export", folder, "--format", "safetensors", "--trust-code", "-o", output, *words)
        assert code == 2, err
        return err

    assert "lies in the input" in export(inside, "--overwrite")
    assert "lies in the input" in export(folder / "new.safetensors")
    assert inside.read_bytes() == before
    (tmp_path / "foreign.safetensors").write_bytes(b"somebody's weights")
    assert "exists" in export(tmp_path / "foreign.safetensors")
    assert "not written by alphatune export" in export(tmp_path / "foreign.safetensors", "--overwrite")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    assert "symbolic link" in export(tmp_path / "link.safetensors", "--overwrite")
    assert "folder" in export(tmp_path)
    assert "cannot write" in export(tmp_path / "nowhere" / "x.safetensors")
    code, _, _ = run(
        "export", folder, "--format", "safetensors", "--trust-code", "-o", tmp_path / "ok.safetensors"
    )
    assert code == 0
    assert "--overwrite" in export(tmp_path / "ok.safetensors")
    code, _, _ = run(
        "export",
        folder,
        "--format",
        "safetensors",
        "--trust-code",
        "-o",
        tmp_path / "ok.safetensors",
        "--overwrite",
    )
    assert code == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_hub_folder_never_replaces_its_input(tmp_path: Path, run: Run) -> None:
    folder = tuned(tmp_path / "t", NETWORK, num_classes=5)
    code, _, err = run("export", folder, "--format", "hf", "-o", folder, "--overwrite")
    assert code == 2
    assert "holds the input" in err
    alphatune.load(folder)


@pytest.mark.slow
def test_torchvisions_networks(tmp_path: Path) -> None:
    folder = tuned(tmp_path / "t", "torchvision:resnet18", 0.05, num_classes=5)
    document = exported(folder, "pt2", fixed_size=True)
    assert document["check"]["largest_difference"] < 1e-4
    assert json.loads((folder / "alphatune.json").read_text())["source"]["kind"] == "torchvision"


def test_the_text_of_the_card_is_the_code_that_is_checked() -> None:
    from alphatune.models.stock_patch import shown

    text = shown()
    assert text in (ROOT / "docs" / "exporting.md").read_text(encoding="utf-8")
    assert text.startswith("def weigh_examples_(model, alphas):\n    def hook(layer, inputs, named):\n")
    assert not re.search(r"Any|->", text)
    names: dict[str, Any] = {"torch": torch}
    exec(text, names)
    model = with_moving_averages_(tiny())
    images = torch.randn(2, 3, 12, 12)
    vectors = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6))
    alphatune.recalibrate_(vectors.eval(), [torch.randn(16, 5)])
    for network, inputs in ((model, images), (vectors, torch.randn(3, 5))):
        with torch.no_grad():
            layers = alphatune.patch_(network, 0.2)
            wanted = network(inputs)
            alphatune.unpatch_(network)
            names["weigh_examples_"](network, dict.fromkeys(layers, 0.2))
            torch.testing.assert_close(network(inputs), wanted, rtol=1e-4, atol=1e-5)


def test_other_image_sizes_are_neither_square_nor_multiples() -> None:
    found = export_job._elsewhere(with_moving_averages_(tiny()), torch.randn(4, 3, 12, 12))
    assert found is not None
    assert found.batches[0].shape == (3, 3, 32, 64)
