"""Which norm layers reach the model's output without passing another one."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, saved_tensors_hooks

from alphatune.core.errors import AlphatuneError, one_line
from alphatune.evaluation.predictor import evaluation_mode, predict
from alphatune.models.probe import EXAMPLES
from alphatune.norms.survey import survey

#: torch's own norm functions, which a model may call without a layer
_FUNCTIONAL = re.compile(r"(Batch|Layer|Group|Rms)Norm")


@dataclass(frozen=True)
class Paths:
    """Whether each norm layer has a norm-free path to the logits; None is unknown."""

    free: Mapping[str, bool | None]
    remark: str = ""  # why nothing is known

    def count(self, answer: bool | None) -> int:
        """How many layers have this answer."""
        return sum(free is answer for free in self.free.values())


def trace_paths(model: nn.Module, input_size: tuple[int, int, int], device: torch.device) -> Paths:
    """Walk the autograd graph back from the logits and stop at the output of every norm layer.

    A layer has a norm-free path if the walk arrives at one of its calls. The
    answer is None for a layer that does not run in eval mode, that runs where
    autograd does not look (reentrant checkpointing, ``no_grad``), or from which
    the graph leads to the logits in no way, with norm layers or without. So it
    is for layers behind a custom function, if some norm layer runs unseen: that
    layer may lie inside the function.

    Source: Summers & Dinneen 2020, section 3.3.
    """
    names = [layer.name for layer in survey(model)]
    unknown: dict[str, bool | None] = dict.fromkeys(names)
    try:
        calls, end = _trace(model, names, input_size, device)
    except AlphatuneError:
        raise
    except Exception as error:  # in-place operations on views, for one, raise with gradients only
        return Paths(unknown, f"the model does not run with gradients: {one_line(error)}")
    if end is None:
        return Paths(unknown, "the model's output carries no gradient")
    outputs = {node for nodes in calls.values() for node in nodes if node is not None}
    unseen = any(None in nodes for nodes in calls.values())

    def is_norm(node: Node) -> bool:
        return node in outputs or _FUNCTIONAL.search(node.name()) is not None

    def may_hide_norm(node: Node) -> bool:
        return unseen and isinstance(node, BackwardCFunction)

    anywhere = _walk(end, lambda _: False)
    free = _walk(end, is_norm)
    certain = _walk(end, lambda node: is_norm(node) or may_hide_norm(node))

    def judge(nodes: list[Node | None]) -> bool | None:
        if any(node in certain for node in nodes):
            return True
        if None in nodes or any(node in free for node in nodes):
            return None
        return False if any(node in anywhere for node in nodes) else None

    return Paths(unknown | {name: judge(nodes) for name, nodes in calls.items()})


def _trace(
    model: nn.Module, names: list[str], input_size: tuple[int, int, int], device: torch.device
) -> tuple[dict[str, list[Node | None]], Node | None]:
    """The graph nodes of each norm layer's outputs (None: not in the graph), and of the logits."""
    if any(t.is_inference() for t in itertools.chain(model.parameters(), model.buffers())):
        model = copy.deepcopy(model)  # autograd refuses tensors made in inference mode, not their copies
    modules = dict(model.named_modules())
    calls: dict[str, list[Node | None]] = {}

    def watch(name: str) -> Any:
        prefix = name and f"{name}."

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
            if any(other != name and other.startswith(prefix) for other in calls):
                return None  # it encloses norm layers that have just run: no layer by itself
            nodes = calls.setdefault(name, [])
            if not torch.is_tensor(output):
                kind = type(output).__name__
                raise TypeError(f"norm layer {name or '(root)'} returns a {kind}, not a tensor")
            if not output.requires_grad:
                nodes.append(None)
                return None
            # A copy has a node of its own. The node of an output that is a view
            # would be replaced by an in-place activation.
            marked: Tensor = output.clone()
            nodes.append(marked.grad_fn)
            return marked

        return hook

    with ExitStack() as stack:
        for name in names:
            stack.callback(modules[name].register_forward_hook(watch(name)).remove)
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.enable_grad())
        # Only the nodes are read: activations need not be kept for a backward pass.
        stack.enter_context(saved_tensors_hooks(lambda _: None, lambda kept: kept))
        images = torch.zeros((EXAMPLES, *input_size), device=device, requires_grad=True)
        # A model may normalise its input in place, which a leaf of the graph forbids.
        return calls, predict(model, images.clone()).grad_fn


def _walk(start: Node, stop: Callable[[Node], bool]) -> set[Node]:
    """Every node from which the graph leads to ``start``; those that ``stop`` are not walked beyond."""
    # The set keeps the nodes alive: torch makes a new object for a node that nobody holds.
    seen, todo = {start}, [start]
    while todo:
        node = todo.pop()
        if stop(node):
            continue
        for earlier, _ in node.next_functions:
            if earlier is not None and earlier not in seen:
                seen.add(earlier)
                todo.append(earlier)
    return seen
