"""How each repair is fitted on the examples at some positions, whichever they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alphatune.norms.layer_tensors import AFFINE, AVERAGES
from alphatune.norms.patching import Alpha
from alphatune.results.repairs import RepairName
from alphatune.tuning.affine import AffineUnits, affine_units
from alphatune.tuning.candidate import Candidate, FitOn, score
from alphatune.tuning.descent import Fit, descend
from alphatune.tuning.granularity import Granularity, Units
from alphatune.tuning.journal import Journal
from alphatune.tuning.layers import LayerLimit, shrink
from alphatune.tuning.objective import Objective
from alphatune.tuning.ordering import halves_of
from alphatune.tuning.parameters import Parameters
from alphatune.tuning.passes import Passes
from alphatune.tuning.running_averages import measure_averages
from alphatune.tuning.step_back import Judged, step_back, within_guards

#: chooses the α of the whole model on some examples
ChooseGlobal = Callable[[NDArray[np.int64]], float]


@dataclass(frozen=True)
class Fits:
    """The repairs of a patched model on its data.

    Args:
        temperature: whether a temperature is tuned along.
        units: the numbers of each level of α that may be fitted.
        limit: what α may cost; layers are left out until it keeps that. None: α in all layers.
    """

    passes: Passes
    objective: Objective
    temperature: bool
    seed: int
    journal: Journal | None
    choose_global: ChooseGlobal
    units: Mapping[Granularity, Units]
    limit: LayerLimit | None = None

    def free(self) -> dict[RepairName, FitOn]:
        """Those that cost nothing at inference. GroupNorm networks have none: they keep no running statistics."""
        if self.passes.baseline != 0:
            return {}
        return {"averages": self.averages, "affine": self.affine}

    def averages(self, positions: NDArray[np.int64], _: str) -> Candidate:
        """Running statistics measured anew; no label is used."""
        passes = self.passes
        found = measure_averages(passes.predictor, passes.data, positions, seed=self.seed, meter=passes.meter)
        return Candidate(passes.baseline, AVERAGES, found)

    def affine(self, positions: NDArray[np.int64], name: str) -> Candidate:
        """γ and β."""
        return self._affine(positions, name, None)

    def global_and_affine(self, positions: NDArray[np.int64], name: str) -> Candidate:
        """One α, and γ and β around it."""
        alpha = self.choose_global(positions)
        return self._affine(positions, f"{name}-with-alpha", self.units["global"].alphas([alpha]))

    def level(self, level: Granularity) -> FitOn:
        """α at a level: one by the curve, finer ones by a descent from it."""

        def fit(positions: NDArray[np.int64], name: str) -> Candidate:
            alpha = self.choose_global(positions)
            units = self.units[level]
            if level == "global":
                found = Candidate(alpha)
            else:
                # Where the start breaks a guard, few steps may find nothing that keeps it.
                alpha = within_guards(self.passes, self.objective, Candidate(alpha), positions).single_alpha
                start = units.gather(self.units["global"].alphas([alpha]))
                fitted = self.descend(positions, units, start, alpha, f"{level}-{name}")
                found = Candidate(units.alphas(fitted.values))
            return (
                found
                if self.limit is None
                else self._limited(self.limit, found, units, positions, alpha, name)
            )

        return fit

    def _limited(
        self,
        limit: LayerLimit,
        candidate: Candidate,
        units: Units,
        positions: NDArray[np.int64],
        prior: float,
        name: str,
    ) -> Candidate:
        """α in the layers that keep the limit, at once and not step by step as for the front."""
        alphas = candidate.alpha
        everywhere = dict(alphas) if isinstance(alphas, Mapping) else self.units["global"].alphas([alphas])
        temperature = 1.0
        if self.temperature:
            temperature = score(self.passes, positions, candidate).best()
        steps = shrink(
            self.passes,
            self.objective,
            lambda parameters, start, layers: self.descend(
                positions, parameters, start, prior, f"{units.granularity}-{layers}-{name}"
            ),
            units,
            positions,
            everywhere,
            temperature,
            (limit,),
            self.seed,
        )
        return Candidate(steps[0].alphas) if steps else Candidate(self.passes.baseline)

    def guarded(self, fit: FitOn, *, one_number: bool = False) -> FitOn:
        """A fit that goes only as far as the guards allow.

        One number is judged by the images it was chosen on. Many numbers overfit those images. So fits on either
        half are judged by the other half first, and that sets how far to go. The fit on all images may still go
        farther than the halves' fits did, so it is then judged by the images it was chosen on, too.
        """
        passes, objective = self.passes, self.objective

        def within(positions: NDArray[np.int64], name: str) -> Candidate:
            candidate = fit(positions, name)
            if one_number or not objective.guards:
                return within_guards(passes, objective, candidate, positions)
            data = passes.data
            halves = [
                positions[half] for half in halves_of(data.targets[positions], data.ids[positions], self.seed)
            ]
            judged = [
                Judged(fit(other, f"{name}-half{place}"), half)
                for place, (half, other) in enumerate(zip(halves, reversed(halves), strict=True))
            ]
            share = step_back(passes, objective, judged).share
            return within_guards(passes, objective, candidate.nearer(share, passes), positions)

        return within

    def descend(
        self,
        positions: NDArray[np.int64],
        parameters: Parameters,
        start: Tensor,
        prior: float,
        name: str,
        fold: int = 0,
    ) -> Fit:
        """A descent on some examples; the name is that of its state in the journal."""
        return descend(
            self.passes.predictor,
            self.passes.data,
            positions,
            parameters,
            start,
            prior=prior,
            objective=self.objective,
            temperature=self.temperature,
            seed=self.seed + fold,
            journal=self.journal.entry(name) if self.journal else None,
            meter=self.passes.meter,
        )

    def shown(self) -> dict[str, FitOn]:
        """Those that are compared by number of labels, by name, each within the guards."""
        found: dict[str, FitOn] = {"plain": self.named("plain"), **dict(self.free().items())}
        found |= {level: self.level(level) for level in self.units}
        if self.temperature:
            found = {"temperature": self.named("temperature"), **found}
        if "affine" in found:
            found["global and affine"] = self.global_and_affine
        return {name: self.guarded(fit, one_number=name == "global") for name, fit in found.items()}

    def named(self, name: RepairName) -> FitOn:
        """How a repair is fitted; the plain network, and a temperature, change nothing in it."""
        if name in ("plain", "temperature"):
            return lambda *_: Candidate(self.passes.baseline)
        free = self.free()
        return free[name] if name in free else self.level(name)  # type: ignore[arg-type]

    def numbers(self, name: RepairName) -> int:
        """How many numbers it tunes by labels."""
        if name in ("plain", "averages"):
            return 0
        if name == "temperature":
            return 1
        return len(self._affine_units(None) if name == "affine" else self.units[name])  # type: ignore[index]

    def _affine_units(self, alpha: Mapping[str, Alpha] | None) -> AffineUnits:
        return affine_units(self.passes.predictor.model, alpha)

    def _affine(
        self, positions: NDArray[np.int64], name: str, alpha: Mapping[str, Alpha] | None
    ) -> Candidate:
        units = self._affine_units(alpha)
        found = self.descend(positions, units, units.start, 0.0, f"affine-{name}")
        return Candidate(self.passes.baseline if alpha is None else alpha, AFFINE, units.affine(found.values))
