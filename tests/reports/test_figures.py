"""The figures of a report, and the statistics that they show."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from made_up_results import HOSTILE, by_labels, made_result, made_scores, refined, shifted, typed
from PIL import Image
from scipy import stats

from alphatune.reports.before_after import compare_runs
from alphatune.reports.curve import curve_frame, split_curve
from alphatune.reports.drawings import draw_all
from alphatune.reports.figures.canvas import shown, text_width
from alphatune.reports.figures.classes import draw_classes
from alphatune.reports.figures.conditions import draw_conditions
from alphatune.reports.figures.curves import draw_curve
from alphatune.reports.figures.depth import draw_depth
from alphatune.reports.figures.labels import draw_labels
from alphatune.reports.per_class import (
    ENDS,
    FEWEST,
    bonett_price,
    class_names,
    loss_changes,
    most_changed,
    top1_changes,
)
from alphatune.reports.reliability import reliability, wilson
from alphatune.results.tune import Tuned
from alphatune.statistics.calibration_error import expected_calibration_error

DRAWS_FIGURES = True

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn() -> dict:
    stored = made_scores()
    document = typed(refined(made_result(stored)))
    return {d.name: d for d in draw_all(document, stored, compare_runs(document, stored)).all()}


def test_there_is_a_figure_of_everything(drawn: dict) -> None:
    assert list(drawn) == [
        "curve-top1", "curve-loss", "curve-top5", "curve-ece", "reliability-before", "reliability-after",
        "classes-top1", "classes-loss", "alpha-over-depth",
    ]  # fmt: skip
    for drawing in drawn.values():
        root = ElementTree.fromstring(drawing.svg)
        assert root.tag == f"{SVG}svg"
        assert "date" not in drawing.svg
        with Image.open(io.BytesIO(drawing.png)) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300
            assert not {"Software", "Creation Time"} & image.info.keys()
        assert drawing.inline.startswith("<svg viewBox=")
        assert "var(--" in drawing.inline
        assert "http" not in drawing.inline


def test_the_same_result_gives_the_same_bytes() -> None:
    alphas = {"stem": 0.1, "layer1": [0.0, 0.2, 0.4], "layer2": [0.3, 0.1]}
    one, two = draw_depth(alphas), draw_depth(alphas)
    assert (one.svg, one.png, one.inline) == (two.svg, two.png, two.inline)
    assert one.svg.count("<path") > 10
    document = typed(made_result(made_scores()))
    assert draw_curve(document, "loss") == draw_curve(document, "loss")


def test_the_users_own_style_changes_nothing() -> None:
    import matplotlib

    document = typed(made_result(made_scores()))
    plain = draw_curve(document, "top1")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.fonttype": "path"}):
        assert draw_curve(document, "top1") == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_names_are_neither_mathematics_nor_markup_nor_a_warning() -> None:
    stored = made_scores(classes=len(HOSTILE), names=HOSTILE)
    changes = top1_changes(stored.baseline, stored.chosen, class_names(stored.baseline, stored.classes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawing = draw_classes("classes", "Top-1 by class", most_changed(changes), lower_is_better=False)
    labels = [e.text or "" for e in ElementTree.fromstring(drawing.svg).iter(f"{SVG}text")]
    assert any(label.startswith("<script>alert(1)") for label in labels)
    assert any(label.startswith("$x^2$") for label in labels)
    assert not any("\u202e" in label or "\x07" in label for label in labels)


def test_a_long_name_is_cut_and_a_wide_script_needs_more_room() -> None:
    assert shown("a\n b") == "a b"
    assert shown("x" * 50) == "x" * 23 + "…"
    assert text_width("猫" * 5, 9) > 1.5 * text_width("a" * 5, 9)


def test_a_curve_says_what_there_is_to_see(drawn: dict) -> None:
    document = typed(made_result(made_scores()))
    text = draw_curve(document, "loss").text
    assert f"{document.baseline['loss']:.4f} at α = 0 (plain)" in text
    assert f"chosen α = 0.12 with {document.chosen.metrics['loss']:.4f}" in text
    assert "from 0.02 in layer1.bn to 0.3 in layer2.bn" in drawn["alpha-over-depth"].text


def test_measured_points_have_another_mark_than_interpolated_ones() -> None:
    drawing = draw_curve(typed(made_result(made_scores())), "loss")
    labels = [e.text for e in ElementTree.fromstring(drawing.svg).iter(f"{SVG}text")]
    expected = {
        "measured",
        "interpolated",
        "95 % interval",
        "α = 0 (plain)",
        "best by this metric",
        "chosen: α = 0.12",
    }
    assert expected <= set(labels)
    ece = draw_curve(typed(made_result(made_scores())), "ece")
    assert "95 % interval" not in ece.svg


def searched(sizes: dict[float, int]) -> Tuned:
    """A search whose points rest on so many examples by α, and on 400 where nothing is said."""
    document = made_result(made_scores())
    return typed(document | {"curve": [p | {"n": sizes.get(p["alpha"], 400)} for p in document["curve"]]})


def test_points_of_fewer_examples_are_not_joined_with_the_curve() -> None:
    document = searched({0.03: 240, 0.09: 240, 0.15: 60})
    parts = split_curve(document)
    assert [p.alpha for p in parts.joined] == [0.0, 0.03, 0.09]
    assert [p.alpha for p in parts.whole] == [0.06, 0.12]
    assert [p.alpha for p in parts.fewer] == [0.15]
    drawing = draw_curve(document, "loss")
    labels = [key.label for key in drawing.keys]
    assert "interpolated, 240 examples" in labels
    assert "not comparable, 60 examples" in labels
    assert "measured, 400 examples" in labels
    assert "1 points rest on fewer examples" in drawing.text
    (line,) = [e for e in lines(drawing.svg) if "stroke-width: 1.6" in e.get("style", "")]
    assert len(re.findall("[ML]", line.get("d", ""))) == len(parts.joined)


@pytest.mark.parametrize("kind", ["sweep", "full", "unknown"])
def test_a_curve_of_the_same_examples_is_joined_as_a_whole(kind: str) -> None:
    document = made_result(made_scores())
    changed = {"measured": True} if kind == "sweep" else {}
    curve = [
        {k: v for k, v in p.items() if kind != "unknown" or k != "n"} | changed for p in document["curve"]
    ]
    parts = split_curve(typed(document | {"curve": curve}))
    assert len(parts.joined) == len(document["curve"])
    assert not parts.whole + parts.fewer


def test_the_table_tells_which_points_can_be_compared() -> None:
    document = searched({0.15: 60})
    frame = curve_frame(document)
    fewer = {p.alpha for p in split_curve(document).fewer}
    assert set(frame.alpha[frame.n < frame.n[~frame.measured].max()]) == fewer == {0.15}


def test_a_page_has_the_legend_apart(drawn: dict) -> None:
    drawing = drawn["curve-loss"]
    in_file = [e.text for e in ElementTree.fromstring(drawing.svg).iter(f"{SVG}text")]
    in_page = [e.text for e in ElementTree.fromstring(drawing.inline).iter("text")]
    labels = [key.label for key in drawing.keys]
    assert in_file == in_page + labels
    height = [
        float(ElementTree.fromstring(svg).get("viewBox", "").split()[3])
        for svg in (drawing.svg, drawing.inline)
    ]
    assert height[1] < height[0] - 10
    for drawing in drawn.values():
        ids: list[str] = re.findall(
            r' id="([^"]+)"', drawing.inline + "".join(key.svg for key in drawing.keys)
        )
        assert len(ids) == len(set(ids))
        for key in drawing.keys:
            picture = ElementTree.fromstring(key.svg)
            assert "var(--" in key.svg
            left, top, width, high = map(float, picture.get("viewBox", "").split())
            x, y = point_of(picture)
            assert left <= x <= left + width
            assert top <= y <= top + high


def lines(svg: str) -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(svg).iter(f"{SVG}path") if "fill: none" in e.get("style", "")]


def point_of(picture: ElementTree.Element) -> tuple[float, float]:
    """A point of what a key shows."""
    for use in picture.iter("use"):
        return float(use.get("x", "")), float(use.get("y", ""))
    path = next(e for e in picture.iter("path"))
    x, y = re.findall(r"-?[\d.]+", path.get("d", ""))[:2]
    return float(x), float(y)


# --- statistics ------------------------------------------------------------------------------


def test_the_bins_add_up_to_the_calibration_error() -> None:
    scores = made_scores(3000).baseline
    bins = reliability(scores)
    assert len(bins) == 15
    assert sum(b.count for b in bins) == len(scores)
    gap = sum(b.count * abs((b.confidence or 0) - (b.accuracy or 0)) for b in bins) / len(scores)
    assert gap == pytest.approx(expected_calibration_error(scores.confidence, scores.top1), abs=1e-9)
    assert all(b.low < b.confidence <= b.high for b in bins if b.count)
    assert all(b.accuracy is None and b.interval is None for b in bins if not b.count)


def test_wilsons_interval() -> None:
    right, n = np.array([0.0, 3.0, 10.0, 50.0]), np.array([4, 7, 10, 90])
    low, high = wilson(right, n)
    for i in range(4):
        known = stats.binomtest(int(right[i]), int(n[i])).proportion_ci(method="wilson")
        assert (low[i], high[i]) == pytest.approx((known.low, known.high))


def test_changes_of_a_class_are_those_of_its_examples() -> None:
    stored = made_scores(500, 7)
    before, after = stored.baseline, stored.chosen
    names = class_names(before, stored.classes)
    for label, (top1, loss) in enumerate(
        zip(top1_changes(before, after, names), loss_changes(before, after, names), strict=True)
    ):
        rows = before.targets == label
        assert (top1.label, top1.name, top1.n) == (label, f"class {label}", rows.sum())
        assert top1.before == pytest.approx(before.top1[rows].mean())
        assert top1.change == pytest.approx(after.top1[rows].mean() - before.top1[rows].mean())
        change = after.loss[rows].astype(float) - before.loss[rows]
        assert loss.change == pytest.approx(change.mean())
        assert loss.gain == pytest.approx(-change.mean())
        known = stats.ttest_1samp(change, 0).confidence_interval(0.95)
        assert loss.alone == pytest.approx((known.low, known.high))
        wide = stats.ttest_1samp(change, 0).confidence_interval(1 - 0.05 / 7)
        assert loss.together == pytest.approx((wide.low, wide.high))
        assert top1.together[0] < top1.alone[0] <= top1.change <= top1.alone[1] < top1.together[1]


def test_few_examples_have_no_interval_of_the_loss() -> None:
    stored = made_scores(FEWEST - 1, 1)
    (change,) = loss_changes(stored.baseline, stored.chosen, ["only"])
    assert change.alone is None
    assert not change.beyond_luck


@pytest.mark.parametrize("n", [5, 20, 200])
def test_the_interval_of_paired_proportions_covers(n: int) -> None:
    rng = np.random.default_rng(1)
    won, lost = 0.12, 0.05
    counts = rng.multinomial(n, [won, lost, 1 - won - lost], size=4000)
    intervals = np.array(bonett_price(counts[:, 0] * 1.0, counts[:, 1] * 1.0, np.full(4000, n), 0.95))
    covered = (intervals[:, 0] <= won - lost) & (won - lost <= intervals[:, 1])
    assert 0.94 <= covered.mean() <= 1
    assert (np.abs(intervals) <= 1).all()


def test_classes_shown_are_those_that_changed_most() -> None:
    stored = made_scores(4000, 200)
    changes = top1_changes(stored.baseline, stored.chosen, class_names(stored.baseline, stored.classes))
    chosen = most_changed(changes)
    assert len(chosen.lost) == ENDS
    assert len(chosen.gained) <= ENDS
    assert len(chosen.lost) + len(chosen.gained) + chosen.hidden == 200
    rest = {c.label for c in changes} - {c.label for c in (*chosen.lost, *chosen.gained)}
    left = [c.gain for c in changes if c.label in rest]
    assert max(c.gain for c in chosen.lost) <= min(left)
    assert min(c.gain for c in chosen.gained) >= max(left)
    few = most_changed(changes[:30])
    assert few.hidden == 0


def test_help_draws_nothing() -> None:
    code = (
        "import sys\nfrom alphatune.cli.main import main\n"
        "try: main(['report', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('matplotlib', 'torch', 'scipy') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("chosen", ["global", "affine"])
def test_each_condition_has_a_panel_with_its_own_scale(chosen: str) -> None:
    made = shifted(made_result(made_scores()), chosen=chosen)
    drawing = draw_conditions(typed(made))
    assert drawing is not None
    written = [e.text for e in ElementTree.fromstring(drawing.svg).iter(f"{SVG}text")]
    for condition in made["shift"]["conditions"]:
        assert condition["name"] in written
        best = max(point["value"] for point in condition["curve"])
        assert (
            f"{condition['name']} {condition['baseline']['top1']:.4f} at α = 0, best {best:.4f}"
            in drawing.text
        )
    assert "each with a scale of its own" in drawing.text
    labels = [key.label for key in drawing.keys]
    assert labels == ["α = 0 (plain)", "measured", "chosen α" if chosen == "global" else "chosen"]
    for condition in made["shift"]["conditions"]:
        condition["curve"] = []
    assert draw_conditions(typed(made)) is None


def test_repairs_by_number_of_labels_have_a_line_each_and_a_panel_for_each_kind() -> None:
    made = by_labels(made_result(made_scores()))
    curve = typed(made).label_curve
    assert curve is not None
    drawing = draw_labels(curve)
    assert drawing is not None
    written = [e.text for e in ElementTree.fromstring(drawing.svg).iter(f"{SVG}text")]
    assert {"clean", "shifts tuned on", "shifts not tuned on", "25", "100", "400", "1500"} <= set(written)
    assert len(drawing.keys) == 7
    assert drawing.svg.count("FillBetweenPolyCollection") == 18  # plain has no band
    made["label_curve"]["rows"] = [
        row | {"seen": None, "unseen": None} for row in made["label_curve"]["rows"]
    ]
    only_clean = typed(made).label_curve
    assert only_clean is not None
    assert "shifts" not in draw_labels(only_clean).text  # type: ignore[union-attr]
    made["label_curve"]["rows"] = [row for row in made["label_curve"]["rows"] if row["images"] == 25]
    one_number = typed(made).label_curve
    assert one_number is not None
    assert draw_labels(one_number) is None
