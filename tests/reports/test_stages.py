"""The report on stages, on layers small enough for any test. Ceilings are made up: no test rests on a time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from reports import stages
from reports.layers import PUBLISHED
from reports.stage_work import L2, L3, MEMORY, fft_tiled_work, line_flop, winograd_work
from reports.stages import choices, measure, row_of, table
from znni.layers import Conv
from znni.layouts import BLOCKED, with_layouts
from znni.machine import this_machine
from znni.primitives import get

#: So high that nothing reaches them.
CEILINGS = {"flop_per_s": 1e15, MEMORY: 1e15, L3: 1e15, L2: 1e15}
LAYER, SHAPE = Conv(9, (3, 3, 3), padding=(1, 1, 1)), (1, 10, 12, 13, 14)
CONFIGS = [
    ("cpu.fft_tiled", {"tile": [8, 6, 10], "block": 5, "spectra": "resident", "product": "gauss"}),
    ("cpu.fft_tiled", {"tile": [8, 6, 9], "block": 9, "spectra": "quarters", "product": "plain"}),
    ("cpu.fft_tiled", {"tile": [8, 6, 10], "block": 5, "spectra": "recomputed", "product": "gauss"}),
    ("cpu.winograd", {"tile": [4, 2, 6], "block": 7}),
]


def prepared(primitive, config, layer=LAYER, shape=SHAPE, threads=2):
    weights = {key: np.ones(own, np.float32) for key, own in layer.weight_shapes(shape[1]).items()}
    return get(primitive).prepare(layer, weights, shape, with_layouts(config, BLOCKED, BLOCKED), threads)


@pytest.mark.parametrize(("primitive", "config"), CONFIGS)
def test_every_stage_has_its_figures(primitive, config):
    row = row_of("small", prepared(primitive, config), this_machine(), CEILINGS, calls=2)
    assert ("kernels" in row["stages"]) == (config.get("spectra") in ("quarters", "recomputed"))
    assert {"input", "products", "output"} <= set(row["stages"])
    for stage in row["stages"].values():
        assert (
            stage["seconds"] > 0 and stage["level"] in (MEMORY, L3, L2) and stage["binds"] in ("flop", stage["level"])
        )
        for key in ("flop_fraction", "counted_fraction", "bytes_fraction"):
            assert 0 < stage[key] < 1.2
        assert stage["flop_fraction"] == pytest.approx(stage["flop"] / stage["seconds"] / 1e15)
    spent = sum(stage["seconds"] for stage in row["stages"].values())
    assert spent + row["waiting_seconds"] == pytest.approx(row["seconds"])
    assert all(f"  {name} " in table(row) for name in row["stages"])


@pytest.mark.parametrize(
    ("n", "flop"), [(1, 0), (2, 4), (4, 16), (8, 60), (16, 128 + 9 * 6), (20, 4 * 48 + 5 * 16 + 12 * 6)]
)
def test_operations_of_a_line(n, flop):
    """By hand; 5 n log2 n is above it, since that is what radix 2 takes."""
    assert line_flop(n)[1] == flop
    assert line_flop(n)[0] >= flop or n == 1


def test_work_agrees_with_the_cost_model():
    """Products to the last operation, transforms but for what either leaves out."""
    layer, shape = Conv(80, (5, 5, 5)), (1, 80, 36, 36, 36)
    config = {"tile": [20, 20, 20], "block": 8, "spectra": "resident", "product": "gauss"}
    operator = prepared("cpu.fft_tiled", config, layer, shape)
    work = fft_tiled_work(operator, this_machine())
    cost = get("cpu.fft_tiled").cost(layer, shape, operator.config)
    assert sum(part.flop for part in work.values()) == pytest.approx(cost.flop, rel=0.1)
    assert work["products"].flop == 6 * operator.tiling.tiles * operator.tiling.columns * 20 * 80 * 80
    config = {"tile": [2, 4, 4], "block": 8}
    operator = prepared("cpu.winograd", config, layer, shape)
    work = winograd_work(operator, this_machine())
    assert sum(part.flop for part in work.values()) == pytest.approx(
        get("cpu.winograd").cost(layer, shape, operator.config).flop
    )


def test_it_takes_what_was_fastest():
    chosen = choices()
    assert {primitive for *_, primitive, _ in chosen} == {"cpu.fft_tiled", "cpu.winograd"}
    assert {(layer, shape) for _, layer, shape, _, _ in chosen} < set(PUBLISHED)
    for _, layer, shape, primitive, config in chosen:
        assert get(primitive).memory(layer, shape, config, 2)


def test_a_record_of_other_layers(tmp_path):
    rows = json.loads(stages._RESULTS.read_text())["rows"]
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"rows": rows[::-1]}))
    with pytest.raises(ValueError, match="no record of the published layers"):
        choices(path)


def test_the_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stages, "ceilings_of", lambda machine, threads: CEILINGS)
    path = tmp_path / "stages.json"
    found = measure(str(path), [("small", LAYER, SHAPE, *choice) for choice in CONFIGS])
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))
    assert len(found["rows"]) == len(CONFIGS) and found["machine"]["cpu"] and found["ceilings"]["flop_per_s"] == 1e15
    assert capsys.readouterr().out.count(" of which waiting ") == len(CONFIGS)


def test_ceilings_of_every_level():
    found = stages.ceilings_of(this_machine(), 1, tries=1)
    assert set(found) == set(CEILINGS) and all(value > 0 for value in found.values())


@pytest.mark.parametrize(("primitive", "config"), CONFIGS)
def test_stages_of_another_shape(primitive, config):
    operator = prepared(primitive, config)
    x = np.zeros(operator._x_shapes[0], np.float32)
    out = np.zeros(operator._result_shape, np.float32)
    workspace = stages.aligned_empty(operator.workspace_bytes)
    with pytest.raises(ValueError, match=f"stages must be 2 x {len(operator.stages)}, got 3 x 2"):
        operator.compute(x, out, workspace, np.zeros((3, 2)))
