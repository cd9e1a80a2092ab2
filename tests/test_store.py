"""The store: what goes in comes out, sample by sample, whoever else writes and whoever is killed."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap

import pytest

from znni.errors import FormatError, ZnniError
from znni.gpu.ceilings import DeviceCeilings
from znni.layers import Activation, Conv, MaxPool, MaxPoolFragments, Recombine
from znni.predict import Measured
from znni.store import Store, measured_here
from znni.store_file import SCHEMA_VERSION, default_path
from znni.store_rows import NO_THREADS, DeviceFigures, MeasurementKey
from znni.timing import Timing, summarise

CONV = Conv(8, (3, 3, 3), activation=Activation.of("leaky_relu"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
def store(path):
    with Store(path) as opened:
        yield opened


def key(**changes):
    usual = {
        "layer": CONV,
        "shape": (1, 4, 10, 12, 14),
        "primitive": "cpu.direct",
        "config": {"tile": [4, 8], "resident": True},
        "threads": 2,
        "machine": "m" * 64,
        "kernels": "k" * 64,
    }
    return MeasurementKey(**usual | changes)


def timing(samples, **flags):
    summary = summarise(samples)
    return Timing(tuple(samples), (), 1, summary.median_s, summary.iqr_s, summary.interval_s, **flags)


def measure(store, own_key, *samples, **flags):
    row = store.open_measurement(own_key, predicted_bytes=1000)
    for sample in samples:
        row.add_sample(sample)
    row.finish(timing(samples, **flags), measured_bytes=900, relative_l2=1e-7)


def test_a_measurement_comes_back_whole(store):
    samples = (0.1, 1 / 3, 1e-7 / 3)
    measure(store, key(), *samples, early_stopped=True)
    (found,) = store.measurements()
    assert found.key == key()
    assert found.samples == samples  # to the last bit
    assert (found.median_s, found.iqr_s) == (0.1, summarise(samples).iqr_s)
    assert found.early_stopped and found.finished and not found.single and found.failed is None
    assert (found.predicted_bytes, found.measured_bytes, found.relative_l2) == (1000, 900, 1e-7)
    assert found.created.startswith("20")


@pytest.mark.parametrize(
    "layer",
    [
        CONV,
        Conv(3, (1, 3, 3), (2, 1, 1), (0, 1, 1), (1, 2, 2), Activation.of(("elu", 0.5))),
        MaxPool((1, 2, 2), (1, 2, 2)),
        MaxPoolFragments((2, 2, 2), (1, 2, 2)),
        Recombine(((2, 2, 2), (1, 2, 2))),
    ],
)
def test_every_layer_survives(store, layer):
    measure(store, key(layer=layer), 1.0)
    assert store.measurements(layer=layer)[0].key.layer == layer


def test_the_order_of_config_settings_does_not_matter(store):
    measure(store, key(config={"a": 1, "b": 2}), 1.0)
    assert store.latest(key(config={"b": 2, "a": 1})).median_s == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"layer": Conv(8, (3, 3, 3))},
        {"shape": (2, 4, 10, 12, 14)},
        {"primitive": "cpu.fft"},
        {"config": {}},
        {"threads": 1},
        {"machine": "other"},
        {"kernels": "other"},
        {"device": "gpu"},
    ],
)
def test_each_part_of_the_key_counts(store, change):
    measure(store, key(), 1.0)
    assert store.latest(key(**change)) is None


def test_rows_are_kept_for_ever_and_the_newest_counts(store):
    measure(store, key(), 1.0)
    measure(store, key(), 2.0)
    assert [m.median_s for m in store.measurements()] == [1.0, 2.0] and store.count_measurements() == 2
    assert store.latest(key()).median_s == 2.0
    assert store.measured("m" * 64, 2) == [Measured(CONV, key().shape, "cpu.direct", key().config, 2.0)]


def test_selections(store):
    other = MaxPool((2, 2, 2), (2, 2, 2))
    measure(store, key(), 1.0)
    measure(store, key(threads=1), 2.0)
    measure(store, key(layer=other, primitive="cpu.max_pool"), 3.0)
    measure(store, key(machine="other"), 4.0)

    def medians(**wanted):
        return [m.median_s for m in store.measurements(**wanted)]

    assert medians(threads=1) == [2.0]
    assert medians(layer=other) == [3.0]
    assert medians(primitive="cpu.direct", machine="m" * 64) == [1.0, 2.0]
    assert [m.seconds for m in store.measured("m" * 64, 2)] == [1.0, 3.0]
    assert [m.seconds for m in store.measured("m" * 64, 2, other)] == [3.0]
    assert store.measured("m" * 64, 7) == []


def test_a_failure_is_kept_with_its_reason_and_predicts_nothing(store):
    measure(store, key(), 1.0)
    row = store.open_measurement(key())
    row.add_sample(9.0)
    row.fail("was killed by SIGSEGV", relative_l2=0.5)
    found = store.latest(key())
    assert found.failed == "was killed by SIGSEGV" and found.samples == (9.0,) and found.relative_l2 == 0.5
    assert store.measured("m" * 64, 2) == []
    measure(store, key(), 2.0)  # it was mended
    assert [m.seconds for m in store.measured("m" * 64, 2)] == [2.0]


def test_a_row_without_samples_is_no_measurement(store):
    measure(store, key(), 1.0)
    store.open_measurement(key())
    assert store.latest(key()).median_s == 1.0
    assert [m.seconds for m in store.measured("m" * 64, 2)] == [1.0]


def test_simulated_devices_are_refused(store):
    with pytest.raises(ValueError, match="never speed"):
        store.open_measurement(key(device="simulated"))
    with pytest.raises(ValueError, match="never speed"):
        store.open_plan_run("p", machine="m", device="simulated")
    assert store.measurements() == [] and store.plan_runs() == []


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_samples_are_finite(store, wrong):
    with pytest.raises(ValueError, match="finite"):
        store.open_measurement(key()).add_sample(wrong)


def test_plan_runs(store):
    run = store.open_plan_run("p1", machine="m", request="r", predicted_voxels_per_s=2e6, predicted_bytes=5000)
    run.add_sample(0.25)
    run.add_sample(0.5)
    run.finish(measured_voxels_per_s=1.5e6, peak_bytes=4000)
    store.open_plan_run("p2", machine="m", request="r").fail("took 9 bytes more than it may", peak_bytes=9)
    one, two = store.plan_runs(request="r")
    assert (one.plan, one.samples, one.measured_voxels_per_s, one.peak_bytes) == ("p1", (0.25, 0.5), 1.5e6, 4000)
    assert (one.predicted_voxels_per_s, one.predicted_bytes, one.failed) == (2e6, 5000, None)
    assert two.failed.startswith("took 9") and two.peak_bytes == 9
    assert store.plan_runs(plan="p2") == [two]


def test_verifications_and_ceilings(store):
    assert store.verification("p") is None and store.ceilings("m", 2) is None
    store.save_verification("p", {"relative_l2": 1e-6})
    store.save_verification("p", {"relative_l2": 2e-6})
    store.save_ceilings("m", 2, 1e11, 2e10)
    assert store.verification("p") == {"relative_l2": 2e-6}
    assert store.ceilings("m", 2) == (1e11, 2e10) and store.ceilings("m", 1) is None


def test_requests_keep_what_is_not_given_anew(store):
    assert store.request("r") is None
    store.save_request("r", spent_s=1.5, trials=3)
    assert store.request("r").plan is None and not store.request("r").complete
    store.save_request("r", spent_s=2.5, trials=5, plan={"schema": "znni-plan/1"}, complete=True)
    store.save_request("r", spent_s=3.5, trials=9)
    found = store.request("r")
    assert (found.spent_s, found.trials, found.plan, found.complete) == (3.5, 9, {"schema": "znni-plan/1"}, True)
    store.save_request("r", spent_s=3.5, trials=9, complete=False)
    assert not store.request("r").complete and store.request("r").trials == 9


def test_a_measurement_on_the_gpu_keeps_both_clocks_and_both_memories(store):
    own = key(primitive="gpu.fft", device="gpu", threads=NO_THREADS)
    row = store.open_measurement(own, predicted_bytes=10, predicted_device_bytes=1000, clock="device")
    row.add_sample(0.25)
    figures = DeviceFigures(wall_s=0.3, cold_s=2.5, predicted_device_bytes=1000, measured_device_bytes=1024)
    row.finish(timing([0.25]), relative_l2=1e-6, device=figures)
    measure(store, key(), 1.0)
    one, two = store.measurements()
    assert (one.clock, one.wall_s, one.cold_s) == ("device", 0.3, 2.5)
    assert (one.predicted_bytes, one.predicted_device_bytes, one.measured_device_bytes) == (10, 1000, 1024)
    assert (two.clock, two.wall_s, two.cold_s, two.measured_device_bytes) == ("wall", None, None, None)
    assert [m.primitive for m in store.measured("m" * 64, NO_THREADS)] == ["gpu.fft"]
    assert [m.primitive for m in store.measured("m" * 64, 2)] == ["cpu.direct"]


def test_what_says_nothing_is_dropped(store):
    row = store.open_measurement(key())
    row.add_sample(1.0)
    row.drop()
    assert store.measurements() == [] and store.latest(key()) is None


def test_plan_runs_on_both_devices(store):
    run = store.open_plan_run("p", machine="m", device="split", predicted_device_bytes=500)
    run.finish(measured_voxels_per_s=1.0, peak_bytes=4000, peak_device_bytes=499)
    store.open_plan_run("q", machine="m", device="gpu").fail("took too much", peak_device_bytes=9)
    (one,), (two,) = (store.plan_runs(plan=plan) for plan in "pq")
    assert (one.device, one.predicted_device_bytes, one.peak_device_bytes) == ("split", 500, 499)
    assert (two.device, two.failed, two.peak_device_bytes) == ("gpu", "took too much", 9)


def test_ceilings_of_a_gpu(store):
    assert store.device_ceilings("m") is None
    for flop_per_s in (1e13, 2e13):
        store.save_device_ceilings("m", DeviceCeilings(flop_per_s, 2e12, 3e10, 4e10))
    assert store.device_ceilings("m") == DeviceCeilings(2e13, 2e12, 3e10, 4e10)


#: The tables of version 1, before there was a GPU.
OLD_TABLES = """
CREATE TABLE measurements (
    id INTEGER PRIMARY KEY, layer TEXT NOT NULL, shape TEXT NOT NULL, primitive TEXT NOT NULL, config TEXT NOT NULL,
    threads INTEGER NOT NULL, device TEXT NOT NULL, machine TEXT NOT NULL, kernels TEXT NOT NULL,
    samples TEXT NOT NULL DEFAULT '[]', median_s REAL, iqr_s REAL, single INTEGER NOT NULL DEFAULT 0,
    early_stopped INTEGER NOT NULL DEFAULT 0, finished INTEGER NOT NULL DEFAULT 0, failed TEXT,
    predicted_bytes INTEGER, measured_bytes INTEGER, relative_l2 REAL, created TEXT NOT NULL
);
CREATE INDEX measurements_by_machine ON measurements (machine, threads, layer);
CREATE TABLE plan_runs (
    id INTEGER PRIMARY KEY, plan TEXT NOT NULL, request TEXT, machine TEXT NOT NULL, predicted_voxels_per_s REAL,
    measured_voxels_per_s REAL, samples TEXT NOT NULL DEFAULT '[]', predicted_bytes INTEGER, peak_bytes INTEGER,
    failed TEXT, created TEXT NOT NULL
);
CREATE INDEX plan_runs_by_plan ON plan_runs (plan);
CREATE TABLE verifications (plan TEXT PRIMARY KEY, result TEXT NOT NULL, created TEXT NOT NULL);
CREATE TABLE requests (
    digest TEXT PRIMARY KEY, spent_s REAL NOT NULL, trials INTEGER NOT NULL, plan TEXT, complete INTEGER NOT NULL,
    updated TEXT NOT NULL
);
CREATE TABLE ceilings (
    machine TEXT NOT NULL, threads INTEGER NOT NULL, flop_per_s REAL NOT NULL, bytes_per_s REAL NOT NULL,
    created TEXT NOT NULL, PRIMARY KEY (machine, threads)
);
PRAGMA application_id = 0x7A6E6E69;
PRAGMA user_version = 1;
"""


@pytest.fixture
def old(path):
    """A store of version 1 with a measurement, a plan run and ceilings."""
    columns = key().columns()
    connection = sqlite3.connect(path)
    connection.executescript(OLD_TABLES)
    connection.execute(
        f"INSERT INTO measurements ({', '.join(columns)}, samples, median_s, iqr_s, finished, created) "
        f"VALUES ({', '.join('?' * len(columns))}, '[0.5, 0.25]', 0.375, 0.125, 1, '2026')",
        list(columns.values()),
    )
    connection.execute("INSERT INTO plan_runs (plan, machine, samples, created) VALUES ('p', 'm', '[1.5]', '2026')")
    connection.execute("INSERT INTO ceilings VALUES ('m', 2, 1e11, 2e10, '2026')")
    connection.commit()
    connection.close()
    return path


def test_an_older_store_is_read_and_goes_on(old, tmp_path):
    with Store(old) as store:
        (found,) = store.measurements()
        assert found.key == key() and found.samples == (0.5, 0.25) and found.median_s == 0.375
        assert (found.clock, found.wall_s, found.measured_device_bytes) == ("wall", None, None)
        (run,) = store.plan_runs()
        assert (run.samples, run.device, run.peak_device_bytes) == ((1.5,), "cpu", None)
        assert store.ceilings("m", 2) == (1e11, 2e10)
        measure(store, key(), 2.0)
    with Store(old) as again, Store(tmp_path / "new.db") as new:
        assert len(again.measurements()) == 2
        tables = [r["name"] for r in new.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert "device_ceilings" in tables
        for table in tables:  # the same tables as a new one's, column by column
            mine, theirs = ([tuple(row)[1:5] for row in s.execute(f"PRAGMA table_info({table})")] for s in (again, new))
            assert mine == theirs


def test_two_processes_bring_an_older_store_up_to_date(old, writer):
    processes = [writer(f"store.open_measurement(key({n})).add_sample({n}.0)") for n in (1, 3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0, 0]
    with Store(old) as store:
        assert sorted(m.samples for m in store.measurements()) == [(0.5, 0.25), (1.0,), (3.0,)]


def test_it_is_still_there_next_time(path):
    with Store(path) as first:
        measure(first, key(), 1.0)
    with Store(path) as second:
        assert second.latest(key()).median_s == 1.0


WRITER = """
    import sys
    from znni.store import Store
    from tests_store_key import key
    with Store(sys.argv[1]) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        {body}
"""


@pytest.fixture
def writer(tmp_path, path):
    """Starts processes that write to the store: they open it, say so, wait for a line, and run `body`."""
    (tmp_path / "tests_store_key.py").write_text(
        "from znni.store_rows import MeasurementKey\nfrom znni.layers import MaxPool\n"
        "def key(threads):\n"
        "    layer = MaxPool((2, 2, 2), (2, 2, 2))\n"
        "    return MeasurementKey(layer, (1, 1, 4, 4, 4), 'cpu.max_pool', {}, threads, 'm', 'k')\n"
    )
    started = []

    def start(body):
        source = textwrap.dedent(WRITER).format(body=body.replace("\n", "\n    "))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
        process = subprocess.Popen(
            [sys.executable, "-c", source, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_processes_write_at_once(writer, path):
    body = """
rows = [store.open_measurement(key({n})) for _ in range(3)]
for i in range(40):
    rows[i % 3].add_sample(i + {n})
"""
    processes = [writer(body.format(n=n)) for n in (1, 2)]  # both make the file, too
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0, 0]
    with Store(path) as store:
        for n in (1, 2):
            rows = [m.samples for m in store.measurements(threads=n)]
            assert rows == [tuple(float(i + n) for i in range(first, 40, 3)) for first in range(3)]


def test_a_killed_process_loses_nothing_that_it_added(writer, path):
    body = """
row = store.open_measurement(key(1))
for s in (3.0, 1.0, 2.0):
    row.add_sample(s)
print('added', flush=True)
sys.stdin.read()
"""
    process = writer(body)
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "added\n"
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    with Store(path) as store:
        (found,) = store.measurements()
        assert found.samples == (3.0, 1.0, 2.0) and not found.finished
        assert (found.median_s, found.iqr_s) == (2.0, 1.0)
        assert [m.seconds for m in store.measured("m", 1)] == [2.0]


def test_a_reader_sees_samples_while_they_are_taken(path):
    with Store(path) as writing, Store(path) as reading:
        row = writing.open_measurement(key())
        row.add_sample(1.0)
        assert reading.latest(key()).samples == (1.0,)
        row.add_sample(2.0)
        assert reading.latest(key()).samples == (1.0, 2.0)


def test_a_newer_store_is_refused(path):
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(FormatError, match=f"newer znni .store version {SCHEMA_VERSION + 1}, .* up to {SCHEMA_VERSION}"):
        Store(path)


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to hold a header" * 50, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_damaged_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"store\.db is not a store of znni, or is damaged"):
        Store(path)
    assert path.read_bytes() == content


def test_damage_found_later_is_said_too(path):
    with Store(path) as store:
        measure(store, key(), *[0.1] * 200)
        for threads in range(100):
            measure(store, key(threads=threads), 1.0)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xee" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(FormatError, match="damaged"), Store(path) as store:
        store.measurements()


def test_another_programs_database_is_refused(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE trials (id INTEGER)")
    connection.close()
    with pytest.raises(FormatError, match="another program"):
        Store(path)


def test_an_empty_file_becomes_a_store(path):
    path.touch()
    with Store(path) as store:
        measure(store, key(), 1.0)


def test_places_that_cannot_be_written_are_said(tmp_path):
    with pytest.raises(ZnniError, match=r"cannot open the store .*missing.*; give another file with --store"):
        Store(tmp_path / "missing" / "store.db")
    with pytest.raises(ZnniError, match="cannot open the store"):
        Store(tmp_path)


def test_the_default_path_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ZNNI_STORE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert default_path() == tmp_path / ".cache/znni/store.db"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_path() == tmp_path / "cache/znni/store.db"
    with Store() as store:  # makes the folders
        assert store.path == default_path() and store.path.exists()
    monkeypatch.setenv("ZNNI_STORE", str(tmp_path / "own.db"))
    assert default_path() == tmp_path / "own.db"


def test_what_is_measured_here(monkeypatch, path):
    monkeypatch.setenv("ZNNI_STORE", str(path))
    assert measured_here(CONV, 2) == []
    assert not path.exists()  # asking makes no store
    from znni.machine import this_machine

    here = this_machine()
    with Store() as store:
        measure(store, key(machine=here.fingerprint, kernels=here.kernels), 1.0)
        measure(store, key(machine="other", kernels=here.kernels), 2.0)
        measure(store, key(machine=here.fingerprint), 3.0)  # by other kernels
    assert [m.seconds for m in measured_here(CONV, 2)] == [1.0]


def test_samples_are_readable_by_any_sqlite_client(store, path):
    measure(store, key(), 0.1, 0.2)
    connection = sqlite3.connect(path)
    samples, layer = connection.execute("SELECT samples, layer FROM measurements").fetchone()
    connection.close()
    assert json.loads(samples) == [0.1, 0.2] and json.loads(layer)["kind"] == "conv"
