import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rljax.runs.reports import statistics
from rljax.runs.reports.statistics import curve_interval, headline, iqm, stratified_bootstrap_interval

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def plain_iqm(values):
    """Agarwal et al. 2021, section 4.3: the mean of what is left without the bottom and top 25 % of runs."""
    kept = sorted(np.ravel(values).tolist())
    cut = len(kept) // 4
    kept = kept[cut : len(kept) - cut]
    return sum(kept) / len(kept)


@settings(deadline=None)  # the first call imports scipy
@given(numbers)
def test_iqm_is_its_definition(values):
    assert iqm(values) == pytest.approx(plain_iqm(values), rel=1e-9, abs=1e-6)


def test_iqm_pools_all_axes_as_rliable_does_or_takes_one():
    scores = np.random.default_rng(0).normal(size=(9, 5))  # runs x tasks
    assert iqm(scores) == pytest.approx(plain_iqm(scores))
    np.testing.assert_allclose(iqm(scores, axis=0), [plain_iqm(scores[:, k]) for k in range(5)])


def test_iqm_closed_forms():
    assert iqm([1, 2, 3]) == 2
    assert iqm([0, 1, 3, 1e9]) == 2
    assert iqm(np.arange(8)) == 3.5
    assert iqm([7.0]) == 7
    uniform = (np.arange(100_000) + 0.5) / 100_000  # X ~ U(0, 1): IQM of X² is 2 ∫ x² dx, ¼ to ¾
    assert iqm(uniform**2) == pytest.approx(2 / 3 * (0.75**3 - 0.25**3), rel=1e-6)


@settings(max_examples=50)
@given(numbers, st.floats(-10, 10), st.floats(-10, 10), st.randoms())
def test_iqm_invariances(values, scale, shift, random):
    shuffled = random.sample(values, len(values))
    assert iqm(shuffled) == pytest.approx(iqm(values), rel=1e-9, abs=1e-6)
    assert iqm(scale * np.asarray(values) + shift) == pytest.approx(
        scale * iqm(values) + shift, rel=1e-6, abs=1e-4
    )
    assert min(values) <= iqm(values) + 1e-6
    assert iqm(values) <= max(values) + 1e-6


def test_iqm_does_not_trim_a_nan_away():
    assert np.isnan(iqm([1.0, 2.0, 3.0, np.nan]))
    np.testing.assert_array_equal(np.isnan(iqm([[1.0, np.nan], [2.0, 1.0]], axis=0)), [False, True])
    with pytest.raises(ValueError, match="no values"):
        iqm([])


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng, n: rng.normal(3.0, 2.0, n), 3.0),
        # mean of Exp(1) between its quartiles ln(4/3) and ln 4: 2 [−(x + 1) e^−x]
        (
            lambda rng, n: rng.exponential(1.0, n),
            2 * (0.75 * (np.log(4 / 3) + 1) - 0.25 * (np.log(4) + 1)),
        ),
    ],
    ids=["normal", "exponential"],
)
@pytest.mark.parametrize("number", [5, 6, 10, 40])
def test_interval_covers_the_truth_about_as_often_as_it_says(number, draw, truth):
    rng, hits = np.random.default_rng(1), 0
    for _ in range(500):
        low, high = stratified_bootstrap_interval(draw(rng, number), samples=400)
        hits += low <= truth <= high
    assert 0.925 <= hits / 500 <= 0.985  # of 500 tries 95 in 100 vary by one in 100


def tail(confidence, number):
    """What lies on each side of the interval, so that it is as wide as Student's t makes that of a mean."""
    reach = np.sqrt(number / (number - 1)) * stats.t.ppf((1 + confidence) / 2, number - 1)
    return stats.norm.sf(reach)


def test_interval_enumerated():
    """Three seeds have 27 resamples: the interval is quantiles of their statistic."""
    values = np.array([0.0, 1.0, 5.0])
    every = [np.mean(values[list(index)]) for index in itertools.product(range(3), repeat=3)]
    low, high = stratified_bootstrap_interval(values, np.mean, 0.8, samples=200_000)
    assert 0.01 < tail(0.8, 3) < 0.02
    assert low == pytest.approx(np.quantile(every, tail(0.8, 3), method="inverted_cdf"))
    assert high == pytest.approx(np.quantile(every, 1 - tail(0.8, 3), method="inverted_cdf"))


def test_tasks_are_strata():
    """Each task is resampled on its own: distances between tasks add nothing, and correlation is not used."""
    rng = np.random.default_rng(2)
    far_apart = np.array([[0.0, 1000.0, -50.0]]).repeat(6, axis=0)
    low, high = stratified_bootstrap_interval(far_apart, np.mean)
    assert low == high == pytest.approx(950 / 3)
    one = rng.normal(size=(30, 1))
    width = np.diff(stratified_bootstrap_interval(one, np.mean, samples=20_000))[0]
    copied = np.diff(stratified_bootstrap_interval(one.repeat(4, axis=1), np.mean, samples=20_000))[0]
    assert copied == pytest.approx(width / 2, rel=0.03)  # 1/√4: four independent resamples
    assert width == pytest.approx(2 * stats.t.ppf(0.975, 29) * one.std(ddof=1) / np.sqrt(30), rel=0.05)


def plain_bootstrap(scores, samples, seed):
    """rliable's stratified bootstrap by definition: for each task draw as many runs, pool, take the IQM."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(samples):
        columns = [rng.choice(scores[:, k], size=len(scores), replace=True) for k in range(scores.shape[1])]
        found.append(plain_iqm(np.stack(columns)))
    return np.quantile(found, [tail(0.95, len(scores)), 1 - tail(0.95, len(scores))])


def test_interval_agrees_with_rliables_definition():
    scores = np.random.default_rng(3).gamma(2.0, size=(10, 4)) * np.array([1, 2, 3, 10])
    ours = stratified_bootstrap_interval(scores, samples=20_000)
    np.testing.assert_allclose(ours, plain_bootstrap(scores, 10_000, seed=4), rtol=0.05)


def test_curves_are_the_interval_at_each_time():
    curves = np.random.default_rng(5).normal(size=(6, 11)).cumsum(axis=1)
    band = curve_interval(curves, samples=300)
    assert band.shape == (11, 2)
    for t in range(11):
        np.testing.assert_array_equal(
            band[t], stratified_bootstrap_interval(curves[:, t], samples=300), strict=True
        )


def test_curves_in_blocks_are_the_same(monkeypatch):
    curves = np.random.default_rng(6).normal(size=(5, 23))
    whole = curve_interval(curves, samples=200)
    single = stratified_bootstrap_interval(curves, samples=200)
    monkeypatch.setattr("rljax.runs.reports.statistics._BLOCK", 3500)
    np.testing.assert_array_equal(curve_interval(curves, samples=200), whole)
    np.testing.assert_array_equal(stratified_bootstrap_interval(curves, samples=200), single)
    assert curve_interval(np.zeros((3, 0))).shape == (0, 2)


def test_interval_invariances():
    values = np.random.default_rng(7).normal(size=12)
    low, high = stratified_bootstrap_interval(values)
    assert low < iqm(values) < high
    np.testing.assert_array_equal(stratified_bootstrap_interval(values), [low, high])
    np.testing.assert_allclose(stratified_bootstrap_interval(3 * values + 2), [3 * low + 2, 3 * high + 2])
    np.testing.assert_allclose(stratified_bootstrap_interval(-values), [-high, -low])
    inner = stratified_bootstrap_interval(values, confidence=0.8)
    assert low < inner[0] < inner[1] < high
    assert not np.array_equal(stratified_bootstrap_interval(values, seed=1), [low, high])


def test_interval_of_one_or_equal_seeds_is_a_point():
    np.testing.assert_array_equal(stratified_bootstrap_interval([4.0]), [4.0, 4.0])
    np.testing.assert_array_equal(stratified_bootstrap_interval([4.0] * 9), [4.0, 4.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": []}, "shape"),
        ({"values": np.zeros((2, 2, 2))}, "shape"),
        ({"values": [1.0], "confidence": 95}, "confidence = 95"),
        ({"values": [1.0], "samples": 0}, "samples = 0"),
    ],
)
def test_misuse_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        stratified_bootstrap_interval(**arguments)
    assert "\n" not in str(caught.value)


def test_headline():
    values = [100.0, 200.0, 300.0, 900.0, 250.0]
    block = headline(values, 128)
    assert list(block) == ["mean", "iqm", "ci95", "per_seed", "episodes"]
    assert block["mean"] == 350
    assert block["iqm"] == 250
    assert block["ci95"] == stratified_bootstrap_interval(values).tolist()
    assert block["per_seed"] == values
    assert block["episodes"] == 128
    json.dumps(block, allow_nan=False)


def test_headline_under_five_seeds_has_no_interval():
    assert headline([1.0, 3.0], 128)["iqm"] == 2
    assert headline([1.0, 3.0, 4.0, 5.0], 128)["ci95"] is None
    assert headline([1.0, 3.0, 4.0, 5.0, 6.0], 128)["ci95"] is not None


def test_headline_does_not_leave_a_diverged_seed_out():
    block = headline([1.0, float("nan"), None, 2.0], 8)
    assert block == {
        "mean": None,
        "iqm": None,
        "ci95": None,
        "per_seed": [1.0, None, None, 2.0],
        "episodes": 8,
    }
    with pytest.raises(ValueError, match="no seeds"):
        headline([], 8)
    json.dumps(headline(np.float32([1, 2, 3]).tolist(), np.int64(4)), allow_nan=False)  # pyright: ignore


# What an evaluation counts


def test_completions_without_a_score_are_left_out_and_counted() -> None:
    totals = np.array([[1.0, 99.0, 3.0], [5.0, 7.0, 99.0], [2.0, 4.0, 6.0]])
    complete = np.array([[True, False, True], [True, True, False], [True, True, True]])
    found = statistics.measured("return", True, totals, np.ones((3, 3)), complete)
    np.testing.assert_array_equal(found.means, [2.0, 6.0, 4.0])
    assert found.number == 2
    assert found.note == "2 of 9 completions could not be scored and are left out"
    none = statistics.measured("return", True, totals, np.ones((3, 3)), np.zeros((3, 3), bool))
    assert np.isnan(none.means).all()
    assert none.number == 0


def test_a_loss_is_the_mean_over_all_tokens() -> None:
    found = statistics.measured("loss", True, [[6.0, 2.0]], [[3, 1]], [[True, True]])
    assert found[:3] == (2.0, 2, "")
