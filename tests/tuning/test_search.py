"""The search on a real network: as good as an exact sweep, honest about what it measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny import tiny
from torch import nn

import alphatune
from alphatune.core.errors import ConfigurationError, NumericError
from alphatune.core.metrics import INFO, METRICS, Metric
from alphatune.norms.conversion import Norm, convert_
from alphatune.norms.patching import patched, set_alpha_
from alphatune.statistics.scores import summarise
from alphatune.tuning import search as search_module
from alphatune.tuning.ordering import stratified_order
from alphatune.tuning.passes import Passes
from alphatune.tuning.search import FIRST_RANGE
from alphatune.tuning.tune import Curve, TuneResult

N = 1600


def images(n: int = N, shift: float = 0.0, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images of four classes; each image has a contrast and brightness of its own, the more the larger the shift."""
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(4, (n,), generator=g)
    patterns = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(7))
    x = 0.5 * patterns[targets] + torch.randn(n, 3, 12, 12, generator=g)
    contrast = torch.exp(shift * torch.randn(n, 1, 1, 1, generator=g))
    brightness = shift * torch.randn(n, 3, 1, 1, generator=g)
    return list(zip((x * contrast + brightness).split(100), targets.split(100), strict=True))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Trained on images without a shift."""
    torch.manual_seed(3)
    network = tiny().train()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for x, y in images(3000, seed=1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval()


def shifted() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return images(shift=0.7)


def exact(model: nn.Module, data: list, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Loss and correctness of each example, by the plain patched model."""
    with patched(model), torch.no_grad():
        set_alpha_(model, alpha)
        logits = torch.cat([model(x) for x, _ in data])
    targets = torch.cat([y for _, y in data])
    loss = nn.functional.cross_entropy(logits, targets, reduction="none")
    return loss.double().numpy(), (logits.argmax(1) == targets).numpy()


@pytest.mark.parametrize("metric", ["loss", "top1"])
def test_as_good_as_an_exact_sweep(model: nn.Module, metric: str) -> None:
    data = shifted()
    result = alphatune.tune(model, data, metric=metric, accept="best")
    assert result.search is not None
    grid = np.linspace(0, 1, 51)
    choosing = result.search.choosing
    pick = 0 if metric == "loss" else 1
    sign = -1 if metric == "loss" else 1
    values = [sign * exact(model, data, a)[pick][choosing].mean() for a in grid]
    best, plain = max(values), values[0]
    chosen = sign * exact(model, data, result.alpha)[pick][choosing].mean()
    assert result.alpha > 0
    assert chosen - plain >= 0.93 * (best - plain)


def test_what_is_chosen_was_measured(model: nn.Module) -> None:
    data = shifted()
    result = alphatune.tune(model, data, metric="loss", accept="best")
    loss, correct = exact(model, data, result.alpha)
    assert result.chosen.n == N
    assert result.chosen.loss == pytest.approx(loss.mean(), abs=1e-5)
    assert result.chosen.top1 == correct.mean()
    measured = {point.alpha for point in result.curve if point.measured}
    assert measured == {0.0, result.alpha}
    assert all(p.metrics.n == N for p in result.curve if p.measured)
    assert result.passes < 8  # two ranges of pilots


def test_a_full_curve_is_that_of_all_examples(model: nn.Module) -> None:
    data = shifted()
    result = alphatune.tune(model, data, metric="loss", curve="full")
    assert len(result.curve) == 101
    assert {p.metrics.n for p in result.curve} == {N}
    assert sum(p.measured for p in result.curve) >= 3
    for point in result.curve[::10]:
        loss, correct = exact(model, data, point.alpha)
        assert point.metrics.loss == pytest.approx(loss.mean(), abs=1e-5 if point.measured else 0.003)
        assert point.metrics.top1 == pytest.approx(correct.mean(), abs=0.0 if point.measured else 0.004)
    for point in result.curve:  # averages of all examples, not differences added to the baseline's
        assert point.metrics.top1 == round(point.metrics.top1 * N) / N


def test_the_gain_is_measured_where_others_chose(model: nn.Module) -> None:
    data = shifted()
    result = alphatune.tune(model, data, metric="loss", accept="best")
    found, gain = result.search, result.decision.gain
    assert found is not None
    assert gain is not None
    assert sorted([*found.choosing, *found.confirming]) == list(range(N))
    assert gain.scheme == "cross-fitted"
    assert gain.examples == N
    before = exact(model, data, 0.0)[0]
    after = exact(model, data, result.alpha)[0]
    confirmed = (before - after)[found.confirming].sum()
    # The folds chose other α than all of them did; but each of them about as good a one.
    own = {alpha: (before - exact(model, data, alpha)[0])[found.choosing] for alpha in set(gain.fold_alphas)}
    least, most = (f([x.mean() for x in own.values()]) * len(found.choosing) for f in (min, max))
    tenth = 0.01 * N
    assert least + confirmed - tenth <= gain.delta * N <= most + confirmed + tenth


def test_those_that_confirm_have_no_say(model: nn.Module) -> None:
    """With other labels of theirs the same α are chosen, and the gain is another."""
    data = shifted()
    first = alphatune.tune(model, data, metric="loss", accept="best")
    assert first.search is not None
    labels = torch.cat([y for _, y in data])
    others = torch.from_numpy(first.search.confirming)
    shuffled = labels.clone()
    by_class = [others[labels[others] == k] for k in range(4)]  # the strata stay as they are
    inputs = torch.cat([x for x, _ in data])
    for rows, from_rows in zip(by_class, [*by_class[1:], by_class[0]], strict=True):
        size = min(len(rows), len(from_rows))
        inputs[rows[:size]] = torch.cat([x for x, _ in data])[from_rows[:size]]
    second = alphatune.tune(
        model, list(zip(inputs.split(100), shuffled.split(100), strict=True)), metric="loss", accept="best"
    )
    assert second.search is not None
    assert (second.search.choosing == first.search.choosing).all()
    assert second.search.t == first.search.t
    assert second.decision.gain.fold_alphas == first.decision.gain.fold_alphas
    assert second.decision.gain.delta != pytest.approx(first.decision.gain.delta, abs=0.01)


def test_the_pilot_saves_nodes_and_hardly_changes_the_choice(model: nn.Module) -> None:
    data = shifted()
    cut = alphatune.tune(model, data, metric="loss")
    whole = alphatune.tune(model, data, metric="loss", race_delta=0)
    assert cut.alpha == pytest.approx(whole.alpha, abs=0.1)
    assert cut.passes <= whole.passes


@pytest.mark.parametrize("curve", ["auto", "full"])
@pytest.mark.parametrize("metric", [m for m in METRICS if m not in ("auroc", "average_precision")])
@pytest.mark.parametrize("shift", [0.2, 0.7])
def test_a_best_alpha_is_named_only_where_it_is_known(
    model: nn.Module, metric: Metric, curve: Curve, shift: float
) -> None:
    """Where the range was not cut for another metric's sake, and does not end there."""
    result = alphatune.tune(model, images(shift=shift), metric=metric, curve=curve)
    found = result.search
    assert found is not None
    best = result.decision.best
    assert metric in best
    for named, alpha in best.items():
        values = INFO[named].sign * found.curve.average(named)
        assert values[found.grid.index(alpha)] == values.max()
        if named != metric:
            assert alpha < 0.95 * found.grid[-1] or found.grid[-1] == 1


def test_where_the_range_is_cut_other_metrics_stay_unnamed(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(values: np.ndarray, *_: object) -> np.ndarray:
        return np.arange(len(values)) <= len(values) // 2

    monkeypatch.setattr(search_module, "rule_out", half)
    result = alphatune.tune(model, shifted(), metric="loss")
    assert set(result.decision.best) == {"loss"}


def test_the_range_grows_to_where_the_optimum_is(model: nn.Module) -> None:
    """With so strong a shift little but the example's own moments helps; top-1 is flat near 0."""
    assert alphatune.tune(model, shifted(), metric="top1", accept="best").alpha > 0.6
    result = alphatune.tune(model, images(shift=2.0), metric="loss", accept="best")
    losses = {a: exact(model, images(shift=2.0), a)[0].mean() for a in (0.3, 0.6, 1.0)}
    assert min(losses, key=losses.__getitem__) > 0.3
    assert result.alpha > 0.3


def test_nothing_is_deployed_where_nothing_helps(model: nn.Module) -> None:
    result = alphatune.tune(model, images(seed=5), metric="top1")
    assert result.alpha == 0
    assert not result.decision.gain.significant
    assert {p.alpha for p in result.curve if p.measured} == {0.0, result.decision.candidate}


def test_groupnorm_is_searched_from_one_downwards() -> None:
    torch.manual_seed(0)
    network = tiny().train()
    convert_(network, Norm("group", num_groups=2))
    for x, _ in images(500, seed=1):
        network(x)
    result = alphatune.tune(network.eval(), images(), metric="loss")
    assert result.baseline_alpha == 1
    assert [p.alpha for p in result.curve] == sorted((p.alpha for p in result.curve), reverse=True)
    assert result.curve[0].alpha == 1


def test_repeats_to_the_last_bit(model: nn.Module) -> None:
    def run(seed: int) -> TuneResult:
        return alphatune.tune(model, shifted(), metric="loss", seed=seed)

    one, two, other = run(0), run(0), run(1)
    assert one.curve == two.curve
    assert one.decision == two.decision
    assert (one.search.choosing == two.search.choosing).all()
    assert (one.search.choosing[:500] != other.search.choosing[:500]).any()


def test_few_examples_are_measured_exactly(model: nn.Module) -> None:
    result = alphatune.tune(model, images(900), metric="loss")
    assert result.search is None
    assert all(p.measured for p in result.curve)


def test_a_list_stays_exact(model: nn.Module) -> None:
    result = alphatune.tune(model, images(), alphas="0,0.1,0.2")
    assert result.search is None
    assert [p.alpha for p in result.curve] == [0.0, 0.1, 0.2]


@pytest.mark.parametrize("options", [{"curve": "half"}, {"race_delta": 1.0}, {"curve_tolerance": 0.0}])
def test_choices_that_cannot_be_right(model: nn.Module, options: dict) -> None:
    with pytest.raises(ConfigurationError):
        alphatune.tune(model, images(), **options)


class Pooled(nn.Module):
    """Images of one brightness u each: what the head sees, p = (1 − α)·u / σ(α), falls to 0 as α rises to 1."""

    def __init__(self, head: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.bn, self.head = nn.BatchNorm2d(1, eps=0), head
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = self.head(self.bn(x).mean((1, 2, 3)))
        return torch.stack([logit, torch.zeros_like(logit)], 1)


def pooled(alpha: float, u: float) -> float:
    return (1 - alpha) * u / np.sqrt(1 - alpha + alpha * 0.01 + alpha * (1 - alpha) * u**2)


def bright(u: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images of brightness u, with a standard deviation of exactly 0.1, all of class 0."""
    x = torch.tensor([-0.1, 0.1, 0.1, -0.1]).view(1, 1, 2, 2) + u.view(-1, 1, 1, 1)
    return list(zip(x.split(100), torch.zeros(len(u), dtype=torch.long).split(100), strict=True))


def alike(n: int, u: float) -> torch.Tensor:
    """Brightnesses of n images that hardly differ: the very same image again and again is refused."""
    return u + 1e-6 * torch.arange(n)


def logarithm(p: torch.Tensor) -> torch.Tensor:
    """The loss of class 0 falls as p does, until p <= 0.5: no number any more."""
    return -torch.log(p - 0.5)


@pytest.mark.parametrize("curve", ["auto", "full"])
@pytest.mark.parametrize("end", [0.02, 0.1, 0.25])
def test_the_search_stays_where_outputs_are_finite(end: float, curve: str) -> None:
    """α is best just below the one at which the darkest image has no finite logits any more."""
    darkest = next(u for u in np.linspace(0.5, 3, 5001) if pooled(end, u) > 0.5)
    data = bright(torch.linspace(float(darkest), 2.0, 1200)[torch.randperm(1200)])
    result = alphatune.tune(Pooled(logarithm), data, metric="loss", curve=curve)
    assert end / 5 < result.alpha < end
    assert "NaN or infinite for example" in result.warnings[0]
    assert "was looked at" in result.warnings[0]


@pytest.mark.parametrize("place", [10, 500, 1100])
def test_one_example_without_finite_outputs_is_enough(place: int) -> None:
    """Of the pilot, of a later lot, or of those that did not choose."""
    u = alike(1200, 2.0)
    u[stratified_order(np.zeros(1200, np.int64), 0)[place]] = 0.52
    end = next(a for a in np.linspace(0, 1, 1001) if pooled(a, 0.52) <= 0.5)
    result = alphatune.tune(Pooled(logarithm), bright(u), metric="loss")
    assert 0 < result.alpha < end
    assert "example" in result.warnings[0]


def test_few_examples_stay_where_outputs_are_finite() -> None:
    data = bright(alike(200, 0.8))  # no number from about 0.4 on
    finite = alphatune.tune(Pooled(logarithm), data, metric="loss")
    assert finite.alpha == 0.3
    assert finite.warnings == alphatune.tune(Pooled(logarithm), data, metric="loss", alphas="0,0.3").warnings
    data = bright(alike(200, 0.6))  # from about 0.22 on
    assert alphatune.tune(Pooled(logarithm), data, metric="loss").alpha == 0.15
    with pytest.raises(NumericError, match=r"α = 0\.3"):
        alphatune.tune(Pooled(logarithm), data, metric="loss", alphas="0,0.3")


def test_outputs_that_are_hardly_ever_finite_are_an_error() -> None:
    with pytest.raises(NumericError, match="NaN or infinite for example"):
        alphatune.tune(Pooled(logarithm), bright(alike(1200, 0.5001)), metric="loss")


@pytest.mark.parametrize("best", [0.5, 0.94, 0.97, 0.985, 1.0])
@pytest.mark.parametrize("curve", ["auto", "full"])
def test_an_optimum_far_out_is_found(best: float, curve: str) -> None:
    """And the search ends there: the range cannot grow beyond 1."""
    wanted = pooled(best, 1.5)
    data = bright(1.5 + 0.02 * torch.randn(1200))
    model = Pooled(lambda p: 1 - 20 * (p - wanted) ** 2)
    result = alphatune.tune(model, data, metric="loss", curve=curve)
    assert result.alpha == pytest.approx(best, abs=0.05)  # the curve is no polynomial near 1: a root


def test_an_infinite_output_is_named(model: nn.Module) -> None:
    data = images()
    data[3][0][17] = float("nan")
    with pytest.raises(NumericError, match="317"):
        alphatune.tune(model, data)


def test_order_is_stratified_and_a_function_of_the_seed() -> None:
    targets = np.repeat([0, 1, 2], [600, 300, 9])
    order = stratified_order(targets, 0)
    assert sorted(order) == list(range(909))
    assert (order == stratified_order(targets, 0)).all()
    for share in (0.1, 0.35, 0.6):
        counts = np.bincount(targets[order[: int(share * 909)]], minlength=3)
        assert np.abs(counts - share * np.array([600, 300, 9])).max() <= 3


def test_metrics_of_the_baseline_are_exact(model: nn.Module) -> None:
    data = shifted()
    result = alphatune.tune(model, data, metric="loss")
    loss, correct = exact(model, data, 0.0)
    assert result.baseline == summarise(result.sweep.baseline)
    assert result.baseline.top1 == correct.mean()
    assert result.baseline.loss == pytest.approx(loss.mean(), abs=1e-6)


def test_what_had_a_say_in_the_range_does_not_confirm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "NEAR_END", 0.999)  # the pilot leaves it to all that choose
    seen = []
    for name in ("curve", "logits"):
        original = getattr(Passes, name)

        def spy(self: Passes, positions: np.ndarray, *rest: object, original: Callable = original) -> object:
            seen.append(positions)
            return original(self, positions, *rest)

        monkeypatch.setattr(Passes, name, spy)
    wanted, first_range = pooled(0.147, 1.5), FIRST_RANGE
    for seed in range(4):
        seen.clear()
        data = bright(1.5 + 0.02 * torch.randn(1200, generator=torch.Generator().manual_seed(seed)))
        model = Pooled(lambda p: 1 - 20 * (p - wanted) ** 2)
        found = alphatune.tune(model, data, metric="loss", seed=seed).search
        assert found is not None
        assert found.grid[-1] > first_range
        assert not set(np.concatenate(seen)) & set(found.confirming)
        assert sorted([*found.choosing, *found.confirming]) == list(range(1200))
