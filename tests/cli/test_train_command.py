"""``alphatune train`` through its real entry point: every option that changes the run, faults, resuming."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import TINY, slow
from forks import run_captured, run_distributed, started

import alphatune
from alphatune.cli.main import main
from alphatune.jobs.run_folder import opened_run_folder
from alphatune.models.output import is_bundle
from alphatune.norms.batch_group import BatchGroupNorm2d
from alphatune.settings import TrainSettings

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(*args: object, name: str = "train") -> list[str]:
    return [sys.executable, "-m", "alphatune", name, *map(str, args)]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*args: object, code: int = 0, name: str = "train") -> Done:
    """The command in this process, which is faster."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main([name, *map(str, args)])
    done = Done(int(stop.value.code or 0), out.getvalue(), err.getvalue())
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def spawn(
    *args: object, code: int = 0, before: Callable[[], object] = int
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with one thread, so that sums are added in one order."""
    done = run_captured(["train", *args], environment=ENV, before=before)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def error_of(*args: object, code: int) -> str:
    return run(*args, code=code).stderr.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def job(image_folder: Path) -> list[object]:
    """48 images of 12×12, six of them for validation; four steps an epoch."""
    return [TINY, "--data", image_folder, "--val-fraction", 0.125, "--batch-size", 10, "--epochs", 3,
            "--input-size", 12, "--crop-pct", 1, "--workers", 0, "--lr", 0.05]  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, job: list[object]) -> Path:
    output = tmp_path_factory.mktemp("train") / "run"
    done = run(*job, "--norm", "ghost", "--ghost-size", 4, "-o", output, "--format", "json")
    document = json.loads(done.stdout)
    assert document == json.loads((output / "result.json").read_text())
    return output


def test_what_a_run_leaves_behind(trained: Path) -> None:
    document = json.loads((trained / "result.json").read_text())
    assert {f.name for f in trained.iterdir()} >= {
        "model.safetensors", "alphatune.json", "result.json", "log.csv", "curves.png", "run.toml", "checkpoint.pt",
    }  # fmt: skip
    assert not [f for f in trained.iterdir() if f.name.startswith(".")]
    assert document["data"]["train"] == 44 or document["data"]["train"] + document["data"]["validation"] == 48
    assert document["model"]["norm"]["kind"] == "ghost"
    assert document["model"]["norm"]["ghost_batch_size"] == 4
    assert document["env"]["steps_per_epoch"] == document["data"]["train"] // 10
    log = pd.read_csv(trained / "log.csv")
    assert log["epoch"].tolist() == [1, 2, 3]
    assert log["val_top1"].iloc[-1] == document["validation"]["top1"]
    assert not (trained / "tensorboard").exists()  # nobody asked for it
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_trained_model_is_tuned_and_goes_back_into_stock_code(
    trained: Path, image_folder: Path, tmp_path: Path
) -> None:
    from tiny import tiny

    plain = tiny()
    plain.load_state_dict(weights(trained))
    tuned = tmp_path / "tuned"
    args = [trained, "--trust-code", "--data", image_folder, "--val-fraction", 0.125, "--alphas", "0,0.1",
            "--accept", "best", "--metric", "loss", "-o", tuned, "--format", "json", "--workers", 0]  # fmt: skip
    done = run(*args, name="tune")
    result = json.loads(done.stdout)
    trained_result = json.loads((trained / "result.json").read_text())
    assert result["baseline"]["loss"] == pytest.approx(trained_result["validation"]["loss"], abs=1e-6)
    assert result["data"]["n"] == trained_result["data"]["validation"]
    assert same(trained, tuned)


def test_the_next_command_works(job: list[object], tmp_path: Path) -> None:
    done = run(*job, "-o", tmp_path / "run", "--epochs", 1)
    lines = done.stdout.splitlines()
    line = next(line for line in lines[lines.index("Next:") :] if line.startswith("  alphatune "))
    args = line.removeprefix("  alphatune ").split()
    name, *rest = args
    run(*rest, "--trust-code", "-o", tmp_path / "tuned", "--workers", 0, name=name)


@pytest.mark.parametrize("norm", ["batch-group", "group", "renorm"])
def test_other_norms_load_back_as_they_were_trained(job: list[object], tmp_path: Path, norm: str) -> None:
    output = tmp_path / "run"
    sizes = {
        "batch-group": ["--groups", 4, "--examples-per-group", 5],
        "group": ["--groups", 4],
        "renorm": [],
    }
    document = json.loads(run(*job, "--norm", norm, *sizes[norm], "-o", output, "--format", "json").stdout)
    model = alphatune.load(output, trust_code=True)
    kinds = {type(m).__name__ for m in model.modules() if hasattr(m, "running_mean")}
    assert (
        kinds
        == {"batch-group": {"BatchGroupNorm2d"}, "group": {"GroupNorm2d"}, "renorm": {"BatchNorm2d"}}[norm]
    )
    if norm == "batch-group":
        layer = next(m for m in model.modules() if isinstance(m, BatchGroupNorm2d))
        assert (layer.num_groups, layer.examples_per_group) == (4, 5)
    done = run(
        output, "--trust-code", "--data", job[2], "--val-fraction", 0.125, "--workers", 0, "--format", "json",
        name="evaluate",
    )  # fmt: skip
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics == pytest.approx(
        metrics | document["validation"] | {"n": document["data"]["validation"]}, abs=1e-5
    )


def test_a_groupnorm_model_is_tuned_from_alpha_one(job: list[object], tmp_path: Path) -> None:
    run(*job, "--norm", "group", "--groups", 4, "--epochs", 1, "-o", tmp_path / "run")
    args = [tmp_path / "run", "--trust-code", "--data", job[2], "--val-fraction", 0.125, "--workers", 0]
    plan = run(*args, "--dry-run", "--format", "json", name="tune")
    assert json.loads(plan.stdout)["alphas"][:3] == [1.0, 0.995, 0.99]
    tuned = run(*args, "--alphas", "0.9,0.5", "--format", "json", "-o", tmp_path / "tuned", name="tune")
    result = json.loads(tuned.stdout)
    assert [p["alpha"] for p in result["curve"]] == [1.0, 0.9, 0.5]
    trained = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["baseline"]["loss"] == pytest.approx(trained["validation"]["loss"], abs=1e-6)


def test_workers_and_cache_do_not_change_a_run(job: list[object], tmp_path: Path) -> None:
    run(*job, "-o", tmp_path / "alone")
    run(*job, "-o", tmp_path / "helped", "--workers", 2)
    assert same(tmp_path / "alone", tmp_path / "helped")
    run(*job, "-o", tmp_path / "cached", "--cache", "device", "--augment", "none")
    run(*job, "-o", tmp_path / "plain", "--augment", "none")
    assert same(tmp_path / "cached", tmp_path / "plain")
    assert not same(tmp_path / "alone", tmp_path / "plain")


@pytest.mark.slow
def test_a_compiled_model_trains_the_same(job: list[object], tmp_path: Path) -> None:
    """``torch.compile`` needs a C++ compiler; weights keep their names and agree but for rounding."""
    run(*job, "--norm", "ghost", "--ghost-size", 5, "-o", tmp_path / "eager")
    run(*job, "--norm", "ghost", "--ghost-size", 5, "-o", tmp_path / "compiled", "--compile")
    eager, compiled = weights(tmp_path / "eager"), weights(tmp_path / "compiled")
    assert eager.keys() == compiled.keys()
    for name in eager:
        torch.testing.assert_close(compiled[name], eager[name], rtol=1e-3, atol=1e-4)


def test_the_seed_decides(job: list[object], tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(*job, "--epochs", 1, "-o", tmp_path / name, "--seed", seed)
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


def test_a_saved_configuration_repeats_a_run(trained: Path, tmp_path: Path) -> None:
    run("--config", trained / "run.toml", TINY, "--data", "ignored", "-o", tmp_path / "x", code=3)
    run("--config", trained / "run.toml", "-o", tmp_path / "again")
    assert same(trained, tmp_path / "again")


def test_dry_run_writes_nothing(job: list[object], tmp_path: Path) -> None:
    done = run(*job, "-o", tmp_path / "run", "--dry-run", "--norm", "ghost", "--ghost-size", 4)
    assert "trained with ghost norm, " in done.stdout
    assert list(tmp_path.iterdir()) == []


# --- stopping and going on -------------------------------------------------------------------


@pytest.fixture(scope="session")
def long(job: list[object]) -> list[object]:
    """160 steps, a checkpoint after each."""
    return [*job, "--epochs", 40, "--eval-every", 20, "--checkpoint-minutes", 0]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, long: list[object]) -> Path:
    """The uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    spawn(*long, "-o", output)
    return output


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), slow(signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_goes_on(
    long: list[object], whole: Path, tmp_path: Path, number: int, code: int
) -> None:
    output = tmp_path / "run"
    process = subprocess.Popen(
        command(*long, "--workers", 1, "-o", output, "--format", "json"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
        # A job in the background inherits "ignore Ctrl-C", which is no terminal's state.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), start_new_session=True,
    )  # fmt: skip
    wait_for(output / "log.csv")
    os.killpg(process.pid, number)  # the worker process, too, as terminals and schedulers do
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert json.loads(stdout)["error"]["code"] == code
    assert not is_bundle(output)
    assert "unfinished run" in error_of(*long, "-o", output, code=2)
    spawn(*long, "-o", output, "--resume")
    assert same(whole, output)


def kill_and_resume(long: list[object], whole: Path, output: Path, kills: int, seed: int) -> None:
    """Kill -9 at random moments, resume each time; the end is the uninterrupted run's, bit for bit."""
    rng, steps = random.Random(seed), []
    for _ in range(kills):
        checkpoint = output / "checkpoint.pt"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = started(["train", *long, "-o", output, "--resume"])
        while process.exitcode is None and not (
            checkpoint.exists() and checkpoint.stat().st_mtime_ns != before
        ):
            time.sleep(0.001)  # until it trains: sleeping through the imports would prove nothing
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        if checkpoint.exists():
            steps.append(torch.load(checkpoint, weights_only=True)["step"])
        if is_bundle(output):
            assert same(whole, output)
    assert steps == sorted(steps)
    assert steps[0] > 0
    spawn(*long, "-o", output, "--resume")
    assert same(whole, output)
    assert not list(output.glob(".*"))
    result, expected = (json.loads((f / "result.json").read_text()) for f in (output, whole))
    assert result["validation"] == expected["validation"]


def test_kill_and_resume(long: list[object], whole: Path, tmp_path: Path) -> None:
    kill_and_resume(long, whole, tmp_path / "run", kills=2, seed=0)


@pytest.mark.slow
def test_twenty_kills_and_resumes(long: list[object], whole: Path, tmp_path: Path) -> None:
    """Some fall into the writing of a checkpoint: with one after every step, much of the time is that."""
    longer = [*long, "--epochs", 400]
    spawn(*longer, "-o", tmp_path / "whole")
    kill_and_resume(longer, tmp_path / "whole", tmp_path / "run", kills=20, seed=1)


def test_resuming_a_finished_run_changes_nothing(trained: Path, job: list[object]) -> None:
    before = {f.name: f.stat().st_mtime_ns for f in trained.iterdir()}
    done = run(*job, "--norm", "ghost", "--ghost-size", 4, "-o", trained, "--resume", "--format", "json")
    assert json.loads(done.stdout) == json.loads((trained / "result.json").read_text())
    assert {f.name: f.stat().st_mtime_ns for f in trained.iterdir()} == before


def test_a_run_resumes_as_it_began(trained: Path, job: list[object]) -> None:
    line = error_of(*job, "--norm", "ghost", "--ghost-size", 8, "-o", trained, "--resume", code=2)
    assert "ghost_size" in line
    assert "exists" in error_of(*job, "-o", trained, code=2)


def test_a_loss_that_is_not_finite(job: list[object], tmp_path: Path) -> None:
    line = error_of(*job, "--epochs", 50, "--lr", "1e25", "-o", tmp_path / "run", code=6)
    assert "NaN or infinite" in line
    assert not is_bundle(tmp_path / "run")


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(job: list[object], tmp_path: Path) -> None:
    output = tmp_path / "run"
    first = started(["train", *job, "--epochs", 100, "-o", output])
    wait_for(output / "checkpoint.pt")
    first.terminate()
    first.join(60)
    kept = (output / "checkpoint.pt").read_bytes()
    done = spawn(*job, "--epochs", 100, "-o", output, "--resume", code=5, before=_small_files)
    assert "cannot write" in done.stderr
    assert (output / "checkpoint.pt").read_bytes() == kept
    assert not [f for f in output.iterdir() if "partial" in f.name]


# --- fine-tuning, auxiliary heads ------------------------------------------------------------


def test_fine_tuning_makes_a_new_head(job: list[object], tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    other = tmp_path / "ten.pth"
    from tiny import tiny

    state = {k: v for k, v in torch.load(tiny_checkpoint)["state_dict"].items() if "head" not in k}
    torch.save({**state, **{f"module.head.{k}": v for k, v in tiny(10).head.state_dict().items()}}, other)
    args = [
        *job,
        "--checkpoint",
        other,
        "--epochs",
        1,
        "--lr",
        0,
        "--weight-decay",
        0,
        "--mean",
        0,
        "--std",
        1,
    ]
    document = json.loads(run(*args, "-o", output, "--format", "json").stdout)
    assert document["model"]["new_weights"] == ["head.weight", "head.bias"]
    for name, tensor in weights(output).items():
        if "head" not in name and "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, state[f"module.{name}"])
    assert weights(output)["head.weight"].shape == (4, 8)


def test_a_checkpoint_of_another_architecture_is_refused(job: list[object], tmp_path: Path) -> None:
    from tiny import tiny

    torch.save(tiny(10, width=16).state_dict(), tmp_path / "wide.pth")
    error_of(*job, "--checkpoint", tmp_path / "wide.pth", "-o", tmp_path / "run", code=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["torchvision:inception_v3", "inception_v3"])
def test_inception_trains_with_its_auxiliary_head(image_folder: Path, tmp_path: Path, model: str) -> None:
    kwargs = ["--model-kwargs", "aux_logits=True"]
    output = tmp_path / "run"
    run(model, *kwargs, "--data", image_folder, "--limit", 4, "--batch-size", 2, "--epochs", 1, "--input-size", 299,
        "--val-fraction", 0.2, "--workers", 0, "--lr", 0.01, "-o", output)  # fmt: skip
    state = weights(output)
    head = next(k for k in state if k.startswith("AuxLogits.") and k.endswith("fc.weight"))
    assert state[head].shape[0] == 4
    checkpoint = torch.load(output / "checkpoint.pt", weights_only=True)
    assert len(checkpoint["optimizer"]["state"]) == sum(
        len(g["params"]) for g in checkpoint["optimizer"]["param_groups"]
    )


# --- several processes -----------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "ghost"])
def test_two_processes(job: list[object], tmp_path: Path, norm: str) -> None:
    """Ghost batches of 5 in two shares of 10 are those of one batch of 20: the same run but for rounding."""
    size = ["--ghost-size", 5] if norm == "ghost" else []
    args = [*job, "--batch-size", 20, "--norm", norm, *size, "--format", "json"]
    done, _ = run_distributed(2, ["train", *args, "-o", tmp_path / "two"], environment=ENV)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    assert document["env"]["processes"] == 2
    single = json.loads(run(*args, "-o", tmp_path / "one").stdout)
    assert document["validation"].keys() == single["validation"].keys()
    assert document["data"]["validation"] == single["data"]["validation"]
    if norm == "ghost":
        learned = [k for k in weights(tmp_path / "one") if "running" not in k and "tracked" not in k]
        for name in learned:
            torch.testing.assert_close(
                weights(tmp_path / "two")[name], weights(tmp_path / "one")[name], rtol=1e-3, atol=1e-4
            )
    done = run(
        tmp_path / "two", "--trust-code", "--data", job[2], "--val-fraction", 0.125, "--workers", 0,
        "--format", "json", name="evaluate",
    )  # fmt: skip
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics == pytest.approx(
        metrics | document["validation"] | {"n": document["data"]["validation"]}, abs=1e-6
    )


@pytest.mark.slow
def test_two_processes_stop_and_go_on(job: list[object], tmp_path: Path) -> None:
    """Ctrl-C in the terminal of torchrun reaches all processes, twice."""
    args = [
        *job,
        "--batch-size",
        20,
        "--norm",
        "ghost",
        "--ghost-size",
        5,
        "--epochs",
        200,
        "--eval-every",
        100,
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]

    def start(output: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*launch, *command(*args, "-o", output, "--resume")[1:]],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENV, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    assert start(tmp_path / "whole").wait(timeout=240) == 0
    process = start(tmp_path / "run")
    wait_for(tmp_path / "run" / "log.csv")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) != 0
    step = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < step < 400
    assert start(tmp_path / "run").wait(timeout=240) == 0
    assert same(tmp_path / "whole", tmp_path / "run")


def test_a_run_that_another_process_stopped_is_not_finished(
    job: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop returns False in every process; only the one that got the signal has it delivered."""
    monkeypatch.setattr("alphatune.jobs.train.train", lambda *args, **kwargs: False)
    run(*job, "-o", tmp_path / "run", code=130)
    assert not is_bundle(tmp_path / "run")


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "code", "expected"),
    [
        (["--batch-size", 1000], 2, "batch of 1000"),
        (["--norm", "ghost", "--ghost-size", 0], 2, "ghost-size"),
        (["--epochs", 0], 2, "epochs"),
        (["--milestones", "a,b"], 2, "milestones"),
        (["--warmup-epochs", 3], 2, "warmup-epochs"),
        (["--val-fraction", 2], 2, "val-fraction"),
        (["--val-data", "nowhere"], 2, "val"),
        (["--classes-per-batch", 3], 2, "divide"),
        (["--sync-bn"], 2, "CUDA"),
        (["--sync-bn", "--norm", "ghost"], 2, "--sync-bn does not go with --norm ghost (it is for batch)"),
        (["--ghost-size", 16], 2, "--ghost-size does not go with --norm batch (it is for ghost)"),
        (["--norm", "renorm", "--groups", 4], 2, "--groups does not go with --norm renorm"),
        (["--norm", "group", "--examples-per-group", 4], 2, "--examples-per-group does not go with --norm group"),
        (["--device", "cuda:7"], 2, "no device"),
        (["--resume", "--overwrite"], 2, "give one"),
        (["--model-kwargs", "num_classes=7"], 2, "4 classes"),
        (["--pretrained"], 2, "--checkpoint"),
        (["--seed", -1], 2, "seed"),
        (["--split-seed", 2**40], 2, "split-seed"),
        (["--batch-size", 10, "--classes-per-batch", 5], 2, "4 classes"),
        (["--checkpoint", "nowhere.pth"], 3, "nowhere.pth"),
    ],
)  # fmt: skip
def test_bad_options(
    job: list[object], tmp_path: Path, extra: list[object], code: int, expected: str
) -> None:
    assert expected in error_of(*job, *extra, "-o", tmp_path / "run", code=code)
    assert list(tmp_path.iterdir()) == []


def test_models_without_batchnorm_and_folders_of_others(job: list[object], tmp_path: Path) -> None:
    no_norm = TINY.replace(":tiny", ":no_norm")
    error_of(no_norm, *job[1:], "--norm", "ghost", "-o", tmp_path / "run", code=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    error_of(*job, "-o", tmp_path / "mine", "--overwrite", code=2)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_overwrite_starts_anew_and_removes_only_what_a_run_writes(job: list[object], tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(*job, "-o", output, "--epochs", 1)
    (output / "notes.txt").write_text("mine")
    (output / ".checkpoint.pt.1234.partial").write_text("left by kill -9")
    run(*job, "-o", output, "--epochs", 2, "--overwrite")
    assert len(pd.read_csv(output / "log.csv")) == 2
    assert (output / "notes.txt").read_text() == "mine"
    assert not list(output.glob(".*.partial"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "run.toml").write_text("mine = 1")
    error_of(*job, "-o", mine, "--overwrite", code=2)
    assert (mine / "run.toml").read_text() == "mine = 1"


def test_a_configuration_does_not_repeat_consent(job: list[object], tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(*job, "-o", output, "--epochs", 1, "--overwrite")
    before = (output / "checkpoint.pt").stat().st_mtime_ns
    assert "exists" in error_of("--config", output / "run.toml", code=2)
    run("--config", output / "run.toml", "--resume")
    assert (output / "checkpoint.pt").stat().st_mtime_ns == before
    assert "nothing was run" in run("--config", output / "run.toml", "--resume", "--dry-run").stdout


def test_a_run_that_broke_off_before_its_first_checkpoint_begins_anew(
    job: list[object], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / ".run.toml.1234.partial").write_text("")
    run(*job, "-o", output, "--epochs", 1, "--resume")
    (output / "alphatune.json").unlink()
    (output / "checkpoint.pt").unlink()
    run(*job, "-o", output, "--epochs", 2)
    assert len(pd.read_csv(output / "log.csv")) == 2


def test_one_process_at_a_time(job: list[object], tmp_path: Path) -> None:
    settings = TrainSettings(model=TINY, data="", output=str(tmp_path / "run"))
    with opened_run_folder(tmp_path / "run", settings):
        assert "another process" in error_of(*job, "-o", tmp_path / "run", code=2)
    run(*job, "-o", tmp_path / "run", "--epochs", 1)


def test_output_inside_the_data(job: list[object], image_folder: Path) -> None:
    assert "inside the data" in error_of(*job, "-o", image_folder / "run", code=2)
    assert not (image_folder / "run").exists()


def test_one_process_of_several_speaks(
    job: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [*job, "--epochs", 0, "-o", tmp_path / "run", "--format", "json"]
    assert json.loads(run(*args, code=2).stdout)["error"]["code"] == 2
    monkeypatch.setenv("RANK", "1")
    assert run(*args, code=2).stdout == ""
