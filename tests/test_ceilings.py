"""The work by which ceilings are measured, and how a rate is taken from time stamps; no rate itself is asserted."""

import numpy as np
import pytest

from znni._kernels import ceilings as kernels
from znni.ceilings import measure_ceilings, peak_rate


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_multiply_adds_do_the_work_they_count(threads):
    stamps, chunks, results = np.zeros((threads, 4)), np.zeros(threads, np.int64), np.zeros(threads)
    kernels.multiply_adds(100, 60.0, stamps, chunks, results)
    assert (chunks == 3).all()  # as many as there are places for stamps
    assert (np.diff(stamps, axis=1) > 0).all()
    np.testing.assert_allclose(results, 3 * kernels.flop_per_round() / 2)  # every lane of every chain converged to 1


def test_multiply_adds_end_in_time():
    stamps, chunks = np.zeros((1, 100_000)), np.zeros(1, np.int64)
    kernels.multiply_adds(10, 1e-6, stamps, chunks, np.zeros(1))
    assert 1 <= chunks[0] < 50_000


@pytest.mark.parametrize(("threads", "size"), [(1, 1), (2, 7), (3, 16), (2, 50)])
def test_triad_is_exact_on_whole_chunks(threads, size):
    rng = np.random.default_rng(0)
    b, c = (rng.standard_normal((threads, 50)).astype(np.float32) for _ in range(2))
    a = np.full((threads, 50), np.nan, np.float32)
    stamps, chunks = np.zeros((threads, 200)), np.zeros(threads, np.int64)
    kernels.triad(a, b, c, 3.0, size, 60.0, stamps, chunks)
    whole = 50 // size * size
    np.testing.assert_allclose(a[:, :whole], (b + np.float32(3) * c)[:, :whole], rtol=1e-6)
    assert np.isnan(a[:, whole:]).all()


def test_triad_refuses_arrays_that_do_not_match():
    a = np.zeros((2, 8), np.float32)
    with pytest.raises(ValueError, match="2 rows of at least 16"):
        kernels.triad(a, a, a, 1.0, 16, 1.0, np.zeros((2, 4)), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="1 rows"):
        kernels.triad(a, a, a, 1.0, 4, 1.0, np.zeros((1, 4)), np.zeros(1, np.int64))


def test_fill():
    a = np.zeros((3, 11), np.float32)
    kernels.fill(a, 2.5)
    assert (a == 2.5).all()


def _stamps(*rows):
    stamps = np.zeros((len(rows), max(map(len, rows))))
    for own, row in zip(stamps, rows, strict=True):
        own[: len(row)] = row
    return stamps, np.array([len(row) - 1 for row in rows])


def test_a_steady_rate_is_the_sum_over_threads():
    steady = np.arange(0, 0.1, 0.001)
    assert peak_rate(*_stamps(steady, steady), 1.0) == pytest.approx(2000)


def test_interruptions_do_not_spoil_the_peak():
    one = np.concatenate([np.arange(0, 0.05, 0.001), np.arange(0.08, 0.12, 0.001)])
    other = np.concatenate([np.arange(0, 0.01, 0.001), np.arange(0.03, 0.12, 0.001)])
    assert peak_rate(*_stamps(one, other), 1.0) == pytest.approx(2000)


def test_threads_that_never_ran_together_are_not_added_up():
    one, other = np.arange(0, 0.05, 0.001), np.arange(0.06, 0.1, 0.001)
    assert peak_rate(*_stamps(one, other), 1.0) == pytest.approx(1000)


def test_a_measurement_shorter_than_the_window_takes_all_of_it():
    assert peak_rate(*_stamps([0.0, 0.001, 0.002]), 5.0) == pytest.approx(5000)


def test_measured_ceilings_are_numbers():
    found = measure_ceilings(2)
    assert found.flop_per_s > 1e8 and found.bytes_per_s > 1e7 and found.threads == 2
    with pytest.raises(ValueError, match="at least 1"):
        measure_ceilings(0)
