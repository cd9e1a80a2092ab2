"""What is particular to `cpu.blockwise_mpf`: its blocks, and its parts; the rest is `test_contract.py`."""

from itertools import product

import numpy as np
import pytest

from znni.arena import aligned_empty
from znni.errors import Unsupported
from znni.layers import Activation, Conv, ConvMaxPoolFragments, MaxPoolFragments
from znni.layouts import array_shape, packed, unpacked, with_layouts
from znni.primitives import get

from .cases import Case
from .truth import truth

BLOCKWISE = get("cpu.blockwise_mpf")
CONV = Conv(11, (3, 1, 3), activation=Activation("relu"))


def called(layer, shape, config, part=0):
    """The result of one part, plain."""
    x, weights = Case(layer, shape).arrays(0)
    operator = BLOCKWISE.prepare(layer, weights, shape, config, 2)
    operator.part = part
    out = np.full(array_shape(operator.out_shape, operator.gives), np.nan, np.float32)
    operator(packed(x, operator.takes), out, aligned_empty(operator.memory.host_workspace_bytes))
    return unpacked(out, operator.out_shape[1], operator.gives)


@pytest.mark.parametrize("block", [(1, 1, 1), (3, 5, 4), (100, 2, 7)])
@pytest.mark.parametrize(("window", "stride"), [((2, 2, 2), (2, 2, 2)), ((3, 1, 2), (2, 1, 3)), ((1, 2, 2), (1, 2, 2))])
def test_any_block_gives_the_same(block, window, stride):
    layer = ConvMaxPoolFragments(CONV, MaxPoolFragments(window, stride))
    size = (e - 1 + w - 1 + s * 5 for e, w, s in zip(CONV.extent, window, stride, strict=True))
    shape = (2, 3, *size)
    config = BLOCKWISE.configs(layer, shape)[0] | {"block": list(block)}
    config["with"] = get(config["conv"]).configs(CONV, (1, 3, 9, 9, 9))[-1] if block != (1, 1, 1) else config["with"]
    x, weights = Case(layer, shape).arrays(0)
    expected = truth(layer, weights, x)
    for takes, gives in product(("plain", "blocked"), repeat=2):
        found = called(layer, shape, with_layouts(config, takes, gives))
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_are_slices_of_the_whole(parts):
    pool = MaxPoolFragments((2, 2, 2), (2, 2, 2))
    whole, cut = ConvMaxPoolFragments(CONV, pool), ConvMaxPoolFragments(CONV, pool, parts)
    shape = (1, 2, 3 + 16, 1 + 22, 3 + 30)
    config = BLOCKWISE.configs(whole, shape)[0]
    expected = called(whole, shape, config)
    found = [called(cut, shape, config, part) for part in range(parts)]
    assert np.array_equal(np.concatenate(found), expected)


def test_refuses_what_blocks_cannot_do():
    pool = MaxPoolFragments((2, 2, 2), (2, 2, 2))
    padded = ConvMaxPoolFragments(Conv(2, (2, 2, 2), padding=(1, 1, 1)), pool)
    assert "without padding" in BLOCKWISE.supports(padded, (1, 1, 8, 8, 8))
    with pytest.raises(Unsupported, match="has a conv of"):
        BLOCKWISE.memory(ConvMaxPoolFragments(CONV, pool), (1, 1, 15, 13, 15), {"conv": "magic"}, 1)
