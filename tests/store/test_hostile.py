"""A store from a stranger: whatever it holds, commands end in order, harm nothing, and show the run that is sound."""

from __future__ import annotations

import io
import json
import os
import pickle
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from landscape.config import RunConfig
from landscape.errors import StoreError, UsageError
from landscape.store import Run, Store
from landscape.store.atomic import read_json, write_checked_json
from landscape.store.config_file import write_config
from landscape.store.lines import encode_line
from landscape.store.verify import verify
from tests.command_line import invoke, payload
from tests.store.full_runs import add, contents, slice_of

SCRIPT = "<script>alert('x')</script><img src=x onerror=alert(1)>[/red][link=file:///etc/passwd]$\\frac{"
ESCAPE = "\x1b]0;pwned\x07\x1b[2J"
SECONDS, MEMORY = 300, 1_500_000_000
"""Bounds that an unmended bomb passes by far: seconds of a command, bytes that Python allocates in it."""


class Payload:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def raw_config(run: Run, text: str) -> None:
    (run.path / "config.yaml").write_text(text)


def configured(run: Run, **changes: object) -> None:
    write_config(run.path / "config.yaml", RunConfig.parse({"max_steps": 12, "alpha": 16, **changes}))


def status_of(run: Run, **changes: object) -> None:
    path = run.path / "status.json"
    write_checked_json(path, {**read_json(path), **changes})


def lines(run: Run, *records: dict) -> None:
    path = run.path / "attempts/1/metrics.jsonl"
    path.write_bytes(b"".join(map(encode_line, records)))
    (run.path / "metrics.parquet").unlink(missing_ok=True)


def linked(run: Run, name: str, target: Path) -> None:
    path = run.path / name
    if path.is_dir():
        path.rename(path.with_name(f"{path.name}-before"))
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(target)


def layouts(run: Run, **changes: object) -> None:
    entry = {
        "record_bytes": 96,
        "tensors": [{"name": "A", "shape": [3], "dtype": "float32", "offset": 0}],
        "aliases": {},
    }
    write_checked_json(run.path / "attempts/1/snapshots.json", {"streams": {"params": {**entry, **changes}}})


def npz(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def header(shape: str, dtype: str = "<f8") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def zip_bomb(path: Path) -> None:
    """A megabyte that unpacks to half a gigabyte and more, in six arrays."""
    block = header("(13421772,)") + bytes(13421772 * 8)
    npz(path, **{f"axis{index}": block for index in range(6)})


def parquet_bomb(path: Path) -> None:
    """Two kilobytes that declare a hundred million rows of nothing, often."""
    schema = pa.schema([("step", pa.int64())])
    block = pa.table({"step": pa.array(np.zeros(1_000_000, np.int64))}, schema)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(250):
            writer.write_table(block)


def alias_bomb() -> str:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(rows)


def merge_bomb() -> str:
    rows = ["a0: &a0 {k: 1, l: 2}"]
    return "\n".join(rows + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 10)])


def pickled(outside: Path) -> bytes:
    return pickle.dumps(Payload(outside / "unpickled"))


def object_array(outside: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Payload(outside / "unpickled")], dtype=object), allow_pickle=True)
    return file.getvalue()


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def sparse(path: Path, size: int) -> None:
    path.write_bytes(b"")
    os.truncate(path, size)


def foreign_slice(run: Run, /, **info: object) -> None:
    item = slice_of(run.id)
    arrays = {"axis0": item.axes[0], "loss": item.loss, "standard_error": item.standard_error}
    arrays |= {"evaluated": item.evaluated, "origin_loss": 1.0, "info": json.dumps({**item.info, **info})}
    np.savez(run.analysis_dir / "slice1d-x.npz", **{name: np.array(value) for name, value in arrays.items()})


Attack = Callable[[Run, Path], None]
DEEP = "[" * 100_000
ATTACKS: dict[str, Attack] = {
    "link-config": lambda run, out: linked(run, "config.yaml", out / "config.yaml"),
    "link-status": lambda run, out: linked(run, "status.json", out / "status.json"),
    "link-metrics": lambda run, out: linked(run, "attempts/1/metrics.jsonl", out / "metrics.jsonl"),
    "link-attempt": lambda run, out: linked(run, "attempts/1", out / "attempt"),
    "link-analysis": lambda run, out: linked(run, "analysis", out / "analysis"),
    "link-parquet": lambda run, out: linked(run, "metrics.parquet", out / "table.parquet"),
    "link-circle": lambda run, out: linked(run, "status.json", run.path / "status.json"),
    "link-base": lambda run, out: linked(run, "attempts/1/base.safetensors", out / "base.safetensors"),
    "pipe-config": lambda run, out: fifo(run.path / "config.yaml"),
    "pipe-status": lambda run, out: fifo(run.path / "status.json"),
    "pipe-metrics": lambda run, out: fifo(run.path / "attempts/1/metrics.jsonl"),
    "pipe-table": lambda run, out: fifo(run.path / "analysis/sharpness.parquet"),
    "pipe-slice": lambda run, out: fifo(run.path / "analysis/slice1d-x.npz"),
    "path-stream": lambda run, out: write_checked_json(
        run.path / "attempts/1/snapshots.json", {"streams": {"../../../../x": {}}}
    ),
    "path-attempt": lambda run, out: status_of(run, attempt="../../.."),
    "path-identity": lambda run, out: write_checked_json(run.path / "identity.json", {"run_id": "../x", "digests": {}}),
    "path-slice": lambda run, out: foreign_slice(run, run="../../../x", runs=["../../../x"]),
    "huge-attempt": lambda run, out: status_of(run, attempt=10**30),
    "huge-step": lambda run, out: lines(run, {"step": 10**30, "loss_clean": 1.0}),
    "huge-number": lambda run, out: lines(run, {"step": 1, "loss_clean": 10**400}),
    "huge-layout": lambda run, out: layouts(
        run,
        record_bytes=1 << 60,
        tensors=[{"name": "A", "shape": [1 << 58], "dtype": "float32", "offset": 0}],
    ),
    "huge-dimensions": lambda run, out: (run.path / "attempts/1/snapshots.json").write_text(
        '{"streams": {"params": {"record_bytes": 96, "aliases": {}, "tensors": '
        '[{"name": "A", "shape": [1e400], "dtype": "float32", "offset": 0}]}}}'
    ),
    "huge-array": lambda run, out: npz(run.path / "analysis/slice1d-x.npz", loss=header("(1000000000000,)")),
    "huge-order": lambda run, out: (run.root / "orders/n9-seed9.npy").write_bytes(header("(1000000000000,)", "<i8")),
    "huge-table": lambda run, out: parquet_bomb(run.path / "analysis/sharpness.parquet"),
    "huge-zip": lambda run, out: zip_bomb(run.path / "analysis/slice1d-x.npz"),
    "huge-status": lambda run, out: sparse(run.path / "status.json", 1 << 40),
    "huge-config": lambda run, out: sparse(run.path / "config.yaml", 1 << 40),
    "huge-line": lambda run, out: sparse(run.path / "attempts/1/metrics.jsonl", 1 << 40),
    "huge-columns": lambda run, out: lines(run, {"step": 1, **{f"k{index}": 1 for index in range(20_000)}}),
    "deep-status": lambda run, out: (run.path / "status.json").write_text(DEEP),
    "deep-line": lambda run, out: (run.path / "attempts/1/metrics.jsonl").write_text(DEEP + "\n"),
    "deep-config": lambda run, out: raw_config(run, DEEP),
    "yaml-tag": lambda run, out: raw_config(run, f"!!python/object/apply:os.mkdir ['{out}/unpickled']"),
    "yaml-binary": lambda run, out: raw_config(run, "model_kwargs: {a: !!binary gIGC}"),
    "yaml-aliases": lambda run, out: raw_config(run, alias_bomb()),
    "yaml-merges": lambda run, out: raw_config(run, merge_bomb()),
    "yaml-circle": lambda run, out: raw_config(run, "model_kwargs: &a {a: *a}"),
    "yaml-digits": lambda run, out: raw_config(run, f"rank: 0x{'f' * 9000}"),
    "pickle-config": lambda run, out: (run.path / "config.yaml").write_bytes(pickled(out)),
    "pickle-table": lambda run, out: (run.path / "analysis/sharpness.parquet").write_bytes(pickled(out)),
    "pickle-slice": lambda run, out: npz(run.path / "analysis/slice1d-x.npz", loss=object_array(out)),
    "pickle-tensors": lambda run, out: (run.path / "attempts/1/base.safetensors").write_bytes(pickled(out)),
    "pickle-order": lambda run, out: (run.root / "orders/n7-seed7.npy").write_bytes(object_array(out)),
    "kind-nested": lambda run, out: lines(run, {"step": 1, "loss_clean": [[1, 2], {"a": 3}], "split": None}),
    "kind-split": lambda run, out: lines(run, {"step": 1, "split": ["a"]}),
    "kind-surrogate": lambda run, out: lines(run, {"step": 1, "note": "\ud800", "\ud800": 1}),
    "kind-slice": lambda run, out: foreign_slice(run, runs=5, run=["x"]),
    "kind-slice-words": lambda run, out: foreign_slice(run, space=7, steps="x", settings=[1], examples={"a": []}),
    "kind-config": lambda run, out: raw_config(run, "rank: [1]\nmethod: {a: 1}\nseed: x\nlr: yes\nreport_to: 5"),
    "words-config": lambda run, out: configured(run, method=SCRIPT, task=SCRIPT, model=SCRIPT),
    "words-error": lambda run, out: status_of(run, state="failed", error=SCRIPT + ESCAPE, environment={SCRIPT: SCRIPT}),
    "words-slice": lambda run, out: foreign_slice(run, space=SCRIPT, split=SCRIPT),
    "words-columns": lambda run, out: lines(run, {"step": 1, SCRIPT: 1.0, "split": SCRIPT, "loss": 1.0}),
}
HARMLESS = ("huge-number", "kind-nested", "kind-surrogate", "kind-slice-words", "path-slice", "words-")
"""What `verify` has no reason to report: odd, and whole."""


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Path:
    """What a link could lead to: files and folders that would do in a store."""
    folder = tmp_path_factory.mktemp("outside")
    run = add(Store.create(folder / "own"), "secret")
    (run.path / "attempts/1").rename(folder / "attempt")
    (run.path / "analysis").rename(folder / "analysis")
    for name in ("config.yaml", "status.json"):
        (folder / name).write_bytes((run.path / name).read_bytes())
    (folder / "table.parquet").write_bytes((run.path / "metrics.parquet").read_bytes())
    for name in ("metrics.jsonl", "base.safetensors"):
        (folder / name).write_bytes((folder / "attempt" / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def strange(tmp_path_factory, outside) -> Path:
    """A sound run, and one for each attack."""
    store = Store.create(tmp_path_factory.mktemp("strange") / "store")
    add(store, "sound")
    for seed, (name, attack) in enumerate(ATTACKS.items()):
        run = add(store, f"x-{name}", seed=seed + 1, steps=2)
        run.path.joinpath("optimizer.pt").write_bytes(pickled(outside))
        attack(run, outside)
    (store.path / "runs" / "link-run").symlink_to(outside / "own" / "runs" / "secret")
    (store.path / "runs" / "a b; rm -rf ~").mkdir()
    (store.path / "runs" / "a b; rm -rf ~" / "config.yaml").write_text("x: 1")
    return store.path


@pytest.fixture(autouse=True)
def nothing_happened_outside(outside):
    before = contents(outside)
    yield
    assert contents(outside) == before
    assert not (outside / "unpickled").exists(), "something was unpickled, or a tag was obeyed"


def bounded(*arguments: object, codes: tuple[int, ...] = (0,)):
    """Call a command within bounds of time and memory; it ends in order."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        result = invoke(*arguments)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert result.exit_code in codes, f"{arguments}: {result.output[-2000:]}\n{result.exception!r}"
    assert time.monotonic() - start < SECONDS
    assert peak < MEMORY
    return result


def test_verify(strange):
    said = payload(bounded("verify", strange, "--json", codes=(3,)))
    found = {item["run"] for item in said["findings"]} | {item["file"].rpartition("/")[2] for item in said["findings"]}
    assert "sound" not in found
    expected = {f"x-{name}" for name in ATTACKS if not name.startswith(HARMLESS)}
    expected -= {"x-huge-order", "x-pickle-order"}
    assert expected - found == set()
    assert {"n9-seed9.npy", "n7-seed7.npy", "link-run", "a b; rm -rf ~"} <= found
    assert ESCAPE[:2] not in bounded("verify", strange, codes=(3,)).stdout


def test_analyze(strange):
    bounded("analyze", "episodes", strange, codes=(0, 2, 3))
    bounded("analyze", "sharpness", strange, "--where", "id=='x-words-config'", codes=(2, 3))


def test_repair_and_prune_touch_nothing_outside(outside, tmp_path):
    store = Store.create(tmp_path / "store")
    for name in ("link-metrics", "link-attempt", "link-analysis", "link-parquet", "link-base", "link-status"):
        run = add(store, f"x-{name}", steps=2, state="interrupted")
        ATTACKS[name](run, outside)
    verify(store, repair=True)
    bounded("prune", store.path, "--policy", "last", "--yes", codes=(0, 3))


def test_a_run_does_not_bring_its_own_code(tmp_path, outside):
    """``trust_remote_code`` in a stranger's config: analyzing the run would run what lies beside the model."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}}))
    (model / "evil.py").write_text(f"import os; os.mkdir('{outside}/unpickled')")
    run = add(Store.create(tmp_path / "store"), "evil", steps=2)
    (run.analysis_dir / "sharpness.parquet").unlink()
    configured(run, model=str(model), model_kwargs={"trust_remote_code": True})
    result = bounded("analyze", "sharpness", tmp_path / "store", codes=(2, 3))
    assert "LANDSCAPE_TRUST_REMOTE_CODE" in result.output


def test_names_of_runs_and_streams_are_never_paths(strange):
    store = Store.open(strange)
    for name in ("../x", "a/b", ".."):
        with pytest.raises((UsageError, StoreError)):
            store.get(name)
        with pytest.raises(UsageError, match="is not a plain name"):
            store.run_path(name)


def test_aliases_within_reason_are_read(tmp_path):
    from landscape.config import read_yaml

    path = tmp_path / "sweep.yaml"
    path.write_text("a: &a {rank: 8, lr: 2e-4}\nb: {<<: *a, rank: 16}\nc: [*a, *a]\nd: 2026-01-01\n")
    values = read_yaml(path)
    assert values["b"] == {"rank": 16, "lr": 2e-4}
    assert values["c"] == [values["a"]] * 2
    assert values["d"] == "2026-01-01"
    assert yaml.safe_load(path.read_text())["b"] == {"rank": 16, "lr": "2e-4"}
