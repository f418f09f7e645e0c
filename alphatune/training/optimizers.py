"""The optimiser, and which parameters decay to what (paper section 3.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alphatune.norms.survey import survey
from alphatune.training.recipe import Recipe

#: what parameters are told apart by
GROUPS = ("weights", "biases", "gamma", "beta")


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The model's parameters in four groups, each with its own decay.

        weights   weight_decay
        biases    bias_decay, of all layers but norm layers
        γ, β      weight_decay where ``decay_norm`` says so, else none

    γ may decay to 1 instead of 0: its group then has ``weight_decay`` 0 and
    ``decay_to_one``, which ``decay_to_one_`` applies. Parameters that a timm
    model exempts (``no_weight_decay``) do not decay. A shared parameter is in
    one group, once; frozen ones are in none.

    Source: paper section 3.3.
    """
    modules = dict(model.named_modules())
    kinds: dict[Tensor, str] = {}
    for layer in survey(model):
        for kind, name in (("gamma", "weight"), ("beta", "bias")):
            parameter = getattr(modules[layer.name], name, None)
            if isinstance(parameter, nn.Parameter):
                kinds[parameter] = kind
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    members: dict[str, list[Tensor]] = {name: [] for name in (*GROUPS, "exempt")}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = kinds.get(parameter) or ("biases" if name.endswith("bias") else "weights")
        members["exempt" if name in exempt else kind].append(parameter)
    gamma = recipe.weight_decay if recipe.decay_norm in ("gamma", "both") else 0.0
    decay = {
        "weights": recipe.weight_decay,
        "biases": recipe.bias_decay,
        "gamma": 0.0 if recipe.gamma_target == 1 else gamma,
        "beta": recipe.weight_decay if recipe.decay_norm in ("beta", "both") else 0.0,
        "exempt": 0.0,
    }
    return [
        {
            "name": name,
            "params": parameters,
            "weight_decay": decay[name],
            "decay_to_one": gamma if name == "gamma" and recipe.gamma_target == 1 else 0.0,
        }
        for name, parameters in members.items()
        if parameters
    ]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over ``parameter_groups``."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    nesterov = recipe.momentum > 0
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=nesterov)


def decay_to_one_(optimizer: torch.optim.Optimizer, *, coupled: bool) -> None:
    """Apply weight decay toward 1, λ·(γ − 1), as the optimiser applies its own toward 0.

    Args:
        coupled: the part before ``optimizer.step()``: SGD adds decay to the
            gradient. Otherwise the part after it: AdamW takes η·λ·(γ − 1) off the
            parameter.
    """
    if coupled == isinstance(optimizer, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        if not (strength := group["decay_to_one"]):
            continue
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            with torch.no_grad():
                if coupled:
                    parameter.grad.add_(parameter - 1, alpha=strength)
                else:
                    parameter.sub_(parameter - 1, alpha=group["lr"] * strength)
