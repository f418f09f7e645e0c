"""Every option of a job, declared once: its type, its default, its help, and what depends on it.

The command line, run.toml, the keys of caches, docs/reference and the errors about options that do not go
together all come from these dataclasses. A field holds what a user would type. Imports neither torch nor typer.
"""

from alphatune.settings.bench import BenchSettings
from alphatune.settings.evaluate import EvaluateSettings
from alphatune.settings.export import ExportSettings
from alphatune.settings.inspect import InspectSettings
from alphatune.settings.model import ModelSettings
from alphatune.settings.train import TrainSettings
from alphatune.settings.tune import TuneSettings

#: by the name of the command
KINDS: dict[str, type[ModelSettings]] = {
    "tune": TuneSettings, "train": TrainSettings, "evaluate": EvaluateSettings, "inspect": InspectSettings,
    "bench": BenchSettings, "export": ExportSettings,
}  # fmt: skip

__all__ = [
    "KINDS",
    "BenchSettings",
    "EvaluateSettings",
    "ExportSettings",
    "InspectSettings",
    "ModelSettings",
    "TrainSettings",
    "TuneSettings",
]
