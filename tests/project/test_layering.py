"""The house rules: imports point down, and some names live in one place only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import alphatune
from alphatune.settings import KINDS
from alphatune.settings.option import declared

ROOT = Path(alphatune.__file__).parent
#: from top to bottom; a module may import its own layer and those below it
LAYERS = [
    "cli", "studies", "jobs", "reports", "training", "tuning", "export", "models", "evaluation", "norms", "kernels", "data",
    "pickles", "statistics", "results", "settings", "core",
]  # fmt: skip


def layer_of(module: str) -> int | None:
    parts = module.split(".")
    return (
        LAYERS.index(parts[1]) if parts[0] == "alphatune" and len(parts) > 1 and parts[1] in LAYERS else None
    )


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources() -> dict[str, Path]:
    return {
        ".".join(["alphatune", *f.relative_to(ROOT).with_suffix("").parts]): f for f in ROOT.rglob("*.py")
    }


def test_imports_point_down() -> None:
    upward = []
    for name, file in sources().items():
        own = layer_of(name)
        if own is None:
            continue
        for imported in imports(file):
            below = layer_of(imported)
            if below is not None and below < own:
                upward.append(f"{name} imports {imported}")
    assert upward == []


def test_every_package_has_a_layer_and_every_module_a_package() -> None:
    packages = {p.name for p in ROOT.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert packages == set(LAYERS)
    assert [p.name for p in ROOT.glob("*.py") if not p.stem.startswith("__")] == []


def test_statistics_and_results_need_no_torch() -> None:
    for package in ("statistics", "results", "settings"):
        for file in (ROOT / package).glob("*.py"):
            assert not {i.split(".")[0] for i in imports(file)} & {"torch", "torchvision", "timm"}, file


def test_options_are_named_in_the_command_line_only() -> None:
    """Below it a setting is named as it is in Python."""
    options = {f"--{each.name.replace('_', '-')}" for kind in KINDS.values() for each in declared(kind)}
    for name, file in sources().items():
        if (
            name.startswith(("alphatune.cli", "alphatune.settings")) or name == "alphatune.jobs.demo"
        ):  # its commands
            continue
        texts = [node.value for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                 if isinstance(node, ast.Constant) and isinstance(node.value, str)]  # fmt: skip
        named = options & set(re.findall(r"--[a-z][a-z-]+", " ".join(texts)))
        assert named - {"--format"} == set(), name  # of nvidia-smi


def test_terminal_libraries_stay_in_the_command_line() -> None:
    for name, file in sources().items():
        if not name.startswith("alphatune.cli"):
            assert not {i.split(".")[0] for i in imports(file)} & {"typer", "rich", "click"}, name


def test_the_scores_know_nothing_of_alpha() -> None:
    assert not [
        i
        for i in imports(ROOT / "evaluation" / "predictor.py")
        if i.startswith(("alphatune.norms", "alphatune.tuning"))
    ]


def test_nothing_in_the_library_asserts() -> None:
    for name, file in sources().items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.Assert)], name
