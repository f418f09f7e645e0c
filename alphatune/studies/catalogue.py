"""The figures and tables of the paper, as experiments.

Source: Summers & Dinneen, "Four Things Everyone Should Know to Improve Batch
Normalization", ICLR 2020.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from alphatune.norms.conversion import Norm
from alphatune.norms.moving_averages import Averages
from alphatune.studies.experiment import Claim, Experiment, Network, Study

BATCH, GROUP, BATCH_GROUP = "BatchNorm", "GroupNorm", "batch-group"


def ghost(size: int) -> Norm:
    """Ghost BatchNorm of so many examples."""
    return Norm("ghost", ghost_batch_size=size)


def batch_group(examples: int) -> Norm:
    """Batch-group normalisation of eight groups of channels and so many examples."""
    return Norm("batch-group", num_groups=8, examples_per_group=examples)


GHOST_SIZES = {BATCH: Experiment()} | {f"ghost {n}": Experiment(norm=ghost(n)) for n in (2, 4, 8, 16, 32, 64)}
DECAYS: dict[str, Experiment] = {
    "no decay": Experiment(),
    "γ": Experiment(decay_norm="gamma"),
    "β": Experiment(decay_norm="beta"),
    "γ and β": Experiment(decay_norm="both"),
    "γ to 1": Experiment(decay_norm="gamma", gamma_target=1),
}
ALL = "ghost 16 and decay"
NOT_IID = {
    BATCH: Norm(),
    "Batch Renormalisation": Norm("renorm"),
    "ghost 2": ghost(2),
    "ghost 4": ghost(4),
    "ghost 16": ghost(16),
    BATCH_GROUP: batch_group(4),
}
AVERAGES: dict[Averages, str] = {"paper": "x and x²", "group": "moments of groups"}

#: studies that train, by name
STUDIES: dict[str, Study] = {
    "inference-weight": Study(
        shows="section 3.1, Fig. 1 and 7",
        question="What does weighting the example's own moments do to a trained BatchNorm network?",
        variants={BATCH: Experiment()},
        claims=(
            Claim(
                text="Example weighting makes a BatchNorm network more accurate without training.",
                better=BATCH, than=BATCH, better_weighted=True,
            ),
        ),
    ),
    "group-norm": Study(
        shows="section 3.1, Fig. 2 and 8",
        question="Does a GroupNorm network, which has α = 1, gain by moving averages?",
        variants={GROUP: Experiment(norm=Norm("group", num_groups=8))},
        claims=(
            Claim(
                text="A GroupNorm network is more accurate at some α below 1.",
                better=GROUP, than=GROUP, better_weighted=True,
            ),
        ),
    ),
    "ghost": Study(
        shows="section 3.2, Fig. 3",
        question="Which size of ghost batches trains the most accurate network, with batches of 128?",
        variants=GHOST_SIZES,
        claims=(
            Claim(text="Ghost batches of 16 beat BatchNorm.", better="ghost 16", than=BATCH),
            Claim(text="Ghost batches of 2 lose to it.", better=BATCH, than="ghost 2"),
        ),
    ),
    "ghost-weight": Study(
        shows="section 3.2, Fig. 4 and 9",
        question="How does the best α depend on the size of the ghost batches?",
        variants=GHOST_SIZES,
        claims=(
            Claim(
                text="A network trained with ghost batches of 2 gains by example weighting.",
                better="ghost 2", than="ghost 2", better_weighted=True,
            ),
            Claim(
                text="Ghost batches of 16 with example weighting beat BatchNorm with it.",
                better="ghost 16", than=BATCH, better_weighted=True, than_weighted=True,
            ),
        ),
    ),
    "norm-decay": Study(
        shows="section 3.3",
        question="Does weight decay on γ and β help, with paths to the output that pass no norm layer and without?",
        variants={
            f"{network}, {name}": replace(experiment, network=network)
            for network in get_args(Network)
            for name, experiment in DECAYS.items()
        },
        claims=(
            Claim(
                text="Decay of γ and β helps a residual network, which has paths without a norm layer.",
                better="residual, γ and β", than="residual, no decay",
            ),
        ),
        unlike_paper="The plain network is the residual one without its shortcuts.",
    ),
    "small-batch": Study(
        shows="section 3.4",
        question="Which normalisation suits batches of two?",
        variants={
            name: Experiment(norm=norm, batch_size=2, width=2)
            for name, norm in (
                (BATCH, Norm()), (GROUP, Norm("group", num_groups=8)), (BATCH_GROUP, batch_group(2)),
            )
        },
        claims=(
            Claim(text="Batch-group normalisation beats GroupNorm.", better=BATCH_GROUP, than=GROUP),
            Claim(text="Batch-group normalisation beats BatchNorm.", better=BATCH_GROUP, than=BATCH),
        ),
    ),
    "combined": Study(
        shows="section 4.2, Fig. 5",
        question="What do the techniques give together?",
        variants={
            BATCH: Experiment(),
            "ghost 16": Experiment(norm=ghost(16)),
            "decay of γ and β": Experiment(decay_norm="both"),
            ALL: Experiment(norm=ghost(16), decay_norm="both"),
        },
        claims=(
            Claim(text="All techniques together beat BatchNorm.", better=ALL, than=BATCH, better_weighted=True),
            Claim(
                text="Together they beat Ghost BatchNorm alone.",
                better=ALL, than="ghost 16", better_weighted=True,
            ),
        ),
    ),
    "transfer": Study(
        shows="section 4.3",
        question="Do the techniques help in fine-tuning with few images?",
        variants={
            BATCH: Experiment(pretrained=True),
            "ghost 16": Experiment(pretrained=True, norm=ghost(16)),
            ALL: Experiment(pretrained=True, norm=ghost(16), decay_norm="both"),
        },
        claims=(
            Claim(text="The techniques help in fine-tuning.", better=ALL, than=BATCH, better_weighted=True),
        ),
        unlike_paper="Trained before on the first half of the classes, not on ImageNet.",
    ),
    "non-iid": Study(
        shows="section 4.4, Table 1",
        question="Which normalisation suits batches that hold few of the classes?",
        variants={
            f"{name}, {classes} classes": Experiment(norm=norm, classes_per_batch=classes, width=2)
            for classes in (4, 2)
            for name, norm in NOT_IID.items()
        },
        claims=tuple(
            Claim(
                text=f"With {classes} classes a batch, {name} beats BatchNorm.",
                better=f"{name}, {classes} classes", than=f"{BATCH}, {classes} classes", better_weighted=weighted,
            )
            for classes in (4, 2)
            for name, weighted in (("Batch Renormalisation", False), ("ghost 16", True), (BATCH_GROUP, True))
        ),
        unlike_paper="Four or two of ten classes a batch; the paper has four of a hundred.",
    ),
    "averages": Study(
        shows="appendix C",
        question="What should the moving averages hold: x and x² of the batch, or the moments of its groups?",
        variants={
            f"{name}, {title}": Experiment(norm=replace(norm, averages=averages), width=width)
            for name, norm, width in (("ghost 2", ghost(2), 1), (BATCH_GROUP, batch_group(4), 2))
            for averages, title in AVERAGES.items()
        },
        claims=(
            Claim(
                text="Averages of x and x² are more accurate with ghost batches of 2.",
                better=f"ghost 2, {AVERAGES['paper']}", than=f"ghost 2, {AVERAGES['group']}",
            ),
        ),
    ),
}  # fmt: skip
