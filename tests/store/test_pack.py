import pytest
import torch

from landscape.errors import StoreError, UsageError
from landscape.store import Store
from landscape.store.keeping import Policy
from landscape.store.pack import pack
from landscape.store.verify import verify
from tests.command_line import invoke, payload
from tests.store.full_runs import STEPS, add, contents, fill_shared, tensors


@pytest.fixture
def full(store):
    runs = add(store, "lora-a"), add(store, "lora-b", seed=1, state="interrupted")
    fill_shared(store, *runs)
    return runs


def test_a_packed_store_is_the_same_store_without_snapshots(store, full, tmp_path):
    before = contents(store.path)
    done = pack(store, tmp_path / "packed")
    assert (done.runs, done.snapshots, done.left_out) == (2, 0, {})
    assert done.bytes_after < done.bytes_before
    packed = Store.open(tmp_path / "packed")
    assert verify(packed).findings == ()
    for run in store.runs():
        copy = packed.get(run.id)
        assert (copy.config, copy.digests, copy.status) == (run.config, run.digests, run.status)
        assert copy.metrics().equals(run.metrics())
        assert copy.evaluations().equals(run.evaluations())
        assert copy.streams() == []
        names = {path.name for path in copy.path.rglob("*")}
        assert {"sharpness.parquet", "slice1d-x.npz"} <= names
        assert not any(name.startswith("snapshots") or name == "base.safetensors" for name in names)
    assert {"n8-seed0.npy", "abc.npz", "slice1d-joint.npz"} <= {path.name for path in packed.path.rglob("*")}
    assert contents(store.path) == before


def test_some_snapshots_can_come_along(store, full, tmp_path):
    done = pack(store, tmp_path / "packed", policy=Policy.parse("first,last"))
    assert done.snapshots == 2 * 2 * 2
    copy = Store.open(tmp_path / "packed").get("lora-b")
    assert copy.snapshots().steps.tolist() == [0, STEPS]
    assert torch.equal(copy.snapshots().tensors(STEPS)["A"], tensors(STEPS, 1)["A"])
    assert torch.equal(copy.snapshots().base_tensors()["base"], torch.arange(4.0) + 1)
    assert verify(Store.open(tmp_path / "packed")).findings == ()


def test_checkpoints_come_along_when_asked(store, full, tmp_path):
    state = full[0].path / "attempts/1/checkpoint/step-000012"
    state.mkdir(parents=True)
    (state / "parameters.safetensors").write_bytes(b"p")
    for name, checkpoints in (("a", False), ("b", True)):
        pack(store, tmp_path / name, checkpoints=checkpoints)
        copy = Store.open(tmp_path / name).get("lora-a")
        assert (copy.checkpoint_dir / state.name / "parameters.safetensors").is_file() == checkpoints


def test_a_damaged_run_is_left_out_and_named(store, full, tmp_path):
    (full[0].path / "status.json").write_text("{")
    done = pack(store, tmp_path / "packed")
    assert list(done.left_out) == ["lora-a"]
    assert "status.json is damaged" in done.left_out["lora-a"]
    packed = Store.open(tmp_path / "packed")
    assert [run.id for run in packed.runs()] == ["lora-b"]
    assert not (packed.path / "analysis").exists(), "the slice is also of the run that was left out"


def test_it_is_there_whole_or_not_at_all(store, full, tmp_path, disk):
    disk.room = 300
    with pytest.raises(StoreError, match="No space left"):
        pack(store, tmp_path / "packed")
    disk.room = None
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    pack(store, tmp_path / "packed")
    with pytest.raises(UsageError, match="exists already"):
        pack(store, tmp_path / "packed")


def test_the_command(store, full, tmp_path):
    result = invoke("pack", store.path, "-o", tmp_path / "packed", "--where", "seed==0", "--keep", "last")
    assert result.exit_code == 0, result.output
    assert "1 runs, 2 snapshots" in result.stdout
    said = payload(invoke("pack", store.path, "-o", tmp_path / "all", "--json"))
    assert (said["runs"], said["left_out"]) == (2, {})
    assert invoke("status", tmp_path / "all").exit_code == 0
    assert invoke("pack", store.path, "-o", tmp_path / "all").exit_code == 2
    assert invoke("pack", store.path, "-o", tmp_path / "x", "--keep", "lsat").exit_code == 2
