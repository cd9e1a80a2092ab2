"""The plan file: round trip, schema, and refusals that say what is wrong."""

import json
import stat
from importlib.resources import files

import jsonschema
import pytest

import znni
from znni.default_plan import default_plan
from znni.errors import FormatError, InvalidShape, MemoryLimit, PlanMismatch, ZnniError
from znni.plan import Plan

SCHEMA = json.loads(files("znni").joinpath("plan.schema.json").read_text())
MIB = 1 << 20


@pytest.fixture(scope="module")
def network():
    return znni.load("n337", seed=3, width=2)


@pytest.fixture
def plan(network):
    return default_plan(network, memory_bytes=400 * MIB, threads=1, volume=(8, 8, 8), baseline_bytes=200 * MIB)


def test_round_trip(plan, network, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    again = Plan.load(path)
    assert again.to_dict() == json.loads(path.read_text())
    assert again.digest == plan.digest
    assert again.bound_network().digest == network.digest
    assert not stat.S_IMODE(path.stat().st_mode) & stat.S_IXUSR
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_follows_the_schema(plan):
    jsonschema.validate(plan.to_dict(), SCHEMA)


def test_predicted_peak_is_within_the_limit(plan):
    memory = plan.memory
    assert memory["predicted_peak_bytes"] <= plan.limits["host_bytes"] == 400 * MIB
    assert memory["baseline_bytes"] + memory["arena_bytes"] + memory["resident_bytes"] < memory["predicted_peak_bytes"]


def test_the_limit_that_the_error_names_suffices(network):
    with pytest.raises(MemoryLimit, match="smallest limit that would do is") as error:
        default_plan(network, memory_bytes=MIB, threads=1, baseline_bytes=200 * MIB)
    least = int(str(error.value).rsplit(" ", 1)[1].removesuffix("MiB")) * MIB
    default_plan(network, memory_bytes=least, threads=1, baseline_bytes=200 * MIB)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("network"), "network is missing"),
        (lambda d: d.update(schema="znni-plan/9"), "expected schema"),
        (lambda d: d["patch"].update(input=[1, 2]), "patch.input must be a list of 3"),
        (lambda d: d["patch"].update(batch=0), "at least 1"),
        (lambda d: d["schedule"].pop("threads"), "schedule.threads"),
        (lambda d: d.update(layers=[]), "layers must be a list of 1 or more"),
        (lambda d: d["layers"][0].pop("primitive"), r"layers\[0\].primitive is missing"),
        (lambda d: d["limits"].update(host_bytes="4GiB"), "limits.host_bytes"),
    ],
)
def test_damaged_plans_are_refused(plan, tmp_path, change, message):
    data = json.loads(json.dumps(plan.to_dict()))
    change(data)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(FormatError, match=message):
        Plan.load(path)


def test_truncated_plan_is_refused(plan, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(FormatError, match="not a complete plan"):
        Plan.load(path)


def test_another_network_is_refused(plan, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    with pytest.raises(PlanMismatch, match=r"made for n337 .* got n337"):
        Plan.load(path, network=znni.load("n337", seed=4, width=2))


def test_missing_primitive_is_refused(plan, network):
    data = json.loads(json.dumps(plan.to_dict()))
    data["layers"][0]["primitive"] = "gpu.telepathy"
    with pytest.raises(PlanMismatch, match=r"needs gpu\.telepathy"):
        Plan.from_dict(data).bind(network)


def test_invalid_patch_is_refused(plan, network):
    plan.patch["input"] = [97, 97, 97]
    with pytest.raises(InvalidShape, match=r"each axis must be 84 \+ 8 i .* nearest are 92 and 100"):
        plan.bind(network)


def test_unwritable_folder_is_an_error(plan, tmp_path):
    with pytest.raises(ZnniError, match="cannot write"):
        plan.save(tmp_path / "nowhere" / "plan.json")


def test_limit_of_the_process_is_kept(plan, network):
    plan.bind(network)
    with pytest.raises(MemoryLimit, match="limit of 1 MiB"):
        plan.program(limit_bytes=MIB)
