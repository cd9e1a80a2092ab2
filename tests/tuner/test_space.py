"""The outer space: every point is a valid patch, and what does not fit rules out what is larger."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.space import Infeasible, build_space, candidate_of, distributions, guesses, least_live_bytes, params_of
from znni.errors import InvalidShape
from znni.load import load
from znni.network import shapes_through
from znni.walk import Candidate

MIB = 1 << 20
NETWORK = load("n337", width=2)
SPACE = build_space(NETWORK, 200 * MIB, (2, 1))


@given(st.data())
def test_every_point_is_a_valid_patch(data):
    params = {
        name: data.draw(st.sampled_from(d.choices) if hasattr(d, "choices") else st.integers(d.low, d.high))
        for name, d in distributions(SPACE).items()
    }
    candidate = candidate_of(SPACE, params)
    patch = [o + f - 1 for o, f in zip(candidate.output, NETWORK.field_of_view, strict=True)]
    NETWORK.check_patch(patch, candidate.pooling)
    nodes = NETWORK.lowered(candidate.pooling)
    shapes = shapes_through(nodes, (candidate.batch, 1, *patch))
    assert shapes[nodes[-1].name] == (candidate.batch, 3, *candidate.output)
    assert candidate_of(SPACE, params_of(SPACE, candidate)) == candidate


def test_most_steps_are_the_last_that_fit():
    for pooling in SPACE.pooling:
        step = SPACE.step[pooling]
        for axis in range(3):
            for extra, fits in ((0, True), (1, False)):
                steps = [1, 1, 1]
                steps[axis] = SPACE.most_steps[pooling][axis] + extra
                output = tuple(n * s for n, s in zip(steps, step, strict=True))
                assert (least_live_bytes(NETWORK, Candidate(output, 1, pooling, 1)) <= 200 * MIB) == fits


def test_nothing_fits_into_too_little():
    assert build_space(NETWORK, MIB, (1,)).pooling == ()


def test_fixed_output_patch():
    space = build_space(NETWORK, 200 * MIB, (1,), output=(8, 16, 8))
    assert set(distributions(space)) == {"pooling", "batch", "threads"}
    assert candidate_of(space, {"pooling": "fragments", "batch": 2, "threads": 1}).output == (8, 16, 8)
    with pytest.raises(InvalidShape, match="nearest are 92 and 100"):
        build_space(NETWORK, 200 * MIB, (1,), output=(13, 13, 13))


def test_guesses_start_with_the_default_and_stay_inside():
    start = Candidate((16, 16, 16), 1, "fragments", 2)
    found = guesses(SPACE, start)
    assert candidate_of(SPACE, found[0]) == start
    assert len({tuple(sorted(g.items())) for g in found}) == len(found)


def test_infeasible_rules_out_larger_ones_only():
    rules = Infeasible()
    rules.add(Candidate((16, 16, 16), 1, "fragments", 2))
    assert rules.rules_out(Candidate((16, 24, 16), 1, "fragments", 2))
    assert rules.rules_out(Candidate((16, 16, 16), 2, "fragments", 2))
    assert not rules.rules_out(Candidate((8, 64, 64), 1, "fragments", 2))
    assert not rules.rules_out(Candidate((16, 16, 16), 1, "filter", 2))
    assert not rules.rules_out(Candidate((16, 16, 16), 1, "fragments", 1))
