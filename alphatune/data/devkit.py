"""ILSVRC's development kit, which numbers its 1 000 classes from 1 in an order of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from alphatune.core.errors import ConfigurationError, DataError, one_line


def devkit_synsets(labels: str | os.PathLike[str], *, required: bool) -> dict[int, str] | None:
    """The synset of each number of the kit, if these labels are its ground truth; None of any other file.

    They are read from the kit's ``meta.mat``, which lies beside its ground truth.

    Args:
        required: whether its absence is an error.

    Raises:
        ConfigurationError: the labels are the kit's, and nothing says what its numbers mean.
    """
    path = Path(labels)
    if not re.match(r"ILSVRC.*ground_truth", path.name):
        return None
    meta = path.parent / "meta.mat"
    if not meta.is_file():
        if not required:
            return None
        raise ConfigurationError(
            f"{labels} numbers its classes from 1 in the order of ILSVRC's development kit, "
            "which is not that of the outputs of ImageNet networks",
            "put the kit's meta.mat beside it, or give a class map that lists the kit's numbers in the model's order",
        )
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except Exception as error:  # scipy has errors of its own
        raise DataError(f"cannot read {meta}: {one_line(error)}") from None
