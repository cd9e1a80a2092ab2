"""The rules of timing, on a clock that only moves as the timed callable says: nothing here depends on the machine."""

import itertools
import json
import math

import numpy as np
import pytest

from znni import timing
from znni.timing import (
    FASTER,
    SAME,
    SLOWER,
    UNCLEAR,
    Timing,
    bootstrap_interval,
    compare,
    compare_samples,
    interleave,
    summarise,
    time_callable,
)


class Scripted:
    """A clock and callables that move it: each call lasts the next of its durations, the last one for ever."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def clock(self):
        return self.now

    def lasting(self, *durations, name="f"):
        durations = itertools.chain(durations, itertools.repeat(durations[-1]))

        def f():
            self.calls.append(name)
            self.now += next(durations)

        return f


@pytest.fixture
def script():
    return Scripted()


def test_a_steady_callable_gets_five_samples_and_half_a_second(script):
    told = []
    result = time_callable(script.lasting(0.125), cap_s=60, clock=script.clock, on_sample=told.append)
    assert len(result.warm_up) == 2  # two that agree
    assert result.samples == (0.125,) * 5  # 5 samples bind: 4 would make half a second
    assert (result.median_s, result.iqr_s, result.interval_s) == (0.125, 0.0, (0.125, 0.125))
    assert result.steady and not result.single and not result.early_stopped
    assert told == list(result.samples)


def test_half_a_second_binds_for_quicker_ones(script):
    result = time_callable(script.lasting(1 / 32), cap_s=60, clock=script.clock)
    assert len(result.samples) == 16 and result.calls_per_sample == 1


def test_warm_up_goes_on_until_two_runs_agree(script):
    result = time_callable(script.lasting(0.5, 0.2, 0.1), cap_s=60, clock=script.clock)
    assert result.warm_up == pytest.approx((0.5, 0.2, 0.1))
    assert result.samples == pytest.approx((0.1,) * 5)


def test_noise_is_sampled_until_the_cap(script):
    noisy = [0.1, 0.1] + [0.08, 0.12] * 500
    result = time_callable(script.lasting(*noisy), cap_s=3.0, clock=script.clock)
    assert not result.steady and len(result.samples) > 20
    assert script.now <= 3.0 + 0.12
    low, high = result.interval_s
    assert low <= result.median_s <= high


def test_noise_that_settles_ends_sampling(script):
    durations = [0.1, 0.1, 0.2, 0.2] + [0.1] * 100
    result = time_callable(script.lasting(*durations), cap_s=60, clock=script.clock)
    assert result.steady
    assert result.samples[:2] == pytest.approx((0.2, 0.2))  # kept, although outliers
    assert len(result.samples) < 20


def test_very_quick_callables_are_called_many_times_for_one_sample(script):
    result = time_callable(script.lasting(2**-20), cap_s=60, clock=script.clock)
    assert result.calls_per_sample == math.ceil(timing.LEAST_SAMPLE_SECONDS * 2**20)
    assert result.median_s == 2**-20
    assert len(result.samples) <= timing.MOST_SAMPLES


def test_the_number_of_samples_is_bounded(script):
    noisy = [0.003, 0.003] + [0.002, 0.004] * 1000
    result = time_callable(script.lasting(*noisy), cap_s=60, clock=script.clock)
    assert len(result.samples) == timing.MOST_SAMPLES and not result.steady


@pytest.mark.parametrize(("takes", "cap"), [(5.0, 60.0), (0.5, 1.0), (9.0, 1.0)])
def test_a_slow_callable_gets_one_sample_and_says_so(script, takes, cap):
    told = []
    result = time_callable(script.lasting(takes), cap_s=cap, clock=script.clock, on_sample=told.append)
    assert script.calls == ["f"] and told == [takes]
    assert result.single and result.samples == (takes,) and result.warm_up == ()
    assert result.interval_s is None


def test_three_times_the_best_stops_early(script):
    result = time_callable(script.lasting(0.35), cap_s=60, best_s=0.1, clock=script.clock)
    assert result.early_stopped and result.single and result.samples == (0.35,)
    assert len(script.calls) == 2


def test_a_slow_first_call_alone_is_no_reason_to_stop_early(script):
    result = time_callable(script.lasting(1.0, 0.1), cap_s=60, best_s=0.1, clock=script.clock)
    assert not result.early_stopped and len(result.samples) >= 5


def test_a_single_sample_can_be_hopeless_too(script):
    result = time_callable(script.lasting(9.0), cap_s=60, best_s=1.0, clock=script.clock)
    assert result.single and result.early_stopped


def test_the_cap_must_be_positive(script):
    with pytest.raises(ValueError, match="cap_s must be more than 0"):
        time_callable(script.lasting(1.0), cap_s=0, clock=script.clock)


def test_a_timing_survives_json(script):
    for result in (
        time_callable(script.lasting(0.1, 0.11, 0.1, 0.12), cap_s=2, clock=script.clock),
        time_callable(script.lasting(5.0), cap_s=2, clock=script.clock),
    ):
        assert Timing.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_summary_of_known_samples():
    summary = summarise([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (summary.median_s, summary.iqr_s) == (3.0, 2.0)
    assert summary.interval_s[0] < 3.0 < summary.interval_s[1]
    with pytest.raises(ValueError, match="at least one sample"):
        summarise([])


def test_the_bootstrap_interval_is_seeded_and_covers():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        low, high = bootstrap_interval(rng.normal(10, 1, 25))
        covered += low <= 10 <= high
    assert 88 <= covered <= 100  # nominal 95
    assert bootstrap_interval([1.0, 2.0, 4.0]) == bootstrap_interval([1.0, 2.0, 4.0])


def test_contenders_take_turns_forwards_and_backwards(script):
    a, b, c = (script.lasting(d, name=n) for d, n in ((0.25, "a"), (0.5, "b"), (1.0, "c")))
    told = []
    results = interleave([a, b, c], 2, clock=script.clock, on_sample=lambda i, s: told.append((i, s)))
    assert "".join(script.calls) == "abc" + "aaaabbc" + "cbbaaaa"  # turns as long as the slowest takes once
    assert [r.samples for r in results] == [(0.25,) * 2, (0.5,) * 2, (1.0,) * 2]
    assert told == [(0, 0.25), (1, 0.5), (2, 1.0), (2, 1.0), (1, 0.5), (0, 0.25)]
    for wrong in (([a], 0), ([], 5)):
        with pytest.raises(ValueError, match="at least 1 round"):
            interleave(*wrong)


def test_a_slow_first_run_does_not_shorten_the_turns(script):
    a, b = script.lasting(0.0101, 0.0013, name="a"), script.lasting(0.0012, 0.019, 0.0013, name="b")
    results = interleave([a, b], 5, clock=script.clock)
    assert [len(r.warm_up) for r in results] == [3, 3]
    assert [r.calls_per_sample for r in results] == [15, 17]  # of 20 ms


@pytest.mark.parametrize(
    ("factor", "verdict"), [(0.5, FASTER), (0.98, FASTER), (0.995, SAME), (1.0, SAME), (1.005, SAME), (1.02, SLOWER)]
)
def test_verdicts_without_noise(script, factor, verdict):
    result = compare(script.lasting(0.1), script.lasting(0.1 * factor), 9, clock=script.clock)
    assert result.verdict == verdict and result.ratio == pytest.approx(factor) and result.rounds == 9


def test_drift_common_to_both_does_not_blur_the_ratio():
    drift = np.linspace(1.0, 2.0, 20)
    assert compare_samples(0.1 * drift, 0.097 * drift).verdict == FASTER


def test_noise_wider_than_the_difference_is_unclear():
    rng = np.random.default_rng(0)
    a, b = 0.1 * rng.lognormal(0, 0.2, 10), 0.1 * rng.lognormal(0, 0.2, 10)
    assert compare_samples(a, b).verdict == UNCLEAR


def test_equals_are_seldom_told_apart():
    rng = np.random.default_rng(2)
    verdicts = [compare_samples(*(0.1 * rng.lognormal(0, 0.1, 15) for _ in "ab")).verdict for _ in range(200)]
    wrong = verdicts.count(FASTER) + verdicts.count(SLOWER)
    assert wrong <= 20  # 10 nominally


def test_few_rounds_are_unclear_however_far_apart():
    assert compare_samples([1.0] * 4, [0.5] * 4).verdict == UNCLEAR
    with pytest.raises(ValueError, match="as many samples"):
        compare_samples([1.0], [])
