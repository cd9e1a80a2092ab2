"""The solver is exact: it equals brute force."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from znni.program import Choice
from znni.solve import Option, smallest_bytes, solve

NODE = st.tuples(
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4),
)


@given(st.lists(NODE, min_size=1, max_size=5), st.integers(0, 90))
def test_equals_brute_force(nodes, limit):
    live = [size for size, _ in nodes]
    options = [[Option(Choice(str(i), {}), float(s), w, r) for i, (s, w, r) in enumerate(own)] for _, own in nodes]
    found = solve(live, options, limit)
    best = None
    for chosen in product(*options):
        arena = max(size + o.workspace_bytes for size, o in zip(live, chosen, strict=True))
        if arena + sum(o.resident_bytes for o in chosen) <= limit:
            seconds = sum(o.seconds for o in chosen)
            best = seconds if best is None else min(best, seconds)
    assert (found.seconds if found else None) == best
    if found:
        assert found.total_bytes <= limit
        assert found.seconds == sum(o.seconds for o in found.options)


@given(st.lists(NODE, min_size=1, max_size=5))
def test_smallest_bytes_suffices(nodes):
    live = [size for size, _ in nodes]
    options = [[Option(Choice(str(i), {}), float(s), w, r) for i, (s, w, r) in enumerate(own)] for _, own in nodes]
    assert solve(live, options, smallest_bytes(live, options))
