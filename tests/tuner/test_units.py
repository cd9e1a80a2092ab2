"""Quantities on the command line, and as they are printed."""

from __future__ import annotations

import pytest

from tuner.units import (
    ALL,
    BadQuantity,
    bytes_text,
    digits,
    parse_bytes,
    parse_count,
    parse_limit,
    parse_positive,
    parse_seconds,
    parse_seed,
    parse_triple,
    seconds_text,
)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4GiB", 4 << 30), ("4 GiB", 4 << 30), ("4gib", 4 << 30), ("1.5GiB", 3 << 29), ("512MiB", 512 << 20),
     ("4GB", 4 * 10**9), ("250MB", 250 * 10**6), ("64KiB", 1 << 16), ("1000", 1000), ("1000B", 1000)],
)  # fmt: skip
def test_bytes(text, nbytes):
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    "text", ["4 apples", "", "GiB", "-4GiB", "4G", "0", "0.1", "nan", "1e9", "4GiBs", "4,5GiB", "inf"]
)
def test_sizes_that_are_none(text):
    with pytest.raises(BadQuantity, match="expected a size such as 4GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("120s", 120), ("60", 60), ("2min", 120), ("2m", 120), ("1.5h", 5400), ("500ms", 0.5)]
)
def test_seconds(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["0s", "-3s", "soon", "", "nan", "inf", "3 days"])
def test_times_that_are_none(text):
    with pytest.raises(BadQuantity, match="expected a time such as 120s"):
        parse_seconds(text)


def test_triples():
    assert parse_triple("92") == (92, 92, 92)
    assert parse_triple("1,20, 300") == (1, 20, 300)
    for text in ("1,2", "1,2,3,4", "a", "", "1,,2", "0,1,1", "-1", "1.5", "99999999999"):
        with pytest.raises(BadQuantity):
            parse_triple(text)


def test_numbers():
    assert parse_positive("2e-5") == 2e-5
    assert parse_count("3") == 3
    assert parse_seed("0") == 0
    for parse, text in (
        (parse_positive, "0"),
        (parse_positive, "nan"),
        (parse_positive, "x"),
        (parse_count, "0"),
        (parse_count, "2.5"),
        (parse_seed, "-1"),
    ):
        with pytest.raises(BadQuantity):
            parse(text)


def test_printed():
    assert bytes_text(4 << 30) == "4.00 GiB"
    assert bytes_text(700 << 20) == "700 MiB"
    assert bytes_text(12) == "12 B"
    assert bytes_text(None) == "-"
    assert [seconds_text(s) for s in (12.34, 0.0412, 3.2e-6, 5e-9, None)] == [
        "12.3 s",
        "41.2 ms",
        "3.20 us",
        "5.00 ns",
        "-",
    ]
    assert [digits(v) for v in (12345.6, 0.01234, 0, 1.0, None, 999.9)] == [
        "12,346",
        "0.0123",
        "0",
        "1.00",
        "-",
        "1,000",
    ]


def test_a_limit_may_be_all():
    assert parse_limit("all") == parse_limit(" ALL ") == ALL
    assert parse_limit("2GiB") == 2 << 30
    with pytest.raises(BadQuantity, match="expected a size"):
        parse_limit("most")
