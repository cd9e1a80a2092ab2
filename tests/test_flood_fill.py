"""Flood-filling: movement over an object that is known, and the released network on EM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from znni import load
from znni.errors import InvalidShape
from znni.flood_fill import FloodFillOptions, faces, flood_fill, logit
from znni.zoo.released_weights import ffn_weights

SHARED = Path(__file__).parents[2] / "shared/data/trained"
SMALL = FloodFillOptions(deltas=(2, 2, 2))


def knows_the_object(x):
    """A network that sees which bright voxels hang together with the seed within its patch."""
    bright, reached = x[0, 0] > 0, x[0, 1] > 0
    for _ in range(sum(bright.shape)):
        grown = reached.copy()
        for axis in range(3):
            ahead, behind = np.roll(reached, 1, axis), np.roll(reached, -1, axis)
            ahead[tuple(slice(None) if a != axis else 0 for a in range(3))] = False
            behind[tuple(slice(None) if a != axis else -1 for a in range(3))] = False
            grown |= ahead | behind
        grown &= bright
        if (grown == reached).all():
            break
        reached = grown
    return np.where(reached, 5.0, -5.0).astype(np.float32)[None, None]


def tube():
    """A bent tube, and another object that it does not touch."""
    image = np.full((25, 25, 25), -1, np.float32)
    image[10:15, 10:15, 3:22] = 1
    image[3:22, 10:15, 17:22] = 1
    image[3:22, 20:23, 3:10] = 1
    return image


def test_an_object_is_filled_as_far_as_the_patch_may_go():
    image = tube()
    found = flood_fill(knows_the_object, image, (12, 12, 6), (7, 7, 7), SMALL)
    expected = image > 0
    expected[:, 20:] = False
    assert (found.mask & ~expected).sum() == 0
    inside = (slice(3, 22),) * 3
    assert (found.mask[inside] == expected[inside]).mean() > 0.95  # places lie on a lattice, corners between them
    assert found.steps > 8 and found.voxels_per_s > 0


def test_faces_are_those_around_the_centre_the_surest_first():
    logits = np.full((7, 7, 7), -9, np.float32)
    logits[3, 4, 5], logits[1, 3, 3], logits[0, 0, 0] = 3, 4, 9
    assert faces(logits, (2, 2, 2), logit(0.9)) == [(4.0, (-2, 0, 0)), (3.0, (0, 1, 2))]


def test_it_may_be_stopped_and_never_visits_a_place_twice():
    calls = []

    def counting(x):
        calls.append(x.copy())
        return knows_the_object(x)

    assert flood_fill(counting, tube(), (12, 12, 6), (7, 7, 7), SMALL, most_steps=3).steps == 3 == len(calls)
    assert np.isclose(calls[0][0, 1, 3, 3, 3], logit(0.95)) and np.isclose(calls[0][0, 1, 0, 0, 0], logit(0.05))


@pytest.mark.parametrize(
    ("start", "patch", "says"),
    [
        ((12, 12, 1), (7, 7, 7), "around 12x12x1 leaves the image of 25x25x25"),
        ((12, 12, 12), (7, 8, 7), "must be odd"),
        ((12, 12, 12), (7, 3, 7), "must be odd and hold it"),
    ],
)
def test_what_cannot_be_started_is_refused(start, patch, says):
    with pytest.raises(InvalidShape, match=says):
        flood_fill(knows_the_object, tube(), start, patch, SMALL)


@pytest.fixture(scope="module")
def released():
    if not (SHARED / "ffn_fib25.npz").exists():
        pytest.skip("needs the released flood-filling network")
    return load("ffn", weights=ffn_weights(SHARED / "ffn_fib25.npz"))


def test_one_step_of_the_released_network(released):
    with np.load(SHARED / "ffn_one_step.npz") as step:
        found = released.run(step["input"]) - step["input"][:, 1:]
        assert np.abs(found - step["update"]).max() <= 1e-5


def test_the_released_network_follows_a_neurite(released):
    with np.load(SHARED / "fib25_cube.npz") as cube:
        image = (cube["image"].astype(np.float32) - 128) / 33
    found = flood_fill(released.run, image, (125, 125, 125), most_steps=6)
    assert found.steps == 6 and found.mask.sum() > 20_000
