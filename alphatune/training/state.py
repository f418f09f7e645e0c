"""Everything that changes in a run, and its file.

Random numbers are not among it: they are a function of seed and step
(loop.py), so a run that is resumed draws what it would have drawn.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from alphatune.core.errors import CheckpointError, ConfigurationError, InputError, ResourceError, one_line
from alphatune.core.saved_progress import note_saved
from alphatune.core.system import sync
from alphatune.models.checkpoint_content import read_content
from alphatune.pickles.torch_file import write_saved
from alphatune.results.document import SCHEMA
from alphatune.results.training import Epoch
from alphatune.training.optimizers import make_optimizer
from alphatune.training.recipe import Recipe

_COUNTS = ("step", "loss_sum", "correct", "seen", "seconds")


@dataclass
class TrainingState:
    """Model, optimiser, gradient scaler, moving average of the weights, and how far the run is."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    step: int = 0
    loss_sum: Any = 0.0  # of the current epoch, in nats; a tensor until somebody looks (loop.py)
    correct: Any = 0
    seen: int = 0
    seconds: float = 0.0  # of training, evaluation included
    rows: list[Epoch] = field(default_factory=list)  # one a finished epoch

    @property
    def evaluated(self) -> nn.Module:
        """What is validated and kept in the end: the averaged weights where there are any."""
        return self.model if self.ema is None else self.ema.module


def start(model: nn.Module, recipe: Recipe, device: torch.device) -> TrainingState:
    """The state before the first step; the model is on its device already, its norms converted."""
    ema = ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.dtype == torch.float16)
    return TrainingState(model, make_optimizer(model, recipe), scaler, ema)


def save_state(state: TrainingState, path: Path, fingerprint: str) -> None:
    """Write the state under its name, whole or not at all.

    Args:
        fingerprint: identifies what the run trains on; ``load_state_`` compares it.

    Raises:
        ResourceError: the disk refused; the file that was there is still there.
    """
    content = {
        "schema": SCHEMA,
        "fingerprint": fingerprint,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "ema": None if state.ema is None else state.ema.module.state_dict(),
        "rows": [dict(row.items()) for row in state.rows],
        **{name: getattr(state, name) for name in _COUNTS},
    }
    replace_file(path, lambda temporary: write_saved(content, temporary))
    note_saved(path)


def load_state_(state: TrainingState, path: Path, fingerprint: str) -> None:
    """Continue where ``save_state`` left off, in place.

    Raises:
        CheckpointError: unreadable, or of another model.
        ConfigurationError: of a run on other data.
    """
    try:
        content = read_content(path).value
    except InputError as error:
        raise CheckpointError(f"cannot resume: {error.message}", error.hint) from None
    try:
        if content["schema"] != SCHEMA:
            raise CheckpointError(f"{path} has schema {content['schema']!r}, this version reads {SCHEMA}")
        if content["fingerprint"] != fingerprint:
            raise ConfigurationError(
                f"{path} belongs to a run on other training data", "`overwrite` starts a new one"
            )
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.scaler.load_state_dict(content["scaler"])
        if state.ema is not None:
            state.ema.module.load_state_dict(content["ema"])
        state.rows = [Epoch(**row) for row in content["rows"]]
        for name in _COUNTS:
            setattr(state, name, content[name])
        note_saved(path)
    except (CheckpointError, ConfigurationError):
        raise
    except Exception as error:  # a file of something else, or of another model
        raise CheckpointError(
            f"cannot resume from {path}: {type(error).__name__}: {one_line(error)}"
        ) from None


def replace_file(path: Path, write: Any) -> None:
    """Let ``write(temporary path)`` make a file, sync it, and give it its name; raises ResourceError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise ResourceError(f"cannot write {path}: {one_line(error)}", "is the disk full?") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
