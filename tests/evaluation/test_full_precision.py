"""float32 is float32 meanwhile, and every switch of the user's is as before afterwards, however it was set."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

#: what a program may have done before it calls alphatune
STATES = {
    "nothing": "",
    "older, matmul": "m.allow_tf32 = True",
    "older, cudnn": "cudnn.allow_tf32 = False",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "benchmark": "cudnn.benchmark = True",
    "frozen": "torch.backends.disable_global_flags()",
    "frozen, benchmark": "cudnn.benchmark = True; torch.backends.disable_global_flags()",
}
if hasattr(torch.backends, "fp32_precision"):
    STATES |= {
        "newer, matmul": "m.fp32_precision = 'tf32'",
        "newer, matmul off": "m.fp32_precision = 'ieee'",
        "newer, all": "torch.backends.fp32_precision = 'tf32'",
        "newer, all off": "torch.backends.fp32_precision = 'ieee'",
        "newer, cudnn": "cudnn.fp32_precision = 'tf32'",
        "newer, conv": "cudnn.conv.fp32_precision = 'ieee'",
        "newer, CPU": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
        "both": "m.allow_tf32 = True; torch.backends.fp32_precision = 'tf32'",
        "newer, frozen": "torch.backends.fp32_precision = 'tf32'; torch.backends.disable_global_flags()",
    }

#: these switches are one for the process, so each state has one of its own; they share one import of torch
PROGRAM = """
import os, sys, torch
from torch.backends import cudnn
from alphatune.evaluation.predictor import evaluation_mode
m, mkldnn = torch.backends.cuda.matmul, torch.backends.mkldnn
newer = [m, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv] if hasattr(torch.backends, "fp32_precision") else []

def attempt(function):
    try:
        return function()
    except RuntimeError:
        return "contradiction"

def state():
    older = [lambda: m.allow_tf32, lambda: cudnn.allow_tf32, torch.get_float32_matmul_precision]
    return [attempt(f) for f in older] + [o.fp32_precision for o in newer] + [cudnn.benchmark]

def check(setting):
    exec(setting)
    model, before = torch.nn.Conv2d(1, 1, 1).train(), state()
    with evaluation_mode(model):
        assert not model.training and not cudnn.benchmark
        assert all(o.fp32_precision in ("ieee", "none") for o in newer), state()
        if "contradiction" not in before:  # nothing of ours breaks a model that reads a switch
            assert state()[:2] == [False, False], state()
            if not torch.backends.flags_frozen():
                with cudnn.flags(enabled=False):
                    pass
    assert model.training and state() == before, (before, state())

for setting in sys.argv[1:]:
    if (child := os.fork()) == 0:
        try:
            check(setting)
        except BaseException as error:
            print(f"{setting!r}: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
print("done")
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_every_state_is_restored() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *STATES.values()], capture_output=True, text=True, check=False
    )
    assert done.stdout == "done\n", done.stdout + done.stderr
