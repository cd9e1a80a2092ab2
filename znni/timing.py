"""One honest timing of a callable, and fair comparisons of several.

The rules: warm up until two runs agree; sample until the spread is small or the time is up; keep every sample; report
the median with its interquartile range and a bootstrap interval; compare only what was timed in turn. They follow the
practice of criterion.rs (bootstrap, a noise threshold of 1 %), pyperf (raw samples kept) and nvbench (verdicts that may
be "unclear").
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

Clock = Callable[[], float]

#: Warm-up runs end when two in a row agree within this, or after so many.
WARM_UP_AGREEMENT = 0.05
MOST_WARM_UPS = 3
#: Sampling goes on until there are so many samples and seconds, and the interquartile range over the median is below
#: this.
LEAST_SAMPLES = 5
LEAST_SECONDS = 0.5
STEADY_SPREAD = 0.02
#: A sample lasts at least so long (shorter callables are called several times for one), so that the clock's own cost,
#: tens of nanoseconds, is far below the spread asked for, and half a second is no more than `MOST_SAMPLES`.
LEAST_SAMPLE_SECONDS = 0.0025
MOST_SAMPLES = 200
#: Where callables are timed in turn, each turn lasts so long, or as long as the slowest takes once.
TURN_SECONDS = 0.02
#: A callable that takes so long is run once only.
LONG_SECONDS = 2.0
#: More than so many times the best known: not worth another sample.
HOPELESS = 3.0
#: Ratios this close to 1 are called the same.
SAME_WITHIN = 0.01
_RESAMPLES = 1000
_CONFIDENCE = 0.95

FASTER, SLOWER, SAME, UNCLEAR = "FASTER", "SLOWER", "SAME", "UNCLEAR"


@dataclass(frozen=True)
class Summary:
    """What samples say: median, interquartile range, and the bootstrap interval of the median (None for one sample)."""

    median_s: float
    iqr_s: float
    interval_s: tuple[float, float] | None


@dataclass(frozen=True)
class Timing:
    """Samples of one callable in seconds per call, in the order taken, with their summary and how they came about.

    Attributes
    ----------
    samples : tuple of float
        Seconds per call. Never filtered.
    warm_up : tuple of float
        Seconds per call of the runs before; the first holds what only a first call costs.
    calls_per_sample : int
        Calls averaged in each sample.
    single : bool
        Only one sample was taken, because the callable takes seconds or the time cap allowed no more.
    early_stopped : bool
        Given up as more than `HOPELESS` times slower than the best known; not comparable with a full timing.
    steady : bool
        The spread was as small as asked for.
    """

    samples: tuple[float, ...]
    warm_up: tuple[float, ...]
    calls_per_sample: int
    median_s: float
    iqr_s: float
    interval_s: tuple[float, float] | None
    single: bool = False
    early_stopped: bool = False
    steady: bool = False

    def to_dict(self) -> dict:
        """The timing as JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> Timing:
        """The timing that `to_dict` made `data` of, also after a trip through JSON."""
        lists = {key: tuple(data[key]) for key in ("samples", "warm_up")}
        interval = data["interval_s"]
        return cls(**data | lists | {"interval_s": None if interval is None else tuple(interval)})


@dataclass(frozen=True)
class Comparison:
    """How B compares with A: `verdict` is B's, `ratio` the median over rounds of time B / time A, with its interval."""

    verdict: str
    ratio: float
    interval: tuple[float, float]
    rounds: int


def median(samples: Sequence[float]) -> float:
    """The median of `samples` (at least one)."""
    return float(np.median(samples))


def summarise(samples: Sequence[float], seed: int = 0) -> Summary:
    """Median, interquartile range and 95 % bootstrap interval of the median of `samples` (seconds, at least one)."""
    if not len(samples):
        raise ValueError("a summary needs at least one sample, got none")
    low, median, high = np.percentile(np.asarray(samples, np.float64), [25, 50, 75])
    interval = bootstrap_interval(samples, seed) if len(samples) > 1 else None
    return Summary(float(median), float(high - low), interval)


def bootstrap_interval(samples: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of the median, from 1000 resamples drawn with `seed` (Efron, 1979)."""
    values = np.asarray(samples, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLES, len(values)))
    medians = np.median(values[draws], axis=1)
    tail = 50 * (1 - _CONFIDENCE)
    low, high = np.percentile(medians, [tail, 100 - tail])
    return float(low), float(high)


def time_callable(
    f: Callable[[], object],
    *,
    cap_s: float,
    best_s: float | None = None,
    clock: Clock = time.perf_counter,
    on_sample: Callable[[float], None] | None = None,
) -> Timing:
    """Time `f()`.

    Parameters
    ----------
    f : callable without arguments
    cap_s : float
        Seconds after which no further sample is begun, warm-up included.
    best_s : float, optional
        Seconds of the best alternative: timing stops early when `f` turns out more than three times slower.
    clock : callable, optional
        Seconds from an arbitrary origin.
    on_sample : callable, optional
        Told each sample (seconds per call) as it is taken; what it takes itself is not timed.

    Returns
    -------
    Timing
    """
    if not cap_s > 0:
        raise ValueError(f"cap_s must be more than 0 seconds, got {cap_s!r}")
    tell = on_sample or (lambda seconds: None)
    start = clock()
    hopeless_s = math.inf if best_s is None else HOPELESS * best_s

    warm_up = [_once(f, 1, clock)]
    first = warm_up[0]
    # Three runs (two to warm up, one to keep) that overrun the cap, or seconds for each: the first run is the sample.
    if first >= LONG_SECONDS or 3 * first > cap_s:
        tell(first)
        return _timing(warm_up, [], 1, single=True, early_stopped=first > hopeless_s)

    while len(warm_up) < MOST_WARM_UPS:
        warm_up.append(_once(f, 1, clock))
        if _agree(*warm_up[-2:]):
            break
    if min(warm_up[1:]) > hopeless_s:
        tell(warm_up[-1])
        return _timing(warm_up[:-1], warm_up[-1:], 1, single=True, early_stopped=True)

    calls = max(1, math.ceil(LEAST_SAMPLE_SECONDS / max(warm_up[-1], 1e-9)))
    samples: list[float] = []
    sampled_s = 0.0
    while len(samples) < MOST_SAMPLES:
        samples.append(_once(f, calls, clock))
        tell(samples[-1])
        sampled_s += samples[-1] * calls
        if len(samples) >= LEAST_SAMPLES and sampled_s >= LEAST_SECONDS and _steady(samples):
            break
        if clock() - start + samples[-1] * calls > cap_s:
            break
    return _timing(warm_up, samples, calls, single=len(samples) == 1)


def interleave(
    callables: Sequence[Callable[[], object]],
    rounds: int,
    *,
    clock: Clock = time.perf_counter,
    on_sample: Callable[[int, float], None] | None = None,
) -> list[Timing]:
    """Time several callables in turn, so that a drifting machine drifts for all of them alike.

    Each warms up, then takes one sample a round; every other round runs backwards (A B C, C B A, ..). The samples of
    all last about as long, since on a busy machine a longer one is interrupted more often.

    Parameters
    ----------
    callables : sequence of callables without arguments
    rounds : int
        Samples of each.
    on_sample : callable, optional
        Told the index of the callable and each of its samples.

    Returns
    -------
    list of Timing
        In the order of `callables`; sample i of each was taken in round i.
    """
    if rounds < 1 or not callables:
        raise ValueError(f"expected callables and at least 1 round, got {len(callables)} callables and {rounds} rounds")
    warm_up = [[_once(f, 1, clock)] for f in callables]
    while max(own[-1] for own in warm_up) < TURN_SECONDS and len(warm_up[0]) < MOST_WARM_UPS:
        for f, own in zip(callables, warm_up, strict=True):
            own.append(_once(f, 1, clock))
    quickest = [max(min(own), 1e-9) for own in warm_up]
    turn_s = max(TURN_SECONDS, *quickest)
    calls = [max(1, round(turn_s / seconds)) for seconds in quickest]
    samples: list[list[float]] = [[] for _ in callables]
    forward = list(range(len(callables)))
    for number in range(rounds):
        for i in forward if number % 2 == 0 else forward[::-1]:
            samples[i].append(_once(callables[i], calls[i], clock))
            if on_sample:
                on_sample(i, samples[i][-1])
    return [
        _timing(first, own, count, single=rounds == 1)
        for first, own, count in zip(warm_up, samples, calls, strict=True)
    ]


def compare(
    a: Callable[[], object], b: Callable[[], object], rounds: int, *, clock: Clock = time.perf_counter
) -> Comparison:
    """Whether `b` is FASTER or SLOWER than `a`, the SAME, or UNCLEAR, from `rounds` interleaved pairs of runs."""
    of_a, of_b = interleave([a, b], rounds, clock=clock)
    return compare_samples(of_a.samples, of_b.samples)


def compare_samples(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """The comparison of B with A from samples taken in turn: ``a[i]`` and ``b[i]`` belong to one round.

    SAME where the interval of the ratio lies within 1 % of 1, FASTER or SLOWER where it lies on one side of 1, else
    UNCLEAR; also UNCLEAR for fewer than five rounds, of which all may fall on one side by chance.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(
            f"a comparison needs as many samples of A as of B, and at least one, got {len(a)} and {len(b)}"
        )
    ratios = np.asarray(b, np.float64) / np.asarray(a, np.float64)
    ratio = float(np.median(ratios))
    low, high = bootstrap_interval(ratios)
    if len(ratios) < LEAST_SAMPLES:
        verdict = UNCLEAR
    elif low >= 1 - SAME_WITHIN and high <= 1 + SAME_WITHIN:
        verdict = SAME
    elif high < 1:
        verdict = FASTER
    elif low > 1:
        verdict = SLOWER
    else:
        verdict = UNCLEAR
    return Comparison(verdict, ratio, (low, high), len(ratios))


def _once(f: Callable[[], object], calls: int, clock: Clock) -> float:
    """Seconds per call of `calls` calls in a row."""
    start = clock()
    for _ in range(calls):
        f()
    return (clock() - start) / calls


def _agree(a: float, b: float) -> bool:
    return abs(a - b) <= WARM_UP_AGREEMENT * min(a, b)


def _steady(samples: Sequence[float]) -> bool:
    low, median, high = np.percentile(samples, [25, 50, 75])
    return bool(high - low < STEADY_SPREAD * median)


def _timing(
    warm_up: Sequence[float], samples: Sequence[float], calls: int, *, single: bool, early_stopped: bool = False
) -> Timing:
    if not samples:  # the first run is warm-up and sample in one
        warm_up, samples = (), warm_up
    summary = summarise(samples)
    return Timing(
        samples=tuple(samples),
        warm_up=tuple(warm_up),
        calls_per_sample=calls,
        median_s=summary.median_s,
        iqr_s=summary.iqr_s,
        interval_s=summary.interval_s,
        single=single,
        early_stopped=early_stopped,
        steady=len(samples) >= LEAST_SAMPLES and _steady(samples),
    )
