"""What strangers' run folders may hold: each attack changes one run of a store."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from landscape.config import RunConfig
from landscape.store import Run
from landscape.store.atomic import read_json, write_checked_json
from landscape.store.config_file import write_config
from landscape.store.lines import encode_line
from landscape.store.tables import write_table
from tests.store.full_runs import SLICE, slice_of

SCRIPT = "<script>alert('x')</script><img src=x onerror=alert(1)>[/red][link=file:///etc/passwd]$\\frac{"
ESCAPE = "\x1b]0;pwned\x07\x1b[2J"
SETTINGS = SLICE["settings"]


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
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
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
    block = pa.table({"step": pa.nulls(1_000_000, pa.int64())}, schema)
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


def lease(run: Run, content: str | None) -> None:
    """The only lease on an interrupted run: a text, or a pipe."""
    status_of(run, state="interrupted")
    path = run.path / "leases" / "1.json"
    path.parent.mkdir()
    fifo(path) if content is None else path.write_text(content)


def sparse(path: Path, size: int) -> None:
    path.write_bytes(b"")
    os.truncate(path, size)


def table(run: Run, name: str, **columns: list) -> None:
    write_table(run.analysis_dir / f"{name}.parquet", pa.table(columns))


def foreign_slice(run: Run, /, **info: object) -> None:
    item = slice_of(run.id)
    arrays = {"axis0": item.axes[0], "loss": item.loss, "standard_error": item.standard_error}
    arrays |= {"evaluated": item.evaluated, "origin_loss": 1.0, "info": json.dumps({**item.info, **info})}
    np.savez(run.analysis_dir / "slice1d-x.npz", **{name: np.array(value) for name, value in arrays.items()})


Attack = Callable[[Run, Path], object]
DEEP = "[" * 100_000
ATTACKS: dict[str, Attack] = {
    "link-config": lambda run, out: linked(run, "config.yaml", out / "config.yaml"),
    "link-status": lambda run, out: linked(run, "status.json", out / "status.json"),
    "link-metrics": lambda run, out: linked(run, "attempts/1/metrics.jsonl", out / "metrics.jsonl"),
    "link-attempt": lambda run, out: linked(run, "attempts/1", out / "attempt"),
    "link-analysis": lambda run, out: linked(run, "analysis", out / "analysis"),
    "link-parquet": lambda run, out: linked(run, "metrics.parquet", out / "table.parquet"),
    "link-circle": lambda run, out: linked(run, "status.json", run.path / "status.json"),
    "link-slice": lambda run, out: linked(run, "analysis/slice1d-x.npz", out / "analysis/slice1d-x.npz"),
    "link-table": lambda run, out: linked(run, "analysis/sharpness.parquet", out / "analysis/sharpness.parquet"),
    "link-base": lambda run, out: linked(run, "attempts/1/base.safetensors", out / "base.safetensors"),
    "link-leases": lambda run, out: (status_of(run, state="interrupted"), linked(run, "leases", out)),
    "pipe-lease": lambda run, out: lease(run, None),
    "huge-lease": lambda run, out: lease(run, '{"number": 1, "seconds": 1e400, "host": "x", "pid": 1e400}'),
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
    "huge-end": lambda run, out: status_of(run, step=10**4000, max_steps=10**4000),
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
    "kind-slice-words-settings": lambda run, out: foreign_slice(run, settings={**SETTINGS, "delta": "x"}),
    "kind-slice-words-draws": lambda run, out: foreign_slice(run, draws=[{"error_bound": [1]}], anchors=["x"]),
    "kind-table-words": lambda run, out: table(run, "sharpness", step=["x"], index=[0.5], value=["y"], space=[7]),
    "kind-table-holes": lambda run, out: table(run, "episodes", column=[None], p_value=[None], kind=[1], onset=[[1]]),
    "kind-config": lambda run, out: raw_config(run, "rank: [1]\nmethod: {a: 1}\nseed: x\nlr: yes\nreport_to: 5"),
    "words-config": lambda run, out: configured(run, method=SCRIPT, task=SCRIPT, model=SCRIPT),
    "words-error": lambda run, out: status_of(run, state="failed", error=SCRIPT + ESCAPE, environment={SCRIPT: SCRIPT}),
    "words-slice": lambda run, out: foreign_slice(run, id=SCRIPT, split=SCRIPT, metric=SCRIPT, precision=SCRIPT),
    "words-table": lambda run, out: table(
        run, "sharpness", step=[0], index=[0], value=[1.0], space=[SCRIPT], split=[SCRIPT], converged=[True]
    ),
    "words-columns": lambda run, out: lines(run, {"step": 1, SCRIPT: 1.0, "split": SCRIPT, "loss": 1.0}),
}
HARMLESS = (
    *("huge-number", "huge-lease", "kind-nested", "kind-surrogate", "kind-slice-words", "kind-table", "path-slice"),
    "words-",
)
"""What `verify` has no reason to report: odd, and whole."""
