"""The solver is exact: it equals brute force, layouts and conversions included."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from znni.layouts import BLOCKED, LAYOUTS, PLAIN
from znni.solve import Choice, Option, smallest_bytes, solve, undominated

BYTES = st.integers(0, 30)


@st.composite
def options(draw, layouts=LAYOUTS, most=4):
    """Options of one node."""
    found = []
    for number in range(draw(st.integers(1, most))):
        takes, gives = draw(st.sampled_from(layouts)), draw(st.sampled_from(layouts))
        sizes = draw(BYTES), draw(BYTES)
        found.append(Option(Choice(str(number), {}), float(draw(st.integers(1, 30))), *sizes, takes, gives))
    return found


@st.composite
def conversions(draw):
    """Conversions before a node, of which any may be missing."""
    found = {}
    for pair in ((PLAIN, BLOCKED), (BLOCKED, PLAIN)):
        if draw(st.booleans()):
            found[pair] = Option(Choice("relayout", {}), float(draw(st.integers(1, 9))), draw(BYTES), draw(BYTES), *pair)
    return found


def paths(nodes, between):
    """Every choice whose layouts agree, with its conversions: those before each node, and one after the last."""
    for chosen in product(*nodes):
        have, before = PLAIN, []
        for option, own in zip((*chosen, None), between, strict=True):
            takes = option.takes if option else PLAIN
            if have != takes and (have, takes) not in own:
                break
            before.append(own[have, takes] if have != takes else None)
            have = option.gives if option else PLAIN
        else:
            yield chosen, before


@given(st.data(), st.integers(1, 4), st.integers(0, 110))
def test_equals_brute_force(data, count, limit):
    nodes = [data.draw(options(most=3)) for _ in range(count)]
    between = [data.draw(conversions()) for _ in range(count + 1)]
    found = solve(nodes, limit, between)
    best = None
    for chosen, before in paths(nodes, between):
        steps = [*chosen, *filter(None, before)]
        if max(o.step_bytes for o in steps) + sum(o.resident_bytes for o in steps) <= limit:
            seconds = sum(o.seconds for o in steps)
            best = seconds if best is None else min(best, seconds)
    assert (found.seconds if found else None) == best
    if found:
        steps = [*found.options, *filter(None, found.conversions)]
        assert found.total_bytes <= limit
        assert found.seconds == sum(o.seconds for o in steps)
        assert found.arena_bytes == max(o.step_bytes for o in steps)
        assert len(found.conversions) == count + 1
        assert solve(nodes, limit, between, below_s=found.seconds) is None


@given(st.lists(options((PLAIN,)), min_size=1, max_size=5))
def test_smallest_bytes_suffices(nodes):
    assert solve(nodes, smallest_bytes(nodes))


@given(options(most=8))
def test_undominated_options_are_those_that_can_matter(own):
    kept = undominated(own)
    for o in own:
        assert any(
            (k.takes, k.gives) == (o.takes, o.gives)
            and k.seconds <= o.seconds
            and k.step_bytes <= o.step_bytes
            and k.resident_bytes <= o.resident_bytes
            for k in kept
        )
