"""The library's tune on a user's own model and loader."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import no_norm, odd, tiny
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import alphatune
from alphatune.core.errors import ConfigurationError, NumericError, UnsupportedModelError
from alphatune.models.probe import probe
from alphatune.models.running_stats_check import examine
from alphatune.norms.patching import get_alpha, patched, set_alpha_


def trained() -> nn.Module:
    torch.manual_seed(1)
    model = tiny().train()
    for _ in range(10):
        model(torch.randn(16, 3, 12, 12))
    return model.eval()


def loader(n: int = 40, batch_size: int = 16) -> DataLoader:
    torch.manual_seed(2)
    return DataLoader(TensorDataset(torch.randn(n, 3, 12, 12) * 1.5, torch.randint(0, 4, (n,))), batch_size)


def test_four_lines_of_python(tmp_path) -> None:
    """As README has them."""
    model = trained()
    result = alphatune.tune(model, loader(), metric="loss", accept="best")
    alphatune.patch_(model, result.alpha)
    alphatune.save(model, tmp_path / "tuned")

    x = torch.randn(2, 3, 12, 12)
    again = alphatune.load(tmp_path / "tuned", model=tiny())
    assert torch.equal(again(x), model(x))
    assert f"alpha = {result.alpha:g}" in str(result)


def test_each_point_is_what_a_patched_model_gives() -> None:
    model = trained()
    result = alphatune.tune(model, loader(), alphas="0,0.1,0.5")
    with patched(model), torch.no_grad():
        for point in result.curve:
            set_alpha_(model, point.alpha)
            logits = torch.cat([model(x) for x, _ in loader()])
            targets = torch.cat([y for _, y in loader()])
            assert point.metrics.loss == pytest.approx(
                nn.functional.cross_entropy(logits, targets).item(), abs=1e-6
            )
            assert point.metrics.top1 == pytest.approx((logits.argmax(1) == targets).float().mean().item())


def test_errors_in_python_say_what_to_do(tmp_path) -> None:
    alphatune.save(tiny(), tmp_path / "out")
    with pytest.raises(ConfigurationError, match="model=YourModel"):
        alphatune.load(tmp_path / "out")


def test_model_comes_back_as_it_was() -> None:
    model = trained().train()
    types = [type(m) for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    alphatune.tune(model, loader())
    assert [type(m) for m in model.modules()] == types
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.training

    def broken():
        yield from loader()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        alphatune.tune(model, broken())
    assert [type(m) for m in model.modules()] == types
    assert model.training


def test_patched_model_keeps_its_alpha() -> None:
    model = trained()
    alphatune.patch_(model, 0.25)
    result = alphatune.tune(model, loader())
    assert result.curve[0].alpha == 0
    assert set(get_alpha(model).values()) == {0.25}


def test_batch_size_does_not_matter() -> None:
    a = alphatune.tune(trained(), loader(batch_size=3), alphas="0,0.1")
    b = alphatune.tune(trained(), loader(batch_size=40), alphas="0,0.1")
    for s, t in zip(a.sweep.scores, b.sweep.scores, strict=True):
        np.testing.assert_allclose(s.loss, t.loss, rtol=1e-4)


def test_one_example_and_one_alpha() -> None:
    result = alphatune.tune(trained(), loader(1), alphas=0.1)
    assert [p.alpha for p in result.curve] == [0, 0.1]
    assert result.curve[1].ci == {}
    assert result.alpha == 0


def test_numpy_batches() -> None:
    import numpy as np

    x, y = np.random.default_rng(0).normal(size=(24, 3, 12, 12)).astype(np.float32), np.arange(24) % 4
    assert alphatune.tune(trained(), [(x, y)], alphas="0,0.1").baseline.n == 24


def test_progress_counts_examples() -> None:
    seen = []
    alphatune.tune(trained(), loader(), alphas="0,0.1", progress=lambda d, t: seen.append((d, t)))
    assert seen == [(32, 80), (64, 80), (80, 80)]  # each example at two alphas


@pytest.mark.parametrize(
    ("model", "error"), [(no_norm(), UnsupportedModelError), (odd(), UnsupportedModelError)]
)
def test_unsupported_models(model: nn.Module, error: type) -> None:
    with pytest.raises(error):
        alphatune.tune(model, loader())


def test_unknown_layers_are_left_alone_with_consent() -> None:
    result = alphatune.tune(odd(), loader(), alphas="0,0.1", skip_unknown=True)
    assert result.patched == ("bn1",)
    assert any("left alone" in w for w in result.warnings)


@pytest.mark.parametrize(
    "options", [{"metric": "f1"}, {"accept": "bset"}, {"alphas": "2"}, {"alphas": [0.1, -1]}]
)
def test_impossible_options(options: dict) -> None:
    with pytest.raises(ConfigurationError):
        alphatune.tune(trained(), loader(), **options)


@pytest.mark.parametrize(
    "given", [np.linspace(0, 0.2, 3), torch.linspace(0, 0.2, 3), [np.float32(0.1), 0.2], (0.1, 0.2)]
)
def test_alphas_may_be_any_numbers(given: object) -> None:
    result = alphatune.tune(trained(), loader(), alphas=given)  # type: ignore[arg-type]
    assert [p.alpha for p in result.curve] == pytest.approx([0, 0.1, 0.2])


def test_an_alpha_that_was_not_measured_is_told() -> None:
    result = alphatune.tune(trained(), loader(), alphas=[0.1, 0.2])
    assert result.at(0.1) == result.curve[1].metrics
    assert result.at(np.float64(0.1)) == result.curve[1].metrics
    with pytest.raises(ConfigurationError, match=r"0\.05.*0, 0\.1, 0\.2"):
        result.at(0.05)


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (lambda m: m.bn2.running_var.__setitem__(1, -0.5), "bn2: running_var is negative in 1 of 8"),
        (lambda m: m.bn1.running_mean.fill_(float("nan")), "bn1: running_mean is NaN"),
        (lambda m: m.bn1.running_var.fill_(float("inf")), "bn1: running_var is NaN or infinite in 8"),
    ],
)
def test_impossible_moving_averages_name_the_layer(break_, message: str) -> None:
    model = trained()
    break_(model)
    with pytest.raises(NumericError, match=message):
        alphatune.tune(model, loader())


def test_untrained_averages_are_remarked_on() -> None:
    assert "never trained" in examine(tiny())[0].remark
    assert any("as before training" in w for w in alphatune.tune(tiny(), loader(), alphas="0,0.1").warnings)
    assert examine(trained())[0].remark == ""


def informed(seed: int, alpha_helps: bool) -> tuple[nn.Module, DataLoader]:
    """A network that reads colour, and images whose contrast is off where α > 0 should help."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveMaxPool2d(1), nn.Flatten()).eval()
    y = torch.randint(0, 4, (400,))
    x = torch.randn(400, 4, 6, 6) + 2.0 * nn.functional.one_hot(y, 4)[:, :, None, None]
    x[torch.arange(400), y, 0, 0] += 3
    if alpha_helps:  # every image has an offset per channel of its own
        x = x + 8 * torch.randn(400, 4, 1, 1)
    return model, DataLoader(TensorDataset(x, y), 100)


def test_a_large_gain_is_suspected_of_wrong_preprocessing() -> None:
    result = alphatune.tune(*informed(0, alpha_helps=True), alphas="0:1:6")
    assert result.alpha > 0
    assert result.decision.gain is not None
    assert result.decision.gain.significant
    assert any("preprocessing" in w for w in result.warnings)


def test_no_warning_where_nothing_is_wrong() -> None:
    result = alphatune.tune(*informed(0, alpha_helps=False), alphas="0,0.02,0.05")
    assert [w for w in result.warnings if "chance" in w or "points" in w] == []


def test_a_baseline_near_chance_is_warned_of() -> None:
    model, data = informed(0, alpha_helps=False)
    model[0].running_mean.fill_(1e-7)  # type: ignore[index]  # 0 would say that nothing was trained
    shuffled = DataLoader(TensorDataset(data.dataset.tensors[0], data.dataset.tensors[1].roll(1)), 100)
    assert any("close to chance" in w for w in alphatune.tune(model, shuffled, alphas="0,0.05").warnings)


def test_the_end_of_the_grid_is_pointed_out() -> None:
    result = alphatune.tune(*informed(0, alpha_helps=True), alphas="0,0.05", accept="best")
    assert any("largest one tried" in w for w in result.warnings)


def test_probe_sees_positions_and_rows() -> None:
    import timm

    seen = probe(tiny(), (3, 12, 12), torch.device("cpu"))
    assert seen.num_classes == 4
    assert seen.layers["bn1"].spatial == (12, 12)
    assert seen.layers["bn2"].positions == 36
    levit = probe(timm.create_model("levit_128s"), (3, 224, 224), torch.device("cpu"))
    remarks = [layer.remark for layer in levit.layers.values()]
    assert any("rows an example" in r for r in remarks)  # tokens flattened into the batch
    assert any("one position" in r for r in remarks)


@pytest.mark.parametrize(("size", "message"), [((1, 12, 12), "does not take an input of size 1x12x12")])
def test_probe_refuses_a_wrong_input_size(size: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        probe(tiny(), size, torch.device("cpu"))
