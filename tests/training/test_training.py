"""Optimiser groups, schedule, steps: against torch's own and against the equations."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from tiny import tiny
from torch import nn

from alphatune.core.errors import ConfigurationError, NumericError
from alphatune.data.datasets import open_data
from alphatune.data.preprocessing import Preprocessing
from alphatune.data.sampling import Sampling
from alphatune.data.training_batches import TrainingBatches
from alphatune.training.loop import AUXILIARY_WEIGHT, _move, train, training_loss
from alphatune.training.optimizers import decay_to_one_, make_optimizer, parameter_groups
from alphatune.training.recipe import Recipe
from alphatune.training.schedule import learning_rate
from alphatune.training.state import TrainingState, load_state_, save_state, start

CPU = torch.device("cpu")
SMALL = Preprocessing((3, 12, 12), crop_pct=1.0)


@pytest.fixture(scope="module")
def batches(image_folder: Path) -> TrainingBatches:
    return TrainingBatches(open_data(str(image_folder)), SMALL, "cifar", Sampling(12), CPU).cached()


def trained(batches: TrainingBatches, recipe: Recipe, **kwargs) -> TrainingState:
    torch.manual_seed(0)
    state = start(tiny(), recipe, CPU)
    train(state, batches, recipe, **kwargs)
    return state


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


# --- parameter groups ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decay_norm", "gamma", "beta"), [("none", 0, 0), ("gamma", 1, 0), ("beta", 0, 1), ("both", 1, 1)]
)
def test_each_kind_of_parameter_has_its_decay(decay_norm: str, gamma: float, beta: float) -> None:
    recipe = Recipe(weight_decay=0.3, bias_decay=0.2, decay_norm=decay_norm)
    groups = {g["name"]: g for g in parameter_groups(tiny(), recipe)}
    assert groups["weights"]["weight_decay"] == 0.3
    assert groups["biases"]["weight_decay"] == 0.2
    assert groups["gamma"]["weight_decay"] == 0.3 * gamma
    assert groups["beta"]["weight_decay"] == 0.3 * beta


@pytest.mark.parametrize(
    "build", [torchvision.models.resnet18, torchvision.models.vit_b_16, torchvision.models.densenet121]
)
def test_every_parameter_is_in_one_group(build) -> None:
    model = build(weights=None)
    groups = parameter_groups(model, Recipe())
    members = [p for g in groups for p in g["params"]]
    assert len(members) == len(set(members)) == len(list(model.parameters()))
    by_name = {p: n for n, p in model.named_parameters()}
    norms = {
        id(p)
        for m in model.modules()
        if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm))
        for p in m.parameters()
    }
    for group in groups:
        for parameter in group["params"]:
            biased = by_name[parameter].endswith("bias") and id(parameter) not in norms  # in_proj_bias, too
            assert biased == (group["name"] == "biases"), by_name[parameter]
            assert (id(parameter) in norms) == (group["name"] in ("gamma", "beta")), by_name[parameter]


def test_frozen_and_exempt_parameters() -> None:
    model = tiny()
    model.conv.weight.requires_grad_(False)
    model.no_weight_decay = lambda: {"head.weight"}
    groups = {g["name"]: g for g in parameter_groups(model, Recipe(weight_decay=0.1))}
    assert groups["weights"]["params"] == [model.conv2.weight]
    assert groups["exempt"]["params"] == [model.head.weight]
    assert groups["exempt"]["weight_decay"] == 0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_gamma_decays_to_its_target(optimizer: str) -> None:
    """Without a gradient, γ = 1 + (γ₀ − 1)·(1 − ηλ)ᵗ, and towards 0 the optimiser's own decay."""
    for target in (0, 1):
        recipe = Recipe(
            optimizer=optimizer,
            momentum=0,
            learning_rate=0.1,
            weight_decay=0.5,
            decay_norm="gamma",
            gamma_target=target,
        )
        model = nn.Sequential(nn.BatchNorm1d(3))
        nn.init.constant_(model[0].weight, 1.5)
        opt = make_optimizer(model, recipe)
        for _ in range(10):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            decay_to_one_(opt, coupled=True)
            opt.step()
            decay_to_one_(opt, coupled=False)
        expected = target + (1.5 - target) * (1 - 0.1 * 0.5) ** 10
        assert model[0].weight.tolist() == pytest.approx([expected] * 3, rel=1e-5)
        assert model[0].bias.tolist() == [0, 0, 0]


# --- schedule --------------------------------------------------------------------------------


def test_cosine_is_torchs_after_a_linear_warm_up() -> None:
    recipe = Recipe(epochs=10, warmup_epochs=2, learning_rate=0.4)
    rates = [learning_rate(recipe, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.4 * (t + 1) / 11 for t in range(10)])
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    for step in range(10, 50):
        assert rates[step] == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_step_and_constant_schedules() -> None:
    step = Recipe(epochs=8, schedule="step", milestones=(0.5, 0.75), learning_rate=1)
    assert [learning_rate(step, t, 1) for t in range(8)] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate(replace(step, schedule="constant"), 7, 1) == 1


@pytest.mark.parametrize(
    "parts",
    [{"epochs": 0}, {"optimizer": "lion"}, {"warmup_epochs": 10}, {"milestones": (0.8, 0.2)}, {"momentum": 1.0},
     {"label_smoothing": -0.1}, {"gamma_target": 2}, {"accumulate": 0}, {"learning_rate": -1.0}],
)  # fmt: skip
def test_impossible_recipes(parts: dict) -> None:
    with pytest.raises(ConfigurationError):
        Recipe(**parts)


# --- steps -----------------------------------------------------------------------------------


def test_a_plain_run_is_torchs_own_loop(batches: TrainingBatches) -> None:
    """Our loop, written out with torch alone."""
    recipe = Recipe(epochs=2, learning_rate=0.05, weight_decay=0.01, bias_decay=0.01, decay_norm="both")
    state = trained(batches, recipe)
    torch.manual_seed(0)
    model = tiny().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    for batch in batches.between(0, 8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.inputs.contiguous()), batch.targets).backward()
        optimizer.step()
        schedule.step()
    for ours, theirs in zip(state.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_accumulated_batches_make_the_gradient_of_one(image_folder: Path) -> None:
    """Without BatchNorm, k batches of n are one batch of k·n; an epoch's last step may have fewer."""
    examples = open_data(str(image_folder))

    def run(batch_size: int, accumulate: int) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
        recipe = Recipe(epochs=1, accumulate=accumulate, schedule="constant", learning_rate=0.01)
        data = TrainingBatches(examples, SMALL, "none", Sampling(batch_size), CPU).cached()
        state = start(model, recipe, CPU)
        train(state, data, recipe)
        assert state.step == 48 // batch_size
        return model

    for ours, theirs in zip(run(8, 2).parameters(), run(16, 1).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    run(10, 3)  # four batches: a step of three and a step of one


def test_clipping_bounds_the_step(batches: TrainingBatches) -> None:
    recipe = Recipe(
        epochs=1, schedule="constant", momentum=0, weight_decay=0, learning_rate=1, clip_grad=1e-3
    )
    torch.manual_seed(0)
    before = [p.detach().clone() for p in tiny().parameters()]
    after = trained(batches, recipe).model.parameters()
    moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True)))
    assert 0 < moved <= batches.steps_per_epoch * 1e-3 * 1.001


def test_the_moving_average_is_what_is_kept(batches: TrainingBatches) -> None:
    recipe = Recipe(epochs=2, ema_decay=0.9, learning_rate=0.05)
    seen = []
    state = trained(batches, recipe, evaluate=lambda model, _: seen.append(model) or _metrics())
    assert state.evaluated is seen[-1] is not state.model
    assert not same(state.evaluated, state.model)
    assert same(trained(batches, replace(recipe, ema_decay=0.0)).model, state.model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_trains(batches: TrainingBatches, dtype: torch.dtype) -> None:
    recipe = Recipe(epochs=3, dtype=dtype, learning_rate=0.05, clip_grad=5.0)
    state = trained(batches, recipe)
    assert state.rows[-1]["train_loss"] < state.rows[0]["train_loss"]
    assert all(p.dtype == torch.float32 for p in state.model.parameters())


def test_channels_last_changes_the_layout_only(batches: TrainingBatches) -> None:
    formats = []
    torch.manual_seed(0)
    recipe = Recipe(epochs=1, channels_last=True)
    state = start(tiny(), recipe, CPU)
    state.model.conv.register_forward_pre_hook(
        lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    train(state, batches, recipe)
    assert all(formats)
    plain = trained(batches, replace(recipe, channels_last=False))
    for a, b in zip(state.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_auxiliary_heads_add_to_the_loss() -> None:
    model = torchvision.models.googlenet(weights=None, num_classes=5, init_weights=False).train()
    output = model(torch.randn(2, 3, 64, 64))
    targets = torch.tensor([1, 3])
    loss, logits = training_loss(nn.Identity(), output, targets, label_smoothing=0.1)
    parts = [nn.functional.cross_entropy(x, targets, label_smoothing=0.1) for x in output]
    assert torch.equal(logits, output.logits)
    torch.testing.assert_close(loss, parts[0] + AUXILIARY_WEIGHT * (parts[1] + parts[2]))


def test_training_learns(batches: TrainingBatches) -> None:
    state = trained(batches, Recipe(epochs=25, learning_rate=0.05))
    assert state.rows[-1]["train_top1"] > 0.7


def test_a_step_that_overflowed_decays_nothing() -> None:
    """float16's scaler leaves the step out; AdamW's decay towards 1 is part of the step."""
    recipe = Recipe(
        optimizer="adamw", dtype=torch.float16, weight_decay=0.5, decay_norm="gamma", gamma_target=1
    )
    state = start(nn.Sequential(nn.BatchNorm1d(3)), recipe, CPU)
    gamma = state.model[0].weight
    nn.init.constant_(gamma, 3.0)
    for gradient, moves in ((math.inf, False), (0.0, True)):
        state.scaler.scale(torch.zeros(()))  # makes the scale
        for p in state.model.parameters():
            p.grad = torch.full_like(p, gradient)
        _move(state, recipe, 0.1)
        assert (gamma[0].item() != 3.0) == moves


# --- stopping and going on -------------------------------------------------------------------


def _metrics():
    from alphatune.results.metrics import Metrics

    return Metrics(n=1, top1=0.5, top5=1.0, loss=1.0, ece=0.0)


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 9])
def test_a_resumed_run_is_the_uninterrupted_one(
    batches: TrainingBatches, tmp_path: Path, stop_at: int
) -> None:
    """Bit for bit: weights, moments of the optimiser, averages, log. Dropout draws the same numbers."""
    recipe = Recipe(
        epochs=3,
        optimizer="adamw",
        learning_rate=0.01,
        ema_decay=0.9,
        warmup_epochs=1,
        decay_norm="both",
        gamma_target=1,
    )

    def model() -> nn.Module:
        torch.manual_seed(0)
        net = tiny()
        net.head = nn.Sequential(nn.Dropout(0.3), net.head)
        return net

    def evaluate(*_):
        return _metrics()

    whole = start(model(), recipe, CPU)
    train(whole, batches, recipe, evaluate=evaluate)
    first, path = start(model(), recipe, CPU), tmp_path / "checkpoint.pt"
    calls = iter(range(100))
    finished = train(
        first,
        batches,
        recipe,
        evaluate=evaluate,
        save=lambda: save_state(first, path, "data"),
        stop=lambda: next(calls) >= stop_at,
    )
    assert not finished
    second = start(model(), recipe, CPU)
    torch.manual_seed(123)  # whatever the process did meanwhile
    load_state_(second, path, "data")
    assert 0 < second.step < whole.step
    assert train(second, batches, recipe, evaluate=evaluate)
    assert same(second.model, whole.model)
    assert same(second.evaluated, whole.evaluated)
    drop = ("seconds",)
    strip = lambda rows: [{k: v for k, v in row.items() if k not in drop} for row in rows]  # noqa: E731
    assert strip(second.rows) == strip(whole.rows)
    for a, b in zip(second.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


def test_stopping_during_an_evaluation(batches: TrainingBatches, tmp_path: Path) -> None:
    """The epoch's steps are saved; the evaluation is done again when the run goes on."""
    recipe, path = Recipe(epochs=2), tmp_path / "checkpoint.pt"
    asked = []

    def evaluate(_, watch):
        asked.append(1)
        watch(1, 2)
        return _metrics()

    torch.manual_seed(0)
    state = start(tiny(), recipe, CPU)
    assert not train(
        state,
        batches,
        recipe,
        evaluate=evaluate,
        save=lambda: save_state(state, path, ""),
        stop=lambda: bool(asked),
    )
    torch.manual_seed(0)
    resumed = start(tiny(), recipe, CPU)
    load_state_(resumed, path, "")
    assert resumed.step == batches.steps_per_epoch
    assert resumed.rows == []
    assert train(resumed, batches, recipe, evaluate=lambda *_: _metrics())
    assert [row["val_top1"] for row in resumed.rows] == [0.5, 0.5]
    assert same(resumed.model, trained(batches, recipe).model)


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(batches: TrainingBatches) -> None:
    recipe, saved = Recipe(epochs=30, learning_rate=1e30), []
    torch.manual_seed(0)
    state = start(tiny(), recipe, CPU)

    def save() -> None:
        saved.append(all(bool(torch.isfinite(t).all()) for t in state.model.state_dict().values()))

    with pytest.raises(NumericError, match="NaN or infinite"):
        train(state, batches, recipe, save=save, save_minutes=0)
    assert all(saved)


def test_a_state_of_other_data_or_damaged_is_refused(batches: TrainingBatches, tmp_path: Path) -> None:
    from alphatune.core.errors import CheckpointError

    recipe, path = Recipe(epochs=1), tmp_path / "checkpoint.pt"
    state = trained(batches, recipe)
    save_state(state, path, "these")
    with pytest.raises(ConfigurationError, match="other training data"):
        load_state_(state, path, "those")
    with pytest.raises(CheckpointError):
        load_state_(start(tiny(width=4), recipe, CPU), path, "these")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="cannot resume"):
        load_state_(state, path, "these")
