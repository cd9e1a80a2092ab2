"""Where the convolutions by transforms spend their time, stage by stage, and what fraction of which ceiling each reaches.

    python -m reports.stages reports/results/stages.json

For each layer of `reports.layers` where one of them is the fastest primitive in ``reports/results/layers.json``: the fastest
config there of each. A stage's seconds are those of all threads together, over their number; what is left of a call is waiting,
for each other and for the system. Ceilings are those of all threads at once: multiply-adds in registers, and STREAM's triad
through memory, the last-level cache and the cores' second-level caches (`znni.ceilings`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from reports.layers import PUBLISHED
from reports.stage_work import L2, L3, MEMORY, Work, fft_tiled_work, winograd_work
from znni._kernels import ceilings as kernels
from znni._version import __version__
from znni.arena import aligned_empty
from znni.ceilings import peak_rate
from znni.layers import Conv, Shape, describe
from znni.layouts import array_shape, packed, settings_of
from znni.machine import Machine, this_machine
from znni.primitives import Config, Operator, get

WORK = {"cpu.fft_tiled": fft_tiled_work, "cpu.winograd": winograd_work}
Choice = tuple[str, Conv, Shape, str, Config]
_RESULTS = Path(__file__).parent / "results" / "layers.json"
#: Calls that are timed; the fastest is reported.
_CALLS = 7
#: Ceilings are the best of so many measurements: other work can only lower them.
_TRIES = 5
#: Seconds for which the triad runs through a cache.
_SECONDS = 0.1


def choices(results: Path = _RESULTS) -> list[Choice]:
    """Name, layer, shape, primitive and config of what is worth taking apart, by a record of ``znni-tune bench published``."""
    rows = json.loads(results.read_text())["rows"]
    found = []
    for name, (layer, shape) in zip(dict.fromkeys(row["layer"] for row in rows), PUBLISHED, strict=True):
        if not name.startswith(f"{shape[1]}>{layer.out_channels} k"):
            raise ValueError(
                f"{results} is no record of the published layers: {name} is not {describe(layer)} on {shape}"
            )
        own = [row for row in rows if row["layer"] == name and row["primitive"] and row["ns_per_voxel"]]
        own.sort(key=lambda row: row["ns_per_voxel"])
        if own and own[0]["primitive"] in WORK:
            fastest = {row["primitive"]: row["config"] for row in reversed(own) if row["primitive"] in WORK}
            found += [(name, layer, shape, primitive, config) for primitive, config in sorted(fastest.items())]
    return found


def bandwidth(threads: int, row_bytes: int) -> float:
    """Bytes/s of STREAM's triad with three arrays of `row_bytes` in all to a thread."""
    size = max(16, row_bytes // 12)
    a, b, c = (np.empty((threads, size), np.float32) for _ in range(3))
    for array in (a, b, c):
        kernels.fill(array, 1.0)
    stamps, chunks = np.zeros((threads, 50_000)), np.zeros(threads, np.int64)
    step = min(size, 8192)
    kernels.triad(a, b, c, 3.0, step, _SECONDS, stamps, chunks)
    return peak_rate(stamps, chunks, 12 * step)


def ceilings_of(machine: Machine, threads: int, tries: int = _TRIES) -> dict[str, float]:
    """``flop_per_s``, and bytes/s by level. Caches are half filled, so that all of it stays there."""
    found = [machine.ceilings(threads) for _ in range(tries)]
    l2, l3 = machine.l2_bytes or 1 << 18, machine.l3_bytes or 1 << 22
    held = {L3: max(l3 // 2 // threads, 2 * l2), L2: l2 // 2}
    return {
        "flop_per_s": max(each.flop_per_s for each in found),
        MEMORY: max(each.bytes_per_s for each in found),
    } | {level: max(bandwidth(threads, row) for _ in range(tries)) for level, row in held.items()}


def timed(operator: Operator, calls: int = _CALLS) -> tuple[float, dict[str, float]]:
    """Seconds of the fastest of `calls` calls after one to warm up, and of its stages, averaged over the threads."""
    rng = np.random.default_rng(20190604)
    x = aligned_empty(4 * int(np.prod(array_shape(operator.shape, operator.takes)))).view(np.float32)
    x = x.reshape(array_shape(operator.shape, operator.takes))
    x[...] = packed(rng.standard_normal(operator.shape, dtype=np.float32), operator.takes)
    shape = array_shape(operator.out_shape, operator.gives)
    out = aligned_empty(4 * int(np.prod(shape))).view(np.float32).reshape(shape)
    workspace = aligned_empty(operator.workspace_bytes)
    best = (np.inf, {})
    operator(x, out, workspace)
    for _ in range(calls):
        stages = np.zeros((operator.threads, len(operator.stages)))
        start = time.perf_counter()
        operator.compute(x, out, workspace, stages)
        seconds = time.perf_counter() - start
        if seconds < best[0]:
            best = seconds, dict(zip(operator.stages, (stages.sum(0) / operator.threads).tolist(), strict=True))
    return best


def row_of(name: str, operator: Operator, machine: Machine, ceilings: Mapping[str, float], calls: int = _CALLS) -> dict:
    """What `timed` found, and its fractions of the `ceilings`."""
    seconds, spent = timed(operator, calls)
    work = WORK[operator.primitive.name](operator, machine)
    stages = {stage: _stage(spent[stage], work[stage], ceilings) for stage in operator.stages if stage in work}
    return {
        "name": name, "layer": describe(operator.layer), "shape": list(operator.shape),
        "primitive": operator.primitive.name, "config": settings_of(operator.config), "takes": operator.takes,
        "gives": operator.gives, "threads": operator.threads, "seconds": seconds,
        "waiting_seconds": seconds - sum(spent.values()), "stages": stages,
    }  # fmt: skip


def _stage(seconds: float, work: Work, ceilings: Mapping[str, float]) -> dict:
    """`binds`: the ceiling that it comes nearest to."""
    fractions = {
        "flop": work.flop / seconds / ceilings["flop_per_s"],
        work.level: work.moved_bytes / seconds / ceilings[work.level],
    }
    return {
        "seconds": seconds, "flop": work.flop, "counted_flop": work.counted_flop, "moved_bytes": work.moved_bytes,
        "level": work.level, "flop_fraction": fractions["flop"],
        "counted_fraction": work.counted_flop / seconds / ceilings["flop_per_s"],
        "bytes_fraction": fractions[work.level], "binds": max(fractions, key=fractions.get),
    }  # fmt: skip


def rows(chosen: Iterable[Choice], machine: Machine, threads: int, ceilings: Mapping[str, float]) -> Iterator[dict]:
    """A row for each choice."""
    for name, layer, shape, primitive, config in chosen:
        rng = np.random.default_rng(5)
        weights = {key: rng.standard_normal(own, np.float32) for key, own in layer.weight_shapes(shape[1]).items()}
        weights["weight"] *= np.float32(weights["weight"][0].size ** -0.5)
        yield row_of(name, get(primitive).prepare(layer, weights, shape, config, threads), machine, ceilings)


def measure(path: str, chosen: Iterable[Choice]) -> dict:
    """Measure all of `chosen`, print the table, and write what was found to `path`."""
    machine = this_machine()
    ceilings = ceilings_of(machine, machine.cores)
    found = []
    for row in rows(chosen, machine, machine.cores, ceilings):
        found.append(row)
        print(table(row), flush=True)
    data = {
        "machine": machine.describe(),
        "versions": {"znni": __version__},
        "command": f"python -m reports.stages {path}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "ceilings": {"threads": machine.cores} | ceilings,
        "rows": found,
    }
    Path(path).write_text(json.dumps(data, indent=1) + "\n")
    return data


def table(row: dict) -> str:
    """A row in lines."""
    head = f"{row['name']}  {row['primitive']} {row['takes']}>{row['gives']} {json.dumps(row['config'])}"
    lines = [f"{head}: {1e3 * row['seconds']:.1f} ms, of which waiting {1e3 * row['waiting_seconds']:.1f}"]
    lines.append("  stage           ms  share  5 n log2 n  counted   bytes of")
    for name, stage in row["stages"].items():
        share = stage["seconds"] / row["seconds"]
        lines.append(
            f"  {name:10s} {1e3 * stage['seconds']:7.2f}  {share:5.0%}  {stage['flop_fraction']:10.0%}  "
            f"{stage['counted_fraction']:7.0%}  {stage['bytes_fraction']:6.0%} {stage['level']}"
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="reports.stages", description=__doc__.splitlines()[0])
    parser.add_argument("path", help="JSON file to write")
    parser.add_argument("--layers", type=Path, default=_RESULTS, help="record that the configs are taken from")
    args = parser.parse_args()
    measure(args.path, choices(args.layers))


if __name__ == "__main__":
    main()
