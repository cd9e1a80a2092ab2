"""``znni-tune bench PLAN``: a plan end to end, in turn with PyTorch's conv3d, whose rate R makes its score.

R is the FLOP/s that PyTorch reaches on 80 -> 80 channels, 3^3, input 58^3, in the better of its memory formats. The
score is output voxels per second times the direct arithmetic per output voxel, over R: 1.0 is PyTorch with an infinite
patch and no limit on memory. A network that is no sliding-window network is computed as a whole by each
peer, on the plan's patch. Beside ``torch.cuda`` the whole network is computed by PyTorch on the GPU, dense, with dilated
convolutions, within the plan's limit on GPU memory, at the patch that is fastest.
"""

from __future__ import annotations

import argparse
import math
from contextlib import ExitStack

from tuner.bench_record import RATE_FLOP, RATE_LAYER, RATE_SHAPE, Recorder, check_json_target, describe_run, save_json
from tuner.console import StatusLine, print_json
from tuner.contender import layer_spec, network_patch_spec, network_spec, plan_spec
from tuner.contest import TURN_S, Contender, failed, middle, rounds
from tuner.peers import library_of, peer_device
from tuner.plan_device import device_of
from tuner.units import bytes_text, digits
from znni.errors import RunFailed, ZnniError
from znni.layers import by_x
from znni.machine import this_machine
from znni.store import Store
from znni.store_rows import SIMULATED
from znni.timing import bootstrap_interval

#: Rounds that a score rests on at least, so that it has a spread; and where one takes longer than so many seconds.
LEAST_ROUNDS, LEAST_LONG_ROUNDS, LONG_S = 3, 2, 100.0
#: And of all, where each turn begins with preparing anew.
_GPU_TURN_S = 2.0
#: Seconds of a turn of PyTorch's: several calls, so that it is as warm as it gets.
RATE_TURN_S = 1.0


def bench_plan(args: argparse.Namespace, peers: tuple[str, ...]) -> int:
    """The command for a plan file."""
    from tuner.commands import load_plan

    plan = load_plan(args.what)
    network = plan.bound_network()
    other = [peer for peer in peers if library_of(peer) not in ("torch", "torch.cuda")]
    if other and network.sliding:
        raise ZnniError(
            f"a plan of a sliding-window network is timed beside torch alone, got {', '.join(other)}; use --peers torch or "
            "torch.cuda"
        )
    if args.output:
        check_json_target(args.output)
    machine = this_machine()
    line = StatusLine()
    with ExitStack() as stack:
        on_gpu = [peer for peer in peers if peer_device(peer) == "gpu"]

        def enter(name: str, spec: dict, turn_s: float = TURN_S) -> Contender:
            # what one takes of the GPU the others would lack
            contender = Contender(name, spec, max(turn_s, _GPU_TURN_S) if on_gpu else turn_s, stays=not on_gpu)
            stack.callback(contender.close)
            return contender

        stack.callback(line.clear)
        store = stack.enter_context(Store(args.store))
        recorder = Recorder(store, machine)
        ours = enter("plan", plan_spec(args.what))
        theirs = [
            enter(peer, layer_spec(RATE_LAYER, RATE_SHAPE, plan.threads, peer=peer), RATE_TURN_S)
            for peer in peers
            if peer not in on_gpu and network.sliding
        ]
        limit = plan.limits.get("device_bytes")
        networks = [enter(peer, network_spec(plan.network, peer, limit, args.seconds)) for peer in on_gpu]
        if not network.sliding:  # others take the same patch
            shape, voxels = plan.input_shape(network.in_channels), plan.batch * math.prod(plan.output_patch)
            networks += [
                enter(peer, network_patch_spec(plan.network, peer, shape, plan.threads, voxels))
                for peer in peers
                if peer not in on_gpu
            ]
        for contender in [ours, *theirs, *networks]:
            line.show(f"preparing {contender.name}")
            contender.prepare(timeout_s=600.0)
            if on_gpu:
                contender.spec |= {key: contender.facts[key] for key in ("output",) if key in contender.facts}
                contender.close()
        if ours.failure:
            raise RunFailed(f"{args.what} did not run: {ours.failure}")
        where = SIMULATED if ours.facts.get("simulated") else device_of(plan)
        row = store.open_plan_run(plan.digest, machine=machine.fingerprint, device=where)

        def keep(contender: Contender, seconds: list[float]) -> None:
            if contender in theirs:
                recorder(contender, seconds)
            for sample in seconds if contender is ours else ():
                row.add_sample(sample)

        everyone = [ours, *theirs, *networks]
        long = sum(layer.predicted_s for layer in plan.layers) > LONG_S
        rounds(
            everyone, args.seconds, least=LEAST_LONG_ROUNDS if long else LEAST_ROUNDS, patience=math.inf,
            hopeless=math.inf, progress=line.show, on_turn=keep,
        )  # fmt: skip
        recorder.finish(theirs)
        if not ours.seconds:
            row.fail(ours.failure or "took no turn")
            raise failed([ours], args.what)
        found = _summary(plan, ours, theirs, network.flop_per_voxel)
        found["networks"] = [_network_row(contender, ours) for contender in networks]
        row.finish(
            measured_voxels_per_s=found["voxels_per_s"],
            peak_bytes=found["peak_bytes"],
            peak_device_bytes=found["peak_device_bytes"],
        )
    found = describe_run(machine, plan.threads, peers, args.typed) | {"network": plan.network} | found
    if args.output:
        save_json(args.output, found)
    if args.json:
        print_json(found)
    else:
        print(_text(args.what, found))
    return 0


def _summary(plan, ours: Contender, theirs: list[Contender], flop_per_voxel: int) -> dict:
    voxels = ours.facts["voxels"]
    speeds = [voxels / s for s in ours.seconds]
    best = min((c for c in theirs if c.seconds), key=lambda c: middle(c.seconds), default=None)
    scores = rate = None
    if best:
        rate = RATE_FLOP / middle(best.seconds)
        both = min(len(ours.samples), len(best.samples))
        scores = [
            voxels / middle(ours.samples[i]) * flop_per_voxel / (RATE_FLOP / middle(best.samples[i]))
            for i in range(both)
        ]
    return {
        "threads": plan.threads,
        "rounds": len(ours.samples),
        "voxels_per_s": middle(speeds),
        "interval": list(bootstrap_interval(speeds)) if len(speeds) > 1 else None,
        "seconds": ours.seconds,
        "peak_bytes": ours.facts["peak_bytes"],
        "limit_bytes": plan.limits["host_bytes"],
        "peak_device_bytes": ours.facts.get("peak_device_bytes"),
        "device_limit_bytes": plan.limits.get("device_bytes"),
        "rate_flop_per_s": rate,
        "rate_by": best.name if best else None,
        "score": middle(scores) if scores else None,
        "score_spread": [min(scores), max(scores)] if scores else None,
        "failures": {c.name: c.failure for c in theirs if c.failure},
    }


def _network_row(theirs: Contender, ours: Contender) -> dict:
    """The whole network by another library, and how many times more voxels per second the plan computes, round by round."""
    row = {"name": theirs.name, "failure": theirs.failure, "output": theirs.facts.get("output")}
    if not theirs.seconds:
        return row | {"voxels_per_s": None, "interval": None, "seconds": [], "speed_over": None}
    voxels = theirs.facts["voxels"]
    speeds = [voxels / s for s in theirs.seconds]
    both = min(len(ours.samples), len(theirs.samples))
    times = [ours.facts["voxels"] / middle(ours.samples[i]) * middle(theirs.samples[i]) / voxels for i in range(both)]
    return row | {
        "voxels_per_s": middle(speeds),
        "interval": list(bootstrap_interval(speeds)) if len(speeds) > 1 else None,
        "seconds": theirs.seconds,
        "wall_s": theirs.walls,
        "peak_bytes": theirs.facts.get("peak_bytes"),
        "peak_device_bytes": theirs.facts.get("peak_device_bytes"),
        "speed_over": {"median": middle(times), "low": min(times), "high": max(times), "rounds": both},
    }


def _text(path: str, found: dict) -> str:
    interval = found["interval"]
    spread = f" ({digits(interval[0])} .. {digits(interval[1])})" if interval else ""
    lines = [
        f"{path}: {digits(found['voxels_per_s'])} voxels/s{spread}, {found['rounds']} rounds, "
        f"{found['threads']} threads",
        f"peak   {bytes_text(found['peak_bytes'])} of {bytes_text(found['limit_bytes'])}",
    ]
    if found["score"] is not None:
        low, high = found["score_spread"]
        lines += [
            f"R      {digits(found['rate_flop_per_s'] / 1e9)} GFLOP/s by {found['rate_by']} (80>80 k3 in58)",
            f"score  {found['score']:.3f} ({low:.3f} .. {high:.3f}); 1 is PyTorch with an infinite patch and no limit",
        ]
    if found["peak_device_bytes"]:
        lines.append(f"GPU    {bytes_text(found['peak_device_bytes'])} of {bytes_text(found['device_limit_bytes'])}")
    for row in found["networks"]:
        if row["failure"] or not row["seconds"]:
            lines.append(f"{row['name']} failed: {row['failure'] or 'took no turn'}")
            continue
        ratio = row["speed_over"]
        lines.append(
            f"{row['name']}: {digits(row['voxels_per_s'])} voxels/s at an output of {by_x(row['output'])}; the plan is "
            f"{ratio['median']:.2f} ({ratio['low']:.2f} .. {ratio['high']:.2f}) times as fast, "
            f"in {bytes_text(found['peak_bytes'])} where it takes {bytes_text(row['peak_bytes'] or 0)}"
        )
    lines += [f"{name} failed: {failure}" for name, failure in found["failures"].items()]
    return "\n".join(lines)
