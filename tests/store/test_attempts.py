import shutil

import pytest
import safetensors.torch
import torch

from landscape.errors import StoreError
from landscape.store import Attempt, Run, SnapshotLayout, attempts
from landscape.store.atomic import read_json

LAYOUT = SnapshotLayout.from_tensors({"A": torch.zeros(4)})
MOMENTS = SnapshotLayout.from_tensors({"A": torch.zeros(4, dtype=torch.float64)})
BASE = {"weight": torch.randn(3, 2), "bias": torch.randn(3).bfloat16()}


def values(step: int, layout: SnapshotLayout) -> dict[str, torch.Tensor]:
    return {"A": torch.full((4,), step / 3, dtype=getattr(torch, layout.dtypes[0]))}


def train(attempt: Attempt, first: int, last: int) -> None:
    """Logs and captures steps first to last (step 0: the evaluation and parameters before training)."""
    with attempt:
        writers = [(layout, attempt.snapshot_writer(name, layout)) for name, layout in STREAMS.items()]
        for step in range(first, last + 1):
            if step:
                attempt.log({"step": step, "loss_clean": 1 / step})
            if step % 5 == 0:
                attempt.log({"step": step, "split": "eval", "loss": float(step)})
            for layout, writer in writers:
                writer.put(step, values(step, layout))


STREAMS = {"params": LAYOUT, "adam_v": MOMENTS}


@pytest.fixture
def started(run) -> Run:
    attempt = run.begin_attempt()
    attempt.write_base_tensors(BASE)
    train(attempt, 0, 12)
    return run


def assert_holds(run: Run, last: int) -> None:
    assert run.metrics()["step"].tolist() == list(range(1, last + 1))
    assert run.metrics()["loss_clean"].tolist() == [1 / step for step in range(1, last + 1)]
    assert run.evaluations()["step"].tolist() == list(range(0, last + 1, 5))
    assert run.streams() == ["adam_v", "params"]
    for stream, layout in STREAMS.items():
        reader = run.snapshots(stream)
        assert reader.steps.tolist() == list(range(last + 1))
        assert all(torch.equal(reader.tensors(step)["A"], values(step, layout)["A"]) for step in reader.steps)
    base = run.snapshots().base_tensors()
    assert base.keys() == BASE.keys()
    assert all(torch.equal(base[name], tensor) for name, tensor in BASE.items())


def test_the_first_attempt_is_number_one(run):
    with run.begin_attempt() as attempt:
        assert (attempt.number, attempt.path) == (1, run.path / "attempts" / "1")
        assert run.status.attempt == 1
        assert run.streams() == []


def test_resuming_takes_the_prefix_over_and_goes_on(started):
    attempt = started.begin_attempt(resume_step=10)
    assert (started.status.attempt, started.status.step) == (2, 10)
    assert_holds(started, 10)
    train(attempt, 11, 14)
    assert_holds(started, 14)
    train(started.begin_attempt(resume_step=13), 14, 20)
    assert_holds(started, 20)


def test_resuming_at_zero_starts_over(started):
    train(started.begin_attempt(), 0, 2)
    assert started.metrics()["step"].tolist() == [1, 2]
    assert started.snapshots().steps.tolist() == [0, 1, 2]
    assert started.snapshots().base_tensors() == {}


def test_a_resumed_attempt_refuses_steps_that_it_took_over(started):
    with started.begin_attempt(resume_step=10) as attempt:
        with pytest.raises(StoreError, match="metrics of step 10 cannot follow step 10"):
            attempt.log({"step": 10, "loss_clean": 1.0})
        writer = attempt.snapshot_writer("params", LAYOUT)
        with pytest.raises(StoreError, match="step 10 was written before"):
            writer.put(10, values(10, LAYOUT))
        assert writer.bytes_written == 11 * LAYOUT.record_bytes
        with pytest.raises(StoreError, match="is there already: base tensors are written once"):
            attempt.write_base_tensors(BASE)


def test_snapshots_written_out_of_order_are_taken_over(run):
    with run.begin_attempt() as attempt, attempt.snapshot_writer("params", LAYOUT) as writer:
        for step in (0, 9, 4, 6):
            writer.put(step, values(step, LAYOUT))
    run.begin_attempt(resume_step=6).close()
    reader = run.snapshots()
    assert reader.steps.tolist() == [0, 4, 6]
    assert all(torch.equal(reader.tensors(step)["A"], values(step, LAYOUT)["A"]) for step in (0, 4, 6))


@pytest.mark.parametrize("step", [-1, 5])
def test_there_must_be_something_to_resume(run, step):
    with pytest.raises(StoreError, match=f"cannot resume at step {step}, there is no attempt"):
        run.begin_attempt(resume_step=step)


@pytest.mark.parametrize("where", ["_copy_metrics", "_copy_stream", "write_layouts", "sync_directory"])
def test_a_crash_while_copying_leaves_the_old_attempt(started, monkeypatch, where):
    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(attempts, where, crash)
        # A killed process cleans nothing up.
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            started.begin_attempt(resume_step=10)
    assert started.status.attempt == 1
    assert_holds(started, 12)
    attempt = started.begin_attempt(resume_step=10)
    assert attempt.number == 3, "what the crash left is not reused"
    train(attempt, 11, 12)
    assert_holds(started, 12)


def test_an_attempt_that_has_begun_counts_whether_or_not_the_status_says_so(started, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Run, "set_status", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            started.begin_attempt(resume_step=10)
    assert read_json(started.path / "status.json")["attempt"] == 1
    assert (started.status.attempt, started.status.state) == (2, "interrupted")
    assert_holds(started, 10)


def test_a_full_disk_while_copying_leaves_the_old_attempt(started, disk):
    disk.room = 200
    with pytest.raises(StoreError, match="No space left on device"):
        started.begin_attempt(resume_step=10)
    disk.room = None
    assert_holds(started, 12)
    assert [path.name for path in (started.path / "attempts").iterdir()] == ["1"], "what was copied is removed"


def test_a_disk_that_is_too_full_is_refused_before_copying(started, monkeypatch):
    usage = shutil.disk_usage(started.path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    needed = 11 * (LAYOUT.record_bytes + MOMENTS.record_bytes)
    with pytest.raises(StoreError, match=f"resuming copies {needed} bytes of snapshots, but only 100 bytes are free"):
        started.begin_attempt(resume_step=10)


def test_a_record_that_a_power_failure_spoiled_is_left_out(started):
    path = started.path / "attempts" / "1" / "snapshots-params.bin"
    data = bytearray(path.read_bytes())
    data[9 * LAYOUT.record_bytes] ^= 1
    path.write_bytes(data)
    started.begin_attempt(resume_step=10).close()
    assert started.snapshots().steps.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert started.snapshots().damaged_steps() == []


def test_metrics_damaged_behind_the_prefix_do_not_matter_and_within_it_do(started):
    path = started.path / "attempts" / "1" / "metrics.jsonl"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"step":12', b'"step":13'))
    with started.begin_attempt(resume_step=11):
        assert started.metrics()["step"].tolist() == list(range(1, 12))
    path = started.path / "attempts" / "2" / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step":7', b'"step":6'))
    with pytest.raises(StoreError, match=r"metrics\.jsonl, line 9: damaged"):
        started.begin_attempt(resume_step=11)
    assert started.status.attempt == 2


def test_a_stream_keeps_its_layout(started):
    other = SnapshotLayout.from_tensors({"A": torch.zeros(5)})
    with started.begin_attempt(resume_step=10) as attempt:
        with pytest.raises(StoreError, match="'params' holds other tensors than the model has now"):
            attempt.snapshot_writer("params", other)
        attempt.snapshot_writer("params", LAYOUT)
        with pytest.raises(StoreError, match="'params' is open already"):
            attempt.snapshot_writer("params", LAYOUT)


def test_a_full_disk_while_writing_base_tensors(run, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with run.begin_attempt() as attempt:
        with pytest.raises(StoreError, match=r"cannot write .*base\.safetensors: I/O error: No space left"):
            attempt.write_base_tensors(BASE)
        assert {path.name for path in attempt.path.iterdir()} == {"metrics.jsonl", "attempt.json"}


def test_base_tensors_may_share_memory(run):
    weight = torch.randn(4, 4)
    with run.begin_attempt() as attempt:
        attempt.snapshot_writer("params", LAYOUT)
        attempt.write_base_tensors({"one": weight, "tied": weight, "turned": weight.T, "part": weight[1:]})
    base = run.snapshots().base_tensors()
    assert torch.equal(base["tied"], weight)
    assert torch.equal(base["turned"], weight.T)
    assert torch.equal(base["part"], weight[1:])


def test_damaged_base_tensors_are_named(started):
    path = started.path / "attempts" / "1" / "base.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StoreError, match=r"base\.safetensors is damaged"):
        started.snapshots().base_tensors()


def test_a_full_disk_while_logging_loses_only_that_line(run, disk):
    with run.begin_attempt() as attempt:
        attempt.log({"step": 1, "loss_clean": 1.0})
        disk.room = 7
        with pytest.raises(StoreError, match=r"metrics\.jsonl: No space left on device \(7 of \d+ bytes written"):
            attempt.log({"step": 2, "loss_clean": 2.0})
        disk.room = None
        attempt.log({"step": 2, "loss_clean": 2.0})
    assert run.metrics()["loss_clean"].tolist() == [1.0, 2.0]


def test_sync_waits_for_snapshots(run):
    with run.begin_attempt() as attempt:
        writer = attempt.snapshot_writer("params", LAYOUT)
        writer.put(0, values(0, LAYOUT))
        attempt.sync()
        assert len(run.snapshots()) == 1
    attempt.close()


def test_removing_old_attempts_keeps_the_current_one(started):
    assert started.remove_old_attempts() == 0
    started.begin_attempt(resume_step=12).close()
    old = started.path / "attempts" / "1"
    linked = (old / "base.safetensors").stat().st_size
    size = sum(path.stat().st_size for path in old.iterdir())
    assert started.remove_old_attempts() == size - linked, "a file with another name frees nothing"
    assert_holds(started, 12)
    assert not old.exists()


def test_a_run_that_never_started_has_no_snapshots(run):
    assert run.streams() == []
    with pytest.raises(StoreError, match=f"run {run.id} has not been started"):
        run.snapshots()


def test_an_attempt_that_vanished_is_not_an_empty_one(started):
    shutil.rmtree(started.path / "attempts" / "1")
    with pytest.raises(StoreError, match=r"metrics\.jsonl is missing: there is nothing to resume"):
        started.begin_attempt(resume_step=10)
    for read in (started.metrics, started.streams, started.snapshots, started.compact):
        with pytest.raises(StoreError, match=r"attempts/1\S* is missing"):
            read()
