"""``znni-tune bench``: primitives at their best configs and other libraries on one layer, in interleaved rounds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from tuner.bench_record import Recorder, check_json_target, describe_run, save_json
from tuner.bench_rows import layer_rows, rows_text, skipped_rows
from tuner.console import StatusLine, print_json
from tuner.contender import layer_spec
from tuner.contest import HOPELESS, Contender, failed, rounds
from tuner.device_layer import device_facts, the_device
from tuner.layer_string import layer_text, looks_like_layer, parse_layer
from tuner.measure import gpu_ceilings, network_source
from tuner.peers import ALL, NONE, parse_peers, why_not
from tuner.plan_device import opened_device
from tuner.scout import TIMEOUT_S, Scout
from tuner.worker import Worker
from znni.ceilings import Ceilings
from znni.errors import Unsupported, ZnniError
from znni.gpu.ceilings import DeviceCeilings
from znni.gpu.sources import sources_digest
from znni.layers import Conv, ConvMaxPoolFragments, Layer, Shape
from znni.layouts import DEVICE, PLAIN, layouts_of, tensor_bytes
from znni.machine import Machine, this_machine
from znni.predict import Predictor
from znni.primitives import Primitive, candidates, get
from znni.process_memory import available_bytes
from znni.store import Store
from znni.store_rows import NO_THREADS

#: All contenders stay in memory between their turns where they take less than this share of what is free.
_SHARE_OF_FREE = 0.6
#: A peer is taken for so many times its input and result: its own layouts of them, and what it needs to get there.
_PEER_TENSORS = 3
#: And for the context of its process on the GPU.
_CONTEXT_BYTES = 1 << 30
#: Of the time for a layer, the part in which configs are chosen; the rest is for the rounds.
_SHARE_OF_SCOUTS = 0.5
#: The default plan of a network is made for this limit, unless --memory says otherwise.
NETWORK_LIMIT_BYTES = 4 << 30


@dataclass(frozen=True)
class Job:
    """One layer to time, and by what. `named`: the primitives were named, so all are timed; `config` is that of its only
    primitive, where it was given; `device` is where all compute."""

    layer: Layer
    shape: Shape
    threads: int
    primitives: tuple[Primitive, ...]
    peers: tuple[str, ...]
    seconds: float
    named: bool = False
    config: dict | None = None
    device: str = "cpu"

    @property
    def text(self) -> str:
        """The layer as a line of text."""
        return layer_text(self.layer, self.shape)

    @property
    def voxels(self) -> int:
        """Output voxels, batch included, channels not."""
        b, _, z, y, x = self.layer.output_shape(self.shape)
        return b * z * y * x

    @property
    def flop(self) -> int | None:
        """Direct arithmetic (2 per multiply-add); None for what is no convolution."""
        if not isinstance(self.layer, Conv | ConvMaxPoolFragments):
            return None
        conv = self.layer if isinstance(self.layer, Conv) else self.layer.conv
        b, o, z, y, x = conv.output_shape(self.shape)
        kz, ky, kx = conv.kernel
        return 2 * b * z * y * x * o * self.shape[1] * kz * ky * kx

    def bytes_together(self, chosen: Sequence[tuple[Primitive, dict]]) -> int:
        """Bytes of all contenders at once: each its input and result, primitives what they say, peers a guess."""
        out_shape = self.layer.output_shape(self.shape)
        tensors = tensor_bytes(self.shape) + tensor_bytes(out_shape)
        total = len(self.peers) * _PEER_TENSORS * tensors
        for primitive, config in chosen:
            memory = primitive.memory(self.layer, self.shape, config, self.threads)
            takes, gives = layouts_of(config)
            total += tensor_bytes(self.shape) + tensor_bytes(self.shape, takes) + tensor_bytes(out_shape, gives)
            total += memory.host_resident_bytes + memory.host_workspace_bytes
        return total

    def device_bytes_together(self, chosen: Sequence[tuple[Primitive, dict]]) -> int:
        """The same of the GPU's memory."""
        if self.device == "cpu":
            return 0
        tensors = tensor_bytes(self.shape) + tensor_bytes(self.layer.output_shape(self.shape))
        total = len(self.peers) * _PEER_TENSORS * tensors
        for primitive, config in chosen:
            memory = primitive.memory(self.layer, self.shape, config, self.threads)
            total += tensors + memory.device_resident_bytes + memory.device_workspace_bytes + _CONTEXT_BYTES
        return total


def bench(args: argparse.Namespace) -> int:
    """The command: tells layers, lists of them, networks and plans apart, times them, prints rows."""
    if args.what.endswith(".json"):
        from tuner.bench_plan import bench_plan

        return bench_plan(args, parse_peers(args.peers or NONE))
    with ExitStack() as stack:
        device = args.device or device_of_list(args.what)
        if device == "gpu":
            stack.enter_context(opened_device())
        return _bench_layers(args, device)


def _bench_layers(args: argparse.Namespace, device: str) -> int:
    machine = this_machine()
    threads = args.threads or machine.cores
    layers, by_default = _layers(args, threads)
    peers = parse_peers(by_default if args.peers is None else args.peers, device)
    jobs = []
    for layer, shape in layers:
        primitives = _primitives(args.primitive, layer, shape, device)
        config = _config(args, primitives)
        peers_of_layer = tuple(peer for peer in peers if why_not(peer, layer) is None)
        if primitives or peers_of_layer:
            named = bool(args.primitive)
            jobs.append(Job(layer, shape, threads, primitives, peers_of_layer, args.seconds, named, config, device))
    if not any(job.primitives for job in jobs) and (not jobs or args.primitive not in (None, NONE)):
        _refuse(args.primitive, *layers[0], device)
    if args.output:
        check_json_target(args.output)
    rows: list[dict] = []
    found: dict = {}
    line = StatusLine()
    try:
        with Store(args.store) as store:
            ceilings, predictor = _predictor(machine, store, threads, device)
            facts = describe_run(machine, threads, peers, args.typed) | {"ceilings": asdict(ceilings)}
            if device == "gpu":
                facts["device"] = device_facts(the_device())
            for job in jobs:
                own = bench_layer(job, predictor, ceilings, Recorder(store, machine), line)
                rows += own
                line.clear()
                found = facts | {"rows": rows}
                if args.output:
                    save_json(args.output, found)
                if not args.json:
                    print(rows_text(own), end="\n\n" if job is not jobs[-1] else "\n", flush=True)
    finally:
        line.clear()
    if args.json:
        print_json(found)
    elif getattr(ceilings, "disturbed", False):
        print("\nthe ceiling was measured while other work took processor time; it may be higher")
    return 0


def _predictor(
    machine: Machine, store: Store, threads: int, device: str
) -> tuple[Ceilings | DeviceCeilings, Predictor]:
    """What the device can do at most, and what is known of it."""
    if device == "cpu":
        found = machine.ceilings(threads, store)
        known = store.measured(machine.fingerprint, threads)
        return found, Predictor(threads, found.flop_per_s, found.bytes_per_s, known)
    with Worker() as worker:
        found = gpu_ceilings(store, machine, worker)
    known = store.measured(machine.fingerprint, NO_THREADS, kernels=sources_digest())
    return found, Predictor(threads, measured=known, gpu=found)


def device_of_list(what: str) -> str:
    """Where a list of layers is timed unless --device says otherwise; all else is timed on the CPU."""
    from reports.layers import GPU_LISTS

    return "gpu" if what in GPU_LISTS else "cpu"


def _layers(args: argparse.Namespace, threads: int) -> tuple[list[tuple[Layer, Shape]], str]:
    """The layers that are asked for, and the peers that take part unless others are named."""
    from reports.layers import LISTS

    if looks_like_layer(args.what):
        return [parse_layer(args.what)], ALL
    if args.what in LISTS:
        return list(LISTS[args.what]), ALL
    return _layers_of_network(args, threads), NONE


def _layers_of_network(args: argparse.Namespace, threads: int) -> list[tuple[Layer, Shape]]:
    """Each distinct layer of a network, in the shapes of its default plan's calls."""
    from znni.default_plan import default_plan
    from znni.load import load
    from znni.schedule import calls_of, loops_of

    network = load(args.what, weights=args.weights, seed=args.weights_seed, width=args.width)
    with Worker() as fresh:  # this process may hold more than `znni-tune run` will
        baseline = fresh.call("baseline", {"network": network_source(network)}, timeout_s=120.0)["resident_bytes"]
    limit = args.memory or NETWORK_LIMIT_BYTES
    plan = default_plan(network, memory_bytes=limit, threads=threads, baseline_bytes=baseline)
    nodes = network.lowered(plan.pooling, plan.levels)
    calls = calls_of(nodes, loops_of(nodes, plan.levels), plan.input_shape(network.in_channels))
    return list(dict.fromkeys((call.node.layer, call.in_shape) for call in calls))


def _primitives(named: str | None, layer: Layer, shape: Shape, device: str) -> tuple[Primitive, ...]:
    if named is None:
        return tuple(p for p in candidates(layer, shape, device) if not p.foreign)
    wanted = [get(name.strip()) for name in named.split(",") if name.strip() not in ("", NONE)]
    other = [p.name for p in wanted if p.device != device]
    if other:
        raise ZnniError(
            f"{', '.join(other)} computes on the {get(other[0]).device}; give --device {get(other[0]).device}"
        )
    return tuple(p for p in wanted if p.kind == layer.kind and p.supports(layer, shape) is None)


def _config(args: argparse.Namespace, primitives: Sequence[Primitive]) -> dict | None:
    if args.config is None:
        return None
    if len(primitives) != 1:
        raise ZnniError("--config goes with one primitive: name it with --primitive")
    try:
        config = json.loads(args.config)
    except ValueError as error:
        raise ZnniError(f"--config takes a JSON object such as '{{\"tile\": [16, 16, 16]}}': {error}") from error
    if not isinstance(config, dict):
        raise ZnniError(f"--config takes a JSON object, got {args.config}")
    return config


def _refuse(named: str | None, layer: Layer, shape: Shape, device: str) -> None:
    for name in (named or "").split(","):
        if name.strip() not in ("", NONE) and get(name.strip()).kind == layer.kind:
            get(name.strip()).refuse(layer, shape)
    which = " of those named" if named else " on the GPU" if device == "gpu" else ""
    raise Unsupported(f"no primitive{which} computes {layer_text(layer, shape)}")


def bench_layer(
    job: Job, predictor: Predictor, ceilings: Ceilings | DeviceCeilings, recorder: Recorder, line: StatusLine
) -> list[dict]:
    """The rows of one layer, fastest first."""
    with ExitStack() as stack:

        def enter(name: str, stays: bool, **by) -> Contender:
            contender = Contender(name, layer_spec(job.layer, job.shape, job.threads, **by), stays=stays)
            stack.callback(contender.close)
            return contender

        chosen, skipped = _chosen(job, predictor, line)
        stays = job.bytes_together(chosen) < _SHARE_OF_FREE * available_bytes()
        if job.device == "gpu":
            stays = stays and job.device_bytes_together(chosen) < _SHARE_OF_FREE * the_device().free_bytes()
        ours = [enter(entry_name(p, config), stays, primitive=p.name, config=config) for p, config in chosen]
        theirs = [enter(peer, stays, peer=peer) for peer in job.peers]
        everyone = ours + theirs
        for contender in everyone if stays else ():
            line.show(f"{job.text}: preparing {contender.name}")
            contender.prepare(TIMEOUT_S)
        rounds(
            everyone, job.seconds * (1 - _SHARE_OF_SCOUTS), rivals=theirs, on_turn=recorder,
            progress=lambda text: line.show(f"{job.text}: {text}"),
        )  # fmt: skip
        if not any(c.seconds for c in everyone):
            raise failed(everyone, job.text)
        for contender in everyone:
            line.show(f"{job.text}: checking {contender.name}")
            contender.check()
        recorder.finish(everyone)
        return layer_rows(job, ceilings, ours, theirs) + skipped_rows(job, skipped)


def _chosen(
    job: Job, predictor: Predictor, line: StatusLine
) -> tuple[list[tuple[Primitive, dict]], list[tuple[Primitive, float]]]:
    """Each primitive with the config it competes with, in each of its layouts; and those that would be hopeless by their
    arithmetic alone, with how many times slower than the best they would be."""
    if job.config is not None:
        return [(job.primitives[0], job.config)], []

    def guess(primitive: Primitive) -> float:
        configs = primitive.configs(job.layer, job.shape)
        return min(predictor.seconds(primitive, job.layer, job.shape, config)[0] for config in configs)

    chosen, skipped = [], []
    scout = Scout(job.layer, job.shape, job.threads, predictor)
    left_s = job.seconds * _SHARE_OF_SCOUTS
    try:
        for primitive in sorted(job.primitives, key=guess):  # the fastest first: it tells which are hopeless
            times = guess(primitive) / scout.best_s if scout.best_s else 1.0
            if times > HOPELESS and not job.named:
                skipped.append((primitive, times))
                continue
            line.show(f"{job.text}: configs of {primitive.name}")
            chosen += [(primitive, config) for config in scout.choose(primitive, left_s / 2)]
            left_s /= 2
    finally:
        scout.close()
    return chosen, skipped


def entry_name(primitive: Primitive, config: dict) -> str:
    """A primitive's name with its layouts, where there is a choice."""
    takes, gives = layouts_of(config)
    layout = takes if takes == gives else f"{takes}>{gives}"
    return primitive.name if layout in (PLAIN, DEVICE) else f"{primitive.name} {layout}"
