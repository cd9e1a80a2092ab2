"""What a plan says, layer by layer: primitive, predicted time, its share, bytes, and what its figures rest on."""

from __future__ import annotations

from tuner.console import table
from tuner.units import bytes_text, digits, seconds_text
from znni.errors import PlanMismatch, ZnniError
from znni.layers import by_x
from znni.network import Network
from znni.plan import Plan
from znni.schedule import Level, calls_of, describe_levels, loops_of


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
    total_s = sum(layer.predicted_s for layer in plan.layers)
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
        "normalise": plan.normalise,
        "layers": layers,
        "throughput": plan.throughput,
        "memory": plan.memory | {"limit_bytes": plan.limits["host_bytes"]},
        "score": score,
        "rate_flop_per_s": rate_flop_per_s,
        "verification": plan.verification,
        "search": plan.search,
        "digest": plan.digest,
        "command": plan.command,
        "created": plan.created,
    }


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
    lines += ["", _layer_table(found["layers"]), ""]
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


def _layer_table(layers: list[dict]) -> str:
    rows = [
        [
            entry["name"],
            entry["layer"] or "",
            entry["primitive"],
            config_text(entry["config"]),
            seconds_text(entry["predicted_s"]),
            "-" if entry["share"] is None else f"{100 * entry['share']:.1f} %",
            bytes_text(entry["host_bytes"]),
            entry["basis"],
        ]
        for entry in layers
    ]
    return table(
        ["name", "layer", "primitive", "config", "predicted", "share", "beside tensors", "basis"], rows, left=4
    )


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
