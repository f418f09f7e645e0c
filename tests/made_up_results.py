"""Results of tunes that nobody ran: documents and scores of any shape, for what is drawn from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from alphatune.reports.scores import ShiftExample, StoredScores, Thumbnail
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
                **dict(summarise(scores).items()),
                "ci": changes,
            }
        )
    chosen = before if kept else after
    ci = {} if kept or n < 2 else {m: list(ends) for m, ends in change_intervals(after, before).items()}
    baseline = dict(summarise(before).items())
    return {
        "schema": 1, "command": "tune", "alphatune": "0.1.0",
        "command_line": COMMAND,
        "model": {
            "source": "my.py:net", "kind": "factory", "model_kwargs": {"depth": 20}, "checkpoint": "net.pth",
            "checkpoint_sha256": "ab" * 32, "weights_key": "state_dict", "unsafe_pickle": False,
            "output": {"path": [], "probabilities": False, "single": False}, "norm_layers": 4,
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
            "alpha": 0.0 if kept else 0.12, "temperature": 1.0, "metrics": dict(summarise(chosen).items()), "ci": ci,
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
        "power": None, "shift": None, "repairs": None, "label_curve": None,
        "calibration": None, "recalibration": None, "gates": [], "cache": None,
        "artifacts": [{"path": "model.safetensors", "sha256": "cd" * 32}, {"path": "run.toml", "sha256": "ef" * 32}],
        "warnings": ["a warning with <tags> & ampersands"],
        "deployment": None if kept else {
            "batch_size": 32, "alpha": 0.12, "kernel": "compiled", "ratio_to_plain": 1.1, "ratio_to_folded": 1.25,
            "ratio_compiled": None, "runtime": "torch",
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
            "levels": levels, "front": None,
        },
        "batch_statistics": {
            "pseudo_count": 16.0, "batch_size": 128, **metrics,
            "ci": {metric: [-0.1, 0.1] for metric in ("top1", "top5", "loss")}, "changed": 0.05,
        },
    }  # fmt: skip


def fronted(document: dict[str, Any], *, chosen: int | None = 2) -> dict[str, Any]:
    """The same with α left out of layers, within a budget."""
    found = refined(document)
    level = found["refinement"]["levels"][1]
    sets = [
        {
            "layers": layers, "ratio": ratio, "metrics": level["metrics"], "calibrated": level["calibrated"],
            "gain": found["gain"] | {"delta": delta, "ci": [delta - 0.01, delta + 0.01]},
            "within_budget": ratio <= 1.1, "keeps_guards": ratio != 1.05,
        }
        for layers, ratio, delta in (
            ([3, 3], 1.42, 0.021), ([2, 2], 1.2, 0.033), ([2, 1], 1.08, 0.031), ([1, 1], 1.05, 0.011),
        )
    ]  # fmt: skip
    front = {
        "granularity": "global", "with_temperature": True, "runtime": "onnxruntime", "batch_size": 32, "threads": 1,
        "budget": 1.1, "sets": sets, "chosen": chosen, "layers": [] if chosen is None else ["layer2.bn"],
        "predicted": 1.08, "measured": None if chosen is None else 1.09,
    }  # fmt: skip
    alpha: Any = 0.0 if chosen is None else {"bn1": 0.0, "layer1.bn": 0.0, "layer2.bn": 0.3}
    return found | {
        "chosen": found["chosen"] | {"alpha": alpha},
        "refinement": found["refinement"]
        | {"chosen": "plain" if chosen is None else "global", "front": front},
    }


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
    unknown = ("calibration", "recalibration", "shift", "repairs", "label_curve")
    kept = {k: v for k, v in document.items() if k not in unknown}
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


#: top-1 before and after, its interval, by condition: one gets worse and one may have
CONDITIONS = (
    ("clean", (), 0.8100, 0.8060, (-0.0102, 0.0022)),
    ("contrast", (3,), 0.6110, 0.7230, (0.0910, 0.1330)),
    ("gaussian-noise", (2, 3, 4), 0.3650, 0.6010, (0.2105, 0.2615)),
    ("fog", (1, 2, 3, 4, 5), 0.7540, 0.7350, (-0.0322, -0.0058)),
    ("jpeg", (1, 3, 5), 0.4970, 0.5190, (0.0031, 0.0409)),
)  # fmt: skip


def shifted(
    document: dict[str, Any],
    *,
    chosen: str = "affine",
    names: tuple[str, ...] = (),
    metric: str = "top1",
    over: str = "mean",
) -> dict[str, Any]:
    """The same tuned over five conditions by top-1, or by loss, beside what is free.

    Args:
        chosen: the repair that is deployed.
        names: of the conditions, in place of the usual ones.
    """
    called = names or tuple(name for name, *_ in CONDITIONS)
    conditions, n = [], document["data"]["n"]
    for index, (_, severities, before, after, ends) in enumerate(CONDITIONS):
        ci = {"top1": list(ends), "loss": [-2 * ends[1], -2 * ends[0]], "ece": [-0.01, 0.01]}
        curve = [
            {"alpha": a, "value": _value(metric, before + (after - before) * a / 0.12), "measured": a in (0, 0.12)}
            for a in (0.0, 0.03, 0.06, 0.09, 0.12, 0.15)
        ]  # fmt: skip
        conditions.append(
            {
                "name": called[index], "made": bool(severities) and not names,
                "severities": list(severities), "source": "a folder",
                "baseline": _metrics(n, before), "chosen": _metrics(n, after), "ci": ci, "curve": curve,
            }
        )  # fmt: skip
    befores, afters = ([c[key] for c in conditions] for key in ("baseline", "chosen"))
    pick = min if metric == "top1" else max
    unseen = [
        {"condition": name, "gain": _gain(document, metric, delta, half)}
        for name, delta, half in zip(called[1:], (0.081, 0.154, -0.031, 0.012), (0.02, 0.02, 0.01, 0.03), strict=True)
    ]  # fmt: skip
    means = [_mean(n, befores), _mean(n, afters)]
    shift = {
        "over": over, "conditions": conditions, "unseen": unseen,
        "worst": [pick(m[metric] for m in befores), pick(m[metric] for m in afters)],
        "unseen_mean": _gain(document, metric, 0.054, 0.0123),
        "guards": [
            {"condition": called[0], "metric": "top1", "margin": 0.005, "cost": 0.004, "bound": 0.0091, "passed": False,
             "reason": "top-1 may fall by up to 0.91 points, more than 0.50"},
            {"condition": called[3], "metric": "loss", "margin": None, "cost": -0.01, "bound": 0.0312, "passed": True,
             "reason": "it is not significantly worse"},
        ],
    }  # fmt: skip
    finer = chosen in ("stage", "layer", "channel")
    alpha = (
        {"bn1": 0.1, "layer1.bn": 0.02, "layer2.bn": 0.3} if finer else 0.12 if chosen == "global" else 0.0
    )
    ci = {"top1": [0.051, 0.083], "loss": [-0.166, -0.102], "ece": [-0.01, 0.01]}
    point = document["curve"][0] | means[0]
    return document | {
        "metric": metric, "baseline": means[0], "curve": [point, *document["curve"][1:]], "shift": shift,
        "chosen": {"alpha": alpha, "temperature": 1.0, "metrics": means[1], "ci": ci},
        "gain": _gain(document, metric, 0.0671, 0.011), "deployment": None,
        "repairs": _repairs(document, metric, chosen, means[0], dict(zip(called, befores, strict=True))),
    }  # fmt: skip


def compared(document: dict[str, Any], *, chosen: str = "affine") -> dict[str, Any]:
    """The same, with finer α beside what is free, without shifts."""
    metrics = document["chosen"]["metrics"]
    alpha = {"bn1": 0.1, "layer1.bn": 0.02, "layer2.bn": 0.3} if chosen == "layer" else 0.0
    kept = document["chosen"] | {"alpha": alpha, "temperature": 1.3 if chosen == "temperature" else 1.0}
    return document | {
        "chosen": kept, "deployment": None,
        "repairs": _repairs(document, document["metric"], chosen, metrics, {}),
    }  # fmt: skip


def by_labels(document: dict[str, Any]) -> dict[str, Any]:
    """The same, with what each repair is worth by number of labelled images."""
    rows = []
    for images in (25, 100, 400, 1500):
        for index, repair in enumerate(
            ("plain", "temperature", "averages", "affine", "global", "layer", "channel")
        ):
            gain = 0.0 if repair == "plain" else 0.01 * index * (1 - 40 / images)
            seen = {
                "value": 0.55 + 2 * gain,
                "ci": [2 * gain - 0.02, 2 * gain + 0.02] if index else [0.0, 0.0],
            }
            rows.append(
                {
                    "images": images, "repair": repair, "seen": seen,
                    "clean": {"value": 0.81 + gain / 4, "ci": [gain / 4 - 0.01, gain / 4 + 0.01] if index else [0.0, 0.0]},
                    "unseen": {"value": 0.6 + gain, "ci": [gain - 0.03, gain + 0.03] if index else [0.0, 0.0]},
                }
            )  # fmt: skip
    crossings = ["On clean images γ and β overtake one α between 100 and 400 labelled images."]
    return document | {
        "label_curve": {"metric": "top1", "tested_on": 3000, "rows": rows, "crossings": crossings}
    }  # fmt: skip


def made_examples(names: tuple[str, ...] = (), side: int = 32) -> tuple[ShiftExample, ...]:
    """Four pictures of each condition."""
    rng = np.random.default_rng(1)
    called = names or tuple(name for name, *_ in CONDITIONS)
    return tuple(
        ShiftExample(
            name, severities[0] if severities else 0, rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
        )
        for name, (_, severities, *_) in zip(called, CONDITIONS, strict=True)
        for _ in range(4)
    )


def _repairs(
    document: dict[str, Any], metric: str, chosen: str, plain: dict[str, Any], conditions: dict[str, Any]
) -> dict[str, Any]:
    """What each is worth, from plain to one α a channel; the best is γ and β."""
    tried = []
    for name, numbers, delta in (
        ("plain", 0, 0.0), ("temperature", 1, 0.001), ("averages", 0, -0.021), ("affine", 1376, 0.0671),
        ("global", 1, 0.041), ("layer", 19, 0.0612), ("channel", 688, 0.0669),
    ):  # fmt: skip
        metrics = plain | {"top1": plain["top1"] + delta, "loss": plain["loss"] - delta}
        sign = 1 if metric == "top1" else -1
        tried.append(
            {
                "name": name, "numbers": numbers, "free": name in ("plain", "temperature", "averages", "affine"),
                "with_temperature": name == "temperature", "metrics": metrics, "objective": sign * metrics[metric],
                "by_condition": {
                    c: m | {"top1": m["top1"] + delta, "loss": m["loss"] - delta} for c, m in conditions.items()
                },
                "over_plain": None if name == "plain" else _gain(document, metric, delta, 0.0131),
                "behind_best": None if name == "affine" else _gain(document, metric, 0.0671 - delta, 0.0093),
                "guarded": name == "channel", "seconds": 12.0,
            }
        )  # fmt: skip
    reason = "γ and β cost nothing at inference, and no other repair is significantly better"
    if chosen != "affine":
        reason = f"it is the cheapest that is not significantly behind: {chosen}"
    return {"choose": "cheapest", "chosen": chosen, "best": "affine", "reason": reason, "tried": tried}


def _value(metric: str, top1: float) -> float:
    return top1 if metric == "top1" else 2 * (1 - top1)


def _metrics(n: int, top1: float) -> dict[str, Any]:
    return {"n": n, "top1": top1, "top5": 0.5 + top1 / 2, "loss": 2 * (1 - top1), "ece": 0.05}


def _mean(n: int, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    return {"n": n} | {
        key: sum(m[key] for m in metrics) / len(metrics) for key in ("top1", "top5", "loss", "ece")
    }


def _gain(document: dict[str, Any], metric: str, delta: float, half: float) -> dict[str, Any]:
    return document["gain"] | {
        "metric": metric, "delta": delta, "ci": [delta - half, delta + half], "significant": delta > half,
        "scheme": "cross-fitted", "folds": 2, "fold_alphas": [],
    }  # fmt: skip
