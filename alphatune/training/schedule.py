"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from alphatune.training.recipe import Recipe


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step, counted from 0.

        warm-up   η·(t + 1) / (w + 1)                  for t < w
        cosine    η·(1 + cos(π·(t − w) / (T − w))) / 2  (Loshchilov & Hutter 2017)
        step      η / 10ᵏ after k milestones of the run

    with t the step, w the steps of warm-up and T the steps of the run.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / (warmup + 1)
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
    if recipe.schedule == "step":
        passed = sum(step >= milestone * total for milestone in recipe.milestones)
        return float(recipe.learning_rate / 10**passed)
    return recipe.learning_rate
