"""Every form of the MODEL argument, against local files only."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from conftest import TINY

from alphatune.core.errors import CheckpointError, ConfigurationError, UnsupportedModelError
from alphatune.data.preprocessing import Preprocessing
from alphatune.models.sources import build, format_model_kwargs, parse_model_kwargs


def test_timm_name() -> None:
    source = build("tf_efficientnet_lite0", pretrained=False, model_kwargs={"num_classes": 5})
    assert source.kind == "timm"
    assert source.model.num_classes == 5
    assert source.preprocessing is not None
    assert source.preprocessing.mean == (0.5, 0.5, 0.5)


def test_local_dir(tmp_path: Path) -> None:
    torch.manual_seed(2)
    original = timm.create_model("resnet18", num_classes=3)
    timm.models.save_for_hf(original, str(tmp_path / "m"), safe_serialization=True)
    for spec in (f"local-dir:{tmp_path / 'm'}", str(tmp_path / "m")):
        source = build(spec)
        assert source.kind == "timm"
        for key, value in source.model.state_dict().items():
            assert torch.equal(value, original.state_dict()[key])


def test_torchvision_name() -> None:
    source = build("torchvision:resnet50:IMAGENET1K_V2", pretrained=False)
    assert source.kind == "torchvision"
    assert source.preprocessing is not None
    assert round(224 / source.preprocessing.crop_pct) == 232


def test_own_file_and_module() -> None:
    assert type(build(TINY, model_kwargs={"width": 4}).model).__name__ == "Tiny"
    cifar = build("alphatune.models.cifar:resnet20")
    assert cifar.kind == "factory"
    assert cifar.preprocessing == Preprocessing(
        (3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_pct=1.0
    )
    digits = build("alphatune.models.digits:convnet").preprocessing
    assert digits is not None
    assert digits.input_size == (1, 8, 8)


def test_a_folder_named_like_a_model_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resnet18").mkdir()
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert build("resnet18", pretrained=False).kind == "timm"
    with pytest.raises(ConfigurationError, match="not written by alphatune"):
        build("photos")


def test_method_of_a_class() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    source = build(
        "efficientnet_lite_pytorch:EfficientNet.from_name", model_kwargs={"model_name": "efficientnet-lite0"}
    )
    assert type(source.model).__name__ == "EfficientNet"


def test_module_beside_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynet_for_test.py").write_text(
        "import torch\ndef net():\n    return torch.nn.BatchNorm2d(3)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert isinstance(build("mynet_for_test:net").model, torch.nn.BatchNorm2d)


def test_factories_do_not_print_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "loud.py"
    path.write_text("import torch\ndef net():\n    print('building')\n    return torch.nn.BatchNorm2d(3)\n")
    build(f"{path}:net")
    assert capsys.readouterr().out == ""


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_net.py").write_text("channels = 5\n")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom neighbour_of_net import channels\nprint('loud')\n"
        "def net():\n    return torch.nn.BatchNorm2d(channels)\n"
    )
    assert build(f"{tmp_path / 'net.py'}:net").model.num_features == 5


def test_model_kwargs_survive_being_written() -> None:
    kwargs = {"shape": (3,), "name": "x=y", "depth": None, "scale": 0.5, "flags": [True]}
    assert parse_model_kwargs(format_model_kwargs(kwargs)) == kwargs


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("resnet5", "unknown model", "resnet50"),
        ("efficientnetb0", "unknown model", "efficientnet_b0"),
        ("timm/resnet50", "unknown model", ""),
        ("torchvision:resnet19", "unknown torchvision model", "resnet18"),
        ("torchvision:resnet18:V9", "no weights", "IMAGENET1K_V1"),
        ("nowhere.at_all:net", "cannot import", "installed"),
        ("alphatune.models.cifar:resnet21", "has no", "resnet20"),
        ("missing.py:net", "no such file", ""),
        (TINY.replace(":tiny", ""), "names an architecture", "FACTORY"),
        ("a b:c", "cannot understand", ""),
        ("hf-hub:", "hf-hub", ""),
        ("resnet18.no_such_tag", "no pretrained weights", "a1_in1k"),
    ],
)
def test_unknown_models_get_a_suggestion(spec: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        build(spec)
    assert hint in error.value.hint
    assert "\n" not in str(error.value)


def test_what_is_no_network_is_a_model_that_is_not_supported() -> None:
    with pytest.raises(UnsupportedModelError, match=r"must give a torch\.nn\.Module, got int"):
        build(TINY.replace(":tiny", ":not_a_model"))


def test_arguments_the_factory_refuses() -> None:
    with pytest.raises(ConfigurationError, match="does not take"):
        build(TINY, model_kwargs={"colour": "blue"})
    with pytest.raises(ConfigurationError):
        build("resnet18", pretrained=False, model_kwargs={"colour": "blue"})


def test_a_module_that_fails_to_import(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('first line\\nsecond line')")
    with pytest.raises(ConfigurationError, match="RuntimeError: first line second line"):
        build(f"{path}:net")


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network the error names the model and the way out; nothing hangs."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises((CheckpointError, ConfigurationError), match="resnet18"):
        build("resnet18.a1_in1k")


def test_local_dir_that_is_missing() -> None:
    with pytest.raises((CheckpointError, ConfigurationError)):
        build("local-dir:/nonexistent")


def test_model_kwargs_are_literals_or_text() -> None:
    assert parse_model_kwargs(["a=1", "b=relu", "c=[1,2]", "d=true", "e=None", "f=x=y"]) == {
        "a": 1, "b": "relu", "c": [1, 2], "d": True, "e": None, "f": "x=y",
    }  # fmt: skip
    for bad in ("novalue", "=3", "a-b=3"):
        with pytest.raises(ConfigurationError):
            parse_model_kwargs([bad])


def test_preprocessing_is_unknown_for_own_code() -> None:
    assert build(TINY).preprocessing is None
    assert Preprocessing().mean == (0.485, 0.456, 0.406)
