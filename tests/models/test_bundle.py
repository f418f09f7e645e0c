"""The tuned folder: written whole or not at all, read back without trusting it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import timm
import torch
from conftest import TINY
from safetensors.torch import load_file
from tiny import tiny

import alphatune
from alphatune.core.errors import (
    CheckpointError,
    ConfigurationError,
    InputError,
    ResourceError,
    UntrustedError,
)
from alphatune.data.preprocessing import Preprocessing
from alphatune.models.bundle import read_bundle
from alphatune.models.output import staged
from alphatune.models.sources import build
from alphatune.norms.conversion import Norm, NormKind, become_
from alphatune.norms.patching import get_alpha

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("spec", "kwargs"),
    [
        ("mobilenetv3_small_050", {"num_classes": 5}),
        ("torchvision:shufflenet_v2_x0_5", {"num_classes": 5}),
        ("alphatune.models.cifar:resnet20", {}),
    ],
)
def test_round_trip(tmp_path: Path, spec: str, kwargs: dict) -> None:
    source = build(spec, pretrained=False, model_kwargs=kwargs)
    model = source.model.eval()
    before = model(X)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    first = alphatune.patch_(model)[0]
    alphatune.set_alpha_(model, {first: 0.3})
    alphatune.save(
        model, tmp_path / "out", source=source, preprocessing=Preprocessing(input_size=(3, 64, 64))
    )

    again = alphatune.load(tmp_path / "out")
    assert not again.training
    assert torch.equal(again(X), model(X))
    assert get_alpha(again) == get_alpha(model)
    assert read_bundle(tmp_path / "out").preprocessing == Preprocessing(input_size=(3, 64, 64))

    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert sorted(weights) == sorted(state)
    stock = build(spec, pretrained=False, model_kwargs=kwargs).model.eval()
    stock.load_state_dict(weights, strict=True)  # stock code: the model at α = 0, bit for bit
    assert torch.equal(stock(X), before)


def test_a_network_that_asks_for_the_version_of_its_weights(tmp_path: Path) -> None:
    source = build("torchvision:mnasnet0_5", pretrained=False, model_kwargs={"num_classes": 5})
    alphatune.patch_(source.model.eval(), 0.1)
    alphatune.save(source.model, tmp_path / "out", source=source)
    assert torch.equal(alphatune.load(tmp_path / "out")(X), source.model(X))


def test_stock_timm_loads_the_folder(tmp_path: Path) -> None:
    source = build("mobilenetv3_small_050", pretrained=False, model_kwargs={"num_classes": 5})
    before = source.model.eval()(X)
    alphatune.patch_(source.model, 0.1)
    preprocessing = Preprocessing(input_size=(3, 96, 96), mean=(0.1,) * 3, crop_pct=0.9)
    alphatune.save(source.model, tmp_path / "out", source=source, preprocessing=preprocessing)
    stock = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(stock(X), before)
    assert stock.pretrained_cfg["mean"] == (0.1,) * 3 or stock.pretrained_cfg["mean"] == [0.1] * 3
    assert stock.pretrained_cfg["crop_pct"] == 0.9


def test_unpatched_and_excluded_layers_stay_stock(tmp_path: Path) -> None:
    model = tiny().eval()
    alphatune.save(model, tmp_path / "plain")
    assert get_alpha(alphatune.load(tmp_path / "plain", model=tiny())) == {}
    alphatune.patch_(model, 0.3, exclude=["bn1"])
    alphatune.save(model, tmp_path / "part")
    again = alphatune.load(tmp_path / "part", model=tiny())
    assert set(get_alpha(again)) == {"bn2"}
    assert type(again.bn1) is torch.nn.BatchNorm2d


def test_shared_and_strided_weights_are_saved(tmp_path: Path) -> None:
    model = tiny().to(memory_format=torch.channels_last)
    model.bn2.weight = model.bn1.weight
    alphatune.save(model, tmp_path / "out")
    alphatune.load(tmp_path / "out", model=tiny())


def test_own_code_is_not_imported_without_consent(tmp_path: Path) -> None:
    source = build(TINY)
    alphatune.save(source.model, tmp_path / "out", source=source)
    with pytest.raises(UntrustedError, match=r"tiny\.py:tiny"):
        alphatune.load(tmp_path / "out")
    alphatune.load(tmp_path / "out", trust_code=True)


def test_a_strangers_folder_cannot_name_code(tmp_path: Path) -> None:
    alphatune.save(tiny(), tmp_path / "out")
    path, marker = tmp_path / "out" / "alphatune.json", tmp_path / "was-run"
    manifest = json.loads(path.read_text())
    for kind in ("factory", "timm", "torchvision"):
        for spec in (
            "os:abort",
            "pathlib:Path.touch",
            "alphatune.models.cifar:torch.load",
            "alphatune.models.cifar:nn.Linear",
            "alphatune.models.checkpoints:read_checkpoint",
        ):
            manifest["source"] = {"spec": spec, "kind": kind, "model_kwargs": [f"self={str(marker)!r}"]}
            path.write_text(json.dumps(manifest))
            with pytest.raises(alphatune.core.errors.AlphatuneError):
                alphatune.load(tmp_path / "out")
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": 99}', "null"],
)
def test_damaged_manifest(tmp_path: Path, text: str) -> None:
    alphatune.save(tiny(), tmp_path / "out")
    (tmp_path / "out" / "alphatune.json").write_text(text)
    with pytest.raises(InputError, match=r"alphatune\.json"):
        alphatune.load(tmp_path / "out", model=tiny())


def test_changed_weights_are_noticed(tmp_path: Path) -> None:
    alphatune.save(tiny(), tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="has changed"):
        alphatune.load(tmp_path / "out", model=tiny())


def test_existing_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    alphatune.save(tiny(), out)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(ConfigurationError, match="exists"):
        alphatune.save(tiny(), out)
    assert (out / "model.safetensors").read_bytes() == before
    alphatune.save(tiny(), out, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_foreign_folders_links_and_files_are_not_overwritten(tmp_path: Path) -> None:
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(foreign)
    (tmp_path / "file").write_text("x")
    for name, message in (
        ("photos", "not written by"),
        ("link", "symbolic link"),
        ("file", "not written by"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            alphatune.save(tiny(), tmp_path / name, overwrite=True)
    with pytest.raises(ConfigurationError, match="names a folder"):
        alphatune.save(tiny(), tmp_path / "x.json")
    assert (foreign / "holiday.jpg").read_bytes() == b"precious"


def test_inputs_inside_the_output_are_safe(tmp_path: Path) -> None:
    out = tmp_path / "out"
    alphatune.save(tiny(), out)
    with (
        pytest.raises(ConfigurationError, match="holds the input"),
        staged(out, overwrite=True, keep=[out / "model.safetensors"]),
    ):
        pass


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_what_torchvisions_weights_imply_is_restored(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These two transform their input when they come with weights; rebuilt without, they must as well."""
    import torchvision
    from torchvision.models._api import WeightsEnum

    torch.manual_seed(0)
    weights = torchvision.models.get_model(name, init_weights=False, aux_logits=True).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: weights)  # no network in tests
    source = build(f"torchvision:{name}")
    x = torch.rand(1, 3, 96, 96)
    expected = source.model.eval()(x)
    alphatune.save(source.model, tmp_path / "out", source=source)
    assert torch.equal(alphatune.load(tmp_path / "out")(x), expected)


def test_wrapped_models_are_saved_unwrapped(tmp_path: Path) -> None:
    model = tiny().eval()
    alphatune.patch_(model, 0.2)
    for number, wrapped in enumerate((torch.nn.DataParallel(model), torch.compile(model))):
        alphatune.save(wrapped, tmp_path / str(number))
        assert set(get_alpha(alphatune.load(tmp_path / str(number), model=tiny()))) == {"bn1", "bn2"}


def test_loading_into_a_patched_model_forgets_its_alpha(tmp_path: Path) -> None:
    alphatune.save(tiny(), tmp_path / "plain")
    model = tiny()
    alphatune.patch_(model, 0.5)
    assert get_alpha(alphatune.load(tmp_path / "plain", model=model)) == {}


def test_alpha_of_a_layer_the_model_lacks(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    alphatune.patch_(model, 0.5)
    alphatune.save(model, tmp_path / "out")
    path = tmp_path / "out" / "alphatune.json"
    path.write_text(path.read_text().replace('"0": 0.5', '"bn9": 0.5'))
    with pytest.raises(InputError, match="bn9"):
        alphatune.load(tmp_path / "out", model=torch.nn.Sequential(torch.nn.BatchNorm2d(3)))


def test_layer_names_are_no_globs(tmp_path: Path) -> None:
    def model() -> torch.nn.Module:
        return torch.nn.ModuleDict({"t[1]": torch.nn.BatchNorm2d(3), "t1": torch.nn.BatchNorm2d(3)})

    patched = model()
    alphatune.patch_(patched, 0.5, exclude="t1")
    alphatune.save(patched, tmp_path / "out")
    assert set(get_alpha(alphatune.load(tmp_path / "out", model=model()))) == {"t[1]"}


def test_old_output_comes_back_when_the_last_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    alphatune.save(tiny(), out)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith("-partial"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr("alphatune.models.output._swap", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ResourceError):
        alphatune.save(tiny(), out, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "model.safetensors").is_file()


def test_a_file_in_the_way_of_the_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="cannot write"):
        alphatune.save(tiny(), tmp_path / "file" / "out")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged(tmp_path / "out") as stage:
        (stage / "half").write_text("written")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_old_output_survives_a_failure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    alphatune.save(tiny(), out)
    before = sorted((p.name, p.read_bytes()) for p in out.iterdir())
    with pytest.raises(RuntimeError), staged(out, overwrite=True) as stage:
        (stage / "half").write_text("written")
        raise RuntimeError
    assert sorted((p.name, p.read_bytes()) for p in out.iterdir()) == before


def test_a_full_disk_is_a_resource_error(tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="No space left"), staged(tmp_path / "out"):
        full()
    assert list(tmp_path.iterdir()) == []


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        alphatune.save(tiny(), tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    for file in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize("kind", ["batch", "ghost", "renorm", "batch-group", "group"])
@pytest.mark.parametrize("alpha", [None, 0.2])
def test_converted_models_round_trip(tmp_path: Path, kind: NormKind, alpha: float | None) -> None:
    spec, kwargs = "mobilenetv3_small_050", {"num_classes": 5}
    source = build(spec, pretrained=False, model_kwargs=kwargs)
    model = source.model
    alphatune.convert_(model, Norm(kind, ghost_batch_size=2, num_groups=8))
    model.train()
    with torch.no_grad():
        model(torch.randn(5, 3, 64, 64))
    model.eval()
    if alpha is not None:
        alphatune.patch_(model, alpha)
    before = model(X)
    alphatune.save(model, tmp_path / "out", source=source)
    recorded = json.loads((tmp_path / "out" / "alphatune.json").read_text())["norm"]
    assert bool(recorded) == (kind in ("batch-group", "group"))

    again = alphatune.load(tmp_path / "out")
    assert torch.equal(again(X), before)
    assert get_alpha(again) == get_alpha(model)
    alphatune.unpatch_(again)
    alphatune.unpatch_(model)
    stock = build(spec, pretrained=False, model_kwargs=kwargs).model.eval()
    if kind in ("batch-group", "group"):
        assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]
    else:
        assert [type(m) for m in again.modules()] == [type(m) for m in stock.modules()]
    stock.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"), strict=True)
    if kind != "group":
        assert torch.equal(stock(X), model(X))


def test_a_model_of_several_norms_round_trips(tmp_path: Path) -> None:
    model = tiny()
    alphatune.convert_(model, Norm("batch-group", num_groups=2, examples_per_group=3))
    become_(model.bn2, "group", {"num_groups": 4, "averages": "paper"})
    model(X)
    model.eval()
    alphatune.patch_(model, {"bn2": 0.3}, exclude=["bn1"])
    alphatune.save(model, tmp_path / "out")
    for mine in (tiny(), model):  # stock, or converted and patched already
        again = alphatune.load(tmp_path / "out", model=mine)
        assert torch.equal(again(X), model(X))
        assert (again.bn1.num_groups, again.bn1.examples_per_group, again.bn2.num_groups) == (2, 3, 4)
        assert get_alpha(again) == {"bn2": pytest.approx(0.3)}


def test_a_converted_instance_takes_a_plain_folder(tmp_path: Path) -> None:
    """The folder says what the model is, not the instance it is loaded into."""
    model = tiny().eval()
    alphatune.save(model, tmp_path / "out")
    other = tiny()
    alphatune.convert_(other, Norm("group"))
    assert torch.equal(alphatune.load(tmp_path / "out", model=other)(X), model(X))


@pytest.mark.parametrize(
    "norm",
    [
        {"nowhere": {"kind": "group", "num_groups": 2}},
        {"bn1": {"kind": "layer"}},
        {"bn1": {"kind": "group"}},
        {"bn1": {"kind": "group", "num_groups": 7}},
        {"bn1": {"kind": "group", "num_groups": "2"}},
        {"bn1": 3},
        [],
    ],
)
def test_a_damaged_norm_is_refused(tmp_path: Path, norm: object) -> None:
    model = tiny().eval()
    alphatune.save(model, tmp_path / "out")
    manifest = tmp_path / "out" / "alphatune.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "norm": norm}))
    with pytest.raises(InputError):
        alphatune.load(tmp_path / "out", model=tiny())


def test_a_folder_from_before_norms_were_recorded(tmp_path: Path) -> None:
    model = tiny().eval()
    alphatune.save(model, tmp_path / "out")
    manifest = tmp_path / "out" / "alphatune.json"
    content = json.loads(manifest.read_text())
    del content["norm"]
    manifest.write_text(json.dumps(content))
    assert torch.equal(alphatune.load(tmp_path / "out", model=tiny())(X), model(X))
