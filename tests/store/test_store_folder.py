import json

import pytest

from landscape.config import SCHEMA_VERSION, RunConfig
from landscape.errors import StoreError, UsageError
from landscape.store import Store

CONFIG = RunConfig.parse({"alpha": 16, "max_steps": 20})
DIGESTS = {"data": "d", "model": "m"}


def test_a_store_is_made_once_and_opened_again(tmp_path):
    store = Store.create(tmp_path / "deep" / "store")
    before = (store.path / "store.json").read_bytes()
    assert json.loads(before)["schema_version"] == SCHEMA_VERSION
    assert store.orders_dir.is_dir()
    assert store.base_loss_dir.is_dir()
    assert Store.create(store.path).path == Store.open(str(store.path)).path == store.path
    assert (store.path / "store.json").read_bytes() == before
    assert store.runs() == []


def test_empty_folders_that_version_control_lost_come_back(tmp_path):
    store = Store.create(tmp_path)
    store.orders_dir.rmdir()
    assert Store.create(tmp_path).orders_dir.is_dir()


@pytest.mark.parametrize("opener", [Store.open, Store.create])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            json.dumps({"schema_version": SCHEMA_VERSION + 1}),
            f"version {SCHEMA_VERSION + 1}.* version {SCHEMA_VERSION}",
        ),
        (json.dumps({"schema_version": "1"}), "damaged: schema_version is '1'"),
        (json.dumps({"schema_version": True}), "damaged"),
        ("{}", "damaged: schema_version is None"),
        ("", "damaged: not valid JSON"),
    ],
)
def test_newer_or_damaged_stores_are_refused(tmp_path, opener, content, message):
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(StoreError, match=message):
        opener(tmp_path)


def test_what_is_no_store_is_not_opened(tmp_path):
    with pytest.raises(StoreError, match="absent does not exist"):
        Store.open(tmp_path / "absent")
    with pytest.raises(StoreError, match=r"is no store: it has no store\.json"):
        Store.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_not_made_among_foreign_things(tmp_path):
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"not empty: it holds 'thesis\.tex'"):
        Store.create(tmp_path)
    with pytest.raises(StoreError, match="is a file: a store is a folder"):
        Store.create(tmp_path / "thesis.tex")
    (tmp_path / "thesis.tex").unlink()
    assert Store.create(tmp_path).runs() == []


def test_runs_are_added_once(store):
    run = store.add(CONFIG, "lora-r8-s0-aa", DIGESTS)
    assert (run.id, run.path) == ("lora-r8-s0-aa", store.path / "runs" / "lora-r8-s0-aa")
    assert run.config == CONFIG
    assert run.digests == DIGESTS
    run.set_status(state="running", step=3)
    again = store.add(CONFIG, run.id, DIGESTS)
    assert again.status.step == 3
    store.add(CONFIG, "full-s0-bb", DIGESTS)
    assert [item.id for item in store.runs()] == ["full-s0-bb", "lora-r8-s0-aa"]


def test_a_run_of_other_data_is_another_run(store, run):
    with pytest.raises(StoreError, match=r"exists with other digests: .*'dddd.*'x'"):
        store.add(CONFIG, run.id, {**run.digests, "data": "x"})


@pytest.mark.parametrize(
    "run_id", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a..b", "-x", "a b", "x" * 201, "é"]
)
def test_run_ids_that_would_be_paths_are_refused(store, run_id):
    with pytest.raises(UsageError, match="is not a plain name"):
        store.add(CONFIG, run_id, DIGESTS)
    assert list((store.path / "runs").iterdir()) == []


@pytest.mark.parametrize("failing", ["identity.json", "status.json", "config.yaml"])
def test_a_run_that_was_half_made_is_no_run_and_can_be_made(store, monkeypatch, failing):
    from landscape.store import runs

    def crash(write):
        def wrapped(path, value):
            if path.name == failing:
                raise KeyboardInterrupt
            write(path, value)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_checked_json", crash(runs.write_checked_json))
        patch.setattr(runs, "write_config", crash(runs.write_config))
        with pytest.raises(KeyboardInterrupt):
            store.add(CONFIG, "lora", DIGESTS)
    assert store.runs() == []
    assert store.add(CONFIG, "lora", DIGESTS).status.state == "queued"
    assert len(store.runs()) == 1


def test_a_damaged_identity_is_named(store, run):
    (run.path / "identity.json").write_text("{}")
    with pytest.raises(StoreError, match=r"identity\.json is damaged: it has no digests"):
        store.add(CONFIG, run.id, DIGESTS)


def test_runs_are_found_by_id_and_by_prefix(store):
    for run_id in ("lora-r8-s0-aa", "lora-r8-s1-bb", "mgpo-r8-s0-cc", "mgpo-r8-s0-cc2"):
        store.add(CONFIG, run_id, DIGESTS)
    assert store.get("lora-r8-s1-bb").id == "lora-r8-s1-bb"
    assert store.get("lora-r8-s1").id == "lora-r8-s1-bb"
    assert store.get("mgpo-r8-s0-cc").id == "mgpo-r8-s0-cc", "an id that is also a prefix is itself"


@pytest.mark.parametrize(
    ("run_id", "message"),
    [
        ("lora-r8", "ambiguous .*: 2 ids start so: lora-r8-s0-aa, lora-r8-s1-bb"),
        ("lora-r8-s0-ab", r"no run 'lora-r8-s0-ab' among its 2\. Did you mean 'lora-r8-s0-aa'"),
        ("", "no run ''"),
        ("../../etc", "no run"),
    ],
)
def test_unknown_runs_name_the_nearest(store, run_id, message):
    for known in ("lora-r8-s0-aa", "lora-r8-s1-bb"):
        store.add(CONFIG, known, DIGESTS)
    with pytest.raises(StoreError, match=message):
        store.get(run_id)


def test_a_full_disk_while_adding_leaves_the_store_readable(store, run, disk):
    disk.room = 10
    with pytest.raises(StoreError, match=r"cannot write .*identity\.json: No space left"):
        store.add(CONFIG, "another", DIGESTS)
    assert [item.id for item in store.runs()] == [run.id]


def test_importing_the_store_loads_no_heavy_library():
    import subprocess
    import sys

    code = (
        "import sys, landscape.store; print(sorted({'torch', 'pandas', 'pyarrow', 'numpy', 'peft'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
