"""Results of tunes that nobody ran: documents and scores of any shape, for what is drawn from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import asdict

from alphatune.reports.scores import StoredScores, Thumbnail
from alphatune.results.tune import ScoreTuneDocument, Tuned, TuneDocument
from alphatune.statistics.gain import change_intervals, paired_difference
from alphatune.statistics.scores import Scores, summarise

COMMAND = (
    "alphatune tune my.py:net --data 'a folder' --metric loss --workers 2 --output /tmp/secret --overwrite"
)
HOSTILE = (
    "<script>alert(1)</script>", "$x^2$ & \"quoted\" 'names'", "]]><b>bold", "\u202eright to left", "naïve 猫 \x07",
    "{{ 7 * 7 }}", "-->", "a_very_long_class_name_that_no_figure_has_room_for_at_all",
)  # fmt: skip


def typed(document: dict[str, Any]) -> Tuned:
    """The document as a reader gets it."""
    kind: Any = ScoreTuneDocument if document["metric"] == "score" else TuneDocument
    found: Tuned = msgspec.convert(document, kind)
    return found


def written(name: str) -> dict[str, Any]:
    """What a tune wrote into result.json."""
    document: dict[str, Any] = json.loads((Path(__file__).parent / "written" / f"{name}.json").read_text())
    return document


def made_scores(
    n: int = 400,
    classes: int = 10,
    *,
    names: tuple[str, ...] | None = None,
    pictures: int = 3,
    side: int = 32,
) -> StoredScores:
    """Three runs of which the second is better, and pictures of some that flipped."""
    rng = np.random.default_rng(0)
    targets = (np.arange(n) % classes).astype(np.int32)
    logits = rng.normal(0, 1, (n, classes)) + 2.2 * np.eye(classes)[targets]
    runs = {
        name: _scores(targets, sharpness * (logits + noise * rng.normal(0, 1, logits.shape)))
        for name, sharpness, noise in (("baseline", 3.0, 0.0), ("chosen", 1.6, 0.3), ("best", 2.0, 0.2))
    }
    flipped = np.flatnonzero(runs["baseline"].top1 != runs["chosen"].top1)[: 2 * pictures]
    thumbnails = tuple(
        Thumbnail(int(row), f"class/{row}<&>.jpg", rng.integers(0, 255, (side, side, 3), dtype=np.uint8))
        for row in flipped
    )
    return StoredScores(runs, names or tuple(f"class {i}" for i in range(classes)), thumbnails)


def made_result(stored: StoredScores, *, metric: str = "loss", kept: bool = False) -> dict[str, Any]:
    """The document of a search in which the runs ``chosen`` and ``best`` were α = 0.12 and 0.06."""
    before, after, best = (stored.runs[name] for name in ("baseline", "chosen", "best"))
    n = len(before)
    curve = []
    for alpha in (0.0, 0.03, 0.06, 0.09, 0.12, 0.15):
        scores = {0.0: before, 0.06: best, 0.12: after}.get(alpha, best)
        changes = (
            {} if n < 2 else {m: list(paired_difference(scores, before, m)) for m in ("top1", "top5", "loss")}
        )
        curve.append(
            {
                "alpha": alpha,
                "measured": alpha in (0.0, 0.06, 0.12),
                **asdict(summarise(scores)),
                "ci": changes,
            }
        )
    chosen = before if kept else after
    ci = {} if kept or n < 2 else {m: list(ends) for m, ends in change_intervals(after, before).items()}
    baseline = asdict(summarise(before))
    return {
        "schema": 1, "command": "tune", "alphatune": "0.1.0",
        "command_line": COMMAND,
        "model": {
            "source": "my.py:net", "kind": "factory", "model_kwargs": {"depth": 20}, "checkpoint": "net.pth",
            "checkpoint_sha256": "ab" * 32, "weights_key": "state_dict", "unsafe_pickle": False,
            "output": {"path": [], "probabilities": False}, "norm_layers": 4,
            "patched": ["bn1", "layer1.bn", "layer2.bn"],
            "skipped": [{"name": "head.bn", "kind": "BatchNorm1d", "reason": "left as plain BatchNorm"}],
            "remarks": [{"name": "layer2.bn", "remark": "one position"}],
        },
        "data": {
            "source": "a folder", "root": "a folder", "split": "", "n": n, "classes": len(stored.classes),
            "class_map": "", "labels": "", "classes_only_present": False, "decoder": "PIL 13",
            "skipped": [{"name": "bad.jpg", "reason": "cut off"}], "preprocessing": {
                "input_size": [3, 32, 32], "mean": [0.5], "std": [0.5], "interpolation": "bicubic", "crop_pct": 1.0,
                "crop_mode": "center",
            },
        },
        "env": {
            "python": "3.11.0", "torch": "2.11", "torchvision": "0.26", "timm": "1.0.31", "numpy": "2.0",
            "platform": "Linux", "device": "cpu", "device_name": "x86_64", "dtype": "float32", "threads": 1,
            "tf32": False, "cudnn_benchmark": False, "batch_size": 128, "workers": 1, "cache": "ram", "seed": 0,
            "kernel": "compiled", "kernel_build_seconds": 0.0, "processes": 1,
        },
        "metric": metric, "baseline_alpha": 0.0, "accept": "significant", "curve": curve, "baseline": baseline,
        "best": {"top1": 0.06, "top5": 0.06, "loss": 0.06 if kept else 0.12, "ece": 0.12} | {metric: 0.06 if kept else 0.12},
        "chosen": {
            "alpha": 0.0 if kept else 0.12, "temperature": 1.0, "metrics": asdict(summarise(chosen)), "ci": ci,
        },
        "refinement": None,
        "search": {"nodes": [0.0, 0.06, 0.15], "range": [0.0, 0.15], "choosing": 300, "confirming": 100,
                   "estimated_error": 0.001},
        "passes": 4.25, "seconds": 12.5,
        "gain": {
            "metric": metric, "delta": 0.0123, "ci": [0.0045, 0.0201], "p": 0.0021, "method": "paired bootstrap interval",
            "confidence": 0.95, "scheme": "progressive", "examples": 250, "folds": 0, "fold_alphas": [0.09, 0.12],
            "significant": not kept,
        },
        "batch_statistics": None,
        "decision": {"keep_baseline": kept, "significant": not kept, "reason": f"the gain in {metric} is as it is"},
        "power": None, "calibration": None, "recalibration": None, "gates": [], "cache": None,
        "artifacts": [{"path": "model.safetensors", "sha256": "cd" * 32}, {"path": "run.toml", "sha256": "ef" * 32}],
        "warnings": ["a warning with <tags> & ampersands"],
        "deployment": None if kept else {
            "batch_size": 32, "alpha": 0.12, "kernel": "compiled", "ratio_to_plain": 1.1, "ratio_to_folded": 1.25,
            "ratio_compiled": None,
        },
    }  # fmt: skip


def refined(
    document: dict[str, Any], *, by_channel: bool = False, temperature: float = 1.25
) -> dict[str, Any]:
    """The same with finer α and a temperature."""
    alpha: dict[str, Any] = {"bn1": 0.1, "layer1.bn": 0.02, "layer2.bn": 0.3}
    if by_channel:
        alpha = {name: [value, value / 2, 0.0, value] for name, value in alpha.items()}
    gain = document["gain"] | {"scheme": "cross-fitted", "folds": 2, "fold_alphas": []}
    metrics = document["chosen"]["metrics"]
    levels = [
        {
            "level": level, "units": units, "metrics": metrics, "calibrated": metrics, "temperatures": [1.2, 1.3],
            "over_coarser": gain if units else None, "over_plain": gain if units else None, "accepted": True,
            "steps": [3, 4], "seconds": 1.0, "passes": 9.0,
        }
        for level, units in (("plain", 0), ("global", 1), ("layer", 3))
    ]  # fmt: skip
    return document | {
        "gain": gain,
        "chosen": {"alpha": alpha, "temperature": temperature, "metrics": metrics, "ci": document["chosen"]["ci"]},
        "refinement": {
            "granularity": "layer", "chosen": "layer", "with_temperature": True, "temperature_gain": gain,
            "levels": levels,
        },
        "batch_statistics": {
            "pseudo_count": 16.0, "batch_size": 128, **metrics,
            "ci": {metric: [-0.1, 0.1] for metric in ("top1", "top5", "loss")}, "changed": 0.05,
        },
    }  # fmt: skip


def scored(document: dict[str, Any], name: str = "mean IoU") -> dict[str, Any]:
    """A result of a score of one's own, which has no classes."""
    points = [
        {
            "alpha": p["alpha"],
            "measured": True,
            "n": p["n"],
            "score": 0.5 + p["alpha"],
            "ci": {"score": [0.0, 0.1]},
        }
        for p in document["curve"]
    ]
    n = document["data"]["n"]
    kept = {k: v for k, v in document.items() if k not in ("calibration", "recalibration")}
    env = {k: v for k, v in document["env"].items() if k not in ("workers", "cache")}
    return kept | {
        "metric": "score", "score": {"source": "my.py:iou", "name": name}, "curve": points, "env": env,
        "baseline": {"n": n, "score": 0.5}, "best": {"score": 0.12}, "data": {"source": "my.py:loader", "n": n},
        "chosen": {"alpha": 0.12, "temperature": 1.0, "metrics": {"n": n, "score": 0.62}},
        "gain": document["gain"] | {"metric": "score", "scheme": "cross-fitted", "folds": 10}, "search": None,
        "deployment": None, "model": document["model"] | {"remarks": []},
    }  # fmt: skip


def single_run(stored: StoredScores) -> StoredScores:
    """What is kept where nothing is better than the unpatched model."""
    return replace(stored, runs={"baseline": stored.baseline, "chosen": stored.baseline}, thumbnails=())


def kept_runs(stored: StoredScores) -> StoredScores:
    """What is kept where another α looked better, but not beyond luck."""
    return replace(stored, runs=stored.runs | {"chosen": stored.baseline})


def _scores(targets: np.ndarray, logits: np.ndarray) -> Scores:
    logits = logits - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    own = probabilities[np.arange(len(targets)), targets]
    predicted = probabilities.argmax(axis=1).astype(np.int32)
    return Scores(
        ids=np.arange(len(targets)),
        targets=targets,
        predicted=predicted,
        loss=-np.log(own).astype(np.float32),
        top1=predicted == targets,
        top5=(probabilities > own[:, None]).sum(axis=1) < 5,
        confidence=probabilities.max(axis=1).astype(np.float32),
    )
