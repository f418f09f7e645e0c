"""What alphatune works with beside torch itself: operators, decoders, compilers. Each is tried, not looked up."""

from __future__ import annotations

import importlib
import io
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from alphatune.core.errors import AlphatuneError, one_line
from alphatune.results.diagnosis import Finding
from alphatune.results.values import FindingStatus

TOOLS, DECODERS = "Operators and compilers", "Image decoders"

_PROGRAM = """
#include <cmath>
#include <vector>
int main() {
    std::vector<float> x(64, 4.0f);
    float sum = 0;
    #pragma omp parallel for reduction(+ : sum)
    for (int i = 0; i < 64; ++i) sum += std::sqrt(x[i]);
    return sum == 128.0f ? 0 : 1;
}
"""


def find_operators() -> Iterator[Finding]:
    """torchvision's own operators, which are missing where it was built for another torch."""
    name = "torchvision::nms"
    hint = "torch and torchvision must be of the same release: install both together"
    try:
        import torch
        from torchvision.ops import nms

        boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
        kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    except Exception as error:  # RuntimeError at import or at the call, ImportError, AttributeError
        yield Finding(TOOLS, name, "broken", f"{type(error).__name__}: {one_line(error)}", hint)
        return
    if kept == [0, 2]:
        yield Finding(TOOLS, name, "ok", "torch and torchvision fit each other")
    else:
        yield Finding(TOOLS, name, "broken", f"kept boxes {kept} where 0 and 2 were expected", hint)


def find_decoders() -> Iterator[Finding]:
    """A small JPEG through each decoder; torchcodec is optional."""
    import numpy as np
    from PIL import Image

    from alphatune.data.decoding import decoder_version, read_image

    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(buffer, "JPEG")
    for decoder in ("pil", "torchcodec"):
        try:
            version = decoder_version(decoder)
            image = read_image(buffer.getvalue(), "RGB", decoder)
        except AlphatuneError as error:
            yield Finding(DECODERS, decoder, "missing", error.message, error.hint)
            continue
        works = image.size == (16, 16) and abs(int(np.asarray(image).mean()) - 128) <= 2
        detail = version if works else f"{version}: a grey JPEG came out as something else"
        status: FindingStatus = "ok" if works else "broken" if decoder == "pil" else "note"
        hint = "" if works else "install it anew"
        yield Finding(DECODERS, decoder, status, detail, hint, {"version": version})


def find_compilers() -> Iterator[Finding]:
    """The C++ compiler of the CPU kernels and of torch.compile, and Triton for CUDA."""
    yield find_cxx()
    yield _triton()


def find_cxx(compiler: str | None = None) -> Finding:
    """Compile a small program and run it.

    Args:
        compiler: which one; by default that of the CPU kernels.
    """
    from alphatune.kernels.cpu import find_compiler

    name = "C++ compiler"
    hint = "install g++ or clang++, or let CXX name one; without it `kernel=eager` is used, which is slower"
    compiler = compiler or find_compiler()
    if compiler is None:
        return Finding(TOOLS, name, "missing", "none on the PATH", hint)
    failures = [_compile_and_run(compiler, flags) for flags in (("-fopenmp",), ())]
    if all(failures):
        return Finding(TOOLS, name, "missing", f"{compiler} does not work: {failures[1]}", hint)
    openmp, headers = not failures[0], _has_python_headers()
    facts = {"path": compiler, "openmp": openmp, "python_headers": headers}
    lacking = []
    if not openmp:
        lacking.append(f"no OpenMP, so the compiled kernels are for one thread only ({failures[0]})")
    if not headers:
        lacking.append("no Python.h, which torch.compile needs (the package python3-dev)")
    if lacking:
        return Finding(TOOLS, name, "note", f"{compiler} works; {'; '.join(lacking)}", "", facts)
    return Finding(TOOLS, name, "ok", f"{compiler} compiles and runs a program, with OpenMP", facts=facts)


def _compile_and_run(compiler: str, flags: tuple[str, ...]) -> str:
    """Nothing if it works, else why not."""
    with tempfile.TemporaryDirectory(prefix="alphatune-") as folder:
        source, program = Path(folder) / "program.cpp", Path(folder) / "program"
        source.write_text(_PROGRAM)
        command = [compiler, "-std=c++17", "-O1", *flags, str(source), "-o", str(program)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            if done.returncode != 0:
                lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
                return one_line(lines[0], 160) or f"it ended with code {done.returncode}"
            code = subprocess.run([str(program)], check=False, timeout=20).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            return one_line(error, 160)
    return f"its program ended with code {code}" if code else ""


def _has_python_headers() -> bool:
    return (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()


def _triton() -> Finding:
    try:
        triton = importlib.import_module("triton")
    except ImportError:
        return Finding(TOOLS, "triton", "missing", "not installed; the fast kernels on CUDA need it")
    except Exception as error:  # a build that does not fit may raise anything
        detail = f"cannot be imported: {type(error).__name__}: {one_line(error)}"
        return Finding(TOOLS, "triton", "note", detail)
    return Finding(TOOLS, "triton", "ok", str(triton.__version__), facts={"version": triton.__version__})
