import json
from datetime import datetime

import pytest

from landscape.errors import StoreError, UsageError
from landscape.store.atomic import read_json, write_checked_json


def test_a_new_run_is_queued(run):
    status = run.status
    assert (status.state, status.attempt, status.step, status.max_steps) == ("queued", 0, 0, 20)
    assert status.created == status.updated
    assert datetime.fromisoformat(status.created).utcoffset().total_seconds() == 0
    assert (status.started, status.finished, status.error) == (None, None, None)


def test_times_follow_the_state(run):
    started = run.set_status(state="running", host="here", pid=1, environment={"torch": "2.13"}).started
    assert started is not None
    assert run.set_status(state="failed", error="boom").finished is not None
    again = run.set_status(state="running", error=None)
    assert (again.started, again.finished, again.error) == (started, None, None)
    done = run.set_status(state="done", step=20)
    assert done.finished is not None
    assert run.status == done
    assert run.set_status(state="queued").finished is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stat": "done"}, "unknown status field 'stat'.* Did you mean 'state'"),
        ({"state": "finished"}, "state: 'finished'.*'queued', 'running', 'done'"),
        ({"step": -1}, "step: -1"),
        ({"max_steps": 0}, "max_steps: 0"),
    ],
)
def test_status_changes_are_checked(run, changes, message):
    before = run.status
    with pytest.raises(UsageError, match=message):
        run.set_status(**changes)
    assert run.status == before


def test_a_full_disk_leaves_the_old_status(run, disk):
    run.set_status(state="running", step=3)
    disk.room = 20
    with pytest.raises(StoreError, match=r"status\.json: No space left on device"):
        run.set_status(step=4)
    disk.room = None
    assert run.status.step == 3
    assert run.set_status(step=4).step == 4


@pytest.mark.parametrize("content", ["", "{}", '{"state": "lost", "max_steps": 1, "created": "", "updated": ""}'])
def test_a_damaged_status_is_named(run, content):
    (run.path / "status.json").write_text(content)
    with pytest.raises(StoreError, match=r"status\.json is damaged"):
        _ = run.status


def test_fields_of_later_versions_are_ignored(run):
    path = run.path / "status.json"
    write_checked_json(path, {**read_json(path), "priority": 3})
    assert run.status.state == "queued"


def test_a_changed_status_is_noticed(run):
    path = run.path / "status.json"
    path.write_text(path.read_text().replace('"max_steps": 20', '"max_steps": 21'))
    with pytest.raises(StoreError, match=r"status\.json is damaged: its checksum does not match"):
        _ = run.status
    values = json.loads(path.read_text())
    del values["crc"]
    path.write_text(json.dumps(values))
    assert run.status.max_steps == 21, "written by an older version, or by somebody who took the checksum out"


def test_a_damaged_config_is_named(run):
    (run.path / "config.yaml").write_text("max_stepz: 3\nreport_to: []\n")
    with pytest.raises(StoreError, match=rf"run {run.id}: unknown config key 'max_stepz'"):
        _ = run.config


def test_lengthening_keeps_the_run(run):
    longer = run.config.replace(max_steps=50, eval_steps=5)
    run.update_config(longer)
    assert run.config == longer
    assert run.status.max_steps == 50
    run.update_config(longer)


def test_a_config_of_another_run_is_refused(run):
    with pytest.raises(StoreError, match=r"learning_rate is 0\.0001; with 0\.5 it would be another run"):
        run.update_config(run.config.replace(learning_rate=0.5))
    assert run.config.learning_rate == 1e-4


def test_folders_of_other_writers_are_not_made(run):
    assert run.checkpoint_dir == run.path / "checkpoint"
    assert run.analysis_dir == run.path / "analysis"
    assert not run.checkpoint_dir.exists()
    assert not run.analysis_dir.exists()
