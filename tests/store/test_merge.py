import shutil

import numpy as np
import pytest
import torch

from landscape.errors import StoreError, UsageError
from landscape.store import Store
from landscape.store.config_file import write_config
from landscape.store.keeping import Policy
from landscape.store.merge import merge
from landscape.store.prune import prune
from landscape.store.verify import verify
from tests.command_line import invoke, payload
from tests.store.full_runs import STEPS, add, contents, fill_shared, line, tensors


@pytest.fixture
def stores(tmp_path):
    """Two stores with a run of each one's own; ``both`` is in both, unless a test adds it."""
    made = []
    for seed, name in enumerate("ab"):
        store = Store.create(tmp_path / name)
        fill_shared(store, add(store, f"only-{name}", seed=seed))
        made.append(store)
    return made


def actions(merging):
    return {(item.run_id, item.source.name): item.action for item in merging.runs}


def test_every_run_comes_once_and_whole(stores, tmp_path):
    done = merge(stores, tmp_path / "c")
    assert actions(done) == {("only-a", "a"): "copied", ("only-b", "b"): "copied"}
    assert done.conflicts == []
    merged = Store.open(tmp_path / "c")
    assert verify(merged).findings == ()
    for seed, source in enumerate(stores):
        (run,) = source.runs()
        copy = merged.get(run.id)
        assert copy.metrics().equals(run.metrics())
        assert torch.equal(copy.snapshots().tensors(7)["A"], tensors(7, seed)["A"])
        assert copy.snapshots("adam_v").steps.tolist() == list(range(STEPS + 1))
    again = merge(stores, tmp_path / "c")
    assert set(actions(again).values()) == {"identical"}
    assert again.conflicts == []


@pytest.mark.parametrize(
    ("one", "other", "expected", "steps"),
    [
        ({}, {}, "identical", 12),
        ({"state": "interrupted", "steps": 8}, {}, "replaced", 12),
        ({}, {"state": "interrupted", "steps": 8}, "kept", 12),
        ({"state": "interrupted", "steps": 8}, {"state": "failed", "steps": 4}, "kept", 8),
        ({"state": "interrupted", "steps": 4}, {"state": "failed", "steps": 8}, "replaced", 8),
    ],
)
def test_of_two_copies_the_finished_and_longer_stays(stores, tmp_path, one, other, expected, steps):
    add(stores[0], "both", **one)
    add(stores[1], "both", **other)
    done = merge(stores, tmp_path / "c")
    assert actions(done)["both", "b"] == expected
    assert done.conflicts == [], "the shorter is the beginning of the longer"
    copy = Store.open(tmp_path / "c").get("both")
    assert copy.status.step == steps
    assert copy.metrics()["step"].tolist() == list(range(1, steps + 1))
    assert verify(Store.open(tmp_path / "c")).findings == ()


def test_of_two_finished_ones_that_contradict_each_other_the_newer_stays_and_it_is_said(stores, tmp_path):
    first = add(stores[0], "both")
    second = add(stores[1], "both", seed=5)
    for run, year, threads in ((first, 2026, 1), (second, 2027, 2)):
        run.set_status(finished=f"{year}-01-01T00:00:00.000+00:00", environment={"threads": threads})
    write_config(second.path / "config.yaml", first.config)
    done = merge(stores, tmp_path / "c")
    assert actions(done)["both", "b"] == "replaced"
    (conflict,) = done.conflicts
    assert "both of " in conflict
    assert "metrics differ from step 1 on (12 lines)" in conflict
    assert "snapshots params differ from step 0 on (13 records)" in conflict
    assert "they were made with threads 1 and 2" in conflict
    copy = Store.open(tmp_path / "c").get("both")
    assert copy.metrics()["loss_clean"].iloc[0] == line(1, 5)["loss_clean"]


def test_a_copy_with_all_its_snapshots_is_better_than_a_pruned_one(stores, tmp_path):
    add(stores[1], "both")
    prune(add(stores[0], "both"), Policy.parse("last"))
    done = merge(stores, tmp_path / "c")
    assert actions(done)["both", "b"] == "replaced"
    assert done.conflicts == []
    assert len(Store.open(tmp_path / "c").get("both").snapshots()) == STEPS + 1


def test_analyses_that_one_copy_lacks_come_with_it(stores, tmp_path):
    first, second = add(stores[0], "both"), add(stores[1], "both")
    shutil.copy(second.analysis_dir / "sharpness.parquet", second.analysis_dir / "trace.parquet")
    shutil.rmtree(first.analysis_dir)
    merge(stores, tmp_path / "c")
    names = {path.name for path in Store.open(tmp_path / "c").get("both").analysis_dir.iterdir()}
    assert names == {"sharpness.parquet", "trace.parquet", "slice1d-x.npz"}


def test_runs_of_other_data_or_that_are_damaged_are_left_out(stores, tmp_path):
    add(stores[0], "both")
    other = add(stores[1], "both")
    (other.path / "identity.json").write_text('{"run_id": "both", "digests": {"data": "x"}}')
    (stores[1].get("only-b").path / "config.yaml").write_text("rank: [1")
    done = merge(stores, tmp_path / "c")
    assert actions(done)["both", "b"] == actions(done)["only-b", "b"] == "left out"
    assert any("made from other data or another model" in text for text in done.conflicts)
    assert any("config.yaml" in text for text in done.conflicts)


def test_what_runs_share_is_joined(stores, tmp_path):
    np.savez(stores[1].base_loss_dir / "abc.npz", nll=np.array([1.0, 7.0, 2.0]), count=np.array([3.0, 2.0, 4.0]))
    longer = np.concatenate([np.load(stores[0].orders_dir / "n8-seed0.npy"), np.random.default_rng(0).permutation(8)])
    np.save(stores[1].orders_dir / "n8-seed0.npy", longer)
    assert merge(stores, tmp_path / "c").conflicts == []
    merged = Store.open(tmp_path / "c")
    np.testing.assert_array_equal(np.load(merged.base_loss_dir / "abc.npz")["nll"], [1.0, 7.0, 2.0])
    np.testing.assert_array_equal(np.load(merged.orders_dir / "n8-seed0.npy"), longer)
    assert verify(merged).findings == ()
    np.save(stores[1].orders_dir / "n8-seed0.npy", longer[::-1].copy())
    assert "another order of the data" in merge(stores, tmp_path / "d").conflicts[0]


def test_killed_or_out_of_disk_the_same_command_goes_on(stores, tmp_path, disk):
    before = [contents(store.path) for store in stores]
    disk.room = 9000
    with pytest.raises(StoreError, match="No space left"):
        merge(stores, tmp_path / "c")
    disk.room = None
    assert verify(Store.open(tmp_path / "c")).is_sound
    merge(stores, tmp_path / "c")
    assert [run.id for run in Store.open(tmp_path / "c").runs()] == ["only-a", "only-b"]
    assert verify(Store.open(tmp_path / "c")).findings == ()
    assert [contents(store.path) for store in stores] == before


def test_a_store_is_not_merged_into_itself(stores, tmp_path):
    with pytest.raises(UsageError, match="is one of the stores to merge"):
        merge(stores, tmp_path / "a")


def test_the_command(stores, tmp_path):
    result = invoke("merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / "c")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().endswith("2 copied")
    said = payload(invoke("merge", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c", "--json"))
    assert [item["action"] for item in said["runs"]] == ["identical", "identical"]
    assert invoke("merge", tmp_path / "a", "--into", tmp_path / "a").exit_code == 2
    assert invoke("merge", tmp_path / "absent", "--into", tmp_path / "c").exit_code == 2
