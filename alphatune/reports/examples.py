"""What images look like under each condition, as a page shows it."""

from __future__ import annotations

from dataclasses import dataclass

from alphatune.reports.flips import TINY, data_uri
from alphatune.reports.scores import ShiftExample, StoredScores
from alphatune.reports.shifts import condition_name


@dataclass(frozen=True)
class ExamplePicture:
    """One image under a condition."""

    source: str  # data: URI
    text: str  # in place of the image
    width: int
    height: int
    severity: int  # 0 for none

    @property
    def tiny(self) -> bool:
        return max(self.width, self.height) < TINY


@dataclass(frozen=True)
class ExampleRow:
    """A condition, and what it makes of the same images."""

    condition: str
    pictures: tuple[ExamplePicture, ...]


def example_rows(stored: StoredScores | None) -> tuple[ExampleRow, ...]:
    """A row a condition, in the order in which they were kept."""
    examples = () if stored is None else stored.examples
    names = dict.fromkeys(each.condition for each in examples)
    return tuple(
        ExampleRow(
            condition_name(name),
            tuple(
                _picture(each, i) for i, each in enumerate((e for e in examples if e.condition == name), 1)
            ),
        )
        for name in names
    )


def _picture(example: ShiftExample, number: int) -> ExamplePicture:
    height, width, _ = example.pixels.shape
    severity = f", severity {example.severity}" if example.severity else ""
    text = f"image {number}: {condition_name(example.condition)}{severity}"
    return ExamplePicture(data_uri(example.pixels), text, width, height, example.severity)
