"""What an experiment of a study trains, as values that can be written and compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from alphatune.norms.conversion import Norm
from alphatune.results.values import Open
from alphatune.training.recipe import DecayNorm

Network = Literal["residual", "plain"]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One network to train, but for its seed.

    Args:
        norm: the normalisation of training.
        network: with shortcuts, or the same convolutions without any.
        width: channels, as a multiple of the scale's.
        batch_size: examples of a batch.
        classes_per_batch: batches that are not i.i.d.: so many random classes each.
        decay_norm, gamma_target: weight decay on γ and β (paper section 3.3).
        pretrained: whether training starts from a network that was trained on the first half of the classes, and goes
            on with few images of the others (section 4.3).
    """

    norm: Norm = field(default_factory=Norm)
    network: Network = "residual"
    width: int = 1
    batch_size: int = 128
    classes_per_batch: int | None = None
    decay_norm: DecayNorm = "none"
    gamma_target: Literal[0, 1] = 0
    pretrained: bool = False

    def to_dict(self) -> Open:
        """As plain values for JSON; what does not apply to this norm is left out."""
        norm = self.norm.to_dict()
        applies = {
            "batch": (),
            "ghost": ("ghost_batch_size", "averages"),
            "batch-group": ("num_groups", "examples_per_group", "averages"),
            "group": ("num_groups", "averages"),
            "renorm": (),
        }[self.norm.kind]
        return {**asdict(self), "norm": {"kind": self.norm.kind, **{name: norm[name] for name in applies}}}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper, and what has to be more accurate than what for it to hold.

    Args:
        text: the sentence, in our words.
        better, than: names of variants.
        better_weighted, than_weighted: whether each infers with the α chosen for it.
    """

    text: str
    better: str
    than: str
    better_weighted: bool = False
    than_weighted: bool = False


@dataclass(frozen=True, kw_only=True)
class Study:
    """A figure or table of the paper.

    Args:
        shows: which figure, table or section it repeats.
        question: what it asks.
        variants: experiments by name; the first one is what the others are compared with.
        claims: what the paper concludes.
        unlike_paper: how the set-up differs beside the scale.
    """

    shows: str
    question: str
    variants: dict[str, Experiment]
    claims: tuple[Claim, ...] = ()
    unlike_paper: str = ""
