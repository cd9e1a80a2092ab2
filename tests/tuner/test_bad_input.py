"""Wrong requests and bad files: one clear sentence on stderr, the right exit code, nothing written and nothing lost."""

from __future__ import annotations

import json
import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest

from znni.network import Network


@pytest.fixture
def refused(cli):
    """``refused(says, *arguments)``: exit code 2, one sentence that says so, and the folder as it was."""

    def check(says: str, *arguments: object, code: int = 2) -> str:
        before = contents()
        found = cli(*arguments)
        assert found.code == code, found.err
        assert re.search(says, found.err), found.err
        assert found.err.startswith("znni-tune")
        assert found.err.count("\n") == 1, found.err
        assert "Traceback" not in found.err
        assert found.out == ""
        assert contents() == before, "nothing is written, nothing is lost"
        return found.err

    return check


def contents() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}


def edit(path: str, to: str, **changes) -> str:
    """A copy of a plan with some of its parts changed."""
    data = json.loads(Path(path).read_text())
    for key, value in changes.items():
        data[key] = data[key] | value if isinstance(value, dict) else value
    Path(to).write_text(json.dumps(data))
    return to


TUNE = ("--memory", "1GiB", "--budget", "2s")


def test_unknown_network(refused):
    refused("no network is named 'n338'; did you mean n337", "tune", "n338", *TUNE)
    refused("no network is named", "bench", "n338")
    refused("cannot read nowhere.h5", "tune", "nowhere.h5", *TUNE)
    Path("broken.znni").write_text("INPUTS:1, LAYERS:1\nCONV 3,3\n")
    refused("broken.znni, line 2", "tune", "broken.znni", *TUNE)


def test_impossible_patch(refused):
    says = r"97x97x97 does not fit n337: each axis must be 84 \+ 8 i \(i >= 1\); nearest are 92 and 100"
    refused(says, "tune", "n337", "--width", "2", *TUNE, "--patch", "97,97,97")
    refused("the smallest is 92", "tune", "n337", "--width", "2", *TUNE, "--patch", "50")


def test_limit_too_small_says_what_would_do(refused, cli, process, small):
    error = refused(
        "the smallest limit that would do is [0-9]+MiB", "tune", small, "--memory", "10MiB", "--budget", "2s"
    )
    least = re.search(r"that would do is (\w+)", error)[1]
    assert cli("tune", small, "--memory", least, "--budget", "2s", "-o", "least.json").code == 0
    np.save("volume.npy", np.random.default_rng(0).random((12, 13, 14), np.float32))
    done = process("run", "least.json", "volume.npy", "out.npy", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["peak_bytes"] <= int(least.removesuffix("MiB")) << 20


def test_nan_weights(refused, shared):
    file = shared / "data/znn-nets/nan_weights.h5"
    if not file.exists():
        pytest.skip("needs the network file with NaN weights")
    refused("NaN", "tune", file, *TUNE)


def test_nan_weights_in_a_file_of_weights(refused, small, cli):
    from znni.load import load

    network = load(small)
    arrays = {f"{node}/{key}": array.copy() for node, own in network.weights.items() for key, array in own.items()}
    np.savez("good.npz", **arrays)
    assert isinstance(load(small, weights="good.npz"), Network)
    arrays["3_conv/weight"][0, 0, 0, 0, 0] = np.nan
    np.savez("bad.npz", **arrays)
    refused("3_conv.*NaN", "tune", small, *TUNE, "--weights", "bad.npz")
    refused("cannot read|no such|No such", "tune", small, *TUNE, "--weights", "missing.npz")


def test_plan_files_that_are_none(refused, plan, volume):
    whole = Path(plan).read_text()
    cases = {
        "truncated.json": (whole[: len(whole) // 2], "not a complete plan"),
        "empty.json": ("", "not a complete plan"),
        "list.json": ("[]", "is not a plan"),
        "other.json": ('{"schema": "other/1"}', "expected schema znni-plan/1"),
        "parts.json": ('{"schema": "znni-plan/1"}', "not a complete plan"),
        "binary.json": (b"\x80\x81\xff\x00", "not a text file"),
    }
    for name, (text, says) in cases.items():
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        for arguments in (("verify", name), ("explain", name), ("run", name, volume, "out.npy"), ("bench", name)):
            refused(says, *arguments)
    refused("cannot read plan nowhere.json", "explain", "nowhere.json")
    refused("cannot read plan", "run", ".", volume, "out.npy")


def test_plan_of_another_network(refused, plan, volume):
    other = Path("small.znni").read_text().replace("CONV 3,3,3 4", "CONV 3,3,3 5")
    Path("small.znni").write_text(other)
    refused("was made for small .* tune a plan for this network", "run", plan, volume, "out.npy")
    Path("small.znni").unlink()
    refused("small.znni", "run", plan, volume, "out.npy")


def test_plan_that_cannot_run_here(refused, plan, volume, cli):
    layers = json.loads(Path(plan).read_text())["layers"]
    lacking = edit(plan, "lacking.json", layers=[layers[0] | {"primitive": "gpu.warp"}, *layers[1:]])
    refused("needs gpu.warp, which this installation lacks", "run", lacking, volume, "out.npy")
    large = edit(plan, "large.json", memory={"arena_bytes": 1 << 50})
    refused("tune with a lower --memory", "run", large, volume, "out.npy")
    tight = edit(plan, "tight.json", limits={"host_bytes": 1 << 20})
    refused("more than its limit", "run", tight, volume, "out.npy")
    # It is still explained, with the reason.
    explained = cli("explain", lacking)
    assert explained.code == 0
    assert "needs gpu.warp" in explained.out


def test_plan_of_another_machine_runs_with_a_warning(cli, plan, volume):
    sets = {"fingerprint": "0" * 64, "instruction_sets": ["avx512f"]}
    other = edit(plan, "elsewhere.json", machine=sets)
    found = cli("run", other, volume, "out.npy")
    assert found.code == 0
    assert re.search(r"warning: elsewhere.json was made elsewhere.*instruction sets: avx512f there", found.err)
    assert Path("out.npy").exists()


def test_images_that_are_none(refused, plan):
    np.save("flat.npy", np.zeros((30, 30), np.float32))
    refused("2 axes", "run", plan, "flat.npy", "out.npy")
    np.save("five.npy", np.zeros((1, 1, 9, 9, 9), np.float32))
    refused("5 axes", "run", plan, "five.npy", "out.npy")
    np.save("words.npy", np.full((9, 9, 9), "a"))
    refused("real numbers", "run", plan, "words.npy", "out.npy")
    Path("text.npy").write_text("no array")
    refused("neither a TIFF", "run", plan, "text.npy", "out.npy")
    np.save("whole.npy", np.zeros((20, 20, 20), np.float32))
    Path("half.npy").write_bytes(Path("whole.npy").read_bytes()[:9000])
    refused("half.npy", "run", plan, "half.npy", "out.npy")
    refused("cannot read the input nowhere.tif", "run", plan, "nowhere.tif", "out.npy")
    refused("is a folder", "run", plan, ".", "out.npy")
    np.save("two.npy", np.zeros((2, 9, 9, 9), np.float32))
    refused("takes 1 channel, but two.npy has 2", "run", plan, "two.npy", "out.npy")
    np.save("nan.npy", np.full((9, 9, 9), np.nan, np.float32))
    refused("NaN", "run", plan, "nan.npy", "out.npy")
    np.save("floats.npy", np.zeros((9, 9, 9), np.float32))
    refused("uint8", "run", plan, "floats.npy", "out.npy", "--normalise", "uint8")


def test_volume_smaller_than_the_field_of_view(refused, plan):
    np.save("thin.npy", np.zeros((7, 20, 20), np.float32))
    refused("7x20x20 is smaller than the network's field of view 8x8x8 along z", "run", plan, "thin.npy", "out.npy")


def test_outputs_that_cannot_be(refused, plan, volume):
    Path("there.npy").write_bytes(b"precious")
    refused("exists.*--overwrite", "run", plan, volume, "there.npy")
    refused("does not exist; make it first", "run", plan, volume, "nowhere/out.npy")
    refused(r"\.npy or \.h5", "run", plan, volume, "out.tif")
    refused("is a folder", "run", plan, volume, str(Path("dir.npy").mkdir() or "dir.npy"))
    Path("full.npy").symlink_to("/dev/full")
    refused("no ordinary file", "run", plan, volume, "full.npy")
    refused("exists", "run", plan, volume, volume)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(refused, plan, small, volume):
    os.mkdir("locked", 0o500)
    refused("cannot create the output", "run", plan, volume, "locked/out.npy")
    refused("cannot write the plan file", "tune", small, *TUNE, "-o", "locked/p.json")


def test_plan_outputs_are_checked_before_any_work(refused):
    for output, says in (("nowhere/p.json", "folder nowhere .* does not exist"), (".", "is a folder")):
        refused(says, "tune", "n926", "--memory", "4GiB", "-o", output)
    Path("null.json").symlink_to("/dev/null")
    refused("no ordinary file", "tune", "n926", "--memory", "4GiB", "-o", "null.json")


def test_a_disk_that_fills(process, plan, volume):
    before = contents()

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    found = process("run", plan, volume, "out.npy", preexec_fn=limit_files)
    assert found.code == 1, found.err
    assert "out.npy" in found.err
    assert "Traceback" not in found.err
    assert contents() == before


def test_a_plan_file_that_cannot_be_completed(process, plan):
    before = contents()

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))

    found = process("verify", plan, preexec_fn=limit_files)
    assert found.code in (1, 2), found.err
    assert "Traceback" not in found.err
    assert contents() == before


def test_bench_requests(refused):
    refused("input size", "bench", "80>80 k3")
    refused("no primitive is named 'cpu.magic'", "bench", "8>8 k3 in9", "--primitive", "cpu.magic")
    refused("no primitive of those named computes", "bench", "8>8 k3 in9", "--primitive", "cpu.softmax")
    refused("no peer is named 'caffe'", "bench", "8>8 k3 in9", "--peers", "caffe")
    refused("needs at least 9 voxels", "bench", "8>8 k9 in8")


def test_stores_that_are_none(refused, small):
    Path("store.txt").write_text("not a database at all, but long enough to look at" * 30)
    refused("store.txt is not a store of znni", "tune", small, *TUNE, "--store", "store.txt")
    refused("cannot open the store", "tune", small, *TUNE, "--store", "nowhere/store.db")


def test_frozen_without_a_search(refused, small):
    refused("--frozen", "tune", small, *TUNE, "--frozen")
