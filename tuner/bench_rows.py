"""What a contest on one layer came to: a row for each contender, as data and as a table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuner.console import table
from tuner.contest import Contender, middle, ratio
from tuner.explain import config_text
from tuner.units import bytes_text, digits
from znni.ceilings import Ceilings
from znni.gpu.ceilings import DeviceCeilings
from znni.layouts import settings_of
from znni.primitives import Primitive, config_key, get
from znni.timing import bootstrap_interval

if TYPE_CHECKING:
    from tuner.bench import Job


def layer_rows(
    job: Job, ceilings: Ceilings | DeviceCeilings, ours: Sequence[Contender], theirs: Sequence[Contender]
) -> list[dict]:
    """The rows, fastest first.

    `flop_per_s` counts direct arithmetic, whatever was done, and `ceiling_fraction` is that over the machine's FLOP/s. On
    the GPU `seconds` are by the device's clock and `wall_s` by the host's; `cold_s` is what the first call took, with all that
    came before it. `arithmetic_fraction` and `traffic_fraction` are what a primitive says it does and moves, over the
    machine's FLOP/s and bytes/s; other libraries do not say.
    """
    best_peer = min((c for c in theirs if c.seconds), key=lambda c: middle(c.seconds), default=None)
    rows = []
    for contender in [*ours, *theirs]:
        by = contender.spec
        row = _row(job, contender.name, by) | {
            "samples": len(contender.seconds),
            "seconds": contender.seconds,
            "predicted_bytes": contender.facts.get("predicted_bytes"),
            "measured_bytes": contender.facts.get("measured_bytes"),
            "wall_s": contender.walls,
            "cold_s": contender.facts.get("cold_s"),
            "predicted_device_bytes": contender.facts.get("predicted_device_bytes"),
            "measured_device_bytes": contender.facts.get("measured_device_bytes"),
            "relative_l2": contender.relative_l2,
            "best_peer": best_peer.name if best_peer else None,
            "failure": contender.failure,
            "reproduce": _command(job, by),
        }
        if contender.seconds:
            row |= _figures(job, ceilings, contender)
            if best_peer and contender in ours:
                row["speed_over_best_peer"] = ratio(contender, best_peer)
        rows.append(row)
    return sorted(rows, key=lambda row: row["ns_per_voxel"] or float("inf"))


def skipped_rows(job: Job, skipped: Sequence[tuple[Primitive, float]]) -> list[dict]:
    """Rows of primitives that were not timed, each with how many times slower than the best it would be."""
    rows = []
    for primitive, times in skipped:
        why = f"not timed: its arithmetic alone would take {digits(times, 2)} times as long as the best"
        words = ["znni-tune", "bench", job.text, "--primitive", primitive.name, "--peers", "none", *_device_words(job)]
        command = shlex.join(words)
        rows.append(_row(job, primitive.name, {"primitive": primitive.name}) | {"skipped": why, "reproduce": command})
    return rows


def _row(job: Job, name: str, by: dict) -> dict:
    """A row without figures."""
    return {
        "layer": job.text,
        "name": name,
        "primitive": by.get("primitive"),
        "peer": by.get("peer"),
        "config": by.get("config", {}),
        "threads": job.threads,
        "device": job.device,
        "ns_per_voxel": None,
        "interval": None,
        "samples": 0,
        "seconds": [],
        "predicted_bytes": None,
        "measured_bytes": None,
        "wall_s": [],
        "cold_s": None,
        "predicted_device_bytes": None,
        "measured_device_bytes": None,
        "relative_l2": None,
        "flop_per_s": None,
        "ceiling_fraction": None,
        "arithmetic_fraction": None,
        "traffic_fraction": None,
        "best_peer": None,
        "speed_over_best_peer": None,
        "failure": None,
        "skipped": None,
    }


def _figures(job: Job, ceilings: Ceilings | DeviceCeilings, contender: Contender) -> dict:
    seconds = middle(contender.seconds)
    figures = {"ns_per_voxel": 1e9 * seconds / job.voxels}
    if len(contender.seconds) > 1:
        figures["interval"] = [1e9 * s / job.voxels for s in bootstrap_interval(contender.seconds)]
    if job.flop:
        figures["flop_per_s"] = job.flop / seconds
        figures["ceiling_fraction"] = figures["flop_per_s"] / ceilings.flop_per_s
    if "primitive" in contender.spec:
        cost = get(contender.spec["primitive"]).cost(job.layer, job.shape, contender.spec["config"])
        figures["arithmetic_fraction"] = cost.flop / seconds / ceilings.flop_per_s
        figures["traffic_fraction"] = cost.moved_bytes / seconds / ceilings.bytes_per_s
    return figures


def _command(job: Job, by: dict) -> str:
    """The command that times this contender alone."""
    words = ["znni-tune", "bench", job.text]
    if "peer" in by:
        words += ["--primitive", "none", "--peers", by["peer"]]
    else:
        words += ["--primitive", by["primitive"], "--config", config_key(by["config"]), "--peers", "none"]
    return shlex.join([*words, *_device_words(job), "--threads", str(job.threads)])


def _device_words(job: Job) -> list[str]:
    return ["--device", "gpu"] if job.device == "gpu" else []


def rows_text(rows: Sequence[dict]) -> str:
    """The rows of one layer as a table, and under it the command for each of them."""
    peer, on_gpu = rows[0]["best_peer"], rows[0]["device"] == "gpu"
    header = ["", "config", "ns/voxel", "interval", "GFLOP/s", "of peak", "done", "moved", "predicted", "measured",
              "rel. L2", "vs best peer"][: None if peer else -1]  # fmt: skip
    where = "on the GPU" if on_gpu else f"{rows[0]['threads']} threads"
    title = f"{rows[0]['layer']}, {where}" + (f", best peer {peer}" if peer else "")
    notes = [f"{row['name']} failed: {row['failure']}" for row in rows if row["failure"]]
    notes += [f"{row['name']} {row['skipped']}" for row in rows if row["skipped"]]
    cells = [_row_cells(row)[: len(header)] for row in rows if not row["skipped"]]
    return "\n".join([title, table(header, cells, left=2), *notes, *(f"  {row['reproduce']}" for row in rows)])


_WORDS = ("predicted", "measured")


def _row_cells(row: dict) -> list[str]:
    interval, faster = row["interval"], row["speed_over_best_peer"]
    return [
        row["name"],
        config_text(settings_of(row["config"])),
        digits(row["ns_per_voxel"]),
        f"{digits(interval[0])} .. {digits(interval[1])}" if interval else "-",
        digits(row["flop_per_s"] and row["flop_per_s"] / 1e9),
        *(_percent(row[key]) for key in ("ceiling_fraction", "arithmetic_fraction", "traffic_fraction")),
        *(bytes_text(row[f"{word}_device_bytes" if row["device"] == "gpu" else f"{word}_bytes"]) for word in _WORDS),
        f"{row['relative_l2']:.1e}" if row["relative_l2"] is not None else "-",
        f"{faster['median']:.2f} ({faster['low']:.2f} .. {faster['high']:.2f})" if faster else "",
    ]


def _percent(fraction: float | None) -> str:
    return f"{digits(100 * fraction, 2)} %" if fraction is not None else "-"
