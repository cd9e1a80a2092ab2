"""The solver is exact: it equals brute force, layouts and conversions included."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from znni.layouts import BLOCKED, DEVICE, LAYOUTS, PLAIN
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


EVERYWHERE = (*LAYOUTS, DEVICE)


@st.composite
def options_with_gpu(draw, most=3):
    """Options of one node, each with bytes on the host and on the GPU."""
    found = []
    for number in range(draw(st.integers(1, most))):
        takes, gives = draw(st.sampled_from(EVERYWHERE)), draw(st.sampled_from(EVERYWHERE))
        found.append(
            Option(
                Choice(str(number), {}),
                float(draw(st.integers(1, 30))),
                draw(BYTES),
                draw(BYTES),
                takes,
                gives,
                device_step_bytes=draw(BYTES),
                device_resident_bytes=draw(BYTES),
            )
        )
    return found


@st.composite
def copies(draw):
    """Conversions before a node, those to and from the GPU among them, of which any may be missing."""
    found = {}
    for pair in ((PLAIN, BLOCKED), (BLOCKED, PLAIN), (PLAIN, DEVICE), (DEVICE, PLAIN)):
        if draw(st.booleans()):
            sizes = {"device_step_bytes": draw(BYTES), "device_resident_bytes": draw(st.integers(0, 3))}
            seconds = float(draw(st.integers(1, 9)))
            found[pair] = Option(Choice("copy", {}), seconds, draw(BYTES), draw(st.integers(0, 3)), *pair, **sizes)
    return found


@given(st.data(), st.integers(1, 4), st.integers(0, 110), st.integers(0, 110))
def test_equals_brute_force_under_two_limits(data, count, limit, device_limit):
    nodes = [data.draw(options_with_gpu()) for _ in range(count)]
    between = [data.draw(copies()) for _ in range(count + 1)]
    on_host = data.draw(st.sets(st.integers(0, count - 1)))
    found = solve(nodes, limit, between, device_limit_bytes=device_limit, kept_on_host=on_host)
    best = None
    for chosen, before in paths(nodes, between):
        have = [PLAIN, *(o.gives for o in chosen)]
        if any(have[number] == DEVICE for number in on_host):
            continue
        steps = [*chosen, *filter(None, before)]
        host = max(o.step_bytes for o in steps) + sum(o.resident_bytes for o in steps)
        device = max(o.device_step_bytes for o in steps) + sum(o.device_resident_bytes for o in steps)
        if host <= limit and device <= device_limit:
            seconds = sum(o.seconds for o in steps)
            best = seconds if best is None else min(best, seconds)
    assert (found.seconds if found else None) == best
    if found:
        assert found.total_bytes <= limit and found.device_bytes <= device_limit


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
