"""``znni-tune bench``: primitives at their best configs and other libraries on one layer, in interleaved rounds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from tuner.bench_record import Recorder
from tuner.console import StatusLine, print_json, table
from tuner.contender import layer_spec
from tuner.contest import Contender, failed, middle, ratio, rounds
from tuner.explain import config_text
from tuner.layer_string import layer_text, looks_like_layer, parse_layer
from tuner.measure import network_source
from tuner.peers import parse_peers, variants, why_not
from tuner.units import bytes_text, digits
from tuner.worker import Worker
from znni.errors import Unsupported
from znni.layers import Conv, Layer, Shape
from znni.machine import this_machine
from znni.predict import Predictor
from znni.primitives import Primitive, candidates, config_key, get
from znni.process_memory import available_bytes
from znni.program import tensor_bytes
from znni.store import Store
from znni.timing import bootstrap_interval

#: Configs of one primitive that are timed once each before its best one competes.
MOST_SCOUTED = 12
#: A config that the cost model thinks so many times slower than the primitive's best is not even timed once.
_HOPELESS_GUESS = 4.0
#: All contenders stay in memory between their turns where they take less than this share of what is free.
_SHARE_OF_FREE = 0.6
#: A peer is taken for so many times its input and result: its own layouts of them, and what it needs to get there.
_PEER_TENSORS = 3
#: Seconds that preparing, or one turn, may take.
TIMEOUT_S = 600.0
#: The default plan of a network is made for this limit, unless --memory says otherwise.
NETWORK_LIMIT_BYTES = 4 << 30


@dataclass(frozen=True)
class Job:
    """One layer to time, and by what."""

    layer: Layer
    shape: Shape
    threads: int
    primitives: tuple[Primitive, ...]
    peers: tuple[str, ...]
    seconds: float

    @property
    def voxels(self) -> int:
        """Output voxels, batch included, channels not."""
        b, _, z, y, x = self.layer.output_shape(self.shape)
        return b * z * y * x

    def bytes_together(self, chosen: Sequence[tuple[Primitive, dict]]) -> int:
        """Bytes of all contenders at once: each its input and result, primitives what they say, peers a guess."""
        own = [primitive.memory(self.layer, self.shape, config, self.threads) for primitive, config in chosen]
        tensors = tensor_bytes(self.shape) + tensor_bytes(self.layer.output_shape(self.shape))
        peers = sum(len(variants(peer)) for peer in self.peers)
        beside = sum(memory.host_resident_bytes + memory.host_workspace_bytes for memory in own)
        return len(own) * tensors + beside + peers * _PEER_TENSORS * tensors

    @property
    def flop(self) -> int | None:
        """Direct arithmetic (2 per multiply-add); None for what is no convolution."""
        if not isinstance(self.layer, Conv):
            return None
        kz, ky, kx = self.layer.kernel
        return 2 * self.voxels * self.layer.out_channels * self.shape[1] * kz * ky * kx


def bench(args: argparse.Namespace) -> int:
    """The command: tells layers, networks and plans apart, times them, prints rows."""
    peers = parse_peers(args.peers or "")
    if args.what.endswith(".json"):
        from tuner.bench_plan import bench_plan

        return bench_plan(args, peers)
    machine = this_machine()
    threads = args.threads or machine.cores
    layers = [parse_layer(args.what)] if looks_like_layer(args.what) else _layers_of(args, threads)
    chosen = [(layer, shape, _primitives(args.primitive, layer, shape)) for layer, shape in layers]
    if not any(primitives for _, _, primitives in chosen) and not peers:
        layer, shape, _ = chosen[0]
        _refuse(args.primitive, layer, shape)
    line = StatusLine()
    rows = []
    try:
        with Store(args.store) as store:
            ceilings = machine.ceilings(threads, store)
            known = store.measured(machine.fingerprint, threads)
            predictor = Predictor(threads, ceilings.flop_per_s, ceilings.bytes_per_s, known)
            for layer, shape, primitives in chosen:
                taking_part = tuple(peer for peer in peers if why_not(peer, layer) is None)
                if primitives or taking_part:
                    job = Job(layer, shape, threads, primitives, taking_part, args.seconds)
                    rows += bench_layer(job, predictor, Recorder(store, machine), line)
    finally:
        line.clear()
    if args.json:
        print_json({"machine": machine.describe(), "threads": threads, "ceilings": asdict(ceilings), "rows": rows})
    else:
        print(rows_text(rows))
        if ceilings.disturbed:
            print("\nthe ceiling was measured while other work took processor time; it may be higher")
    return 0


def _layers_of(args: argparse.Namespace, threads: int) -> list[tuple[Layer, Shape]]:
    """Each distinct layer of a network, in the shapes of its default plan."""
    from znni.default_plan import default_plan
    from znni.load import load
    from znni.network import shapes_through

    network = load(args.what, weights=args.weights, seed=args.weights_seed, width=args.width)
    with Worker() as fresh:  # this process may hold more than `znni-tune run` will
        baseline = fresh.call("baseline", {"network": network_source(network)}, timeout_s=120.0)["resident_bytes"]
    limit = args.memory or NETWORK_LIMIT_BYTES
    plan = default_plan(network, memory_bytes=limit, threads=threads, baseline_bytes=baseline)
    nodes = network.lowered(plan.pooling)
    shapes = shapes_through(nodes, plan.input_shape(network.in_channels))
    return list(dict.fromkeys((node.layer, shapes[node.inputs[0]]) for node in nodes))


def _primitives(named: str | None, layer: Layer, shape: Shape) -> tuple[Primitive, ...]:
    if named is None:
        return tuple(candidates(layer, shape))
    wanted = [get(name.strip()) for name in named.split(",") if name.strip()]
    return tuple(p for p in wanted if p.kind == layer.kind and p.supports(layer, shape) is None)


def _refuse(named: str | None, layer: Layer, shape: Shape) -> None:
    for name in (named or "").split(","):
        if name.strip() and get(name.strip()).kind == layer.kind:
            get(name.strip()).refuse(layer, shape)
    raise Unsupported(f"no primitive{' of those named' if named else ''} computes {layer_text(layer, shape)}")


def bench_layer(job: Job, predictor: Predictor, recorder: Recorder, line: StatusLine) -> list[dict]:
    """The rows of one layer, fastest first."""
    what = layer_text(job.layer, job.shape)
    with ExitStack() as stack:

        def enter(name: str, stays: bool = True, **by) -> Contender:
            contender = Contender(name, layer_spec(job.layer, job.shape, job.threads, **by), stays=stays)
            stack.callback(contender.close)
            return contender

        chosen: list[tuple[Primitive, dict]] = []
        share_s = job.seconds / 2 / max(1, len(job.primitives))
        for primitive in job.primitives:
            line.show(f"{what}: configs of {primitive.name}")
            config = _scout(job, predictor, primitive, enter(primitive.name), share_s)
            chosen.append((primitive, config))
        stays = job.bytes_together(chosen) < _SHARE_OF_FREE * available_bytes()
        ours = [enter(p.name, stays, primitive=p.name, config=config) for p, config in chosen]
        theirs = [enter(f"{peer}/{v}", stays, peer=peer, variant=v) for peer in job.peers for v in variants(peer)]
        everyone = ours + theirs
        for contender in everyone if stays else ():
            line.show(f"{what}: preparing {contender.name}")
            contender.prepare(TIMEOUT_S)
        rounds(everyone, job.seconds / 2, progress=lambda text: line.show(f"{what}: {text}"), on_turn=recorder)
        if not any(c.seconds for c in everyone):
            raise failed(everyone, what)
        for contender in everyone:
            line.show(f"{what}: checking {contender.name}")
            contender.check()
        recorder.finish(everyone)
        return _rows(job, predictor.flop_per_s, what, ours, theirs)


def _scout(job: Job, predictor: Predictor, primitive: Primitive, scout: Contender, budget_s: float) -> dict:
    """The fastest of a primitive's configs by one turn each, likeliest first, as far as the budget goes."""
    configs = list(primitive.configs(job.layer, job.shape))
    guesses = {config_key(c): predictor.seconds(primitive, job.layer, job.shape, c)[0] for c in configs}
    hopeless = _HOPELESS_GUESS * min(guesses.values())
    # The first is the primitive's own best guess, whatever the predictor thinks of it.
    others = [c for c in configs[1:] if guesses[config_key(c)] <= hopeless]
    likely = configs[:1] + sorted(others, key=lambda c: guesses[config_key(c)])
    best, best_s, spent_s = likely[0], None, 0.0
    if len(likely) == 1:
        return dict(best)
    for config in likely[:MOST_SCOUTED]:
        if best_s is not None and spent_s + 2 * best_s > budget_s:
            break
        scout.start_over(layer_spec(job.layer, job.shape, job.threads, primitive=primitive.name, config=config))
        taken = scout.turn(TIMEOUT_S)
        if not taken:
            continue  # the others may do
        seconds = middle(taken)
        spent_s += 3 * sum(taken) / len(taken)
        if best_s is None or seconds < best_s:
            best, best_s = config, seconds
    scout.close()
    return dict(best)


def _rows(
    job: Job, ceiling_flop_per_s: float, what: str, ours: Sequence[Contender], theirs: Sequence[Contender]
) -> list[dict]:
    timed = [c for c in theirs if c.seconds]
    best_peer = min(timed, key=lambda c: middle(c.seconds), default=None)
    rows = []
    for contender in [*ours, *theirs]:
        by = contender.spec
        row = {
            "layer": what,
            "primitive": by.get("primitive") or contender.name,
            "config": by.get("config", {}),
            "threads": job.threads,
            "ns_per_voxel": None,
            "interval": None,
            "samples": len(contender.seconds),
            "predicted_bytes": contender.facts.get("predicted_bytes"),
            "measured_bytes": contender.facts.get("measured_bytes"),
            "relative_l2": contender.relative_l2,
            "flop_per_s": None,
            "ceiling_fraction": None,
            "best_peer": best_peer.name if best_peer else None,
            "speed_over_best_peer": None,
            "failure": contender.failure,
        }
        if contender.seconds:
            seconds = middle(contender.seconds)
            row["ns_per_voxel"] = 1e9 * seconds / job.voxels
            if len(contender.seconds) > 1:
                row["interval"] = [1e9 * s / job.voxels for s in bootstrap_interval(contender.seconds)]
            if job.flop:
                row["flop_per_s"] = job.flop / seconds
                row["ceiling_fraction"] = row["flop_per_s"] / ceiling_flop_per_s
            if best_peer and contender in ours:
                row["speed_over_best_peer"] = ratio(contender, best_peer)
        rows.append(row)
    return sorted(rows, key=lambda row: row["ns_per_voxel"] or float("inf"))


def rows_text(rows: Sequence[dict]) -> str:
    """The rows as one table a layer."""
    blocks = []
    for what in dict.fromkeys(row["layer"] for row in rows):
        own = [row for row in rows if row["layer"] == what]
        peer = own[0]["best_peer"]
        header = ["primitive", "config", "ns/voxel", "interval", "GFLOP/s", "of ceiling", "predicted", "measured",
                  "rel. L2", "vs best peer"][: None if peer else -1]  # fmt: skip
        lines = [_row_cells(row)[: len(header)] for row in own]
        title = f"{what}, {own[0]['threads']} threads" + (f", best peer {peer}" if peer else "")
        failures = [f"{row['primitive']} failed: {row['failure']}" for row in own if row["failure"]]
        blocks.append("\n".join([title, table(header, lines, left=2), *failures]))
    return "\n\n".join(blocks)


def _row_cells(row: dict) -> list[str]:
    interval, faster = row["interval"], row["speed_over_best_peer"]
    return [
        row["primitive"],
        config_text(row["config"]),
        digits(row["ns_per_voxel"]),
        f"{digits(interval[0])} .. {digits(interval[1])}" if interval else "-",
        digits(row["flop_per_s"] and row["flop_per_s"] / 1e9),
        f"{digits(100 * row['ceiling_fraction'], 2)} %" if row["ceiling_fraction"] else "-",
        bytes_text(row["predicted_bytes"]),
        bytes_text(row["measured_bytes"]),
        f"{row['relative_l2']:.1e}" if row["relative_l2"] is not None else "-",
        f"{faster['median']:.2f} ({faster['low']:.2f} .. {faster['high']:.2f})" if faster else "",
    ]
