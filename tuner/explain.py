"""What a plan says, layer by layer: primitive, predicted time, its share, bytes, and what its figures rest on."""

from __future__ import annotations

from tuner.console import table
from tuner.units import bytes_text, digits, seconds_text
from znni.errors import PlanMismatch, ZnniError
from znni.layers import by_x
from znni.layouts import settings_of
from znni.network import Network
from znni.plan import Plan, PlannedLayer
from znni.schedule import Level, calls_of, describe_levels, loops_of

#: Primitives that only move a tensor.
_TRANSFERS = {"gpu.upload": "CPU > GPU", "gpu.download": "GPU > CPU"}


def explain(
    plan: Plan, network: Network | None, why_not: ZnniError | None, rate_flop_per_s: float | None = None
) -> dict:
    """The explanation as data.

    Parameters
    ----------
    plan : Plan
    network : Network or None
        Where it could be loaded; the score needs it.
    why_not : ZnniError or None
        Why the plan cannot run here, if so.
    rate_flop_per_s : float, optional
        R: what PyTorch's conv3d reaches on this machine (``znni-tune bench PLAN --peers torch`` measures it).
    """
    # of a split plan both parts work at once, and the slower one tells
    total_s = max(sum(layer.predicted_s for layer in part) for part in _parts(plan))
    rate = plan.throughput.get("measured_voxels_per_s") or plan.throughput["predicted_voxels_per_s"]
    layers = [
        {
            "name": layer.name,
            "layer": None,
            "primitive": layer.primitive,
            "config": layer.config,
            "predicted_s": layer.predicted_s,
            "share": layer.predicted_s / total_s if total_s else None,
            "host_bytes": layer.host_bytes,
            "device_bytes": layer.device_bytes,
            "layout": layer.layout,
            "where": _where(layer),
            "basis": layer.basis,
        }
        for layer in plan.layers
    ]
    score = None
    if network is not None:
        if rate_flop_per_s:
            score = rate * network.flop_per_voxel / rate_flop_per_s
        _describe_layers(layers, network, plan)
    return {
        "network": plan.network,
        "machine": plan.machine,
        "runs_here": why_not is None,
        "why_not": None if why_not is None else str(why_not),
        "field_of_view": [i - o + 1 for i, o in zip(plan.input_patch, plan.output_patch, strict=True)],
        "patch": plan.patch,
        "schedule": plan.schedule,
        "split": plan.split,
        "split_choices": split_choices(plan),
        "normalise": plan.normalise,
        "layers": layers,
        "throughput": plan.throughput,
        "memory": plan.memory
        | {"limit_bytes": plan.limits["host_bytes"], "device_limit_bytes": plan.limits.get("device_bytes")},
        "score": score,
        "rate_flop_per_s": rate_flop_per_s,
        "verification": plan.verification,
        "search": plan.search,
        "digest": plan.digest,
        "command": plan.command,
        "created": plan.created,
    }


def _parts(plan: Plan) -> list[list[PlannedLayer]]:
    """The steps of a plan; of a split one those before and from the first on the GPU."""
    if plan.split is None:
        return [plan.layers]
    at = next((i for i, layer in enumerate(plan.layers) if _where(layer) != "CPU"), len(plan.layers))
    return [plan.layers[:at], plan.layers[at:]]


def _where(layer: PlannedLayer) -> str:
    """On which device a step is computed; a transfer is on its way between both."""
    if not layer.primitive.startswith("gpu."):
        return "CPU"
    return _TRANSFERS.get(layer.primitive, "GPU")


def split_choices(plan: Plan) -> list[dict]:
    """Every place where the network could be split, with the predicted seconds of both parts, as the search compared them.

    ``theta`` is the number of layers on the CPU; ``seconds`` is the slower part's, and None where nothing fits. Seconds are
    those of a patch of this plan's size.
    """
    found = []
    for theta, pair in enumerate(plan.schedule.get("split_seconds") or (), 1):
        cpu_s, gpu_s = pair or (None, None)
        slower = None if pair is None else max(pair)
        found.append({"theta": theta, "cpu_s": cpu_s, "gpu_s": gpu_s, "seconds": slower, "chosen": theta == plan.split})
    return found


def _describe_layers(layers: list[dict], network: Network, plan: Plan) -> None:
    from tuner.layer_string import layer_text

    nodes = network.lowered(plan.pooling, plan.levels)
    calls = calls_of(nodes, loops_of(nodes, plan.levels), plan.input_shape(network.in_channels))
    for entry in layers:
        call = next((call for call in calls if call.node.name == entry["name"]), None)
        if call:
            times = f" x{call.repeats}" if call.repeats > 1 else ""
            entry["layer"] = layer_text(call.node.layer, call.in_shape) + times


def config_text(config: dict) -> str:
    """A config in short: ``tile=16,16,16 resident``."""
    words = []
    for key, value in config.items():
        if value is True:
            words.append(key)
        elif value is False:
            words.append(f"no-{key}")
        elif isinstance(value, dict):
            words.append(f"{key}({config_text(value)})")
        elif isinstance(value, (list, tuple)):
            words.append(f"{key}={','.join(map(str, value))}")
        else:
            words.append(f"{key}={value}")
    return " ".join(words) or "-"


def explain_text(found: dict) -> str:
    """The explanation as text."""
    network, patch, search = found["network"], found["patch"], found["search"]
    narrowed = f", width {network['width']}" if network.get("width") else ""
    seed = f", seed {network['seed']}" if network.get("seed") is not None else ""
    batch = f", batch {patch['batch']}" if patch["batch"] > 1 else ""
    lines = [
        f"network     {network['name']} (from {network['source']}{seed}{narrowed})",
        f"machine     {found['machine'].get('cpu') or found['machine']['fingerprint']}",
        f"patch       {by_x(patch['input'])} in, {by_x(patch['output'])} out{batch}; "
        f"field of view {by_x(found['field_of_view'])}",
        f"schedule    poolings as {found['schedule']['pooling']}, {_order(found['schedule'])}, "
        f"{found['schedule']['threads']} threads",
    ]
    if found["normalise"] != "none":
        lines.append(f"normalise   {found['normalise']}")
    if efficiency := found["throughput"].get("border_efficiency"):
        lines.append(f"borders     {efficiency:.3f} of the arithmetic is what an infinite patch would need")
    if found["why_not"]:
        lines.append(f"cannot run  {found['why_not']}")
    if found["split"] is not None:
        lines.append(
            f"split       the first {found['split']} layers on the CPU, the rest on the GPU, two patches at a time"
        )
    lines += ["", _layer_table(found["layers"]), ""]
    if found["split_choices"]:
        lines += [*_split_lines(found), ""]
    throughput, memory = found["throughput"], found["memory"]
    measured = throughput.get("measured_voxels_per_s")
    spread = ""
    if measured and throughput.get("interval"):
        low, high = throughput["interval"]
        spread = f" ({digits(low)} .. {digits(high)})"
    lines += [
        f"throughput  predicted {digits(throughput['predicted_voxels_per_s'])} voxels/s, "
        + (f"measured {digits(measured)} voxels/s{spread}" if measured else "not measured yet"),
        f"memory      predicted {bytes_text(memory['predicted_peak_bytes'])}, "
        f"measured {bytes_text(memory.get('measured_peak_bytes'))}, limit {bytes_text(memory['limit_bytes'])}",
    ]
    if on_gpu := memory.get("device_arena_bytes", 0) + memory.get("device_resident_bytes", 0):
        lines.append(
            f"GPU memory  predicted {bytes_text(on_gpu)}, measured {bytes_text(memory.get('measured_device_peak_bytes'))}, "
            f"limit {bytes_text(memory['device_limit_bytes'])}"
        )
    if found["score"] is not None:
        rate = digits(found["rate_flop_per_s"] / 1e9)
        lines.append(
            f"score       {found['score']:.3f}; 1 is PyTorch's conv3d at {rate} GFLOP/s with an infinite patch"
        )
    checked = found["verification"]
    if checked:
        verdict = "within" if checked["relative_l2"] <= checked["tolerance"] else "MISSES"
        lines.append(
            f"verified    relative L2 error {checked['relative_l2']:.2e}, {verdict} the tolerance "
            f"{checked['tolerance']:.0e} ({checked['reference']})"
        )
    else:
        lines.append("verified    not yet (znni-tune verify)")
    complete = "complete" if search.get("complete") else "not complete"
    lines.append(
        f"search      {complete}: {search.get('trials', 0)} trials, {search.get('measurements', 0)} measurements"
    )
    return "\n".join(lines)


def _order(schedule: dict) -> str:
    return describe_levels(tuple(Level(**level) for level in schedule.get("levels", ())))


def _split_lines(found: dict) -> list[str]:
    """Why the split is where it is: what both parts would take at every other place."""
    choices = found["split_choices"]
    rows = [
        [
            f"{'*' if choice['chosen'] else ' '} {choice['theta']}",
            seconds_text(choice["cpu_s"]),
            seconds_text(choice["gpu_s"]),
            "does not fit" if choice["seconds"] is None else seconds_text(choice["seconds"]),
        ]
        for choice in choices
    ]
    lines = [table(["layers on the CPU", "CPU part", "GPU part", "a patch takes"], rows), ""]
    chosen = next((choice for choice in choices if choice["chosen"]), None)
    if chosen and chosen["seconds"] is not None:
        slower, other = ("CPU", "GPU") if chosen["cpu_s"] >= chosen["gpu_s"] else ("GPU", "CPU")
        idle = 1 - min(chosen["cpu_s"], chosen["gpu_s"]) / chosen["seconds"]
        fastest = all(chosen["seconds"] <= choice["seconds"] for choice in choices if choice["seconds"] is not None)
        lines.append(
            f"            a patch takes as long as the slower part, here the {slower}'s; the {other} is idle for "
            f"{100 * idle:.0f} % of it" + ("; no other split was predicted to be faster" if fastest else "")
        )
    return lines


def _layer_table(layers: list[dict]) -> str:
    """One row a step; with GPU columns where any is on the GPU."""
    with_gpu = any(entry["where"] != "CPU" for entry in layers)
    rows = [
        [
            entry["name"],
            entry["layer"] or "",
            *([entry["where"]] if with_gpu else []),
            entry["primitive"],
            config_text(settings_of(entry["config"]) if with_gpu else entry["config"]),
            seconds_text(entry["predicted_s"]),
            "-" if entry["share"] is None else f"{100 * entry['share']:.1f} %",
            bytes_text(entry["host_bytes"]),
            *([bytes_text(entry["device_bytes"])] if with_gpu else []),
            entry["basis"],
        ]
        for entry in layers
    ]
    where, on_gpu = (["where"], ["on the GPU"]) if with_gpu else ([], [])
    header = ["name", "layer", *where, "primitive", "config", "predicted", "share", "beside tensors", *on_gpu, "basis"]
    return table(header, rows, left=4 + len(where))


def known_rate(store_path: str | None, plan: Plan) -> float | None:
    """R on this machine with the plan's threads, where the store knows it (`tuner.bench_record.known_rate`)."""
    from tuner.bench_record import known_rate as stored_rate
    from znni.machine import this_machine
    from znni.store import Store
    from znni.store_file import default_path

    if store_path is None and not default_path().exists():
        return None
    with Store(store_path) as store:
        return stored_rate(store, this_machine(), plan.threads)


def load_for_explaining(path: str) -> tuple[Plan, Network | None, ZnniError | None]:
    """The plan in `path`, its network where that can be loaded, and why it cannot run here, if so."""
    plan = Plan.read(path)
    try:
        from znni.load import load

        source = plan.network
        network = load(source["source"], source.get("weights"), source.get("seed"), source.get("width"))
    except ZnniError as error:
        return plan, None, error
    if network.digest != plan.network["digest"]:
        reason = f"{path} was made for other weights or layers than {network.name} has now; tune again"
        return plan, None, PlanMismatch(reason)
    try:
        plan.bind(network, path)
    except ZnniError as error:
        return plan, network, error
    return plan, network, None
