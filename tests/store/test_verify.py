import json
import os
import shutil
import time

import numpy as np
import pytest
import torch

from landscape.errors import StoreError
from landscape.store.lines import encode_line
from landscape.store.verify import verify
from tests.command_line import invoke, payload
from tests.store.full_runs import LAYOUT, STEPS, add, contents, fill_shared, line, tensors

RECORD = LAYOUT.record_bytes


@pytest.fixture
def full(store):
    run = add(store)
    fill_shared(store, run)
    return run


@pytest.fixture
def running(store):
    """A run whose process died."""
    return add(store, state="interrupted")


def attempt(run):
    return run.path / "attempts" / "1"


def flip(path, position, mask=0x10):
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


def test_a_sound_store_is_sound_and_left_alone(store, full):
    before = contents(store.path)
    result = verify(store)
    assert (result.findings, result.is_sound, result.runs, result.unchecked, result.busy) == ((), True, 1, 0, ())
    assert result.records == STEPS + 4 + 2 * (STEPS + 1), "lines, and records of two streams"
    assert result.files == len(before) - 1, "all but attempt.json's like are counted once"
    assert verify(store, repair=True).is_sound
    assert contents(store.path) == before


# What a process that dies leaves behind: name, what is appended or cut, the kind, what is said of the record.
TORN = [
    ("metrics.jsonl", lambda data: data + b'{"loss_clean":0.5,"st', "torn", f"line {STEPS + 5}", 1, 21),
    ("metrics.jsonl", lambda data: data[:-1], "torn", f"line {STEPS + 4}", 1, None),
    ("snapshots-params.bin", lambda data: data + b"x" * 7, "torn", f"byte {(STEPS + 1) * RECORD}", 1, 7),
    ("snapshots-params.bin", lambda data: data[:-7], "lost", f"step {STEPS}", 1, RECORD - 7),
    ("snapshots-params.bin", lambda data: data[: -2 * RECORD], "lost", f"step {STEPS - 1}", 2, 0),
    ("snapshots-params.bin", lambda data: data[:-RECORD] + bytes(RECORD), "lost", f"step {STEPS}", 1, RECORD),
    ("snapshots-params.idx", lambda data: data + b'{"byt', "torn", f"line {STEPS + 2}", 0, 5),
]


@pytest.mark.parametrize(("name", "change", "kind", "record", "records_lost", "bytes_lost"), TORN)
def test_torn_ends_are_named_and_cut_off(store, running, name, change, kind, record, records_lost, bytes_lost):
    path = attempt(running) / name
    path.write_bytes(change(path.read_bytes()))
    found = verify(store)
    (finding,) = found.findings
    assert (finding.kind, finding.record, finding.run) == (kind, record, running.id)
    assert finding.file == f"runs/{running.id}/attempts/1/{name}"
    assert finding.records_lost == records_lost
    if bytes_lost is not None:
        assert finding.bytes_lost == bytes_lost
    assert not found.is_sound
    assert finding.repairable
    repaired = verify(store, repair=True)
    assert [item.repaired for item in repaired.findings] == [True]
    assert repaired.is_sound
    assert verify(store).findings == ()
    lost = STEPS + 1 - len(running.snapshots())
    assert lost == (records_lost if kind == "lost" else 0)
    steps = running.snapshots().steps.tolist()
    assert all(torch.equal(running.snapshots().tensors(step)["A"], tensors(step)["A"]) for step in steps)


def test_an_index_line_without_its_end_takes_its_record_with_it(store, running):
    path = attempt(running) / "snapshots-params.idx"
    path.write_bytes(path.read_bytes()[:-1])
    found = verify(store, repair=True)
    assert {(item.kind, item.file.rpartition("/")[2]) for item in found.findings} == {
        ("torn", "snapshots-params.idx"), ("torn", "snapshots-params.bin")
    }  # fmt: skip
    assert sum(item.records_lost for item in found.findings) == 1
    assert verify(store).findings == ()
    assert running.snapshots().steps.tolist() == list(range(STEPS))


def test_of_a_run_that_ended_nothing_whole_is_cut_off(store, full):
    """Its files were synced: what does not match its checksum at the end is damage, not a torn end."""
    for name in ("metrics.jsonl", "snapshots-params.bin"):
        flip(attempt(full) / name, -5)
    before = contents(store.path)
    found = verify(store, repair=True)
    assert {item.kind for item in found.findings} == {"damaged"}
    assert {item.record for item in found.findings} == {f"line {STEPS + 4}", f"step {STEPS} at byte {STEPS * RECORD}"}
    assert contents(store.path) == before


MIDDLE = [
    ("attempts/1/metrics.jsonl", 30, "line 1"),
    ("attempts/1/snapshots-params.bin", 3 * RECORD + 4, f"step 3 at byte {3 * RECORD}"),
    ("attempts/1/snapshots-adam_v.bin", 0, "step 0 at byte 0"),
    ("attempts/1/snapshots-params.idx", 20, "line 1: damaged"),
    ("attempts/1/snapshots.json", 60, "snapshots.json is damaged"),
    ("attempts/1/base.safetensors", -3, "base.safetensors is damaged"),
    ("config.yaml", 30, "config.yaml is damaged"),
    ("identity.json", 40, "identity.json is damaged"),
    ("status.json", 30, "status.json is damaged"),
    ("analysis/sharpness.parquet", 20, "sharpness.parquet is damaged"),
    ("analysis/slice1d-x.npz", 60, "slice1d-x.npz is damaged"),
]


@pytest.mark.parametrize("state", ["done", "interrupted"])
@pytest.mark.parametrize(("name", "position", "words"), MIDDLE)
def test_damage_is_named_and_never_dropped(store, name, position, words, state):
    run = add(store, state=state)
    flip(run.path / name, position)
    before = contents(store.path)
    for repair in (False, True):
        found = verify(store, repair=repair)
        damage = [item for item in found.findings if item.file == f"runs/{run.id}/{name}"]
        assert [item.kind for item in damage] == ["damaged"]
        assert words in f"{damage[0].record} {damage[0].problem}"
        assert not damage[0].repaired
        assert not found.is_sound
    after = contents(store.path)
    assert after.pop(f"runs/{run.id}/metrics.parquet", None) == before.pop(f"runs/{run.id}/metrics.parquet", None)
    assert after == before


@pytest.mark.parametrize("name", ["orders/n8-seed0.npy", "base_loss/abc.npz", "analysis/slice1d-joint.npz"])
def test_damage_to_what_runs_share_is_named(store, full, name):
    path = store.path / name
    flip(path, -9 if name.endswith("npy") else 60)
    (finding,) = verify(store).findings
    assert (finding.kind, finding.file, finding.run) == ("damaged", name, None)


def test_an_order_that_is_no_permutation_is_damaged(store, full):
    np.save(store.orders_dir / "n4-seed1.npy", np.array([0, 1, 2, 3, 3, 1, 2, 3]))
    (finding,) = verify(store).findings
    assert "epoch 1 does not have every example once" in finding.problem


@pytest.mark.parametrize("how", ["flipped", "of another attempt", "of other lines"])
def test_a_table_that_says_something_else_is_made_again(store, full, how):
    path = full.path / "metrics.parquet"
    right = full.metrics()
    if how == "flipped":
        flip(path, 50)
    else:
        from landscape.store.metrics import write_parquet

        wrong = 2 if how == "of another attempt" else 1
        write_parquet(path, [line(step, seed=9) for step in range(1, 4)], full.id, wrong)
    (finding,) = verify(store).findings
    assert finding.kind == ("damaged" if how == "flipped" else "stale")
    assert verify(store, repair=True).is_sound
    assert verify(store).findings == ()
    assert full.metrics().equals(right)


def test_temporary_files_of_the_dead_are_removed(store, full):
    fresh, old = full.path / ".tmp-1-ab-status.json", full.path / ".tmp-2-cd-status.json"
    for path in (fresh, old):
        path.write_bytes(b"{")
    os.utime(old, (time.time() - 7200,) * 2)
    found = verify(store)
    assert [(item.kind, item.file) for item in found.findings] == [("leftover", f"runs/{full.id}/{old.name}")]
    assert found.is_sound, "it does no harm"
    verify(store, repair=True)
    assert (fresh.exists(), old.exists()) == (True, False)


def test_what_is_no_run_is_named(store, full):
    (store.path / "runs" / "half-made").mkdir()
    (store.path / "runs" / "a b").mkdir()
    (store.path / "runs" / "linked").symlink_to(full.path)
    found = verify(store)
    assert {(item.kind, item.file) for item in found.findings} == {
        ("unfinished", "runs/half-made"), ("foreign", "runs/a b"), ("foreign", "runs/linked")
    }  # fmt: skip


def test_what_is_being_written_is_neither_judged_nor_touched(store, running):
    path = attempt(running) / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"half')
    with running.claim():
        found = verify(store, repair=True)
    assert (found.findings, found.busy) == ((), (running.id,))
    assert path.read_bytes().endswith(b'{"half')
    assert verify(store, repair=True).findings[0].repaired


def test_the_current_attempt_alone_counts(store, full):
    full.begin_attempt(8).close()
    flip(attempt(full) / "metrics.jsonl", 30)
    assert [item.kind for item in verify(store).findings] == ["stale"], "the table is of attempt 1"


def test_a_checkpoint_that_is_damaged_is_not_resumed_from(store, full):
    from landscape.store.manifest import seal

    state = full.path / "attempts/1/checkpoint/step-000008"
    state.mkdir(parents=True)
    (state / "parameters.safetensors").write_bytes(b"p" * 100)
    seal(state)
    assert verify(store).findings == ()
    flip(state / "parameters.safetensors", 50)
    (finding,) = verify(store).findings
    assert "parameters.safetensors is damaged" in finding.problem
    with pytest.raises(StoreError, match=r"parameters\.safetensors is damaged"):
        full.begin_attempt(8, checkpoint=state)
    (state / "parameters.safetensors").unlink()
    with pytest.raises(StoreError, match=r"parameters\.safetensors is missing"):
        full.begin_attempt(8, checkpoint=state)


def test_a_line_that_was_never_whole_in_the_middle_of_whole_ones(store, running):
    path = attempt(running) / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], lines[3][:-4] + b"\n", *lines[4:]]))
    found = verify(store, repair=True)
    assert [(item.kind, item.record) for item in found.findings] == [("damaged", "line 4")]


def test_the_command(store, full):
    result = invoke("verify", store.path)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "sound"
    path = attempt(full) / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + encode_line({"step": STEPS + 1})[:-3])
    result = invoke("verify", store.path)
    assert result.exit_code == 3
    assert f"torn: runs/{full.id}/attempts/1/metrics.jsonl, line {STEPS + 5}: " in result.stdout
    assert "not sound: 1 torn; --repair mends what can be mended" in result.stdout
    said = payload(invoke("verify", store.path, "--json"))
    assert (said["is_sound"], said["counts"]) == (False, {"torn": 1})
    assert said["findings"][0]["records_lost"] == 1
    result = invoke("verify", store.path, "--repair")
    assert result.exit_code == 0
    assert "lost: 1 records that were being written" in result.stdout
    assert invoke("verify", store.path, "--where", "seed==0").exit_code == 0


def test_a_newer_schema_is_refused(store):
    (store.path / "store.json").write_text(json.dumps({"schema_version": 99}))
    result = invoke("verify", store.path)
    assert result.exit_code == 2
    assert "schema version 99" in result.stderr


def test_a_missing_attempt_is_named(store, full):
    shutil.rmtree(attempt(full))
    assert {(item.kind, item.file) for item in verify(store).findings} == {("damaged", f"runs/{full.id}/attempts/1")}
