"""JSON Schemas of what the commands print, Draft 2020-12, made from the types.

They are strict: every field has a type and a range, and one that is missing or
unknown is an error. Reading (stored.py) is lenient where an earlier version
wrote less, or a later one more.
"""

from __future__ import annotations

import msgspec

from alphatune.core.errors import ConfigurationError
from alphatune.results.bench import BenchDocument
from alphatune.results.comparison import CompareDocument
from alphatune.results.demo import DemoDocument
from alphatune.results.diagnosis import DoctorDocument
from alphatune.results.document import Part
from alphatune.results.evaluation import EvaluateDocument
from alphatune.results.export import ExportDocument
from alphatune.results.failure import FailureDocument
from alphatune.results.inspection import InspectDocument
from alphatune.results.page import ReportDocument
from alphatune.results.plan import ImagesPlan, ScorePlan, TrainPlan
from alphatune.results.study import StudyDocument
from alphatune.results.training import TrainDocument
from alphatune.results.tune import ScoreTuneDocument, TuneDocument
from alphatune.results.values import Open

#: the types of each object by its ``command``, and of a failure
DOCUMENTS: dict[str, tuple[type[msgspec.Struct], ...]] = {
    "bench": (BenchDocument,),
    "compare": (CompareDocument,),
    "demo": (DemoDocument,),
    "doctor": (DoctorDocument,),
    "dry-run": (ImagesPlan, ScorePlan, TrainPlan),
    "error": (FailureDocument,),
    "evaluate": (EvaluateDocument,),
    "export": (ExportDocument,),
    "inspect": (InspectDocument,),
    "report": (ReportDocument,),
    "study": (StudyDocument,),
    "train": (TrainDocument,),
    "tune": (TuneDocument, ScoreTuneDocument),
}


def schema_names() -> tuple[str, ...]:
    """The ``command`` of each object that there is a schema for, and ``error`` for a failure."""
    return tuple(DOCUMENTS)


def read_schema(name: str) -> Open:
    """The schema of the object that a command prints, complete in itself.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name not in DOCUMENTS:
        raise ConfigurationError(f"there is no schema of {name!r}", f"one of: {', '.join(DOCUMENTS)}")
    kinds = DOCUMENTS[name]
    roots, definitions = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    optional = _optional_fields()
    for title, definition in definitions.items():
        definition["additionalProperties"] = False
        absent = optional.get(title, set())
        definition["required"] = [key for key in definition["properties"] if key not in absent]
        for field in definition["properties"].values():
            field.pop("default", None)  # always written
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"alphatune {name}"}
    if len(kinds) == 1:
        return {**head, **_untitled(definitions.pop(kinds[0].__name__)), "$defs": definitions}
    return {**head, "anyOf": list(roots), "$defs": definitions}


def _untitled(definition: Open) -> Open:
    return {key: value for key, value in definition.items() if key != "title"}


def _optional_fields() -> dict[str, set[str]]:
    """By the name of a type, the fields that are left out where they do not apply."""
    found: dict[str, set[str]] = {}
    kinds: list[type[Part]] = [Part]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        fields = msgspec.structs.fields(kind)
        found[kind.__name__] = {field.encode_name for field in fields if field.default is msgspec.UNSET}
    return found
