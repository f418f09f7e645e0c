"""Example weighting in plain PyTorch: the lines that a model card shows to people without alphatune.

``weigh_examples_`` stands in the card word for word. What it computes is
compared with alphatune whenever such a folder is written (jobs/export.py).

It moves the layer's *input* instead of replacing the layer, so that whatever
else the layer does (timm's drop and activation) stays as it is:

    x' = (x − mean)·sqrt((v + ε) / (variance + ε)) + m,   mean, variance from Eq. 3

is normalised by m and v to what x is by the mixed moments.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch


def weigh_examples_(model: Any, alphas: dict[str, Any]) -> None:
    def hook(layer: Any, inputs: Any, named: Any) -> Any:
        given = (*inputs, *named.values())[0]
        x = given.flatten(2) if given.ndim > 2 else given[..., None]
        m, v = layer.running_mean[:, None], layer.running_var[:, None]
        a = layer.example_weight.to(x.device)
        variance, mean = torch.var_mean(x, 2, correction=0, keepdim=True)
        variance = (1 - a) * v + a * variance + a * (1 - a) * (mean - m) ** 2
        x = (x - m - a * (mean - m)) * ((v + layer.eps) / (variance + layer.eps)).sqrt() + m
        return (x.reshape(given.shape),), {}

    for name, alpha in alphas.items():
        layer = model.get_submodule(name)
        layer.example_weight = torch.tensor(alpha).reshape(-1, 1)  # one number, or one a channel
        layer.register_forward_pre_hook(hook, with_kwargs=True)


def shown() -> str:
    """The function's text, without annotations, which a reader has no use for."""
    lines = inspect.getsource(weigh_examples_).rstrip().splitlines()
    plain = {
        lines[0]: "def weigh_examples_(model, alphas):",
        lines[1]: "    def hook(layer, inputs, named):",
    }
    return "\n".join(plain.get(line, line) for line in lines)
