"""Sizes of transforms and of tiles, against their definitions."""

from math import prod

import pytest

from znni.fft_sizes import PRIMES, factorise, good_sizes, is_good_size, next_good_size, tile_sizes


def test_factors_multiply_to_the_size():
    for n in range(1, 2000):
        powers = factorise(n)
        assert prod(p**e for p, e in powers.items()) == n
        assert all(e > 0 for e in powers.values())
        assert sum(p not in PRIMES for p in powers) <= 1
    assert factorise(1) == {}
    assert factorise(40) == {2: 3, 5: 1}
    assert factorise(66) == {2: 1, 3: 1, 11: 1}


@pytest.mark.parametrize("n", [0, -4])
def test_there_is_nothing_to_factorise_below_one(n):
    with pytest.raises(ValueError, match=f"at least 1, got {n}"):
        factorise(n)


def test_good_sizes_are_the_products_of_small_primes():
    products = {
        2**a * 3**b * 5**c * 7**d for a in range(10) for b in range(7) for c in range(5) for d in range(5)
    }  # fmt: skip
    assert good_sizes(1, 512) == sorted(n for n in products if n <= 512)
    assert all(is_good_size(n) == (n in products) for n in range(1, 513))
    assert good_sizes(11, 11) == good_sizes(5, 4) == []
    assert good_sizes(-3, 2) == [1, 2]


def test_the_next_good_size_is_the_smallest_that_is_no_smaller():
    for n in range(1, 513):
        assert next_good_size(n) == min(m for m in good_sizes(1, 1000) if m >= n)
    assert next_good_size(-5) == next_good_size(0) == 1


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 9, 17])
def test_each_larger_tile_saves_points(kernel):
    for outputs in range(1, 130):
        sizes = tile_sizes(outputs, kernel)
        assert sizes and all(is_good_size(n) and kernel <= n <= 64 for n in sizes)
        points = [n * -(-outputs // (n - kernel + 1)) for n in sizes]
        assert list(sizes) == sorted(set(sizes)) and points == sorted(points, reverse=True)
        best = min(n * -(-outputs // (n - kernel + 1)) for n in good_sizes(kernel, 64))
        assert points[-1] == best, "the tiles with fewest points in all are among them"


def test_a_tile_holds_a_kernel_of_any_size():
    assert tile_sizes(100, 63, most=64) == (63, 64)
    for kernel in (65, 100, 255):
        assert all(kernel <= n <= next_good_size(2 * kernel) for n in tile_sizes(300, kernel))
    assert tile_sizes(1, 200) == (200,)
