"""``znni-tune bench PLAN``: a plan end to end, in turn with PyTorch's conv3d, whose rate R makes its score.

R is the FLOP/s that PyTorch reaches on 80 -> 80 channels, 3^3, input 58^3, in the better of its memory formats. The
score is output voxels per second times the direct arithmetic per output voxel, over R: 1.0 is PyTorch with an infinite
patch and no limit on memory.
"""

from __future__ import annotations

import argparse
import math
from contextlib import ExitStack

from tuner.bench_record import RATE_FLOP, RATE_LAYER, RATE_SHAPE, Recorder, check_json_target, describe_run, save_json
from tuner.console import StatusLine, print_json
from tuner.contender import layer_spec, plan_spec
from tuner.contest import TURN_S, Contender, failed, middle, rounds
from tuner.peers import library_of
from tuner.units import bytes_text, digits
from znni.errors import RunFailed, ZnniError
from znni.machine import this_machine
from znni.store import Store
from znni.timing import bootstrap_interval

#: Rounds that a score rests on at least, so that it has a spread; and where one takes longer than so many seconds.
LEAST_ROUNDS, LEAST_LONG_ROUNDS, LONG_S = 3, 2, 100.0
#: Seconds of a turn of PyTorch's: several calls, so that it is as warm as it gets.
RATE_TURN_S = 1.0


def bench_plan(args: argparse.Namespace, peers: tuple[str, ...]) -> int:
    """The command for a plan file."""
    from tuner.commands import load_plan

    other = [peer for peer in peers if library_of(peer) != "torch"]
    if other:
        raise ZnniError(f"a plan is timed beside torch alone, got {', '.join(other)}; use --peers torch")
    plan = load_plan(args.what)
    if args.output:
        check_json_target(args.output)
    machine = this_machine()
    line = StatusLine()
    with ExitStack() as stack:

        def enter(name: str, spec: dict, turn_s: float = TURN_S) -> Contender:
            contender = Contender(name, spec, turn_s)
            stack.callback(contender.close)
            return contender

        stack.callback(line.clear)
        store = stack.enter_context(Store(args.store))
        recorder = Recorder(store, machine)
        ours = enter("plan", plan_spec(args.what))
        theirs = [
            enter(peer, layer_spec(RATE_LAYER, RATE_SHAPE, plan.threads, peer=peer), RATE_TURN_S) for peer in peers
        ]
        for contender in [ours, *theirs]:
            line.show(f"preparing {contender.name}")
            contender.prepare(timeout_s=600.0)
        if ours.failure:
            raise RunFailed(f"{args.what} did not run: {ours.failure}")
        row = store.open_plan_run(plan.digest, machine=machine.fingerprint)

        def keep(contender: Contender, seconds: list[float]) -> None:
            if contender is not ours:
                recorder(contender, seconds)
                return
            for sample in seconds:
                row.add_sample(sample)

        everyone = [ours, *theirs]
        long = sum(layer.predicted_s for layer in plan.layers) > LONG_S
        rounds(
            everyone, args.seconds, least=LEAST_LONG_ROUNDS if long else LEAST_ROUNDS, patience=math.inf,
            hopeless=math.inf, progress=line.show, on_turn=keep,
        )  # fmt: skip
        recorder.finish(theirs)
        if not ours.seconds:
            row.fail(ours.failure or "took no turn")
            raise failed([ours], args.what)
        found = _summary(plan, ours, theirs, plan.bound_network().flop_per_voxel)
        row.finish(measured_voxels_per_s=found["voxels_per_s"], peak_bytes=found["peak_bytes"])
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
        "rate_flop_per_s": rate,
        "rate_by": best.name if best else None,
        "score": middle(scores) if scores else None,
        "score_spread": [min(scores), max(scores)] if scores else None,
        "failures": {c.name: c.failure for c in theirs if c.failure},
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
    lines += [f"{name} failed: {failure}" for name, failure in found["failures"].items()]
    return "\n".join(lines)
