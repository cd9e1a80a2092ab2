"""The report on threads: it takes the fastest of our own rows, and times both thread counts in every round."""

import json

from reports.layers import PUBLISHED
from reports.threads import fastest, speedup
from znni.layers import Conv


def test_the_fastest_of_our_own_rows_is_taken(tmp_path):
    rows = []
    for number in range(len(PUBLISHED)):
        for primitive, ns in (("cpu.direct", 20.0), ("cpu.winograd", 10.0), (None, 1.0), ("cpu.fft", None)):
            rows.append({"layer": f"layer {number}", "primitive": primitive, "ns_per_voxel": ns, "config": {}})
    (tmp_path / "layers.json").write_text(json.dumps({"rows": rows}))
    found = fastest(tmp_path / "layers.json")
    assert [each[3] for each in found] == ["cpu.winograd"] * len(PUBLISHED)
    assert [each[1:3] for each in found] == list(PUBLISHED)


def test_every_round_has_both():
    config = {"tile": [2, 2, 2], "block": 4}
    pairs = speedup(Conv(8, (3, 3, 3)), (1, 8, 6, 6, 6), "cpu.winograd", config, 2, rounds=3, turn_s=0.001)
    assert len(pairs) == 3 and all(one > 0 and many > 0 for one, many in pairs)
