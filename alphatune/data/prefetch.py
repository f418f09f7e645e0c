"""Batches from the host to the device, one ahead of the model on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Model inputs (N, ...), class indices (N,) and example ids (N,); the ids stay on the host."""

    inputs: Tensor
    targets: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.targets)


#: makes, on a device, what turns the inputs that were copied there into the model's
Prepare = Callable[[torch.device], Callable[[Tensor], Tensor]]


def on_device(
    batches: Iterable[Batch], device: torch.device, prepare: Prepare = lambda _: lambda inputs: inputs
) -> Iterator[Batch]:
    """Copy batches to a device and prepare them there.

    On CUDA a stream of its own copies and prepares the next batch while the
    model works on the present one; the host waits for neither. Batches should
    come in pinned memory: from any other the copy is not asynchronous.
    """
    if device.type == "cuda":
        yield from _one_ahead(batches, device, prepare)
        return
    prepared = prepare(device)
    for batch in batches:
        yield Batch(prepared(batch.inputs.to(device)), batch.targets.to(device), batch.ids)


def _one_ahead(batches: Iterable[Batch], device: torch.device, prepare: Prepare) -> Iterator[Batch]:
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        # Constants made once: to make them of Python numbers waits for the stream,
        # and with them for the copy that was to go on beside the model.
        prepared = prepare(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        if batch.inputs.is_cuda or batch.targets.is_cuda:  # and what makes them may not have finished
            side.wait_stream(torch.cuda.current_stream(batch.inputs.device))
        with torch.cuda.stream(side):
            # The targets first: they are not pinned, and would wait for the inputs.
            targets = batch.targets.to(device, non_blocking=True)
            inputs = prepared(batch.inputs.to(device, non_blocking=True))
            following = Batch(inputs, targets, batch.ids), side.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = following
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """The batch for the caller's stream, which waits for this batch only, not for the one after it."""
    stream = torch.cuda.current_stream(batch.inputs.device)
    stream.wait_event(copied)
    for tensor in (batch.inputs, batch.targets):
        tensor.record_stream(stream)  # or its memory would be the next batch's while the model still reads it
    return batch
