"""Reading weights: containers, prefixes, and everything that must be refused."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny
from torch import nn

from alphatune.core.errors import CheckpointError, NumericError, UntrustedError
from alphatune.models.checkpoint_loading import load_weights_
from alphatune.models.checkpoints import read_checkpoint
from alphatune.models.cifar import resnet18, resnet20, resnet32, resnet44, resnet56, resnet110


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return tiny().state_dict()


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + k: v for k, v in weights().items()}


LAYOUTS = {
    "bare": (weights(), ""),
    "state_dict and module.": ({"state_dict": prefixed("module."), "epoch": 3}, "state_dict"),
    "model and _orig_mod.": ({"model": prefixed("_orig_mod.")}, "model"),
    "module._orig_mod.": (prefixed("module._orig_mod."), ""),
    "lightning": ({"state_dict": prefixed("model."), "pytorch-lightning_version": "2"}, "state_dict"),
    "ema wins": ({"state_dict": prefixed("other."), "state_dict_ema": weights()}, "state_dict_ema"),
    "model_ema": ({"model": prefixed("other."), "model_ema": weights()}, "model_ema"),
    "model_state_dict": ({"model_state_dict": weights(), "optimizer": {}}, "model_state_dict"),
    "timm training": ({"state_dict": weights(), "args": argparse.Namespace(lr=1)}, "state_dict"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    content, key = LAYOUTS[layout]
    path = tmp_path / "x.pt"
    torch.save(content, path)
    checkpoint = read_checkpoint(path)
    model = tiny()
    assert load_weights_(model, checkpoint).weights_key == key
    assert all(torch.equal(v, weights()[k]) for k, v in model.state_dict().items())


def test_a_submodule_called_module(tmp_path: Path) -> None:
    class Wrap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = tiny()

    torch.save(Wrap().state_dict(), tmp_path / "x.pt")
    load_weights_(Wrap(), read_checkpoint(tmp_path / "x.pt"))
    load_weights_(tiny(), read_checkpoint(tmp_path / "x.pt"))


def test_a_buffer_may_be_infinite(tmp_path: Path) -> None:
    model = tiny()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    torch.save(model.state_dict(), tmp_path / "x.pt")
    load_weights_(model, read_checkpoint(tmp_path / "x.pt"))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".tar", ".pth.tar", ".ckpt"])
def test_suffixes_of_torch_save(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    torch.save(weights(), path)
    load_weights_(tiny(), read_checkpoint(path))


def test_legacy_format_and_safetensors(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    load_weights_(tiny(), read_checkpoint(tmp_path / "x.pth"))
    save_file(weights(), tmp_path / "x.safetensors")
    load_weights_(tiny(), read_checkpoint(tmp_path / "x.safetensors"))


def test_missing_batch_counters_are_no_mismatch(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({k: v for k, v in weights().items() if "num_batches" not in k}, path)
    load_weights_(tiny(), read_checkpoint(path))


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, legacy: bool) -> None:
    marker, path = tmp_path / "was-run", tmp_path / "x.pth"
    content = {"state_dict": Evil(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UntrustedError, match=r"Path|getattr") as error:
        read_checkpoint(path)
    assert "`unsafe_pickle`" in error.value.hint
    assert not marker.exists()
    with pytest.raises(CheckpointError, match="no state dict"):  # what it did was not to give weights
        read_checkpoint(path, unsafe_pickle=True)
    assert marker.exists()


def test_a_bare_pickle_is_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "was-run", tmp_path / "x.pt"
    path.write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises((UntrustedError, CheckpointError)):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x02junk", b"PK\x03\x04junk" * 20])
def test_corrupt_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises((CheckpointError, UntrustedError)) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    torch.save(weights(), path) if suffix == ".pth" else save_file(weights(), path)
    content = path.read_bytes()
    for keep in range(0, len(content), len(content) // 23):
        path.write_bytes(content[:keep])
        with pytest.raises((CheckpointError, UntrustedError)):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [({"epoch": 3}, "no state dict"), ([1, 2], "expected a state dict"), ({}, "no state dict")],
)
def test_no_weights_inside(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["missing.pt", "x.zip"])
def test_missing_or_odd_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / name)


def test_another_architecture(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="another architecture") as error:
        load_weights_(resnet20(), read_checkpoint(tmp_path / "x.pt"))
    assert "MODEL" in error.value.hint


def test_another_number_of_classes_suggests_the_option(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"head\.weight") as error:
        load_weights_(tiny(num_classes=9), read_checkpoint(tmp_path / "x.pt"))
    assert "num_classes=4" in error.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    broken = weights()
    broken["bn2.weight"][3] = value
    torch.save(broken, tmp_path / "x.pt")
    with pytest.raises(NumericError, match=r"bn2\.weight"):
        load_weights_(tiny(), read_checkpoint(tmp_path / "x.pt"))


@pytest.mark.parametrize(
    ("build", "parameters", "norms"),
    [
        (resnet20, 269_722, 19), (resnet32, 464_154, 31), (resnet44, 658_586, 43), (resnet56, 853_018, 55),
        (resnet110, 1_727_962, 109), (resnet18, 11_173_962, 20),
    ],
)  # fmt: skip
def test_cifar_resnets_have_the_published_size(build, parameters: int, norms: int) -> None:
    model = build()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == norms
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
