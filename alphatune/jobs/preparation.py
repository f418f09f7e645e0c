"""How images are prepared: who says so, and whether it fits the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from alphatune.core.errors import ConfigurationError
from alphatune.data.examples import Examples
from alphatune.data.image_sizes import image_sizes
from alphatune.data.preprocessing import PARTS, Preprocessing
from alphatune.models.output import is_bundle
from alphatune.models.sources import Source
from alphatune.settings import ModelSettings

#: told what a person should know before the work begins
Say = Callable[[str], None]

#: how many times as large images may become without anybody having asked for it
MOST = 2.0


@dataclass(frozen=True)
class Preparation:
    """A preprocessing, and who says each part of it: an option, the model, or nobody."""

    preprocessing: Preprocessing
    given: tuple[str, ...]
    declared: tuple[str, ...]
    by: str  # who declares those parts, e.g. "the model"
    recorded: bool = False  # in a folder of ours, which was made with this size

    @property
    def assumed(self) -> tuple[str, ...]:
        return tuple(part for part in PARTS if part not in (*self.given, *self.declared))

    def warnings(self, parts: tuple[str, ...] = PARTS) -> list[str]:
        """What of these parts is assumed for lack of better; none where all is given or declared."""
        options = self._options(part for part in parts if part in self.assumed)
        return [f"preprocessing assumed, because the model does not declare it: {options}"] if options else []

    def check(self, *examples: Examples) -> tuple[str, ...]:
        """What to ``announce`` of how these images will be prepared.

        Raises:
            ConfigurationError: most would be enlarged more than twofold, and nobody chose the size.
        """
        enlarged = [text for each in examples if (text := self._enlarged(each))]
        parts = [f"given {self._options(self.given)}"] if self.given else []
        parts += [f"from {self.by} {self._options(self.declared)}"] if self.declared else []
        lines = ["; ".join([f"preprocessing: {', '.join(parts)}", *enlarged])] if parts else []
        return (*lines, *self.warnings())

    def _enlarged(self, examples: Examples) -> str:
        """What to say of images that become more than twice as large; "" where they do not."""
        sizes = image_sizes(examples)
        if not sizes:
            return ""
        times = median(self.preprocessing.enlargement(*size) for size in sizes)
        if times <= MOST:
            return ""
        height, width = sorted(sizes, key=lambda size: size[0] * size[1])[len(sizes) // 2]
        told = f"images of {examples.source} are {width}×{height}"
        if "input_size" in self.given or self.recorded:
            return f"{told}, and are enlarged {times:.3g}-fold"
        size, side = self._options(("input_size",)), min(height, width)
        declared = "input_size" in self.declared
        why = f"{self.by} declare{'' if self.by.endswith('weights') else 's'} {size}"
        raise ConfigurationError(
            f"the {told}, and would be enlarged {times:.3g}-fold: "
            f"{why if declared else f'the model declares no size, and {size} is assumed'}",
            f"`input_size={side}` `crop_pct=1` takes them as they are; {size} enlarges them all the same",
        )

    def _options(self, parts: Iterable[str]) -> str:
        shown = [part for part in parts if part != "crop_mode" or self.preprocessing.crop_mode != "center"]
        return " ".join(f"`{part}={_text(getattr(self.preprocessing, part))}`" for part in shown)


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def announce(lines: Iterable[str], say: Say | None) -> None:
    """Tell somebody who wants to know, before the work begins."""
    if say:
        for line in lines:
            say(line)


def preparation(settings: ModelSettings, source: Source, preprocessing: Preprocessing) -> Preparation:
    """Who says what of the preprocessing of a model."""
    folder = settings.model.removeprefix("local-dir:")
    recorded = is_bundle(folder) and source.preprocessing is not None
    by = f"the folder {folder}" if recorded else "the weights" if source.weights else "the model"
    return prepared_by(settings, source, preprocessing, by, recorded=recorded)


def prepared_by(
    settings: ModelSettings, source: Source, preprocessing: Preprocessing, by: str, *, recorded: bool = False
) -> Preparation:
    """The same, where somebody in particular declares what no option gives."""
    given = tuple(part for part in PARTS if getattr(settings, part) is not None)
    silent = PARTS if source.preprocessing is None else source.undeclared
    declared = tuple(part for part in PARTS if part not in (*given, *silent))
    return Preparation(preprocessing, given, declared, by, recorded)
