"""What α costs in deployment: the time of a forward pass, plain, conv-folded and example-weighted.

BatchNorm at α = 0 folds into the convolution before it and costs nothing;
example weighting computes each image's statistics anew. So there are two
ratios: to the plain model, and to the folded one that would be deployed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor, nn

from alphatune.core.errors import (
    AlphatuneError,
    ConfigurationError,
    NumericError,
    ResourceError,
    is_out_of_memory,
    one_line,
)
from alphatune.core.timing import FEWEST_ROUNDS, Timing, interleave, ratio, synchronise
from alphatune.evaluation.predictor import Predictor, evaluation_mode
from alphatune.evaluation.reading import output_of
from alphatune.export.folding import fold
from alphatune.kernels.dispatch import Kernel, resolve_kernel, use_kernel
from alphatune.models.copying import stock_copy
from alphatune.norms.patching import Alpha, all_but, example_weighted_layers, get_alpha, patch_
from alphatune.results.alpha import LayerAlpha, ModelAlpha, common_alpha

Variant = Literal["plain", "folded", "example-weighted"]

#: largest difference of folded outputs, in units of the largest plain one, that rounding explains
ROUNDING = 1e-3
#: images of the batch on which folded and plain outputs are compared
COMPARED = 8


@dataclass(frozen=True)
class Measured:
    """One way to run the model."""

    variant: Variant
    kernel: Kernel | None  # of example-weighted layers; None where there are none, and under torch.compile
    torch_compile: bool
    timing: Timing  # seconds a batch
    ratio_to_plain: float  # to the plain model without torch.compile, as ``timing.ratio`` takes it
    peak_bytes: int | None  # weights, inputs, and the most a forward pass takes beside them; None but on CUDA


@dataclass(frozen=True)
class DeploymentCost:
    """What was measured for one batch."""

    alpha: ModelAlpha
    batch_size: int
    measured: tuple[Measured, ...]
    norms: int  # norm layers with moving averages
    folded: int  # how many of them went into a convolution
    kept: Mapping[str, str]  # the others, and why
    #: of folded from plain logits, in float32, over the first images; None where nothing was folded
    largest_difference: float | None
    warnings: tuple[str, ...]
    runtime: Literal["torch", "onnxruntime"] = "torch"

    @property
    def fastest(self) -> Measured:
        """Example-weighted inference with the fastest kernel, without torch.compile."""
        return min(self._of("example-weighted"), key=lambda m: m.timing.median)

    @property
    def ratio_to_plain(self) -> float:
        return self.fastest.ratio_to_plain

    @property
    def ratio_to_folded(self) -> float | None:
        """None where nothing could be folded."""
        return next((ratio(self.fastest.timing, m.timing) for m in self._of("folded")), None)

    @property
    def ratio_compiled(self) -> float | None:
        """Example-weighted to plain, both under torch.compile; None where that was not measured."""
        weighted, plain = self._of("example-weighted", True), self._of("plain", True)
        return ratio(weighted[0].timing, plain[0].timing) if weighted and plain else None

    def _of(self, variant: Variant, torch_compile: bool = False) -> list[Measured]:
        return [m for m in self.measured if m.variant == variant and m.torch_compile == torch_compile]


@dataclass(frozen=True)
class _Candidate:
    """One way to run the model, before it is timed; ``setup`` are seconds it took to get there."""

    variant: Variant
    model: Callable[[Tensor], object]
    kernel: Kernel | None = None
    torch_compile: bool = False
    setup: float = 0.0

    @property
    def name(self) -> str:
        parts = [self.variant, self.kernel or "", "torch.compile" if self.torch_compile else ""]
        return ", ".join(part for part in parts if part)


def deployment_cost(
    model: nn.Module,
    inputs: Tensor,
    *,
    alpha: Alpha | Mapping[str, Alpha],
    budget_seconds: float = 1.0,
    kernels: Sequence[Kernel] | None = ("auto",),
    dtype: torch.dtype = torch.float32,
    torch_compile: bool = False,
    rounds: int = FEWEST_ROUNDS,
    exclude: Collection[str] = (),
    skip_unknown: bool = False,
    spent: Callable[[float], None] = lambda _: None,
) -> DeploymentCost:
    """Time a model on one batch: plain, conv-folded, example-weighted with each kernel.

    Everything runs in copies that share the model's weights; the model itself
    is not touched, whether it is patched or not, in training mode or not.

    Args:
        model: a classifier with BatchNorm layers, on the device to measure.
        inputs: one batch (N, C, H, W) on that device, in the memory format to measure.
        alpha: one weight for all example-weighted layers (those that are patched, or if none
            is, all that ``patch_`` would take), or a mapping that names every layer to weigh.
        budget_seconds: for all that is timed, less the first call of each. Every variant is called
            at least ``rounds`` + 1 times, which on a large model may exceed it.
        kernels: codes of the example-weighted layers, which must be able to run here; None: all that can.
        dtype: float32, or float16/bfloat16 for autocast.
        torch_compile: measure plain and example-weighted under torch.compile, too. The
            compiler's caches are cleared, those of other models in this process included.
        spent: called between the timings with the seconds that passed.
        exclude, skip_unknown: as for ``patch_``, where ``alpha`` is one weight and the model not patched.

    Raises:
        UnsupportedModelError: nothing to weigh, or a model that cannot be copied.
        ConfigurationError: α outside [0, 1], an unknown layer, a kernel that cannot run here.
        NumericError: outputs that are not finite.
        ResourceError: the batch does not fit into memory.
    """
    plain = stock_copy(model)
    weighted = example_weighted_copy(model, alpha, exclude, skip_unknown)
    folding = fold(model)
    inputs = Predictor(plain).prepare(inputs)
    device, notes, difference = inputs.device, list[str](), None
    if not any(layer.weighs_example for _, layer in example_weighted_layers(weighted)):
        notes.append("this α changes nothing: example-weighted inference is plain inference")
    with evaluation_mode(plain):
        candidates = [_Candidate("plain", plain)]
        expected = _outputs(plain, inputs[:COMPARED])
        if folding.folded:
            try:
                outputs = _outputs(folding.model, inputs[:COMPARED])
            except (AttributeError, TypeError, ValueError, RuntimeError) as error:
                # A forward that looks into its layers may miss what was folded.
                notes.append(f"the conv-folded model fails and was left out: {one_line(error)}")
            else:
                candidates.append(_Candidate("folded", folding.model))
                difference = float((outputs - expected).abs().max())
                if difference > ROUNDING * float(expected.abs().max()):
                    notes.append(
                        f"conv-folded outputs differ by up to {difference:.3g} from the plain ones, more than "
                        "rounding explains: the folded figures are not those of the same model"
                    )
        candidates += _with_kernels(weighted, kernels, device)
        if torch_compile:
            compiled, problems = _compiled(plain, weighted, inputs, dtype)
            candidates += compiled
            notes += problems
        runs = {c.name: _run(c, inputs, dtype) for c in candidates}
        timings = interleave(runs, seconds=budget_seconds, rounds=rounds, device=device, spent=spent)
        measured = tuple(
            Measured(
                variant=c.variant,
                kernel=c.kernel,
                torch_compile=c.torch_compile,
                timing=Timing(timings[c.name].samples, timings[c.name].first_use + c.setup),
                ratio_to_plain=ratio(timings[c.name], timings["plain"]),
                peak_bytes=_peak_bytes(
                    folding.model if c.variant == "folded" else plain, runs[c.name], inputs
                ),
            )
            for c in candidates
        )
    return DeploymentCost(
        alpha=alphas_of(weighted),
        batch_size=len(inputs),
        measured=measured,
        norms=folding.norms,
        folded=len(folding.folded) if difference is not None else 0,
        kept=folding.kept,
        largest_difference=difference,
        warnings=tuple(notes),
    )


def alphas_of(model: nn.Module) -> ModelAlpha:
    """A model's α as they were given, not as float32 holds them."""
    return common_alpha({name: _as_given(alpha) for name, alpha in get_alpha(model).items()})


def example_weighted_copy(
    model: nn.Module, alpha: Alpha | Mapping[str, Alpha], exclude: Collection[str], skip_unknown: bool
) -> nn.Module:
    """A copy that shares the model's weights, patched as ``deployment_cost`` says."""
    twin = stock_copy(model)
    if not isinstance(alpha, Mapping) and (tuned := get_alpha(model)):
        alpha = dict.fromkeys(tuned, alpha)
    if isinstance(alpha, Mapping):
        exclude = all_but(twin, alpha.keys())
    patch_(twin, alpha, exclude=exclude, skip_unknown=skip_unknown)
    return twin


def _with_kernels(
    model: nn.Module, kernels: Sequence[Kernel] | None, device: torch.device
) -> list[_Candidate]:
    candidates: dict[Kernel, _Candidate] = {}
    for kernel in kernels or ("eager", "compiled", "triton"):
        start = perf_counter()
        try:
            resolved = resolve_kernel(kernel, device)  # this compiles what is compiled beforehand
        except ConfigurationError:
            if kernels is not None:
                raise
            continue
        setup = perf_counter() - start
        candidates.setdefault(resolved, _Candidate("example-weighted", model, resolved, setup=setup))
    return list(candidates.values())


def _run(candidate: _Candidate, inputs: Tensor, dtype: torch.dtype) -> Callable[[], object]:
    """One forward pass, as a function without arguments."""
    low_precision = dtype in (torch.float16, torch.bfloat16)

    def run() -> object:
        try:
            with (
                use_kernel(candidate.kernel) if candidate.kernel else contextlib.nullcontext(),
                torch.autocast(inputs.device.type, dtype) if low_precision else contextlib.nullcontext(),
            ):
                return candidate.model(inputs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ResourceError(
                f"a batch of shape {tuple(inputs.shape)} does not fit into the device's memory",
                "use a smaller `batch_size`",
            ) from None

    return run


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """The logits, or probabilities, without autocast; raises NumericError where one is not finite."""
    logits = output_of(model, _run(_Candidate("plain", model), inputs, torch.float32)()).float()
    if not bool(torch.isfinite(logits).all()):
        raise NumericError("the model's output is NaN or infinite", "are these the weights you mean?")
    return logits


def _compiled(
    plain: nn.Module, weighted: nn.Module, inputs: Tensor, dtype: torch.dtype
) -> tuple[list[_Candidate], list[str]]:
    """Both models under torch.compile, compiled; or why not."""
    torch.compiler.reset()  # beyond a number of versions of one forward it stops compiling, silently
    mode = "reduce-overhead" if inputs.device.type == "cuda" else "default"
    candidates, problems = [], []
    models: dict[Variant, nn.Module] = {"plain": plain, "example-weighted": weighted}
    for variant, model in models.items():
        start = perf_counter()
        try:
            compiled = torch.compile(model, mode=mode, dynamic=False)
            _run(_Candidate(variant, compiled), inputs, dtype)()
        except AlphatuneError:
            raise
        except Exception as error:  # a compiler's errors are of many kinds
            problems.append(f"torch.compile fails, {variant} is left out: {one_line(error)}")
        else:
            setup = perf_counter() - start
            candidates.append(_Candidate(variant, compiled, torch_compile=True, setup=setup))
    return candidates, problems


def _peak_bytes(model: nn.Module, run: Callable[[], object], inputs: Tensor) -> int | None:
    if inputs.device.type != "cuda":
        return None
    synchronise(inputs.device)
    torch.cuda.reset_peak_memory_stats(inputs.device)
    before = torch.cuda.memory_allocated(inputs.device)
    run()
    synchronise(inputs.device)
    peak = torch.cuda.max_memory_allocated(inputs.device) - before
    tensors = (inputs, *itertools.chain(model.parameters(), model.buffers()))
    return peak + sum(t.numel() * t.element_size() for t in tensors)


def _as_given(alpha: LayerAlpha) -> LayerAlpha:
    """One number, or one a channel."""
    return [_decimal(a) for a in alpha] if isinstance(alpha, list) else _decimal(alpha)


def _decimal(alpha: float) -> float:
    return float(f"{alpha:.7g}")
