import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from landscape.errors import StoreError
from landscape.store import SnapshotLayout, Store, records, writer

PARAMETERS = {"A": torch.zeros(4), "B": torch.zeros(3)}
LAYOUT = SnapshotLayout.from_tensors(PARAMETERS)


@pytest.fixture
def attempt(run):
    attempt = run.begin_attempt()
    yield attempt
    attempt.close()


def snapshot_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("snapshots-")]


def filled(value: float) -> list[torch.Tensor]:
    return [torch.full_like(tensor, value) for tensor in PARAMETERS.values()]


@pytest.fixture
def gate(monkeypatch):
    """Holds the disk until it is set."""
    opened = threading.Event()
    append = records.RecordWriter.append

    def slow(self, step, record):
        assert opened.wait(20)
        append(self, step, record)

    monkeypatch.setattr(records.RecordWriter, "append", slow)
    yield opened
    opened.set()


def test_values_are_copied_before_put_returns(run, attempt, gate):
    snapshots = attempt.snapshot_writer("params", LAYOUT)
    tensors = [tensor.requires_grad_() for tensor in filled(0.0)]
    for step in range(4):
        snapshots.put(step, tensors)
        with torch.no_grad():
            torch._foreach_add_(tensors, 1.0)
    assert len(run.snapshots()) == 0
    gate.set()
    snapshots.flush()
    reader = run.snapshots()
    assert [reader.tensors(step)["B"][0].item() for step in range(4)] == [0.0, 1.0, 2.0, 3.0]
    assert snapshots.bytes_written == 4 * LAYOUT.record_bytes


def test_training_waits_only_while_every_buffer_is_in_use(attempt, gate):
    snapshots = attempt.snapshot_writer("params", LAYOUT, queue_size=2)
    snapshots.put(0, filled(0))
    snapshots.put(1, filled(1))
    blocked = threading.Thread(target=snapshots.put, args=(2, filled(2)))
    blocked.start()
    blocked.join(0.2)
    assert blocked.is_alive(), "a third record has no buffer while the disk holds both"
    gate.set()
    blocked.join(10)
    assert not blocked.is_alive()


def test_buffers_are_reused(attempt, monkeypatch):
    made = []
    buffer = writer._HostBuffer

    def counted(*arguments):
        made.append(1)
        return buffer(*arguments)

    monkeypatch.setattr(writer, "_HostBuffer", counted)
    snapshots = attempt.snapshot_writer("params", LAYOUT, queue_size=3)
    for step in range(20):
        snapshots.put(step, filled(step))
    snapshots.flush()
    assert len(made) <= 3


def test_a_mapping_and_a_ready_buffer_write_the_same(run, attempt):
    snapshots = attempt.snapshot_writer("params", LAYOUT)
    named = dict(zip(LAYOUT.names, filled(2.5), strict=True))
    snapshots.put(1, {"unused": torch.zeros(1), **named})
    buffer = torch.zeros(LAYOUT.record_bytes, dtype=torch.uint8)
    LAYOUT.copy_into(named, buffer)
    snapshots.put_buffer(2, buffer)
    buffer.zero_()
    snapshots.flush()
    one, other = run.snapshots().tensors(1), run.snapshots().tensors(2)
    assert all(torch.equal(one[name], other[name]) and torch.equal(one[name], named[name]) for name in named)


@pytest.mark.parametrize(
    "buffer", [torch.zeros(8, dtype=torch.uint8), torch.zeros(LAYOUT.record_bytes), torch.zeros(8, device="meta")]
)
def test_a_buffer_of_another_size_is_refused(attempt, buffer):
    snapshots = attempt.snapshot_writer("params", LAYOUT)
    with pytest.raises(StoreError, match=r"the buffer is .* expected \(32,\) uint8 on cpu"):
        snapshots.put_buffer(0, buffer)


def test_a_step_is_written_once(attempt):
    snapshots = attempt.snapshot_writer("params", LAYOUT)
    snapshots.put(3, filled(0))
    snapshots.put(1, filled(0))
    with pytest.raises(StoreError, match="'params': step 3 was written before"):
        snapshots.put(3, filled(0))
    with pytest.raises(StoreError, match="step -1 is negative"):
        snapshots.put(-1, filled(0))


def test_tensors_of_another_shape_are_refused_and_cost_no_buffer(attempt):
    snapshots = attempt.snapshot_writer("params", LAYOUT, queue_size=1)
    for _ in range(3):
        with pytest.raises(StoreError, match="A is float32"):
            snapshots.put(0, [torch.zeros(1), torch.zeros(3)])
    snapshots.put(0, filled(0))
    snapshots.flush()


def test_a_failed_copy_gives_its_buffer_back(attempt, monkeypatch):
    snapshots = attempt.snapshot_writer("params", LAYOUT, queue_size=1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_foreach_copy_", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            snapshots.put(0, filled(0))
    snapshots.put(0, filled(0))
    snapshots.flush()


def test_closing_writes_what_is_queued_and_ends_the_thread(run, attempt):
    snapshots = attempt.snapshot_writer("params", LAYOUT)
    for step in range(10):
        snapshots.put(step, filled(step))
    snapshots.close()
    snapshots.close()
    assert not snapshot_threads()
    assert len(run.snapshots()) == 10
    snapshots.flush()
    with pytest.raises(StoreError, match="the writer is closed"):
        snapshots.put(10, filled(0))


def test_a_run_that_is_interrupted_keeps_what_it_captured(run):
    def train():
        with run.begin_attempt() as attempt, attempt.snapshot_writer("params", LAYOUT) as snapshots:
            for step in range(5):
                snapshots.put(step, filled(step))
                attempt.log({"step": step + 1, "loss_clean": 1.0})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert not snapshot_threads()
    assert run.snapshots().steps.tolist() == list(range(5))
    assert len(run.metrics()) == 5


def test_ctrl_c_ends_a_wait_for_the_disk_and_the_writer_goes_on(run, attempt, gate):
    snapshots = attempt.snapshot_writer("params", LAYOUT, queue_size=1)
    snapshots.put(0, filled(0))
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        snapshots.put(1, filled(1))
    gate.set()
    snapshots.put(1, filled(1))
    snapshots.close()
    assert run.snapshots().steps.tolist() == [0, 1]


def test_a_dropped_writer_ends_its_thread(run):
    attempt = run.begin_attempt()
    attempt.snapshot_writer("params", LAYOUT).put(0, filled(0))
    assert len(snapshot_threads()) == 1
    del attempt
    gc.collect()
    assert not snapshot_threads()
    assert run.snapshots().steps.tolist() == [0]


@pytest.mark.parametrize("room", [0, 1, 40])
def test_a_full_disk_is_reported_and_what_was_written_stays(run, attempt, disk, room):
    snapshots = attempt.snapshot_writer("params", LAYOUT)
    snapshots.put(0, filled(0))
    snapshots.flush()
    disk.room = room  # 40: the record fits, its index line does not
    snapshots.put(1, filled(1))
    message = r"step 1 \(stream 'params'\) is lost, 1 before it are written: cannot write .*No space left on device"
    with pytest.raises(StoreError, match=message + r" \(\d+ of \d+ bytes written, \d+ bytes free\)"):
        snapshots.flush()
    disk.room = None
    with pytest.raises(StoreError, match=message):
        snapshots.put(2, filled(2))
    snapshots.close()
    assert run.snapshots().steps.tolist() == [0]
    assert (attempt.path / "snapshots-params.bin").stat().st_size == LAYOUT.record_bytes
    assert not snapshot_threads()


def test_a_full_disk_ends_a_wait_for_buffers(attempt, disk):
    snapshots = attempt.snapshot_writer("params", LAYOUT, queue_size=1)
    disk.room = 0
    snapshots.put(0, filled(0))

    def train():
        for step in range(1, 1000):
            snapshots.put(step, filled(step))

    with pytest.raises(StoreError, match="No space left"):
        train()


def test_closing_reports_what_nothing_else_reported(attempt, disk):
    snapshots = attempt.snapshot_writer("params", LAYOUT)
    disk.room = 0
    snapshots.put(0, filled(0))
    with pytest.raises(StoreError, match="No space left"):
        attempt.close()
    attempt.close()
    assert not snapshot_threads()


def test_an_unexpected_error_in_the_thread_is_reported(attempt, monkeypatch):
    snapshots = attempt.snapshot_writer("params", LAYOUT)
    monkeypatch.setattr(records.RecordWriter, "append", lambda *_: 1 / 0)
    snapshots.put(0, filled(0))
    with pytest.raises(StoreError, match=r"step 0 .* is lost, 0 before it are written: division by zero"):
        snapshots.flush()


def test_a_failed_sync_is_reported(attempt, monkeypatch):
    snapshots = attempt.snapshot_writer("params", LAYOUT)

    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("landscape.store.atomic._flush_data", fail)
    snapshots.put(0, filled(0))
    with pytest.raises(StoreError, match=r"cannot write .*Input/output error"):
        snapshots.flush()


def test_records_reach_the_disk_without_being_asked(attempt, monkeypatch):
    synced = []
    monkeypatch.setattr("landscape.store.atomic._flush_data", synced.append)
    monkeypatch.setattr(records, "SYNC_RECORDS", 2)
    monkeypatch.setattr(records, "SYNC_SECONDS", 0.05)
    monkeypatch.setattr(writer, "SYNC_SECONDS", 0.05)
    snapshots = attempt.snapshot_writer("params", LAYOUT)
    snapshots.put(0, filled(0))
    deadline = time.monotonic() + 10
    while len(synced) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(synced) == 2, "after a while: the records and then their index"


def test_a_queue_without_buffers_is_refused(attempt):
    with pytest.raises(StoreError, match="queue_size: 0 is not at least 1"):
        attempt.snapshot_writer("params", LAYOUT, queue_size=0)


SCRIPT = """
import sys, torch
from landscape.store import SnapshotLayout, Store
run = Store.open(sys.argv[1]).runs()[0]
attempt = run.begin_attempt()
layout = SnapshotLayout.from_tensors({"A": torch.zeros(4), "B": torch.zeros(3)})
snapshots = attempt.snapshot_writer("params", layout)
step = 0
while step < int(sys.argv[2]):
    snapshots.put(step, [torch.full((4,), float(step)), torch.full((3,), float(step))])
    attempt.log({"step": step + 1, "loss_clean": float(step)})
    step += 1
    if step == 50:
        print("started", flush=True)
"""


def start(store: Store, steps: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", SCRIPT, str(store.path), str(steps)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_killed_process_leaves_a_consistent_prefix(store, run):
    with start(store, 10**9) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    steps = run.snapshots().steps.tolist()
    assert steps == list(range(len(steps)))
    assert run.snapshots().damaged_steps() == []
    assert run.snapshots().tensors(steps[-1])["A"].tolist() == [float(steps[-1])] * 4
    metrics = run.metrics()
    assert metrics["step"].tolist() == list(range(1, len(metrics) + 1))
    assert len(metrics) >= 49


def test_a_writer_left_open_is_closed_when_the_interpreter_exits(store, run):
    with start(store, 60) as process:
        assert process.wait(60) == 0
    assert run.snapshots().steps.tolist() == list(range(60))
