"""Do exports compute what PyTorch computes: ONNX, pt2 and hf of architectures of every BatchNorm family.

    python tests/benchmarks/export_table.py --data imagenet-val.tar --records export.jsonl --output export.csv

Each network is made with random weights: γ and β are drawn around 1 and 0, the moving averages are those of 48 of the
images (``alphatune.recalibrate_``), and the head's bias is centred on other images, so that predictions differ from
image to image. It is exported by ``alphatune export`` at α = 0, at α = 0.05, and with an α for each layer: every
third layer 0, every fourth one of its own for each channel, the others between 0 and 0.2; with a temperature of 1.5.
What the command reports is written down, with the operations that an ONNX file holds. What is in ``--records`` already
is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import alphatune
from alphatune.core.errors import AlphatuneError
from alphatune.data.datasets import open_data
from alphatune.data.loading import Batches
from alphatune.data.preprocessing import Preprocessing
from alphatune.evaluation.predictor import predict
from alphatune.jobs.export import run_export
from alphatune.models.sources import Source, build
from alphatune.norms.conversion import layer_settings
from alphatune.norms.survey import survey
from alphatune.results.serialisation import to_json
from alphatune.settings import ExportSettings

CLASSES = 100
#: family -> MODEL, image size
NETWORKS: dict[str, tuple[str, int]] = {
    "ConvNet with a BN1d head": (f"{__file__}:bn1d_head", 96),
    "ResNet": ("resnet18", 96),
    "VGG-BN": ("vgg11_bn", 96),
    "MNASNet": ("torchvision:mnasnet0_5", 96),
    "MobileNetV2": ("mobilenetv2_100", 96),
    "MobileNetV3": ("mobilenetv3_small_100", 96),
    "RegNet": ("regnety_002", 96),
    "LR-ASPP, segmentation": ("torchvision:lraspp_mobilenet_v3_large", 96),
    "EfficientNet": ("efficientnet_b0", 96),
    "ResNeXt": ("resnext50_32x4d", 96),
    "FCN, segmentation": ("torchvision:fcn_resnet50", 96),
    "DenseNet": ("densenet121", 96),
    "Inception-v3": ("inception_v3", 128),
    "PNASNet": ("pnasnet5large", 128),
}
FORMATS = ("onnx", "pt2", "hf")
ALPHAS = ("0", "0.05", "per layer")
HEADS = ["network", "MODEL", "α", "largest logit", "ONNX", "pt2", "hf: alphatune.load", "hf: stock timm",
         "hf: the card's lines", "other predictions", "open size"]  # fmt: skip


class Bn1dHead(nn.Module):
    """A small ConvNet whose head normalises vectors, where an example's variance is 0."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        widths = (3, 32, 64, 128)
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()
                )
                for a, b in pairwise(widths)
            )
        )
        self.hidden = nn.Sequential(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.body(x).mean((2, 3))))


def bn1d_head(num_classes: int = CLASSES) -> nn.Module:
    return Bn1dHead(num_classes)


def made(spec: str, size: int, data: str) -> Source:
    """The network with weights as the module's text says."""
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {} if "fcn" in spec or "lraspp" in spec else {"num_classes": CLASSES}
    source = build(spec, pretrained=False, model_kwargs=kwargs)
    model = source.model.eval()
    for layer in survey(model):
        module: Any = model.get_submodule(layer.name)
        if module.weight is not None:
            nn.init.uniform_(module.weight, 0.75, 1.25)
            nn.init.normal_(module.bias, std=0.1)
    examples = open_data(data).limit(96, seed=1)
    batches = Batches(
        examples, Preprocessing(input_size=(3, size, size)), batch_size=24, device=torch.device("cpu")
    )
    first, second, *rest = [batch.inputs for batch in batches]
    alphatune.recalibrate_(model, [first, second])
    logits = torch.cat([predict(model, images) for images in rest])
    classes = logits.shape[1]
    head: Any = [
        m
        for m in model.modules()
        if isinstance(m, (nn.Linear, nn.Conv2d)) and len(m.weight) == classes and m.bias is not None
    ][-1]
    with torch.no_grad():
        head.bias -= logits.transpose(0, 1).flatten(1).mean(1)
    return source


def patch_for_(model: nn.Module, alpha: str) -> None:
    if alpha != "per layer":
        alphatune.patch_(model, float(alpha))
        return
    generator = torch.Generator().manual_seed(0)
    alphas: dict[str, Any] = {}
    for i, name in enumerate(alphatune.patch_(model)):
        channels = len(model.get_submodule(name).running_mean)  # type: ignore[arg-type]
        drawn = 0.2 * torch.rand(channels if i % 4 == 1 else (), generator=generator)
        alphas[name] = 0.0 if i % 3 == 0 else drawn
    alphatune.set_alpha_(model, alphas)
    alphatune.set_temperature_(model, 1.5)


def measured(spec: str, size: int, alpha: str, data: str, formats: list[str]) -> list[dict[str, Any]]:
    """One record a format; all of one network at one α."""
    source = made(spec, size, data)
    patch_for_(source.model, alpha)
    assert not layer_settings(source.model)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        tuned = Path(folder) / "tuned"
        alphatune.save(
            source.model, tuned, source=source, preprocessing=Preprocessing(input_size=(3, size, size))
        )
        for kind in formats:
            start = time.perf_counter()
            settings = ExportSettings(
                model=str(tuned), format=kind, data=data, output=f"{folder}/out.{kind}" if kind != "hf" else f"{folder}/hf",
                trust_code=True, **({} if kind == "hf" else {"seconds": 0.0}),
            )  # fmt: skip
            record: dict[str, Any] = {"alpha": alpha, "format": kind}
            try:
                document = json.loads(to_json(run_export(settings)))
            except AlphatuneError as error:
                record["error"] = str(error)
            else:
                record |= {
                    "results": document["check"]["results"],
                    "input": document["export"].get("input"),
                    "temperature_in": document["model"]["temperature_in"],
                    "warnings": document["warnings"],
                    "bytes": sum(file["bytes"] for file in document["export"]["files"]),
                    "versions": {
                        name: document["env"][name] for name in ("python", "torch", "torchvision", "timm")
                    },
                }
                if kind == "onnx":
                    record["operations"] = operations(Path(settings.output or ""))
            record["seconds"] = time.perf_counter() - start
            records.append(record)
    return records


def operations(path: Path) -> dict[str, int]:
    import onnx

    return dict(Counter(node.op_type for node in onnx.load(str(path)).graph.node))


def table(records: list[dict[str, Any]]) -> list[str]:
    """One row a network and α."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---|---|---|---:|---|---|---|---|---|---|---|"]
    for key in dict.fromkeys((r["network"], r["model"], r["alpha"]) for r in records):
        mine = [r for r in records if (r["network"], r["model"], r["alpha"]) == key]
        rows = [row for r in mine for row in r.get("results", [])]
        readers = ("onnxruntime", "torch.export.load", "alphatune.load", "stock timm", "the card's lines")
        cells = [*key, f"{max(row['largest_logit'] for row in rows):.2g}"]
        for reader in readers:
            cells.append(differences([row for row in rows if row["read_by"] == reader]))
        cells.append(f"{sum(r['different'] for r in rows)} of {sum(r['predictions'] for r in rows)}")
        sizes = {r["format"]: r["input"][2] == "height" for r in mine if r.get("input")}
        cells.append("yes" if all(sizes.values()) else " ".join(k for k, v in sizes.items() if v) or "no")
        lines.append(f"| {' | '.join(map(str, cells))} |")
        lines += [f"| | {r['format']} failed: {r['error']} | | | | | | | | | |" for r in mine if "error" in r]
    return lines


def differences(rows: list[dict[str, Any]]) -> str:
    """The largest difference of a logit at batch 1 and at batch 3, at the network's own size."""
    if not rows:
        return ""
    own = [row for row in rows if row["size"] == rows[0]["size"]]
    one, three = (next(r for r in own if r["batch_size"] == n)["largest_difference"] for n in (1, 3))
    return f"{one:.1e}, {three:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    given = parser.parse_args()
    records = (
        [json.loads(line) for line in given.records.read_text().splitlines()]
        if given.records.exists()
        else []
    )
    done = {(r["network"], r["alpha"], r["format"]) for r in records}
    for network in given.networks:
        spec, size = NETWORKS[network]
        kinds = FORMATS if ":" not in spec else FORMATS[:2]
        for alpha in ALPHAS:
            missing = [kind for kind in kinds if (network, alpha, kind) not in done]
            if not missing:
                continue
            for record in measured(spec, size, alpha, given.data, missing):
                record |= {"network": network, "model": spec.removeprefix(f"{Path(__file__).parent}{os.sep}")}
                records.append(record)
                with given.records.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                print(
                    network,
                    alpha,
                    record["format"],
                    f"{record['seconds']:.0f} s",
                    record.get("error", ""),
                    flush=True,
                )
    if given.output:
        records.sort(
            key=lambda r: (
                list(NETWORKS).index(r["network"]),
                ALPHAS.index(r["alpha"]),
                FORMATS.index(r["format"]),
            )
        )
        versions = next(r["versions"] for r in records if "versions" in r)
        text = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines = table(records)
        print("\n".join([f"{platform.machine()}, {text}:", "", *lines]))
        with given.output.open("w", newline="", encoding="utf-8") as file:
            rows = [line[2:-2].split(" | ") for line in lines if line.startswith("| ")]
            csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
