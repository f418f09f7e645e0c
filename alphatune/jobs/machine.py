"""What alphatune runs on: devices, memory, folders it writes to."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alphatune.core.cache_folder import cache_folder
from alphatune.core.errors import one_line
from alphatune.jobs.findings import gibibytes
from alphatune.results.diagnosis import Finding
from alphatune.results.values import Open

DEVICES, MEMORY = "Devices", "Memory and folders"

#: below these a job of usual size may run out
LITTLE_SHARED = 2**30
LITTLE_MEMORY = 2 * 2**30
LITTLE_DISK = 2 * 2**30


def find_devices() -> Iterator[Finding]:
    """The CPU, each CUDA device and Apple's MPS; each computes something small."""
    import torch

    yield _cpu(torch)
    yield from _cuda(torch)
    if torch.backends.mps.is_available():
        yield _computes(torch, "mps", "Apple GPU", {})
    elif platform.system() == "Darwin":
        yield Finding(DEVICES, "mps", "missing", "this torch or this Mac has no MPS device")


def _cpu(torch: Any) -> Finding:
    name = _processor()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    facts = {"name": name, "cores": os.cpu_count(), "usable_cores": allowed, "threads": threads}
    detail = f"{name}, {allowed} of {os.cpu_count()} logical cores may be used, torch threads: {threads}"
    if set_by := os.environ.get("OMP_NUM_THREADS"):
        detail += f" (OMP_NUM_THREADS={set_by})"
    return _computes(torch, "cpu", detail, facts)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cuda(torch: Any) -> Iterator[Finding]:
    driver, built = nvidia_driver(), torch.version.cuda
    if not torch.cuda.is_available():
        facts = {"cuda": built, "driver": driver}
        if driver is None:
            detail = f"no NVIDIA driver here; this torch has {f'CUDA {built}' if built else 'no CUDA'}"
            yield Finding(DEVICES, "cuda", "missing", detail, facts=facts)
        elif built is None:
            hint = "install a torch with CUDA (pytorch.org)"
            detail = f"driver {driver}, but this torch was built without CUDA"
            yield Finding(DEVICES, "cuda", "note", detail, hint, facts)
        else:
            detail = f"driver {driver}, CUDA {built}: {_why_no_cuda(torch)}"
            yield Finding(DEVICES, "cuda", "note", detail, facts=facts)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        major, minor = properties.major, properties.minor
        facts = {
            "name": properties.name,
            "memory": properties.total_memory,
            "compute_capability": f"{major}.{minor}",
            "cuda": built,
            "driver": driver,
        }
        detail = (
            f"{properties.name}, {gibibytes(properties.total_memory)}, compute capability {major}.{minor}, "
            f"CUDA {built}, driver {driver or 'unknown'}"
        )
        yield _computes(torch, f"cuda:{index}", detail, facts)


def _computes(torch: Any, device: str, detail: str, facts: Open) -> Finding:
    """A convolution and a BatchNorm on a device: a torch that was not built for it fails only there."""
    try:
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(device).eval()
        with torch.inference_mode():
            works = bool(layers(torch.ones(2, 3, 8, 8, device=device)).isfinite().all())
        failure = "" if works else "a convolution gave NaN"
    except RuntimeError as error:
        failure = one_line(error)
    if not failure:
        return Finding(DEVICES, device, "ok", detail, facts=facts)
    hint = "install a torch that was built for this device"
    if device == "cpu":
        return Finding(DEVICES, device, "broken", f"{detail}; does not compute: {failure}", hint, facts)
    hint += "; `device=cpu` works without it"
    return Finding(DEVICES, device, "note", f"{detail}; does not compute: {failure}", hint, facts)


def _why_no_cuda(torch: Any) -> str:
    try:
        torch.cuda.init()
    except Exception as error:  # RuntimeError, AssertionError: whatever this torch raises
        return one_line(error)
    return "no CUDA device is visible"


def nvidia_driver() -> str | None:
    """The version of the NVIDIA driver, None without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def find_memory() -> Iterator[Finding]:
    """Free memory, shared memory, and the folders that alphatune writes to."""
    from alphatune.data.available_memory import available_memory

    free = available_memory()
    if free is not None:
        little = free < LITTLE_MEMORY
        hint = "smaller `batch_size`, `workers=0`, `cache=none`" if little else ""
        yield Finding(
            MEMORY, "memory", "note" if little else "ok", f"{gibibytes(free)} available", hint, {"free": free}
        )
    if Path("/dev/shm").is_dir():
        yield shared_memory(Path("/dev/shm"))
    yield _folder(
        "temporary folder", Path(tempfile.gettempdir()), "TMPDIR names another; `cache=disk` writes there"
    )
    cache = cache_folder()
    if cache is None:
        detail = (
            "no folder of this user's own that can be written to: kernels are compiled, and jobs run, anew"
        )
        yield Finding(MEMORY, "cache folder", "note", detail, "XDG_CACHE_HOME names another")
    else:
        yield _folder("cache folder", cache, "XDG_CACHE_HOME names another")


def shared_memory(path: Path) -> Finding:
    """Where the workers of a DataLoader of one's own hand over batches; our own do it by pipes, and keep locks there.

    Containers get 64 MiB unless told otherwise.
    """
    usage = shutil.disk_usage(path)
    little = usage.free < LITTLE_SHARED
    hint = "num_workers=0 in that loader, or docker run --shm-size=2g" if little else ""
    detail = f"{gibibytes(usage.free)} free of {gibibytes(usage.total)}"
    if little:
        detail += ", which a DataLoader of your own may fill; images of folders, archives and arrays do not pass there"
    facts = {"path": str(path), "free": usage.free, "total": usage.total}
    return Finding(MEMORY, "shared memory", "note" if little else "ok", f"{path}: {detail}", hint, facts)


def _folder(name: str, path: Path, hint: str) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"alphatune")
        free = shutil.disk_usage(path).free
    except OSError as error:
        return Finding(MEMORY, name, "broken", f"{path}: cannot be written to: {one_line(error)}", hint)
    little = free < LITTLE_DISK
    detail = f"{path}: {gibibytes(free)} free"
    facts = {"path": str(path), "free": free}
    return Finding(MEMORY, name, "note" if little else "ok", detail, hint if little else "", facts)
