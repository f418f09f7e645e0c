"""Every error alphatune raises on purpose.

    AlphatuneError                 70  internal: nobody foresaw this one
    ├── ConfigurationError          2  an option or argument that cannot be right
    ├── InputError                  3  something on disk is missing, unreadable or corrupt
    │   ├── CheckpointError         3    weights that cannot be read or do not fit the architecture
    │   ├── UntrustedError          3    reading it would run code that nobody allowed
    │   └── DataError               3    an image, folder or archive that cannot be read
    ├── UnsupportedModelError       4  the model has no layer, or an unknown layer, to work on
    ├── ResourceError               5  out of memory, disk or worker processes
    └── NumericError                6  NaN, infinity or an impossible variance

The number is the exit code of the command line. A message says what was
expected and what came; the hint says what to do about it.
"""

from __future__ import annotations


class AlphatuneError(Exception):
    """Base class: ``message`` says what is wrong, ``hint`` what to do; ``str(error)`` says both."""

    exit_code = 70

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigurationError(AlphatuneError):
    """An option or argument that cannot be right."""

    exit_code = 2


class InputError(AlphatuneError):
    """Something on disk is missing, unreadable or corrupt."""

    exit_code = 3


class CheckpointError(InputError):
    """Weights that cannot be read or do not fit the architecture."""


class UntrustedError(InputError):
    """Reading this input would run code that nobody allowed."""


class DataError(InputError):
    """An image, folder or archive that cannot be read."""


class UnsupportedModelError(AlphatuneError):
    """The model has no norm layer to work on, or one of an unknown kind."""

    exit_code = 4


class ResourceError(AlphatuneError):
    """Out of memory, disk or worker processes."""

    exit_code = 5


class NumericError(AlphatuneError):
    """NaN, infinity or an impossible variance."""

    exit_code = 6


#: what torch's plain RuntimeErrors say when a device, or a library that drives it, fails
_OF_A_DEVICE = (
    "CUDA error",
    "CUDNN_STATUS_",
    "CUBLAS_STATUS_",
    "cuDNN error",
    "NCCL error",
    "HIP error",
    "MPS backend",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, ran out of memory; by name, so that asking does not import torch."""
    names = {cls.__name__ for cls in type(error).__mro__}
    # The CPU's allocator of torch has no exception class of its own.
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or "DefaultCPUAllocator" in str(error)


def machine_failure(error: BaseException) -> ResourceError | None:
    """What torch says of memory that ran out, a worker that died or a device that failed, as an error of ours.

    None for anything else.
    """
    text = one_line(error)
    if is_out_of_memory(error):
        first = text.partition(". ")[0] or "out of memory"
        return ResourceError(f"memory ran out: {first}", "try a smaller `batch_size` or fewer `workers`")
    # Torch raises it wherever the main process happens to be. (An error *in* a worker is "Caught … in DataLoader worker".)
    if "DataLoader worker (pid" in text:
        return dead_worker(text)
    if "unable to allocate shared memory" in str(error):
        return dead_worker("no room in /dev/shm for a batch")
    failed = type(error).__name__ == "AcceleratorError" or any(sign in text for sign in _OF_A_DEVICE)
    if isinstance(error, RuntimeError) and failed:
        return ResourceError(f"the device failed: {text}", "tune and train go on with `resume`")
    return None


def dead_worker(reason: str) -> ResourceError:
    """What to say of a process that reads images and is gone."""
    return ResourceError(
        f"a worker process that reads images died: {reason}",
        "often memory or /dev/shm ran out: try fewer workers; docker run --shm-size=2g gives a container more of the latter",
    )


def raise_if_machine_failed(error: BaseException) -> None:
    """Raise what ``machine_failure`` makes of an error, before it is put down to the model or the data."""
    if failure := machine_failure(error):
        raise failure from None


def one_line(error: object, limit: int = 300) -> str:
    """The text of somebody else's exception, fit for one of our messages."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
