"""Files from strangers: no code of theirs runs, nothing outside their folder is read or written."""

from __future__ import annotations

import builtins
import collections
import io
import json
import os
import pickle
import shutil
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, Run
from tiny import tiny

import alphatune
from alphatune.core.errors import AlphatuneError, InputError, UntrustedError
from alphatune.data.datasets import open_data
from alphatune.models.checkpoints import read_checkpoint
from alphatune.models.sources import build
from alphatune.models.third_party_weights import reading_safely


class Calls:
    """Unpickles as the result of a call."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def payloads(marker: Path) -> dict[str, tuple[object, str]]:
    """What would run code if it were unpickled, and the global that it needs."""
    command = f"touch '{marker}'"
    return {
        "os.system": (Calls(os.system, command), "system"),
        "eval": (Calls(builtins.eval, f"open({str(marker)!r}, 'w')"), "eval"),
        "exec": (Calls(builtins.exec, f"open({str(marker)!r}, 'w')"), "exec"),
        "open": (Calls(io.open, str(marker), "w"), "open"),
        "getattr": (Calls(getattr, Path, "touch"), "getattr"),
        "torch.load": (Calls(torch.load, str(marker)), "load"),
        "hub": (Calls(torch.hub.load, "anyone/anything", "any"), "load"),
    }


def nested(payload: object) -> dict[str, object]:
    """A payload in files that are otherwise fine, wherever a file of weights has room for one."""
    module, metadata, parameter = tiny(), tiny().state_dict(), torch.nn.Parameter(torch.zeros(2))
    module._parameters["evil"] = payload  # type: ignore[assignment]
    metadata._metadata = {"": {"version": payload}}  # type: ignore[attr-defined]
    parameter.evil = payload  # type: ignore[attr-defined]
    weights = tiny().state_dict()
    return {
        "beside": {"state_dict": weights, "extra": payload},
        "before": {"args": payload, "state_dict": weights},
        "among the weights": {**weights, "extra": payload},
        "list": {"state_dict": weights, "history": [1, [payload, 2]]},
        "key": {"state_dict": weights, "by_config": {payload: 1}},
        "set": {"state_dict": weights, "seen": {payload}},
        "state": {"state_dict": weights, "args": types.SimpleNamespace(x=payload)},
        "items": {"state_dict": weights, "queue": collections.deque([payload])},
        "default": {"state_dict": weights, "d": collections.defaultdict(None, a=payload)},
        "counter": {"state_dict": weights, "c": collections.Counter({"a": payload})},
        "tensor's attribute": {"state_dict": weights, "p": parameter},
        "metadata": {"state_dict": metadata},
        "module": {"model": module},
        "whole module": module,
    }


NAMES = list(payloads(Path("x")))


def write(content: object, path: Path, how: str) -> None:
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    elif how == "tar":  # the oldest format of torch.save
        with tarfile.open(path, "w") as archive:
            for name in ("sys_info", "pickle", "storages", "tensors"):
                data = pickle.dumps(content)
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    elif how == "odd zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../../outside/data.pkl", pickle.dumps(content))
            archive.writestr("../../outside/version", b"3\n")
            archive.writestr("/absolute/data/0", b"0")
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "tar", "odd zip"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
@pytest.mark.parametrize("name", NAMES)
def test_no_pickle_runs_code(tmp_path: Path, name: str, suffix: str, how: str) -> None:
    marker = tmp_path / "was-run"
    payload, needs = payloads(marker)[name]
    path = tmp_path / f"weights{suffix}"
    write({"epoch": 3, "extra": payload}, path, how)
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert not marker.exists()
    assert error.value.exit_code == 3
    if how in ("zip", "legacy", "pickle"):
        assert isinstance(error.value, UntrustedError)
        assert needs in error.value.message


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "tar", "odd zip"])
@pytest.mark.parametrize("place", list(nested("")))
@pytest.mark.parametrize("name", NAMES)
def test_weights_beside_code_are_read_without_running_it(
    tmp_path: Path, name: str, place: str, how: str
) -> None:
    marker, path = tmp_path / "was-run", tmp_path / "weights.pth"
    payload, needs = payloads(marker)[name]
    write(nested(payload)[place], path, how)
    if how in ("tar", "odd zip"):
        with pytest.raises(InputError):
            read_checkpoint(path)
    else:
        checkpoint = read_checkpoint(path, unsafe_pickle=True)  # it is not needed, and not used
        assert not checkpoint.unsafe_pickle
        wanted = tiny().state_dict()
        found = checkpoint.containers[0].tensors
        assert found.keys() == wanted.keys()
        assert all(type(v) is torch.Tensor for v in found.values())
        assert all(v.shape == wanted[k].shape for k, v in found.items())
        (line,) = checkpoint.warnings
        assert place == "module" or place == "whole module" or needs in line
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "was-run", tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(payloads(marker)["os.system"][0], protocol=protocol))
    with pytest.raises(InputError):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_pickle_under_the_name_of_safetensors(tmp_path: Path) -> None:
    marker, path = tmp_path / "was-run", tmp_path / "weights.safetensors"
    write({"state_dict": payloads(marker)["os.system"][0]}, path, "zip")
    with pytest.raises(InputError):
        read_checkpoint(path)
    assert not marker.exists()


def test_the_command_names_what_it_refused(run: Run, tmp_path: Path, image_folder: Path) -> None:
    """Weights that only code from the file can make."""
    marker, path = tmp_path / "was-run", tmp_path / "weights.pth"
    code = f"open({str(marker)!r}, 'w') and {{'state_dict': __import__('tiny').tiny().state_dict()}}"
    write(Calls(builtins.eval, code), path, "zip")
    words = ["tune", TINY, "--checkpoint", path, "--data", image_folder, "--input-size", 12, "--alphas", "0,0.1",
             "--workers", 0, "-o", tmp_path / "out"]  # fmt: skip
    exit_code, _, err = run(*words)
    assert exit_code == 3
    assert "builtin" in err
    assert "eval" in err
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    exit_code, out, err = run(*words, "--unsafe-pickle", "--format", "json")
    assert exit_code == 0, err
    assert marker.exists()
    assert "without restriction" in err
    assert json.loads(out)["model"]["unsafe_pickle"] is True
    assert "unsafe_pickle" not in (tmp_path / "out" / "run.toml").read_text()


def test_the_command_names_what_it_did_not_run(run: Run, tmp_path: Path, image_folder: Path) -> None:
    marker, path = tmp_path / "was-run", tmp_path / "weights.pth"
    write({"state_dict": tiny().state_dict(), "extra": payloads(marker)["os.system"][0]}, path, "zip")
    exit_code, out, err = run(
        "evaluate", TINY, "--checkpoint", path, "--data", image_folder, "--input-size", 12, "--workers", 0,
        "--unsafe-pickle", "--format", "json",
    )  # fmt: skip
    assert exit_code == 0, err
    assert "names code that was not run: posix.system" in err
    assert not marker.exists()
    assert json.loads(out)["model"]["unsafe_pickle"] is False


def test_a_configuration_cannot_consent(run: Run, tmp_path: Path, image_folder: Path) -> None:
    """A run.toml is a file like any other: it may come with the checkpoint."""
    marker, path = tmp_path / "was-run", tmp_path / "weights.pth"
    write({"state_dict": payloads(marker)["os.system"][0]}, path, "zip")
    config = tmp_path / "run.toml"
    config.write_text(f'unsafe_pickle = true\ntrust_code = true\noverwrite = true\ncheckpoint = "{path}"\n')
    code, _, err = run("tune", TINY, "--config", config, "--data", image_folder, "--input-size", 12, "-o",
                       tmp_path / "out")  # fmt: skip
    assert code == 3
    assert "posix.system" in err
    assert not marker.exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = build("test_resnet", pretrained=False)
    alphatune.patch_(source.model.eval(), 0.1)
    return alphatune.save(source.model, tmp_path / "tuned", source=source)


def test_a_pickle_inside_a_tuned_folder(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    for name in ("model.safetensors", "moments.safetensors", "pytorch_model.bin", "scores.npz"):
        write({"state_dict": payloads(marker)["os.system"][0]}, folder / name, "zip")
    with pytest.raises(InputError):
        alphatune.load(folder)
    from alphatune.reports.scores import read_scores

    with pytest.raises(InputError):
        read_scores(folder)
    assert not marker.exists()


def test_scores_that_are_pickled_objects(tmp_path: Path) -> None:
    import numpy as np

    from alphatune.reports.scores import FILE, read_scores

    marker = tmp_path / "was-run"
    objects = np.array([payloads(marker)["os.system"][0]], dtype=object)
    np.savez(tmp_path / FILE, ids=objects, targets=objects, classes=objects, baseline_loss=objects)
    with pytest.raises(InputError):
        read_scores(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "spec", ["os:system", "evil.py:build", "builtins:eval", "torchvision.models:resnet18"]
)
def test_a_folder_cannot_name_code(
    folder: Path, tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "was-run"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\ndef build(): pass\n")
    manifest = json.loads((folder / "alphatune.json").read_text())
    for kind in ("factory", "torchvision", "timm", "module"):
        manifest["source"] |= {"spec": spec, "kind": kind}
        (folder / "alphatune.json").write_text(json.dumps(manifest))
        if kind == "timm":  # built by config.json, whatever the manifest calls it
            continue
        with pytest.raises(AlphatuneError) as error:
            alphatune.load(folder)
        assert error.value.exit_code in (2, 3)
    assert not marker.exists()


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "tar"])
def test_a_hub_folder_cannot_run_code(folder: Path, tmp_path: Path, run: Run, how: str) -> None:
    """What timm reads of a folder: its configuration, and weights of either kind.

    It leaves them to ``torch.load(weights_only=True)``, which had holes before torch 2.10 (CVE-2025-32434 and later).
    """
    marker = tmp_path / "was-run"
    evil = tmp_path / "evil.pth"
    write(Calls(os.system, f"touch '{marker}'"), evil, how)
    hub = tmp_path / "hub"
    shutil.copytree(folder, hub)
    for name in ("alphatune.json", "model.safetensors"):
        (hub / name).unlink()
    config = json.loads((hub / "config.json").read_text())
    for changes in (
        {"file": str(evil)},
        {"custom_load": True, "file": str(evil)},
        {"url": evil.as_uri()},
        {},
    ):
        (hub / "config.json").write_text(
            json.dumps(config | {"pretrained_cfg": config["pretrained_cfg"] | changes})
        )
        shutil.copy(evil, hub / "pytorch_model.bin")
        code, _, err = run("inspect", f"local-dir:{hub}")
        assert code != 0
        assert code != 70, err
        assert not marker.exists()
    config["architecture"] = "os.system"
    (hub / "config.json").write_text(json.dumps(config))
    assert run("inspect", f"local-dir:{hub}")[0] in (2, 3)


def test_paths_in_an_archive_lead_nowhere(tmp_path: Path, image_folder: Path) -> None:
    """Members are read inside the archive, never written out or followed."""
    image = (image_folder / "ant" / "000.png").read_bytes()
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("../../outside/a.png", "/etc/b.png", "ant/c.png"):
            member = tarfile.TarInfo(name)
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
        for name, kind in (("ant/link.png", tarfile.SYMTYPE), ("ant/hard.png", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/hostname"
            archive.addfile(member)
        device = tarfile.TarInfo("ant/device.png")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
    before = sorted(tmp_path.rglob("*"))
    examples = open_data(path)
    assert len(examples) == 3  # regular files; links and devices are none
    for index in examples.indices:
        content, _ = examples.load(int(index))
        assert content == image
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent.parent / "outside").exists()


def test_the_index_cache_that_timm_keeps_beside_large_archives_is_not_believed(
    tmp_path: Path, image_folder: Path
) -> None:
    path, marker = tmp_path / "images.tar", tmp_path / "was-run"
    with tarfile.open(path, "w") as archive:
        archive.add(image_folder, "images")
    (tmp_path / "_images_tarinfos.pickle").write_bytes(pickle.dumps(Calls(os.system, f"touch '{marker}'")))
    assert len(open_data(path)) == 48
    assert not marker.exists()


@pytest.mark.parametrize("what", ["folder", "parent"])
def test_an_output_that_is_a_link(run: Run, tmp_path: Path, tiny_checkpoint: Path, image_folder: Path,
                                  what: str) -> None:  # fmt: skip
    """The link itself is refused; a linked folder above it is the user's own arrangement."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "link"
    link.symlink_to(elsewhere)
    out = link if what == "folder" else link / "out"
    words = ["tune", TINY, "--checkpoint", tiny_checkpoint, "--data", image_folder, "--input-size", 12,
             "--alphas", "0,0.1", "--workers", 0, "--overwrite", "-o", out]  # fmt: skip
    code, _, err = run(*words)
    if what == "folder":
        assert code == 2
        assert "symbolic link" in err
        assert list(elsewhere.iterdir()) == []
    else:
        assert code == 0, err
        assert (elsewhere / "out" / "result.json").is_file()


def test_a_link_inside_a_tuned_folder_is_not_written_through(folder: Path, tmp_path: Path) -> None:
    """Replacing a folder never touches what a link in it names."""
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    (folder / "report.md").symlink_to(precious)
    alphatune.save(tiny(), folder, overwrite=True)
    assert precious.read_text() == "keep me"
    assert not (folder / "report.md").exists()


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "tar"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_images_cannot_run_code(tmp_path: Path, name: str, how: str) -> None:
    marker, path = tmp_path / "was-run", tmp_path / "images.pt"
    payload, _ = payloads(marker)[name]
    write({"images": torch.zeros(4, 3, 8, 8), "labels": torch.arange(4), "extra": payload}, path, how)
    with pytest.raises(InputError):
        open_data(path)
    assert not marker.exists()


def test_the_libraries_get_plain_weights_from_torch_load_while_they_build(tmp_path: Path) -> None:
    """Whether they ask for ``weights_only`` or not: torch's own reader of such files had holes before 2.10."""
    marker, path, before = tmp_path / "was-run", tmp_path / "weights.pth", torch.load
    weights, evil = tiny().state_dict(), Calls(os.system, f"touch '{marker}'")
    torch.save({"state_dict": weights, "args": evil}, path)
    with reading_safely():
        for given in ({}, {"weights_only": True}, {"weights_only": False}):
            found = torch.load(str(path), map_location="cpu", **given)["state_dict"]
            assert found.keys() == weights.keys()
            assert all(torch.equal(found[name], weights[name]) for name in weights)
        torch.save(evil, path)
        with pytest.raises(UntrustedError, match="system"):
            torch.load(path)
    assert torch.load is before
    assert not marker.exists()
