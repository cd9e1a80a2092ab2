"""How much faster all threads are than one: the published layers, each at its fastest config, with one thread and all in turn.

    python -m reports.threads reports/results/threads.json

The config is the one that is fastest with all threads in a record of ``znni-tune bench published``. The median over rounds, and
the ratio of the fastest calls of all rounds, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from reports.layers import PUBLISHED
from znni._version import __version__
from znni.arena import aligned_empty
from znni.layers import Conv, Shape, describe
from znni.layouts import array_shape, packed
from znni.machine import this_machine
from znni.primitives import Config, get

_RESULTS = Path(__file__).parent / "results" / "layers.json"
#: Rounds, in each of which every thread count is called for so long.
_ROUNDS, _TURN_S = 15, 0.3


def fastest(results: Path) -> list[tuple[str, Conv, Shape, str, Config]]:
    """Name, layer, shape, primitive and config of the fastest of our own rows of each layer."""
    rows = json.loads(results.read_text())["rows"]
    found = []
    for name, (layer, shape) in zip(dict.fromkeys(row["layer"] for row in rows), PUBLISHED, strict=True):
        own = [row for row in rows if row["layer"] == name and row["primitive"] and row["ns_per_voxel"]]
        best = min(own, key=lambda row: row["ns_per_voxel"])
        found.append((name, layer, shape, best["primitive"], best["config"]))
    return found


def speedup(
    layer: Conv, shape: Shape, primitive: str, config: Config, threads: int, rounds: int = _ROUNDS, turn_s: float = _TURN_S
) -> list[tuple[float, float]]:
    """Of each round, seconds of a call with one thread and with `threads`: the fastest of a turn of `turn_s`."""
    rng = np.random.default_rng(20160611)
    weights = {key: rng.standard_normal(own, np.float32) for key, own in layer.weight_shapes(shape[1]).items()}
    operators = [get(primitive).prepare(layer, weights, shape, config, count) for count in (1, threads)]
    takes, gives = operators[0].takes, operators[0].gives
    x = packed(rng.standard_normal(shape, dtype=np.float32), takes)
    out = np.empty(array_shape(operators[0].out_shape, gives), np.float32)
    workspace = aligned_empty(max(operator.workspace_bytes for operator in operators))

    def turn(operator) -> float:
        best, until = np.inf, time.perf_counter() + turn_s
        while True:
            start = time.perf_counter()
            operator(x, out, workspace)
            end = time.perf_counter()
            best = min(best, end - start)
            if end > until:
                return best

    for operator in operators:
        operator(x, out, workspace)
    return [(turn(operators[0]), turn(operators[1])) for _ in range(rounds)]


def measure(path: str, results: Path = _RESULTS) -> dict:
    """Measure every layer, print a line each, and write what was found to `path`.

    Rounds of the same configs that `path` holds from this machine are kept: a noisy machine wants more than one run.
    """
    machine, rows = this_machine(), []
    earlier = json.loads(Path(path).read_text()) if Path(path).exists() else {"rows": [], "machine": machine.describe()}
    same = earlier["machine"]["fingerprint"] == machine.fingerprint
    known = {(row["name"], row["primitive"], str(row["config"])): row["seconds"] for row in earlier["rows"] if same}
    for name, layer, shape, primitive, config in fastest(results):
        pairs = known.get((name, primitive, str(config)), []) + speedup(layer, shape, primitive, config, machine.cores)
        ratios = sorted(one / many for one, many in pairs)
        fastest_ratio = min(one for one, _ in pairs) / min(many for _, many in pairs)
        row = {
            "name": name, "layer": describe(layer), "shape": list(shape), "primitive": primitive, "config": config,
            "threads": machine.cores, "seconds": pairs, "speedup": ratios[len(ratios) // 2],
            "speedup_spread": [ratios[0], ratios[-1]], "speedup_of_fastest": fastest_ratio,
        }  # fmt: skip
        rows.append(row)
        spread = f"{row['speedup']:.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
        print(f"{name:42} {primitive:20} {spread}, of the fastest calls {fastest_ratio:.2f}", flush=True)
    data = {
        "machine": machine.describe(),
        "version": __version__,
        "command": f"python -m reports.threads {path}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
    }
    Path(path).write_text(json.dumps(data, indent=1) + "\n")
    return data


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="JSON file to write")
    parser.add_argument("--layers", type=Path, default=_RESULTS, help="record of znni-tune bench published")
    args = parser.parse_args()
    measure(args.path, args.layers)


if __name__ == "__main__":
    main()
