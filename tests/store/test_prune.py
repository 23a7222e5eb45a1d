import os
import shutil
import subprocess
import sys

import pytest
import torch

from landscape.errors import StoreError, UsageError
from landscape.store import Store
from landscape.store.keeping import Policy, event_steps
from landscape.store.leases import LeaseHeldError
from landscape.store.prune import plan_pruning, prune
from landscape.store.verify import verify
from tests.command_line import invoke, payload
from tests.store.full_runs import LAYOUT, STEPS, add, contents, tensors

KEPT = [
    ("every:5", [0, 5, 10, 12]),
    ("last", [12]),
    ("first,last", [0, 12]),
    ("log:4", [0, 1, 3, 12]),
    ("every:6,last", [0, 6, 12]),
    ("none", []),
    ("all", list(range(13))),
]


@pytest.mark.parametrize(("policy", "kept"), KEPT)
def test_what_policies_keep(store, policy, kept):
    run = add(store)
    assert Policy.parse(policy).keeps(run, list(range(STEPS + 1))) == kept
    assert Policy.parse(policy).keeps(run, []) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evry:5", "'evry' is not known; .*Did you mean 'every'"),
        ("every:0", "write every:10"),
        ("every:x", "write every:10"),
        ("last:2", "write last$"),
        ("", "nothing given"),
    ],
)
def test_bad_policies(text, message):
    with pytest.raises(UsageError, match=message):
        Policy.parse(text)


def test_events_are_warnings_and_detected_episodes(store):
    import pyarrow as pa

    from landscape.store.tables import write_table

    run = add(store, state="interrupted")
    with run.begin_attempt(STEPS) as attempt:
        attempt.log({"step": STEPS + 1, "loss_clean": 9.0, "episode_warning": 7})
    assert event_steps(run) == [7, STEPS + 1]
    episodes = pa.table({"column": ["loss_clean"], "onset": [2], "peak": [3], "recovery": pa.array([None], pa.int64())})
    write_table(run.analysis_dir / "episodes.parquet", episodes)
    assert event_steps(run) == [2, 3, 7, STEPS + 1]
    steps = list(range(STEPS + 1))
    assert Policy.parse("events:1").keeps(run, steps) == [0, 1, 2, 3, 6, 7, 12]


@pytest.mark.parametrize("policy", ["every:5", "last", "none", "log:4"])
def test_a_pruned_run_is_the_same_run_with_fewer_snapshots(store, policy):
    run = add(store)
    before, metrics, base = run.status, run.metrics(), run.snapshots().base_tensors()
    kept = Policy.parse(policy).keeps(run, list(range(STEPS + 1)))
    bytes_before = sum(map(len, contents(run.path).values()))
    done = prune(run, Policy.parse(policy))
    assert done.skipped is None
    assert done.freed_bytes == 2 * (STEPS + 1 - len(kept)) * LAYOUT.record_bytes
    assert sum(map(len, contents(run.path).values())) < bytes_before
    assert run.metrics().equals(metrics)
    assert run.status.model_dump(exclude={"attempt", "updated"}) == before.model_dump(exclude={"attempt", "updated"})
    assert verify(store).findings == ()
    assert [path.name for path in (run.path / "attempts").iterdir()] == [str(run.status.attempt)]
    if not kept:
        assert run.streams() == []
        return
    for stream in ("params", "adam_v"):
        reader = run.snapshots(stream)
        assert reader.steps.tolist() == kept
        assert all(torch.equal(reader.tensors(step)["A"], tensors(step)["A"]) for step in kept)
    assert torch.equal(run.snapshots().base_tensors()["base"], base["base"])
    assert prune(run, Policy.parse(policy)).skipped == "there is nothing to drop"


def checkpoint(run):
    state = run.path / "attempts" / str(run.status.attempt) / "checkpoint" / "step-000012"
    state.mkdir(parents=True)
    (state / "parameters.safetensors").write_bytes(b"p" * 1000)
    return state


def test_checkpoints_stay_unless_they_are_to_go(store):
    run = add(store)
    checkpoint(run)
    prune(run, Policy.parse("last"))
    assert (run.checkpoint_dir / "step-000012" / "parameters.safetensors").read_bytes() == b"p" * 1000
    assert plan_pruning(run, Policy.parse("last")).skipped is not None
    assert prune(run, Policy.parse("last"), keep_checkpoint=False).checkpoint_bytes == 1000
    assert not list(run.checkpoint_dir.glob("step-*"))


def test_superseded_attempts_go(store):
    run = add(store, state="interrupted")
    run.begin_attempt(8).close()
    done = prune(run, Policy.parse("all"))
    assert done.old_attempts_bytes > 2 * STEPS * LAYOUT.record_bytes
    assert run.snapshots().steps.tolist() == list(range(9))
    assert run.metrics()["step"].tolist() == list(range(1, 9))


def test_what_is_running_or_damaged_is_left_alone(store):
    run = add(store)
    with run.claim():
        assert plan_pruning(run, Policy.parse("last")).skipped == "it is running"
    path = run.path / "attempts/1/snapshots-params.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    before = contents(run.path)
    with pytest.raises(StoreError, match=f"the snapshot of step {STEPS} is damaged"):
        prune(run, Policy.parse("last"))
    assert contents(run.path) == before
    assert prune(run, Policy.parse("first")).skipped is None, "the damaged one is not kept"


def test_a_full_disk_leaves_the_run_as_it_was(store, disk):
    run = add(store)
    before = contents(run.path)
    disk.room = 500
    with pytest.raises((StoreError, LeaseHeldError), match="No space left"):
        prune(run, Policy.parse("every:2"))
    disk.room = None
    assert contents(run.path) == before
    assert verify(store).is_sound


CALLS = ("replace", "rename", "rmdir", "unlink", "mkdir", "fsync", "ftruncate")
KILLED = """
import os, sys
from landscape.store import Store
from landscape.store.keeping import Policy
from landscape.store.prune import prune

left = int(sys.argv[2])
def dying(call):
    def wrapped(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return call(*arguments, **options)
    return wrapped

(run,) = Store.open(sys.argv[1]).runs()
for name in {calls!r}:
    setattr(os, name, dying(getattr(os, name)))
prune(run, Policy.parse("every:5"))
"""


@pytest.mark.slow
def test_killed_anywhere_a_run_has_all_its_snapshots_or_those_to_be_kept(tmp_path):
    """The process dies before each of its system calls that change a file or a name, one after the other."""
    original = Store.create(tmp_path / "original")
    everything = list(range(STEPS + 1))
    metrics = add(original).metrics()
    seen = set()
    for calls in range(200):
        shutil.copytree(original.path, tmp_path / "store")
        store = Store(tmp_path / "store")
        script = KILLED.format(calls=CALLS)
        code = subprocess.run([sys.executable, "-c", script, store.path, str(calls)], check=False).returncode
        assert code in (0, 9)
        (run,) = store.runs()
        steps = run.snapshots().steps.tolist()
        assert steps in (everything, [0, 5, 10, 12])
        assert run.status.state == "done"
        assert run.metrics().equals(metrics)
        assert verify(store).counts.keys() <= {"stale"}
        seen.add(len(steps))
        prune(run, Policy.parse("every:5"))
        assert run.snapshots().steps.tolist() == [0, 5, 10, 12]
        assert verify(store).findings == ()
        shutil.rmtree(store.path)
        if code == 0:
            break
    assert code == 0
    assert seen == {13, 4}
    assert calls > 20


def test_the_command(store):
    for seed, name in enumerate(("lora-a", "lora-b")):
        add(store, name, seed=seed)
    before = contents(store.path)
    assert invoke("prune", store.path).exit_code == 2, "a policy must be given"
    result = invoke("prune", store.path, "--policy", "last")
    assert result.exit_code == 0, result.output
    assert "would be freed; --yes does it" in result.stdout
    assert contents(store.path) == before
    assert invoke("prune", store.path, "--policy", "last", "--dry-run", "--yes").exit_code == 2
    said = payload(invoke("prune", store.path, "--policy", "last", "--yes", "--where", "seed==0", "--json"))
    freed = 2 * STEPS * LAYOUT.record_bytes
    assert (said["done"], said["freed_bytes"], len(said["runs"])) == (True, freed, 1)
    assert [len(run.snapshots()) for run in store.runs()] == [1, STEPS + 1]
    result = invoke("prune", store.path, "--policy", "last", "--yes")
    assert "1 runs left alone: there is nothing to drop" in result.stdout
    os.truncate(store.runs()[0].path / "status.json", 5)
    result = invoke("prune", store.path, "--policy", "none", "--yes")
    assert result.exit_code == 3
    assert "error: lora-a: " in result.stderr
    assert store.runs()[1].streams() == []
