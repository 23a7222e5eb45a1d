"""The list of runs: what it reads, when it reads again, and what damage does to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from app.index import RunIndex, RunRow, differing_keys, filtered, read_config
from landscape.errors import UsageError
from landscape.store import Store
from tests.synthetic_runs import run, write


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write([run(seed=0, max_steps=60), run(seed=1, max_steps=60, rank=32)], tmp_path / "store")


def test_rows_hold_the_last_numbers(store: Store) -> None:
    rows = RunIndex(store).rows()
    for row, source in zip(rows, store.runs(), strict=True):
        metrics, evaluations = source.metrics(), source.evaluations()
        last = evaluations[evaluations["split"] == "eval"].iloc[-1]
        assert row.id == source.id
        assert row.state == "done"
        assert (row.step, row.max_steps, row.progress) == (60, 60, 1.0)
        assert row.tail.loss == metrics["loss_clean"].iloc[-1]
        assert (row.tail.eval_loss, row.tail.eval_error) == (last["loss"], last["standard_error"])
        assert row.tail.seconds == pytest.approx(0.02, rel=1e-12)


def test_configs_are_what_the_store_says(store: Store) -> None:
    for source in store.runs():
        assert read_config(source) == source.config.model_dump(mode="json")


def test_a_config_written_by_hand_is_validated(store: Store) -> None:
    source = store.runs()[0]
    path = source.path / "config.yaml"
    lines = path.read_text().replace("learning_rate: 0.0005", "learning_rate: 5e-4").splitlines()
    path.write_text("\n".join(line for line in lines if "crc32" not in line))
    assert read_config(source)["learning_rate"] == 5e-4


def test_the_tail_of_a_long_file_is_enough(tmp_path: Path) -> None:
    store = write([run(max_steps=600)], tmp_path / "store")
    source = store.runs()[0]
    assert (source.path / "attempts" / "1" / "metrics.jsonl").stat().st_size > 100_000
    row = RunIndex(store).rows()[0]
    assert row.tail.eval_loss == source.evaluations().query("split == 'eval'")["loss"].iloc[-1]
    assert row.tail.eval_step == 600


def test_a_packed_run_is_read_from_its_table(store: Store) -> None:
    before = RunIndex(store).rows()
    for source in store.runs():
        (source.path / "attempts" / "1" / "metrics.jsonl").unlink()
    after = RunIndex(store).rows()
    assert [row.tail.eval_loss for row in after] == [row.tail.eval_loss for row in before]
    assert [row.tail.loss for row in after] == [row.tail.loss for row in before]


def test_only_what_changed_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    index = RunIndex(store)
    first = index.rows()
    again = index.rows()
    assert all(one is other for one, other in zip(first, again, strict=True))
    store.runs()[0].set_status(error="disk full")
    changed = index.rows()
    by_id = {row.id: row for row in changed}
    assert by_id[store.runs()[0].id].status.error == "disk full"  # type: ignore[union-attr]
    assert by_id[store.runs()[1].id] is {row.id: row for row in first}[store.runs()[1].id]


def test_runs_come_and_go(store: Store) -> None:
    index = RunIndex(store)
    assert len(index.rows()) == 2
    shutil.rmtree(store.runs()[0].path)
    assert len(index.rows()) == 1
    write([run(seed=7, max_steps=60)], store.path)
    assert len(index.rows()) == 2


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.yaml", b"rank: [", "is not valid YAML"),
        ("config.yaml", b"- a list", "must hold a mapping"),
        ("status.json", b"{}", "status.json is damaged"),
        ("status.json", b"\xff", "status.json"),
        ("attempts/1/metrics.jsonl", b'{"step":1,"crc":1}\n', "damaged"),
    ],
)
def test_damage_is_one_row(store: Store, file: str, content: bytes, words: str) -> None:
    source = store.runs()[0]
    (source.path / file).write_bytes(content)
    rows = {row.id: row for row in RunIndex(store).rows()}
    assert rows[source.id].state == "damaged"
    assert words in str(rows[source.id].problem)
    assert rows[store.runs()[1].id].state == "done"


def test_those_that_need_a_look_come_first(store: Store) -> None:
    store.runs()[1].set_status(state="failed")
    assert [row.state for row in RunIndex(store).rows()] == ["failed", "done"]


def test_filter(store: Store) -> None:
    rows = RunIndex(store).rows()
    assert [row.config["rank"] for row in filtered(rows, "rank > 8 and state == done")] == [32]
    assert len(filtered(rows, "  ")) == 2
    with pytest.raises(UsageError, match="Did you mean 'rank'"):
        filtered(rows, "rnak == 8")


def test_differing_keys(store: Store) -> None:
    rows = list(RunIndex(store).rows())
    assert differing_keys(rows) == ["rank", "seed"]
    assert differing_keys(rows[:1]) == []


def test_wall_time() -> None:
    from landscape.store import RunStatus

    times = {"created": "2026-01-01T00:00:00+00:00", "updated": "2026-01-01T00:00:30+00:00"}
    status = RunStatus(max_steps=1, started=times["created"], finished="2026-01-01T00:01:00+00:00", **times)
    assert RunRow("a", {}, status).seconds == 60
    stopped = RunStatus(max_steps=1, started=times["created"], **times)
    assert RunRow("a", {}, stopped).seconds == 30
    assert RunRow("a", {}, RunStatus(max_steps=1, **times)).seconds is None
