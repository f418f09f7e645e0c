"""``alphatune bench`` through its entry point, folding on real architectures, timing on made-up clocks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import timm
import torch
import torchvision
from conftest import TINY, needs_torch, slow
from tiny import odd, tiny
from torch import nn

import alphatune
from alphatune.cli.main import main
from alphatune.core.errors import AlphatuneError, ConfigurationError, NumericError, UnsupportedModelError
from alphatune.core.timing import Timing, interleave, ratio
from alphatune.core.versions import ONNX
from alphatune.export.deployment import deployment_cost
from alphatune.export.folding import fold
from alphatune.export.graph_cost import graph_costs
from alphatune.export.layer_costs import LayerTimer, group_alike
from alphatune.jobs.bench import _busy, _unsteady, run_bench
from alphatune.models.copying import stock_copy
from alphatune.models.probe import probe
from alphatune.models.sources import build
from alphatune.norms.patching import example_weighted_layers, get_alpha, patch_
from alphatune.settings import BenchSettings

RESNET20 = "alphatune.models.cifar:resnet20"
#: how to build an architecture, its input size, and how many norm layers follow no convolution
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "timm resnet18": (lambda: timm.create_model("resnet18", num_classes=5), 64, 0),
    "timm mobilenetv3": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), 64, 0),
    "timm efficientnet": (lambda: timm.create_model("efficientnet_b0", num_classes=5), 64, 0),
    "timm tf_efficientnet": (lambda: timm.create_model("tf_efficientnet_lite0", num_classes=5), 64, 0),
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=5), 64, 0),
    "torchvision densenet121": (lambda: torchvision.models.densenet121(num_classes=5), 32, 62),
    "torchvision mobilenetv3": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), 64, 0),
    # Two norms of the auxiliary head do not run in eval mode.
    "torchvision inception_v3": (
        lambda: torchvision.models.inception_v3(num_classes=5, init_weights=False), 75, 2,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on busy cores take a hundred times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bench(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["bench", *map(str, args)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return int(stop.value.code or 0), out, err


def settled(model: nn.Module) -> nn.Module:
    """In eval mode, with moving averages and weights that a training could leave."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def state_of(model: nn.Module) -> list[object]:
    """Whatever of a model must not change: classes, modes, α and the very tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    modules = [(type(m), m.training) for m in model.modules()]
    return [modules, get_alpha(model), [(id(t), t._version) for t in tensors]]


# --- folding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_folded_model_computes_the_same(name: str) -> None:
    factory, size, not_folded = MODELS[name]
    model, x = settled(factory()), torch.randn(2, 3, size, size)
    before = state_of(model)
    folding = fold(model)
    with torch.no_grad():
        expected, found = model(x), folding.model(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert state_of(model) == before
    assert folding.norms == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert len(folding.kept) == not_folded
    assert not any(type(folding.model.get_submodule(name)) is nn.BatchNorm2d for name in folding.folded)


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight / self.weight.std(), self.bias, padding=1)


class Branches(nn.Module):
    """The ways in which a norm layer cannot be folded, beside two in which it can."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("split", "twice", "untraced", "standardised", "grouped", "hooked", "first", "plain"):
            self.add_module(name, nn.BatchNorm2d(4))
            self.add_module(f"{name}_conv", nn.Conv2d(4, 4, 3, padding=1, bias=False))
        self.standardised_conv = Standardised(4, 4, 3, padding=1)
        self.grouped_conv = nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2)
        self.transposed_conv = nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.transposed = nn.BatchNorm2d(4)
        self.hooked_conv.register_forward_hook(lambda *_: None)
        self.unreached = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.split_conv(x)
        x = self.split(y) + y
        x = self.twice(self.twice_conv(self.twice(self.twice_conv(x))))
        for name in ("standardised", "grouped", "hooked", "transposed", "plain"):
            x = getattr(self, name)(getattr(self, f"{name}_conv")(x))
        return self.first_conv(self.first(x)).mean((2, 3))


def test_what_cannot_be_folded_stays_and_says_why() -> None:
    model, x = settled(Branches()), torch.randn(2, 4, 8, 8)
    folding = fold(model)
    torch.testing.assert_close(folding.model(x), model(x), rtol=1e-4, atol=1e-4)
    assert folding.folded == ("plain", "transposed")
    reasons = {"split": "elsewhere", "twice": "more than once", "standardised": "anew", "grouped": "groups",
               "hooked": "hook", "first": "no convolution", "unreached": "no call", "untraced": "no call"}  # fmt: skip
    assert folding.kept.keys() == reasons.keys()
    assert all(words in folding.kept[name] for name, words in reasons.items())


def test_what_cannot_be_traced_is_folded_part_by_part() -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([tiny(), tiny()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts[int(bool(x.sum() > 0))](x)

    model, x = settled(Untraceable()), torch.randn(2, 3, 12, 12)
    folding = fold(model)
    assert len(folding.folded) == folding.norms == 4
    torch.testing.assert_close(folding.model(x), model(x), rtol=1e-4, atol=1e-5)


def test_folding_leaves_alpha_out() -> None:
    model, x = settled(tiny()), torch.randn(2, 3, 12, 12)
    expected = model(x)
    patch_(model, 0.4)
    folding = fold(model)
    assert folding.folded == ("bn1", "bn2")
    torch.testing.assert_close(folding.model(x), expected, rtol=1e-4, atol=1e-5)
    assert list(get_alpha(model).values()) == pytest.approx([0.4, 0.4])


def test_copies_share_every_tensor_and_nothing_else() -> None:
    model = tiny()
    patch_(model, 0.3)
    twin = stock_copy(model)
    assert get_alpha(twin) == {}
    assert {id(p) for p in twin.parameters()} == {id(p) for p in model.parameters()}
    assert not {id(m) for m in twin.modules()} & {id(m) for m in model.modules()}
    model.secret = (n for n in range(3))  # type: ignore[assignment]  # generators cannot be copied
    with pytest.raises(UnsupportedModelError, match="copied"):
        stock_copy(model)


# --- timing ----------------------------------------------------------------------------------


class Clock:
    """Time that passes only where a function says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order = ""

    def takes(self, name: str, *seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def run() -> None:
            self.order += name
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run

    def __call__(self) -> float:
        return self.now


def test_rounds_fill_the_time_in_turns() -> None:
    clock = Clock()
    functions = {"a": clock.takes("a", 0.5, 1), "b": clock.takes("b", 4, 2)}
    timings = interleave(functions, seconds=13, clock=clock)
    assert clock.order == "ab" + "ab" + "ab" + "ba" + "ab" + "ba"  # first calls, warm-up, rounds
    assert (timings["a"].first_use, timings["b"].first_use) == (0.5, 4)
    assert timings["a"].samples == (1, 1, 1, 1)
    assert (timings["b"].low, timings["b"].median, timings["b"].high) == (2, 2, 2)
    assert ratio(timings["b"], timings["a"]) == 2


def test_there_are_three_rounds_however_little_time() -> None:
    clock = Clock()
    timings = interleave({"a": clock.takes("a", 9, 1, 2, 3)}, seconds=0, rounds=1, clock=clock)
    assert clock.order == "aaaa"  # without warm-up: there is no time for it
    assert timings["a"].samples == (1, 2, 3)
    assert (timings["a"].low, timings["a"].median, timings["a"].high) == (1.5, 2, 2.5)


def test_a_slow_spell_that_hits_all_does_not_move_the_ratio() -> None:
    clock = Clock()
    spell = [1, 1, 1, 5, 5, 1]
    functions = {n: clock.takes(n, *(k * s for s in spell)) for n, k in (("a", 1), ("b", 3))}
    timings = interleave(functions, seconds=0, rounds=5, clock=clock)
    assert ratio(timings["b"], timings["a"]) == 3


# --- cost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 0.2])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_alone(alpha: float | None, training: bool) -> None:
    model = settled(tiny()).train(training)
    model.bn2.eval()
    if alpha is not None:
        patch_(model, alpha, exclude="bn1")
    before = state_of(model)
    cost = deployment_cost(model, torch.randn(2, 3, 12, 12), alpha=0.1, budget_seconds=0.02, kernels=None)
    assert state_of(model) == before
    assert cost.alpha == 0.1
    assert cost.ratio_to_plain > 0
    assert cost.ratio_to_folded is not None
    assert (cost.norms, cost.folded, cost.batch_size) == (2, 2, 2)
    assert all(len(m.timing.samples) >= 3 for m in cost.measured)
    wrong: list[tuple[dict, type[AlphatuneError]]] = [
        ({"alpha": 2.0}, ConfigurationError),
        ({"alpha": {"nowhere": 0.1}}, UnsupportedModelError),
        ({"alpha": 0.1, "kernels": ("triton",)}, ConfigurationError),
    ]
    for arguments, error in wrong:
        with pytest.raises(error):
            deployment_cost(model, torch.randn(2, 3, 12, 12), **arguments)
    with pytest.raises(RuntimeError):
        deployment_cost(model, torch.randn(2, 5, 12, 12), alpha=0.1)
    with pytest.raises(NumericError):
        deployment_cost(model, torch.full((2, 3, 12, 12), torch.inf), alpha=0.1)
    assert state_of(model) == before


def test_alpha_by_layer() -> None:
    alpha = {"bn2": torch.linspace(0, 0.5, 8)}
    cost = deployment_cost(settled(tiny()), torch.randn(1, 3, 12, 12), alpha=alpha, budget_seconds=0.01)
    assert isinstance(cost.alpha, dict)
    assert cost.alpha["bn2"] == pytest.approx(alpha["bn2"].tolist())
    assert cost.alpha.keys() == {"bn2"}
    cost = deployment_cost(settled(odd()), torch.randn(1, 3, 12, 12), alpha={"bn1": 0.1}, budget_seconds=0.01)
    assert (cost.alpha, cost.norms, cost.folded) == (0.1, 2, 1)
    assert "OddNorm" in cost.kept["bn2"]


def test_an_alpha_that_changes_nothing_is_pointed_out() -> None:
    cost = deployment_cost(settled(tiny()), torch.randn(1, 3, 12, 12), alpha=0.0, budget_seconds=0.01)
    assert "changes nothing" in cost.warnings[0]


def test_nothing_to_fold() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 4)).eval()
    cost = deployment_cost(model, torch.randn(1, 3, 4, 4), alpha=0.1, budget_seconds=0.01)
    assert (cost.folded, cost.largest_difference, cost.ratio_to_folded) == (0, None, None)
    assert [m.variant for m in cost.measured] == ["plain", "example-weighted"]


# --- the command -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "norms"),
    [
        (RESNET20, ["--input-size", 32, "--batch-size", "1,4"], 19),
        ("resnet18", ["--no-pretrained", "--input-size", 48, "--channels-last"], 20),
        ("efficientnet_b0", ["--no-pretrained", "--input-size", 48], 49),
    ],
)
def test_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str, options: list[object], norms: int
) -> None:
    file = tmp_path / "bench.json"
    if "--batch-size" not in options:
        options = [*options, "--batch-size", "2"]
    args = [model, *options, "--seconds", 0.2, "--alpha", 0.1, "-o", file, "--format", "json"]
    code, out, err = bench(capsys, *args)
    assert code == 0, err
    document = json.loads(out)
    assert document == json.loads(file.read_text())
    assert list(tmp_path.iterdir()) == [file]
    assert document.keys() == {
        "schema", "command", "alphatune", "model", "env", "results", "folded", "cost", "layers", "warnings",
    }  # fmt: skip
    assert (document["schema"], document["command"]) == (1, "bench")
    assert document["model"]["source"] == model
    env = document["env"]
    assert env["channels_last"] == ("--channels-last" in options)
    assert env["threads"] == 1
    sizes = [int(s) for s in str(options[options.index("--batch-size") + 1]).split(",")]
    rows = document["results"]
    assert list(dict.fromkeys(row["batch_size"] for row in rows)) == sizes
    for size in sizes:
        variants = [(r["variant"], r["kernel"]) for r in rows if r["batch_size"] == size]
        assert variants[:3] == [("plain", None), ("folded", None), ("example-weighted", "eager")]
        assert set(variants[3:]) <= {("example-weighted", "compiled"), ("example-weighted", "triton")}
    for row in rows:
        assert 0 < row["low_s"] <= row["median_s"] <= row["high_s"]
        assert row["images_per_s"] == pytest.approx(row["batch_size"] / row["median_s"])
        assert row["first_use_s"] > 0
        assert row["rounds"] >= 3
        assert row["torch_compile"] is False
        assert (row["peak_bytes"] is None) == (env["device"] == "cpu")
        assert row["ratio_to_plain"] == 1 or row["variant"] != "plain"
    folded = document["folded"]
    assert (folded["norms"], folded["folded"], folded["kept"]) == (norms, norms, [])
    assert 0 <= folded["largest_difference"] < 1e-2
    for cost, size in zip(document["cost"], sizes, strict=True):
        assert (cost["batch_size"], cost["alpha"], cost["ratio_compiled"]) == (size, 0.1, None)
        assert cost["kernel"] in ("eager", "compiled", "triton")
        assert min(cost["ratio_to_plain"], cost["ratio_to_folded"]) > 0


def test_table_and_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    args = [TINY, "--input-size", 12, "--batch-size", 2, "--seconds", 0.05]
    code, out, err = bench(capsys, *args)
    assert code == 0, err
    assert all(words in out for words in ("with α", "plain", "images/s", "α = 0.05 takes"))
    assert "2 of 2 norm layers were folded" in out
    assert "no --checkpoint" in err
    code, out, err = bench(capsys, *args, "--format", "quiet", "-q", "--dtype", "bfloat16")
    assert (code, err) == (0, "")
    assert out.startswith("batch_size=2 kernel=")
    assert out.count("\n") == 1


@pytest.mark.parametrize(("compiled", "memory"), [(False, None), (True, 3 * 2**30)])
def test_the_table_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, compiled: bool, memory: int | None
) -> None:
    """Slow and fast, on a GPU, under torch.compile: no number is broken."""
    from alphatune.cli import console
    from alphatune.cli.bench import _show

    settings = BenchSettings(model=TINY, input_size="12", batch_size="2", seconds=0.05, device="cpu")
    document = run_bench(settings)
    slow = [
        msgspec.structs.replace(
            row, batch_size=512, median_s=12.345678, low_s=10.2, high_s=15.7, images_per_s=104_222.2,
            ratio_to_plain=11.25, first_use_s=123.4, peak_bytes=memory, torch_compile=compiled,
        )
        for row in document.results
    ]  # fmt: skip
    document = msgspec.structs.replace(document, results=(*document.results, *slow))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    capsys.readouterr()
    _show(document)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if re.match(r"  (plain|folded|with α)", line)]
    assert len(rows) == len(document.results)
    assert sum("12346 (10200–15700)" in row and "104222" in row for row in rows) == len(slow)
    assert [line.split()[1] for line in lines if re.match("batch ", line)] == ["2", "512"]
    assert ("under torch.compile" in "".join(lines)) == compiled


def test_a_tuned_folder_has_alpha_of_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = build(TINY)
    patch_(source.model, {"bn1": 0.2, "bn2": 0.3})
    alphatune.save(source.model, tmp_path / "tuned", source=source)
    args = [tmp_path / "tuned", "--trust-code", "--input-size", 12, "--batch-size", 1, "--seconds", 0.05]
    cost = json.loads(bench(capsys, *args, "--format", "json")[1])["cost"][0]
    assert cost["alpha"] == {"bn1": 0.2, "bn2": 0.3}
    assert "one α a layer takes" in bench(capsys, *args)[1]
    cost = json.loads(bench(capsys, *args, "--alpha", 0.1, "--format", "json")[1])["cost"][0]
    assert cost["alpha"] == 0.1


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--batch-size", "1,x"], 2, "--batch-size"),
        (["--batch-size", "9999999"], 2, "--batch-size"),
        (["--seconds", "0"], 2, "--seconds"),
        (["--seconds", "nan"], 2, "--seconds"),
        (["--alpha", "2"], 2, "[0, 1]"),
        (["--dtype", "int8"], 2, "--dtype"),
        (["--threads", "0"], 2, "--threads"),
        (["--device", "cuda:99"], 2, "cuda:99"),
        (["--exclude", "layer9"], 2, "layer9"),
        (["--input-size", "1,12,12"], 2, "input"),
        (["--checkpoint", "nowhere.pt"], 3, "nowhere.pt"),
        (["-o", "nowhere/bench.json"], 2, "nowhere"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], wrong: list[str], code: int, words: str) -> None:
    got, out, err = bench(capsys, TINY, "--input-size", 12, "--seconds", 0.05, "-q", *wrong)
    assert (got, out) == (code, ""), err
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_threads(capsys: pytest.CaptureFixture[str]) -> None:
    args = [TINY, "--input-size", 12, "--batch-size", 1, "--seconds", 0.05, "--threads", 2]
    code, out, err = bench(capsys, *args, "--format", "json")
    assert code == 0, err
    assert json.loads(out)["env"]["threads"] == 2
    assert torch.get_num_threads() == 1


def test_unsteady_timings_are_pointed_out() -> None:
    cost = deployment_cost(settled(tiny()), torch.randn(1, 3, 12, 12), alpha=0.1, budget_seconds=0.01)
    for samples, words in (((1.0, 1.0, 1.1), []), ((1.0, 1.0, 9.0), ["quartiles up to 4.0 medians apart"])):
        measured = tuple(replace(m, timing=Timing(samples, 0.0)) for m in cost.measured)
        warnings = _unsteady([replace(cost, measured=measured)])
        assert len(warnings) == len(words)
        assert all(w in warning for w, warning in zip(words, warnings, strict=True))


def test_a_busy_machine_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    cpu = torch.device("cpu")
    assert _busy(cpu, 1.9) == []
    assert "load average 2.5" in _busy(cpu, 2.5)[0]
    assert _busy(torch.device("cuda"), 2.5) == []


def test_unknown_norms_need_consent(capsys: pytest.CaptureFixture[str]) -> None:
    args = [TINY.replace(":tiny", ":odd"), "--input-size", 12, "--batch-size", 1, "--seconds", 0.05]
    assert bench(capsys, *args)[0] == 4
    assert bench(capsys, TINY.replace(":tiny", ":no_norm"), *args[1:])[0] == 4
    code, out, err = bench(capsys, *args, "--skip-unknown", "--format", "json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["folded"]["norms"], document["folded"]["folded"]) == (2, 1)
    assert any("OddNorm" in warning for warning in document["warnings"])


def test_only_an_older_result_is_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    args = [TINY, "--input-size", 12, "--batch-size", 1, "--seconds", 0.05]
    thesis, result = tmp_path / "thesis.txt", tmp_path / "bench.json"
    thesis.write_text("only copy")
    for output in (thesis, tmp_path):
        for options in ([], ["--overwrite"]):
            assert bench(capsys, *args, "-o", output, *options)[0] == 2
    assert thesis.read_text() == "only copy"
    assert [bench(capsys, *args, "-o", result, *o)[0] for o in ([], [], ["--overwrite"])] == [0, 2, 0]
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.txt", "bench.json"}


def test_grey_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "grey.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    args = [tmp_path / "grey.py:net", "--input-size", "1,8,8", "--batch-size", 1, "--seconds", 0.05]
    code, out, err = bench(capsys, *args, "--format", "json")
    assert code == 0, err
    assert json.loads(out)["env"]["input_size"] == [1, 8, 8]


@pytest.mark.slow
def test_torch_compile(capsys: pytest.CaptureFixture[str]) -> None:
    args = [TINY, "--input-size", 12, "--batch-size", "1,2", "--seconds", 0.1, "--compile"]
    code, out, err = bench(capsys, *args, "--format", "json")
    assert code == 0, err
    document = json.loads(out)
    compiled = [
        (r["batch_size"], r["variant"], r["kernel"]) for r in document["results"] if r["torch_compile"]
    ]
    assert compiled == [(n, v, None) for n in (1, 2) for v in ("plain", "example-weighted")]
    assert all(cost["ratio_compiled"] > 0 for cost in document["cost"])


# --- in onnxruntime --------------------------------------------------------------------------


@needs_torch(ONNX)
def test_graphs_are_timed_in_onnxruntime(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        TINY,
        "--no-pretrained",
        "--input-size",
        12,
        "--runtime",
        "onnx",
        "--seconds",
        0.02,
        "--batch-size",
        "1,3",
    ]
    code, out, err = bench(capsys, *words, "--format", "json")
    assert code == 0, err
    document = json.loads(out)
    assert document["env"]["runtime"] == "onnxruntime"
    assert [(row["batch_size"], row["variant"]) for row in document["results"]] == [
        (1, "folded"), (1, "example-weighted"), (3, "folded"), (3, "example-weighted"),
    ]  # fmt: skip
    for cost in document["cost"]:
        assert (cost["runtime"], cost["kernel"]) == ("onnxruntime", None)
        assert cost["ratio_to_plain"] == pytest.approx(cost["ratio_to_folded"], rel=0.9)
    assert document["folded"]["largest_difference"] < 1e-4


@pytest.mark.parametrize(
    "words", [["--dtype", "bfloat16"], ["--compile"], ["--channels-last"]], ids=lambda words: words[0]
)
def test_what_onnxruntime_does_not_do(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = bench(capsys, TINY, "--no-pretrained", "--input-size", 12, "--runtime", "onnx", *words)
    assert code == 2
    assert f"{words[0]} does not go with --runtime onnx" in err


@needs_torch(ONNX)
def test_a_graph_with_nothing_to_fold_is_not_compared() -> None:
    model = settled(
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    with pytest.raises(UnsupportedModelError, match="no norm layer of the model folds"):
        graph_costs(model, (3, 8, 8), [1], alpha=0.1, seconds=0.01)


# --- layer by layer --------------------------------------------------------------------------


def test_layers_of_one_shape_in_the_same_place_are_one_kind() -> None:
    model = build(RESNET20, pretrained=False).model
    seen = probe(model, (3, 32, 32), torch.device("cpu"))
    shapes = {name: (layer.rows, *layer.spatial) for name, layer in seen.layers.items()}
    kinds = group_alike(list(shapes), shapes)
    assert sorted(name for kind in kinds for name in kind) == sorted(shapes)
    assert [len(kind) for kind in kinds] == [4, 3, 3, 3, 3, 3]
    assert kinds[1] == ("layer1.0.bn2", "layer1.1.bn2", "layer1.2.bn2")
    features = ["features.1.conv.0.1", "features.2.conv.0.1", "features.2.conv.1.1", "features.0.1"]
    assert [len(kind) for kind in group_alike(features, dict.fromkeys(features, (8, 4, 4)))] == [2, 1, 1]


@pytest.mark.parametrize("runtime", ["torch", slow("onnx")])
def test_what_each_kind_of_layer_adds(runtime: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        TINY,
        "--no-pretrained",
        "--input-size",
        12,
        "--runtime",
        runtime,
        "--per-layer",
        "--seconds",
        0.2,
    ]
    code, out, err = bench(capsys, *words, "--batch-size", "2", "--format", "json")
    assert code == 0, err
    (layers,) = json.loads(out)["layers"]
    assert layers["batch_size"] == 2
    assert [(kind["layers"], kind["shape"]) for kind in layers["kinds"]] == [
        (["bn1"], [8, 12, 12]), (["bn2"], [8, 6, 6]),
    ]  # fmt: skip
    by_name = {name: kind["share"] for kind in layers["kinds"] for name in kind["layers"]}
    for each in layers["sets"]:
        assert each["predicted"] == pytest.approx(1 + sum(by_name[name] for name in each["layers"]))
    code, out, _ = bench(capsys, *words, "--batch-size", "2")
    assert "What α adds by layer" in out
    assert "α in all of them takes" in out


@pytest.mark.parametrize(
    ("fitted", "factor"), [(0, 0.24 / 0.3), (50, (0.24 + 0.2 + 0.1) / (0.3 + 0.2 + 0.1))]
)
def test_costs_add_up_on_what_they_are_fitted_to(
    monkeypatch: pytest.MonkeyPatch, fitted: int, factor: float
) -> None:
    """A made-up clock: bn1 takes 0.2 of the folded time, bn2 0.1, but both together 0.24.

    Fitted to both, and to every set that was drawn besides, which of 50 are all there are.
    """
    model = settled(tiny())
    times = {
        frozenset(): 1.0,
        frozenset({"bn1"}): 1.2,
        frozenset({"bn2"}): 1.1,
        frozenset({"bn1", "bn2"}): 1.24,
    }

    def timed(runs: dict[str, partial[torch.Tensor]], **_: object) -> dict[str, Timing]:
        return {name: Timing((times[frozenset(run.func)],) * 3, 0.0) for name, run in runs.items()}  # type: ignore[arg-type]

    def layers_of(network: nn.Module, _: torch.dtype) -> tuple[str, ...]:
        return tuple(name for name, _ in example_weighted_layers(network))

    monkeypatch.setattr("alphatune.export.layer_costs.FITTED", fitted)
    monkeypatch.setattr("alphatune.export.layer_costs._in_torch", layers_of)
    monkeypatch.setattr("alphatune.export.layer_costs.partial", lambda run, _: SimpleNamespace(func=run))
    monkeypatch.setattr("alphatune.export.layer_costs.interleave", timed)
    shapes = {"bn1": (8, 12, 12), "bn2": (8, 6, 6)}
    timer = LayerTimer(model, (3, 12, 12), 1, runtime="torch", alpha=0.1, seconds=1.0)
    costs = timer.costs(shapes, sets=8)
    assert costs.everywhere == pytest.approx(1.24)
    assert costs.ratio(["bn1", "bn2"]) == pytest.approx(1 + 0.3 * factor)
    assert costs.ratio(["bn1"]) == pytest.approx(1 + 0.2 * factor)
    assert costs.ratio([]) == 1
    assert {each.layers: each.measured for each in costs.sets}[("bn2",)] == pytest.approx(1.1)
    with pytest.raises(UnsupportedModelError, match="reaches no norm layer"):
        timer.costs({})
