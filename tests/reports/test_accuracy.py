"""The accuracy report on layers small enough for any test."""

from __future__ import annotations

import json

import numpy as np
from primitives.truth import truth as definition

from reports.accuracy import INPUTS, LAYERS, arrays, measure, truth
from znni.layers import Conv, ConvMaxPoolFragments, MaxPoolFragments
from znni.primitives import candidates

SMALL = {
    "9>8 k3 in10": (Conv(8, (3, 3, 3)), (1, 9, 10, 10, 10)),
    "1>5 k1,5,5 in3,12,12 pad same": (Conv(5, (1, 5, 5), padding=(0, 2, 2)), (1, 1, 3, 12, 12)),
    "3>4 k3 in9 mpf2": (
        ConvMaxPoolFragments(Conv(4, (3, 3, 3)), MaxPoolFragments((2, 2, 2), (2, 2, 2))),
        (1, 3, 9, 9, 9),
    ),
}


def test_truth_is_the_definition():
    for layer, shape in SMALL.values():
        inputs, weights = arrays(layer, shape)
        for x in inputs.values():
            expected = definition(layer, weights, x)
            assert np.linalg.norm(truth(layer, weights, x, 2) - expected) <= 1e-13 * np.linalg.norm(expected)


def test_every_primitive_and_config_is_on_record(tmp_path, capsys):
    path = tmp_path / "accuracy.json"
    found = measure(str(path), SMALL)
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))
    assert found["machine"]["cpu"] and found["versions"]["znni"]
    assert len(capsys.readouterr().out.splitlines()) == len(found["rows"])
    for name, (layer, shape) in SMALL.items():
        own = [(row["primitive"], row["config"]) for row in found["rows"] if row["name"] == name]
        assert own == [(p.name, dict(config)) for p in candidates(layer, shape) for config in p.configs(layer, shape)]
    for row in found["rows"]:
        assert all(0 <= row[key] <= 2e-5 for key in INPUTS), row


def test_its_layers_can_be():
    for layer, shape in LAYERS.values():
        assert candidates(layer, shape)
        assert layer.output_shape(shape)
