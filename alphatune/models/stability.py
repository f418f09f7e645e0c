"""Whether a model in eval mode gives an example the same output whatever else happens, and which module does not.

A few images are run twice, and the first and last of them by themselves. Where outputs differ a
second look compares, module by module in the order in which they finish, what went in and what
came out: the cause is the first whose inputs agree and whose outputs do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from alphatune.core.errors import UnsupportedModelError, one_line, raise_if_machine_failed
from alphatune.evaluation.predictor import evaluation_mode, input_dtype
from alphatune.evaluation.reading import output_of, tensors_of

#: difference of two outputs, in units of the largest value, that rounding explains: of the same call again,
#: and of a batch of another size
SAME_CALL, SAME_EXAMPLE = 1e-5, 1e-3
#: repetitions where a random number was drawn but nothing differed
ATTEMPTS = 8


def require_stable(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """Run a few images again, and alone; the model is left as it is.

    Args:
        images: prepared for the model, on its device.

    Returns:
        A remark if an output depends on the companions in the batch.

    Raises:
        UnsupportedModelError: outputs change from call to call, or eval mode does not reach a layer that
            normalises by the batch; names the module where it can be found.
    """
    with evaluation_mode(model), preserved(model):
        before, state = _buffers(model), _random_state(images.device)
        first = _output(model, images)
        drew = not torch.equal(state, _random_state(images.device))
        tolerance = max(SAME_EXAMPLE, 8 * torch.finfo(input_dtype(model)).eps)
        changed = [
            name for name, buffer in model.named_buffers() if _differs_exactly(before.get(name), buffer)
        ]
        for _ in range(ATTEMPTS if drew else 1):
            if _differ(first, _output(model, images), SAME_CALL):
                where = _cause(model, images, lambda x: x, SAME_CALL)
                raise UnsupportedModelError(
                    f"the model's outputs for the same images change from one call to the next{where}",
                    "dropout and noise must be off in eval mode: F.dropout(x, p, training=self.training)",
                )
        for row in (0, len(images) - 1) if len(images) > 1 else ():
            try:
                alone: Tensor | None = _output(model, images[row : row + 1])
                problem = ""
            except Exception as error:
                raise_if_machine_failed(error)
                alone, problem = None, f" (one image alone: {one_line(error)})"
            if alone is None or _differ(first[row : row + 1], alone, tolerance):
                where = (
                    ": it does not run on one image alone"
                    if alone is None
                    else _cause(model, images, lambda x, row=row: x[row : row + 1], tolerance, row)  # type: ignore[misc]
                )
                left = [name or "the model" for name, m in _all_modules(model) if m.training]
                text = f"the model's output for an image depends on the others in the batch{where}{problem}"
                if alone is None or changed or left:
                    if left:
                        text += f"; eval() leaves {left[0]} in training mode"
                    elif changed:
                        text += f"; a forward pass in eval mode changes {changed[0]}"
                    raise UnsupportedModelError(
                        text, "let eval() reach every layer, and self.training decide"
                    )
                return (f"{text}; figures depend on `batch_size`",)
    return ()


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Buffers and torch's random state as they were, whatever a forward pass does to them."""
    before = _buffers(model)
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if _differs_exactly(before.get(name), buffer):
                        buffer.copy_(before[name])


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    made = (
        (n, b) for n, b in model.named_buffers() if not isinstance(b, UninitializedBuffer) and not b.is_meta
    )
    return {name: buffer.detach().clone() for name, buffer in made}


def _differs_exactly(before: Tensor | None, now: Tensor) -> bool:
    if before is None or before.shape != now.shape:
        return False
    same = before == now
    if now.is_floating_point():
        same |= before.isnan() & now.isnan()
    return not bool(same.all())


def _output(model: nn.Module, images: Tensor) -> Tensor:
    return output_of(model, model(images)).float().clone()


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _all_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules by name, and those in plain lists and dicts, which eval() does not know of."""
    for name, module in model.named_modules():
        yield name, module
        for attribute, value in vars(module).items():
            if attribute.startswith("_"):
                continue
            held = (
                value.values()
                if isinstance(value, dict)
                else value
                if isinstance(value, (list, tuple))
                else ()
            )
            for item in held:
                if isinstance(item, nn.Module):
                    yield f"{name}.{attribute}".lstrip("."), item


def _differ(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two outputs differ by more than rounding explains; those with NaN do not count."""
    if one.shape != other.shape:
        return True
    one, other = one.float(), other.float()
    largest = float((one - other).abs().max()) if one.numel() else 0.0
    return largest > tolerance * max(float(one.abs().max()) if one.numel() else 0.0, 1e-30)


@dataclass(frozen=True)
class _Call:
    """One call of a module."""

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def _cause(
    model: nn.Module, images: Tensor, part: Callable[[Tensor], Tensor], tolerance: float, row: int = 0
) -> str:
    """Name the module whose inputs agree in two passes and whose outputs do not; "" if none is found.

    Args:
        part: of the images that the second pass takes.
        row: the place of the first image of the second pass in the first one.
    """
    try:
        whole, again = _calls(model, images), _calls(model, part(images))
    except Exception as error:  # hooks that a module does not take, say
        raise_if_machine_failed(error)
        return ""
    last = ""
    for one, other in zip(whole, again, strict=False):
        if one.name != other.name:
            break
        same = [
            _agree(a, b, len(images), row, tolerance) for a, b in zip(one.inputs, other.inputs, strict=False)
        ]
        if not all(same):
            last = last or one.name
            continue
        if all(
            _agree(a, b, len(images), row, tolerance)
            for a, b in zip(one.outputs, other.outputs, strict=False)
        ):
            continue
        named = f"{one.name} ({one.kind})" if one.name else f"the model's own forward ({one.kind})"
        inner = last if last.startswith(f"{one.name}." if one.name else "") and last != one.name else ""
        return f": the cause is {named}" + (f", in its own code before {inner}" if inner else "")
    return ""


def _calls(model: nn.Module, images: Tensor) -> list[_Call]:
    """Every module call of a pass with copies of its inputs and outputs, in the order in which they finish."""
    finished: list[_Call] = []
    entered: dict[str, list[tuple[Tensor, ...]]] = {}

    def enter(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            entered.setdefault(name, []).append(_copies((args, kwargs)))

        return hook

    def leave(name: str) -> Any:
        def hook(module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            inputs = entered[name].pop()
            finished.append(_Call(name, type(module).__name__, inputs, _copies(output)))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(
                module.register_forward_pre_hook(enter(name), with_kwargs=True, prepend=True).remove
            )
            stack.callback(module.register_forward_hook(leave(name), with_kwargs=True).remove)
        model(images)
    return finished


def _copies(value: Any) -> tuple[Tensor, ...]:
    return tuple(t.detach().clone() for t in tensors_of(value).values())


def _agree(whole: Tensor, part: Tensor, examples: int, row: int, tolerance: float) -> bool:
    """Whether two tensors are the same for the examples that both hold; where that cannot be told, they are."""
    if whole.shape == part.shape:
        return not _differ(whole, part, tolerance)
    if whole.ndim == 0 or whole.ndim != part.ndim or len(whole) != examples * len(part):
        return True
    start = row * len(part)
    return not _differ(whole[start : start + len(part)], part, tolerance)
