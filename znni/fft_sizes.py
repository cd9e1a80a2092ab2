"""Sizes of transforms: those that the FFT engine (``pyx/fft_lanes.h``) takes, and those that tiles of a layer want."""

from __future__ import annotations

from functools import lru_cache

#: Prime factors of the sizes that the engine transforms.
PRIMES = (2, 3, 5, 7)


def factorise(n: int) -> dict[int, int]:
    """Powers of the `PRIMES` in `n` >= 1, and 1 of what is left where that is not 1: ``{2: 3, 5: 1}`` for 40."""
    if n < 1:
        raise ValueError(f"expected a size of at least 1, got {n}")
    powers = {}
    for prime in PRIMES:
        while n % prime == 0:
            powers[prime] = powers.get(prime, 0) + 1
            n //= prime
    return powers if n == 1 else powers | {n: 1}


def is_good_size(n: int) -> bool:
    """Whether `n` >= 1 has no prime factor above 7."""
    return set(factorise(n)) <= set(PRIMES)


@lru_cache(maxsize=4096)
def next_good_size(n: int) -> int:
    """The smallest good size that is at least `n`."""
    n = max(n, 1)
    while not is_good_size(n):
        n += 1
    return n


def good_sizes(least: int, most: int) -> list[int]:
    """All good sizes from `least` to `most`, ascending."""
    return [n for n in range(max(least, 1), most + 1) if is_good_size(n)]


@lru_cache(maxsize=4096)
def tile_sizes(outputs: int, kernel: int, most: int = 64) -> tuple[int, ...]:
    """Sizes worth trying for tiles that together give `outputs` along an axis, ascending.

    A tile of n points gives n - `kernel` + 1 outputs. A size is worth trying where all tiles together have fewer points
    than those of any smaller size.

    Parameters
    ----------
    outputs, kernel : int
    most : int
        No size is above it, but for one where even that is too small for the kernel.
    """
    found, points = [], None
    for n in good_sizes(kernel, min(most, next_good_size(outputs + kernel - 1))):
        total = n * -(-outputs // (n - kernel + 1))
        if points is None or total < points:
            found.append(n)
            points = total
    return tuple(found) or (next_good_size(min(outputs, kernel) + kernel - 1),)
