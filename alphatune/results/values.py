"""The values that results are made of: numbers with their range, names, hashes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from msgspec import Meta

#: JSON has no NaN, but some of its parsers let it through: NaN is at once not below 1 and not above 0
_NO_NAN = {"not": {"allOf": [{"minimum": 1}, {"maximum": 0}]}}
_LARGEST = 1.7976931348623157e308

Number = Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST, extra_json_schema=_NO_NAN)]
NonNegative = Annotated[float, Meta(ge=0, le=_LARGEST, extra_json_schema=_NO_NAN)]
Positive = Annotated[float, Meta(gt=0, le=_LARGEST, extra_json_schema=_NO_NAN)]
Fraction = Annotated[float, Meta(ge=0, le=1, extra_json_schema=_NO_NAN)]
Count = Annotated[int, Meta(ge=0)]
Size = Annotated[int, Meta(ge=1)]
Interval = tuple[Number, Number]
Text = Annotated[str, Meta(min_length=1)]
Names = tuple[str, ...]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Warnings = Annotated[tuple[Text, ...], Meta(description="For people; the wording may change.")]
#: an object whose keys are the user's or the machine's, and nothing to rely on
Open = dict[str, Any]

Dtype = Literal["float32", "float16", "bfloat16"]
Kernel = Literal["eager", "compiled", "triton"]
#: where inference was timed
Runtime = Literal["torch", "onnxruntime"]
ModelKind = Literal["timm", "torchvision", "transformers", "factory", "module"]
LayerStatus = Literal["patchable", "patched", "calibratable", "skipped", "unsupported", "inactive"]
FindingStatus = Literal["ok", "note", "missing", "broken"]
FINDING_STATUSES: tuple[FindingStatus, ...] = get_args(FindingStatus)
