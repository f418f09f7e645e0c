"""Finer α and temperature: found where they are there, refused where they are not, honest about both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_search import images
from tiny import tiny
from torch import nn

import alphatune
from alphatune.core.distributed import World
from alphatune.core.errors import ConfigurationError, InputError, ResourceError
from alphatune.core.progress import Meter, as_meter
from alphatune.data.custom_loader import LoaderBatches
from alphatune.evaluation.predictor import Predictor
from alphatune.norms.patching import get_alpha, patch_, patched
from alphatune.statistics.gain import paired_gain
from alphatune.statistics.scores import Scores
from alphatune.tuning import descent
from alphatune.tuning.descent import descend, smooth_objective
from alphatune.tuning.granularity import units_of
from alphatune.tuning.journal import open_journal
from alphatune.tuning.objective import Objective
from alphatune.tuning.ordering import stratified_order
from alphatune.tuning.passes import Passes
from alphatune.tuning.refinement import refine

Data = list[tuple[torch.Tensor, torch.Tensor]]


class Split(nn.Module):
    """Two norms that need opposite α: one sees brightness that means nothing, the other one that is the class."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.noisy, self.telling = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.scale = scale
        self.register_buffer("pattern", torch.arange(64.0).view(8, 8) / 32)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = (self.noisy(x[:, :1]) * self.pattern).mean((1, 2, 3))
        other = self.telling(x[:, 1:]).mean((1, 2, 3))
        logit = self.scale * (one + other)
        return torch.stack([logit, -logit], 1)


def halves(n: int = 800, seed: int = 0) -> Data:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=g)
    sign = (1 - 2 * y).float().view(-1, 1, 1, 1)
    pattern = (torch.arange(64.0).view(1, 1, 8, 8) / 32) - 1
    noisy = 0.2 * sign * pattern + torch.randn(n, 1, 8, 8, generator=g)
    noisy = noisy + 1.5 * torch.randn(n, 1, 1, 1, generator=g)
    telling = 0.8 * sign + torch.randn(n, 1, 8, 8, generator=g) + 0.3 * torch.randn(n, 1, 1, 1, generator=g)
    return list(zip(torch.cat([noisy, telling], 1).split(100), y.split(100), strict=True))


def exact(
    model: nn.Module, data: Data, alpha: Any, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    with patched(model), torch.no_grad():
        patch_(model, alpha)
        logits = torch.cat([model(x) for x, _ in data]) / temperature
    targets = torch.cat([y for _, y in data])
    loss = nn.functional.cross_entropy(logits, targets, reduction="none")
    return loss.double().numpy(), (logits.argmax(1) == targets).numpy()


def passes_over(model: nn.Module, data: Data) -> Passes:
    return Passes(Predictor(model), LoaderBatches(data, torch.device("cpu")), 0.0, World(), Meter())


@pytest.mark.parametrize(("granularity", "metric"), [("layer", "loss"), ("channel", "top1")])
def test_layers_that_need_different_alphas_get_them(granularity: str, metric: str) -> None:
    model, data = Split(2.0), halves()
    result = alphatune.tune(model, data, metric=metric, granularity=granularity)
    assert result.refinement is not None
    assert result.refinement.chosen in ("layer", granularity)
    assert isinstance(result.alpha, dict)
    assert float(result.alpha["noisy"]) > float(result.alpha["telling"]) + 0.2
    loss, correct = exact(model, data, result.alpha)
    assert result.chosen.loss == pytest.approx(loss.mean(), abs=1e-6)
    assert result.chosen.top1 == correct.mean()
    gain = result.decision.gain
    assert gain is not None
    assert gain.significant
    one_for_all = result.refinement.levels[1].metrics
    assert getattr(result.refinement.level.metrics, metric) != getattr(one_for_all, metric)
    # On new data it holds.
    fresh = halves(seed=5)
    index = 0 if metric == "loss" else 1
    best = {"loss": min, "top1": max}[metric]
    by_one = best(exact(model, fresh, a)[index].mean() for a in np.linspace(0, 1, 21))
    found = exact(model, fresh, result.alpha)[index].mean()
    assert found < by_one - 0.1 if metric == "loss" else found > by_one + 0.05
    grid = np.linspace(0, 1, 11)
    pairs = [exact(model, fresh, {"noisy": a, "telling": b})[index].mean() for a in grid for b in grid]
    assert found == pytest.approx(best(pairs), abs=0.05)


def test_nothing_to_find_is_not_found() -> None:
    model = Split()
    data = halves()
    for x, _ in data:
        x[:, 0] = 0  # one norm sees nothing at all, the other one has α = 0 for its optimum
    result = alphatune.tune(model, data, metric="loss", granularity="channel")
    assert result.alpha == 0
    assert result.refinement is not None
    assert result.refinement.chosen == "plain"
    assert "does not win" in result.decision.reason
    assert get_alpha(model) == {}


def test_temperature_takes_what_is_calibration() -> None:
    """A network that is far too sure: α > 0 lowers the loss, temperature lowers it more."""
    torch.manual_seed(1)
    network = tiny().train()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for x, y in images(3000, seed=1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        network.head.weight.mul_(25)
        network.head.bias.mul_(25)
    data = images(1200)
    result = alphatune.tune(network, data, metric="loss", alphas="0,0.02,0.05", temperature=True)
    plain = result.refinement.levels[0]  # type: ignore[union-attr]
    assert plain.calibrated.loss < plain.metrics.loss - 0.05
    assert 2.5 < result.temperature < 5
    loss, _ = exact(network, data, result.alpha, result.temperature)
    assert result.chosen.loss == pytest.approx(loss.mean(), abs=1e-5)
    beyond = result.refinement.levels[1]  # type: ignore[union-attr]
    assert (result.alpha == 0) == (not beyond.accepted)
    assert "beyond temperature" in result.decision.reason
    alone = alphatune.tune(network, data, metric="loss", alphas="0,0.02,0.05", accept="best")
    assert any("can be calibration" in w for w in alone.warnings)
    finer = alphatune.tune(
        network,
        data,
        metric="loss",
        alphas="0,0.02,0.05",
        accept="best",
        granularity="stage",
        rivals="none",
    )
    level = finer.refinement.level  # type: ignore[union-attr]
    only = level.calibrated.loss >= plain.calibrated.loss
    assert any("all of the gain in loss is calibration" in w for w in finer.warnings) == only


def test_every_example_is_scored_at_what_others_chose() -> None:
    model, data = Split(), halves(300)
    seen = []

    def choose(positions: np.ndarray) -> float:
        seen.append(positions)
        return 0.1 * len(seen)

    with patched(model):
        found = refine(
            passes_over(model, data), choose, 0.3, "global", objective=Objective("loss"), temperature=True, accept="best",
            keep_global=True, seed=3,
        )  # fmt: skip
    order = stratified_order(torch.cat([y for _, y in data]).numpy(), 3)
    first, second = np.sort(order[::2]), np.sort(order[1::2])
    assert (seen[0] == second).all()  # what scores the first half is chosen by the second
    assert (seen[1] == first).all()
    plain, top1 = exact(model, data, 0.0)
    level = found.levels[0]
    assert level.metrics.loss == pytest.approx(plain.mean(), abs=1e-6)
    assert level.metrics.top1 == top1.mean()
    assert level.metrics.n == 300
    calibrated = np.empty(300)
    for half, temperature in zip((first, second), level.temperatures, strict=True):
        calibrated[half] = exact(model, data, 0.0, temperature)[0][half]
    assert level.calibrated.loss == pytest.approx(calibrated.mean(), abs=1e-6)


@pytest.mark.parametrize("metric", ["loss", "top1"])
def test_a_descent_improves_and_leaves_the_model_alone(metric: str) -> None:
    model, data = Split(2.0), halves()
    patch_(model, 0.2)
    model.noisy.weight.requires_grad_(False)
    wanted = [p.requires_grad for p in model.parameters()]
    units = units_of(model, "layer", data[0][0])
    batches = LoaderBatches(data, torch.device("cpu"))
    start = torch.full((2,), 0.1, dtype=torch.float64)
    arguments: Any = (Predictor(model), batches, np.arange(800), units, start)
    fit = descend(*arguments, prior=0.1, objective=Objective(metric), temperature=False, seed=0)
    assert fit == descend(*arguments, prior=0.1, objective=Objective(metric), temperature=False, seed=0)
    assert fit.steps > 0
    targets = torch.cat([y for _, y in data])

    def value(alphas: Any) -> float:
        with patched(model), torch.no_grad():
            patch_(model, units.alphas(alphas))
            return float(
                smooth_objective(torch.cat([model(x) for x, _ in data]), targets, metric, 1.0).mean()
            )  # type: ignore[arg-type]

    assert value(fit.alphas) < value(start) - 0.005
    assert get_alpha(model) == pytest.approx({"noisy": 0.2, "telling": 0.2})
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())


def test_few_examples_move_many_units_only_a_little() -> None:
    """The prior: what 100 examples say of a unit weighs less than what 800 say."""
    model = Split(2.0)
    patch_(model)
    moved = []
    for n in (100, 800):
        data = halves(n)
        units = units_of(model, "layer", data[0][0])
        fit = descend(
            Predictor(model), LoaderBatches(data, torch.device("cpu")), np.arange(n), units,
            torch.full((2,), 0.1, dtype=torch.float64), prior=0.1, objective=Objective("loss"), temperature=False, seed=0,
        )  # fmt: skip
        moved.append(fit.alphas[0])
    assert 0.1 < moved[0] < moved[1]


def test_objectives() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    targets = torch.tensor([0, 2])
    torch.testing.assert_close(
        smooth_objective(logits, targets, "loss", 2.0),
        nn.functional.cross_entropy(logits / 2, targets, reduction="none"),
    )
    margins = torch.tensor([2.0 - 0.0, 0.0 - 3.0])
    torch.testing.assert_close(smooth_objective(logits, targets, "top1", 1.0), torch.sigmoid(-margins))
    many = torch.arange(10.0).expand(1, 10)  # the fifth largest other of class 3 is 5
    torch.testing.assert_close(
        smooth_objective(many, torch.tensor([3]), "top5", 1.0), torch.sigmoid(torch.tensor([2.0]))
    )


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [0, 700, 2500])
def test_a_descent_goes_on_to_the_same_result(after: int, tmp_path: Path) -> None:
    model, data = Split(2.0), halves()
    patch_(model)
    units = units_of(model, "layer", data[0][0])
    start = torch.full((2,), 0.1, dtype=torch.float64)

    def run(journal: Any = None, progress: Any = None) -> descent.Fit:
        batches = LoaderBatches(data, torch.device("cpu"))
        return descend(
            Predictor(model), batches, np.arange(800), units, start,
            prior=0.1, objective=Objective("loss"), temperature=True, seed=0, journal=journal, meter=as_meter(progress),
        )  # fmt: skip

    whole = run()

    def stop(done: int, _: int | None) -> None:
        if done > after:
            raise Stop

    journal = open_journal(tmp_path / "j", {"seed": 0}, resume=False, minutes=0)
    with pytest.raises(Stop):
        run(journal.entry("layer-0"), stop)
    again = open_journal(tmp_path / "j", {"seed": 0}, resume=True, minutes=0)
    assert run(again.entry("layer-0")) == whole
    again.close()
    assert not (tmp_path / "j").exists()


def test_a_journal_is_of_one_job(tmp_path: Path) -> None:
    folder = tmp_path / "j"
    open_journal(folder, {"seed": 0}, resume=False, minutes=1).entry("a").write({"x": 1})
    assert open_journal(folder, {"seed": 0}, resume=True, minutes=1).entry("a").read() == {"x": 1}
    with pytest.raises(InputError, match="other settings"):
        open_journal(folder, {"seed": 1}, resume=True, minutes=1)
    (folder / "a.pt").write_bytes(b"no state")
    with pytest.raises(InputError, match="damaged"):
        open_journal(folder, {"seed": 0}, resume=True, minutes=1).entry("a").read()
    assert open_journal(folder, {"seed": 1}, resume=False, minutes=1).entry("a").read() is None
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="of ours"):
        open_journal(tmp_path / "link", {"seed": 1}, resume=False, minutes=1)
    assert (tmp_path / "file").exists()
    refused = open_journal(tmp_path / "file" / "j", {}, resume=False, minutes=1)
    refused.entry("a").write({})  # costs the journal, not the job
    assert "could not be kept" in refused.given_up


def test_a_gradient_that_does_not_fit_is_made_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """No example is lost: the result is that of a large memory, but for rounding."""
    model, data = Split(2.0), halves(300)
    patch_(model)
    units = units_of(model, "layer", data[0][0])

    def run() -> descent.Fit:
        return descend(
            Predictor(model), LoaderBatches(data, torch.device("cpu")), np.arange(300), units,
            torch.full((2,), 0.1, dtype=torch.float64), prior=0.1, objective=Objective("loss"), temperature=False, seed=0,
        )  # fmt: skip

    whole = run()
    forward = Split.forward

    def greedy(self: Split, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and len(x) > 7:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(self, x)

    monkeypatch.setattr(Split, "forward", greedy)
    assert run().alphas == pytest.approx(whole.alphas, abs=1e-3)

    def never(self: Split, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(self, x)

    monkeypatch.setattr(Split, "forward", never)
    with pytest.raises(ResourceError):
        run()


class Greedy(torch.autograd.Function):
    """Passes its input on, and runs out of memory on the way back with more than seven examples."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        if len(dy) > 7:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return dy


def test_a_backward_pass_that_runs_out_of_memory_counts_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The temperature's gradient is there when the network's own does not fit."""
    model, data = Split(2.0), halves(100)
    patch_(model)
    units = units_of(model, "layer", data[0][0])
    problem = descent._Problem(Predictor(model), data, np.arange(0), units, "loss", True, lambda _: None)  # type: ignore[arg-type]
    batch = next(iter(LoaderBatches(data, torch.device("cpu"))))
    forward, found = Split.forward, []
    for greedy in (False, True):
        if greedy:
            monkeypatch.setattr(Split, "forward", lambda self, x: Greedy.apply(forward(self, x)))
        state = descent._State.begin(torch.full((2,), 0.1, dtype=torch.float64), True)
        descent._backward(problem, state, batch, 0.01)
        descent._backward(problem, state, batch, 0.01)  # a step may have several batches
        found.append((state.theta.grad, state.log_temperature.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_more_comparisons_need_more_evidence() -> None:
    rng = np.random.default_rng(0)
    n, found = 400, {1: 0, 3: 0}
    for seed in range(200):
        base = rng.normal(1, 0.3, n).astype(np.float32)
        other = (base + rng.normal(0, 0.1, n)).astype(np.float32)
        empty = np.zeros(n, np.int32)
        scores = [Scores(np.arange(n), empty, empty, s, empty > 0, empty > 0, s) for s in (other, base)]
        for comparisons in found:
            gain = paired_gain(*scores, "loss", seed=seed, comparisons=comparisons)
            found[comparisons] += gain.significant
    assert found[3] <= found[1]
    assert found[1] <= 10  # one-sided 2.5 % of 200 is 5
    assert found[3] <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "block"}, "unknown granularity"),
        ({"granularity": "layer"}, "at least 100 examples"),
        ({"temperature": True}, "at least 100 examples"),
    ],
)
def test_what_cannot_be_refined(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        alphatune.tune(Split(), halves(60), **options)


@pytest.mark.slow
def test_without_an_effect_nothing_is_deployed() -> None:
    """Labels that have nothing to do with the images: any α is as good, all levels included."""
    model, runs, fooled, finer = Split(), 200, 0, 0
    for seed in range(runs):
        data = halves(400, seed)
        labels = torch.randint(2, (400,), generator=torch.Generator().manual_seed(1000 + seed))
        data = [(x, y) for (x, _), y in zip(data, labels.split(100), strict=True)]
        result = alphatune.tune(
            model, data, metric="top1", granularity="channel", seed=seed, alphas="0,0.1,0.3"
        )
        fooled += result.alpha != 0
        finer += result.refinement.chosen not in ("plain", "global")  # type: ignore[union-attr]
    print(f"deployed without an effect: {fooled} of {runs}, finer levels {finer}")
    assert fooled <= 0.05 * runs + 2 * (0.05 * 0.95 * runs) ** 0.5
    assert finer <= fooled
