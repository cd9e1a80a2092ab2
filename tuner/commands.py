"""The commands of ``znni-tune``: each takes the parsed arguments and gives an exit code."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.console import StatusLine, note, print_json, table
from tuner.units import bytes_text, digits, seconds_text
from znni.errors import RunFailed, ZnniError
from znni.layers import by_x

if TYPE_CHECKING:
    from znni.network import Network
    from znni.plan import Plan


def networks(args: argparse.Namespace) -> int:
    """List the zoo."""
    from tuner.layer_string import node_words
    from znni.load import load
    from znni.zoo import networks as zoo

    found = []
    for published in zoo().values():
        # narrowed to one channel: what is asked of its geometry does not depend on the weights
        network = load(published.name, width=1)
        patch = published.patch or network.input_patch(network.least_output)
        found.append(
            {
                "name": published.name,
                "field_of_view": list(network.field_of_view),
                "sliding": network.sliding,
                "strides": list(network.strides),
                "least_patch": list(network.input_patch(network.least_output)),
                "patch": list(patch),
                "margin": list(network.margin(patch)),
                "in_channels": published.in_channels,
                "out_channels": published.out_channels,
                "parameters": published.parameters,
                "source": published.source,
                "status": published.status,
                "layers": node_words(published.nodes, published.in_channels),
            }
        )
    if args.json:
        print_json(found)
        return 0
    rows = [
        [n["name"], by_x(n["field_of_view"]), n["in_channels"], n["out_channels"], f"{n['parameters']:,}"]
        for n in found
    ]
    if not args.explain:
        print(table(["name", "field of view", "in", "out", "parameters"], rows))
        return 0
    for n in found:
        print(f"{n['name']}: field of view {by_x(n['field_of_view'])}, {n['parameters']:,} parameters")
        print(f"  {n['status']}: {n['source']}")
        print(f"  {_sizes_text(n)}")
        print("  " + ", ".join(n["layers"]) + "\n")
    return 0


def _sizes_text(n: dict) -> str:
    """Which patches a network takes, and what their borders do."""
    least, strides = n["least_patch"], n["strides"]
    rules = ", ".join(f"{axis} {a} + {s} i" for axis, a, s in zip("zyx", least, strides, strict=True))
    text = f"strides {by_x(strides)}; input patches: {rules} (i >= 0)"
    if n["sliding"]:
        return f"{text}, valid: no border is felt, each patch gives the field of view less one voxels fewer"
    if any(n["margin"]):
        margin = f"of a patch of {by_x(n['patch'])}, {by_x(n['margin'])} voxels at borders between patches are dropped"
        return f"{text}; padded: {margin}"
    return text


def doctor(args: argparse.Namespace) -> int:
    """Show machine and installation."""
    from tuner.doctor import doctor_text, examine

    found = examine(args.store)
    print_json(found) if args.json else print(doctor_text(found))
    return 0


def tune(args: argparse.Namespace) -> int:
    """Search for a plan."""
    from znni.load import load

    check_plan_target(args.output)
    network = load(args.network, weights=args.weights, seed=args.weights_seed, width=args.width)
    output = None
    if args.patch is not None:
        network.check_patch(args.patch)
        output = network.output_patch(args.patch)
    volume = None if args.volume is None else volume_output(args.volume, network)
    from tuner.plan_device import opened_within

    if args.only and args.gpu_memory is None:
        raise ZnniError(f"--only {args.only} is of a GPU: give --gpu-memory with it")
    if args.gpu_memory is not None and not network.chain:
        raise ZnniError(
            f"{network.name} is no chain of sliding-window layers, and only these run on the GPU; leave out --gpu-memory"
        )
    with opened_within(args.gpu_memory) as gpu_memory_bytes:
        return _tune(args, network, output, volume, gpu_memory_bytes)


def _tune(args: argparse.Namespace, network: Network, output, volume, gpu_memory_bytes: int | None) -> int:
    from tuner.request import Request
    from tuner.search import tune as search
    from znni.store import Store

    request = Request(
        memory_bytes=args.memory,
        threads=args.threads,
        budget_s=args.budget,
        tolerance=args.tolerance,
        seed=args.seed,
        normalise=args.normalise,
        frozen=args.frozen,
        output=output,
        patch=None if network.sliding else args.patch,
        volume=volume,
        foreign=args.foreign,
        gpu_memory_bytes=gpu_memory_bytes,
        split=not args.no_split,
        only=args.only,
    )
    kept = []

    def save(plan) -> None:
        plan.save(args.output)
        kept[:] = [plan]

    line = StatusLine()
    try:
        with Store(args.store) as store:
            plan = search(
                network, request, store, save=save, progress=lambda event: line.show(_progress_text(event)),
                command=shlex.join(["znni-tune", *args.typed]),
            )  # fmt: skip
    except KeyboardInterrupt:
        line.clear()
        note(f"znni-tune: interrupted; {_kept_text(kept[0], args.output) if kept else 'no plan was found yet'}")
        return 130
    finally:
        line.clear()
    if args.json:
        print_json(plan.to_dict())
    else:
        print(_tuned_text(plan, network, args.output))
    return 0


def volume_output(given: str, network: Network) -> tuple[int, int, int]:
    """Output voxels (z, y, x) of the volume file, or of the size ``Z,Y,X``, that `given` names."""
    from tuner.units import parse_triple
    from znni.volume import Grid
    from znni.volume_files import open_volume

    if Path(given).exists():
        with open_volume(given) as reader:
            size = reader.shape[1:]
    else:
        size = parse_triple(given)
    if not network.sliding:  # as large as the volume, but for what its smallest patch loses
        lost = network.lost(network.input_patch(network.least_output))
        return tuple(max(1, n - less) for n, less in zip(size, lost, strict=True))
    return Grid(size, network.field_of_view, network.field_of_view).output


def _progress_text(event: dict) -> str:
    best = event.get("best_voxels_per_s")
    return (
        f"{event['stage']}: {event['spent_s']:.0f} of {event['budget_s']:.0f} s, {event['trials']} trials, "
        f"{event['measurements']} measurements"
        + (f", {event['failed']} failed" if event.get("failed") else "")
        + (f", best {digits(best)} voxels/s" if best else "")
        + (f"; {event['note']}" if event.get("note") else "")
    )


def _kept_text(plan, path: str) -> str:
    rate = plan.throughput.get("measured_voxels_per_s")
    how = f"measured at {digits(rate)} voxels/s" if rate else "not measured yet"
    return f"the best plan so far is in {path} ({how}, not complete); the same command goes on from here"


def _tuned_text(plan, network, path: str) -> str:
    throughput, memory = plan.throughput, plan.memory
    rate = throughput.get("measured_voxels_per_s")
    interval = throughput.get("interval")
    spread = f" ({digits(interval[0])} .. {digits(interval[1])})" if interval else ""
    search, checked = plan.search, plan.verification
    return "\n".join(
        [
            f"{path}: {network.name}, patch {by_x(plan.input_patch)} -> {by_x(plan.output_patch)}, "
            f"{plan.threads} threads",
            (f"measured {digits(rate)} voxels/s{spread}" if rate else "not measured")
            + f", peak {bytes_text(memory.get('measured_peak_bytes'))} of {bytes_text(plan.limits['host_bytes'])}",
            f"{search.get('trials', 0)} trials, {search.get('measurements', 0)} measurements, "
            + ("complete" if search.get("complete") else "not complete")
            + (f", relative L2 error {checked['relative_l2']:.1e}" if checked else ""),
        ]
    )


def check_plan_target(path: str) -> None:
    """`ZnniError` unless a plan file can be written to `path`, a temporary file beside it included."""
    target = Path(path)
    if target.is_dir():
        raise ZnniError(f"the plan file {path} is a folder; give the name of a file in it with -o")
    if target.exists() and not target.is_file():
        raise ZnniError(f"the plan file {path} is no ordinary file; give another name with -o")
    if not target.parent.is_dir():
        raise ZnniError(
            f"the folder {target.parent} of the plan file {path} does not exist; make it, or choose another with -o"
        )
    try:
        handle, scratch = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise ZnniError(
            f"cannot write the plan file {path}: {error.strerror}; choose another folder with -o"
        ) from error
    os.close(handle)
    os.unlink(scratch)


def load_plan(path: str) -> Plan:
    """The plan in `path`, bound to its network; says on stderr where its measured figures are void."""
    from znni.machine import this_machine
    from znni.plan import Plan

    plan = Plan.load(path)
    differences = this_machine().differences(plan.machine)
    if differences:
        note(
            f"znni-tune: warning: {path} was made elsewhere, and its measured figures do not hold here "
            f"({'; '.join(differences)})"
        )
    return plan


def verify(args: argparse.Namespace) -> int:
    """Compare a plan with the truth."""
    from tuner.plan_device import opened_for
    from znni.store import Store
    from znni.verify import DEFAULT_TOLERANCE
    from znni.verify import verify as check

    check_plan_target(args.plan)
    plan = load_plan(args.plan)
    tolerance = args.tolerance or DEFAULT_TOLERANCE
    with opened_for(plan), Store(args.store) as store:
        found = check(plan, tolerance=tolerance, store=store)
    plan.verification = found
    plan.save(args.plan)
    if args.json:
        print_json(found)
    else:
        print(
            f"{args.plan}: relative L2 error {found['relative_l2']:.2e}, largest {found['max_abs_error']:.2e}, "
            f"against {found['reference']}; the tolerance is {tolerance:.0e}"
        )
    if not found["passed"]:
        raise RunFailed(
            f"{args.plan} misses its tolerance: relative L2 error {found['relative_l2']:.2e}, allowed {tolerance:.0e}; "
            "tune again with a larger --tolerance, or report the primitives that explain shows"
        )
    return 0


def explain(args: argparse.Namespace) -> int:
    """Show a plan."""
    from tuner.explain import explain as describe
    from tuner.explain import explain_text, known_rate, load_for_explaining

    plan, network, why_not = load_for_explaining(args.plan)
    found = describe(plan, network, why_not, known_rate(args.store, plan))
    print_json(found) if args.json else print(explain_text(found))
    return 0


def run(args: argparse.Namespace) -> int:
    """Run a plan over a volume. Imports as little as it can: the plan's limit counts every module."""
    from tuner.plan_device import opened_for
    from znni.process_memory import peak_resident_bytes
    from znni.volume_files import check_target, open_volume

    check_target(args.result, args.overwrite)
    open_volume(args.input).close()
    plan = load_plan(args.plan)
    limit = plan.limits["host_bytes"]
    progress = _Bar() if sys.stderr.isatty() else None
    device_peak = None
    try:
        with opened_for(plan) as device:
            done = plan.run_volume(
                args.input, args.result, normalise=args.normalise, overwrite=args.overwrite, limit_bytes=limit,
                progress=progress,
            )  # fmt: skip
            device_peak = device and device.peak_bytes
    finally:
        if progress:
            progress.close()
    peak = peak_resident_bytes()
    found = {
        "output": args.result,
        "voxels": done.voxels,
        "patches": done.patches,
        "wall_s": done.wall_s,
        "compute_s": done.compute_s,
        "voxels_per_s": done.voxels_per_s,
        "computed_voxels_per_s": done.computed_voxels / done.compute_s,
        "peak_bytes": peak,
        "limit_bytes": limit,
        "device_peak_bytes": device_peak,
        "device_limit_bytes": plan.limits.get("device_bytes"),
    }
    if args.json:
        print_json(found)
    else:
        print(
            f"{args.result}: {done.voxels:,} voxels in {seconds_text(done.wall_s)}, "
            f"{digits(done.voxels_per_s)} voxels/s ({digits(found['computed_voxels_per_s'])} computed), "
            f"peak {bytes_text(peak)} of {bytes_text(limit)}"
            + (
                f", {bytes_text(device_peak)} of {bytes_text(found['device_limit_bytes'])} on the GPU"
                if device_peak
                else ""
            )
        )
    if peak > limit:
        note(
            f"znni-tune: warning: the process took {bytes_text(peak)}, "
            f"more than the plan's limit of {bytes_text(limit)}"
        )
    return 0


class _Bar:
    """A progress bar in output voxels, made at the first call."""

    def __init__(self):
        self._bar = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="voxel", unit_scale=True, leave=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def bench(args: argparse.Namespace) -> int:
    """Time layers or a plan, in turn with other libraries."""
    from tuner.bench import bench as contest

    return contest(args)


COMMANDS = {
    "networks": networks,
    "doctor": doctor,
    "tune": tune,
    "verify": verify,
    "explain": explain,
    "run": run,
    "bench": bench,
}
