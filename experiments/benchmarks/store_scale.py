"""How long listing a large store takes: synthetic runs in a temporary folder.

    python experiments/benchmarks/store_scale.py [--runs 10000] [--lines 40] [--json FILE]

Every run has a config, an identity, a status and a metrics file of so many lines; nothing was trained. Times are of
this machine with the files in the page cache, the first pass over each included. docs/scale.md quotes them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from landscape.config import RunConfig
from landscape.store import SnapshotLayout, Store
from landscape.store.atomic import AppendFile, write_checked_json
from landscape.store.config_file import write_config
from landscape.store.lines import encode_line
from landscape.store.records import IndexEntry, StreamFiles, index_line
from landscape.store.runs import RunStatus
from landscape.store.snapshots import write_layouts
from landscape.sweeps.overview import overview_of

METHODS, RANKS, RATES = ("full", "lora", "mgpo", "ggpo", "dora"), (8, 16, 32, 64, 128), (1e-4, 2e-4, 5e-4, 1e-3)
STAMP = "2026-01-01T00:00:00.000+00:00"


def build(path: Path, runs: int, lines: int) -> Store:
    """The store; written without waiting for the disk, which the real one does."""
    store = Store.create(path)
    metrics = b"".join(encode_line(_line(step)) for step in range(1, lines + 1))
    fsync, fdatasync, os.fsync = os.fsync, os.fdatasync, lambda descriptor: None
    os.fdatasync = os.fsync
    try:
        for number in range(runs):
            settings = {
                "method": METHODS[number % 5], "rank": RANKS[number // 5 % 5], "learning_rate": RATES[number // 25 % 4],
                "seed": number // 100, "max_steps": lines, "alpha": 16,
            }  # fmt: skip
            config = RunConfig.parse(settings)
            folder = path / "runs" / f"{config.method}-r{config.rank}-s{config.seed}-{number:010x}"
            attempt = folder / "attempts" / "1"
            attempt.mkdir(parents=True)
            write_config(folder / "config.yaml", config)
            write_checked_json(
                folder / "identity.json", {"run_id": folder.name, "digests": {"data": "d", "model": "m"}}
            )
            status = RunStatus.model_validate(
                {"state": "done" if number % 20 else "failed", "attempt": 1, "step": lines, "max_steps": lines,
                 "created": STAMP, "updated": STAMP, "started": STAMP, "finished": STAMP,
                 "error": None if number % 20 else "RuntimeError: no luck"}
            )  # fmt: skip
            write_checked_json(folder / "status.json", status.model_dump(mode="json"))
            (attempt / "metrics.jsonl").write_bytes(metrics)
    finally:
        os.fsync, os.fdatasync = fsync, fdatasync
    return store


def _line(step: int) -> dict[str, Any]:
    return {
        "step": step, "epoch": step / 120, "tokens": step * 512, "learning_rate": 5e-4, "loss_clean": 2.5 / step,
        "loss_perturbed": 2.6 / step, "loss_base": 2.7, "grad_norm": 1.0, "perturbation_norm": 0.05,
        "adapter_norm": 3.0, "seconds": 0.02,
    }  # fmt: skip


def adapter_7b(rank: int = 128) -> SnapshotLayout:
    """A snapshot of Llama-2-7B's LoRA on all linear layers, from the model's published shapes."""
    hidden, inner = 4096, 11008
    shapes = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    named: dict[str, tuple[int, int]] = {}
    for layer in range(32):
        for module, (rows, columns) in shapes.items():
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            named[f"{prefix}.lora_A.default.weight"] = (rank, columns)
            named[f"{prefix}.lora_B.default.weight"] = (rows, rank)
    return SnapshotLayout(tuple(named), tuple(named.values()), ("float32",) * len(named))


def sizes(folder: Path) -> dict[str, float]:
    """Bytes of what a large run consists of, and speeds in bytes a second."""
    layout = adapter_7b()
    entry = index_line(IndexEntry(500, 500 * layout.record_bytes, 4_000_000_000), StreamFiles.of(folder, "params", 1))
    write_layouts(folder, {"params": layout})
    block = os.urandom(1 << 28)
    start = time.perf_counter()
    zlib.crc32(block)
    crc = len(block) / (time.perf_counter() - start)
    start = time.perf_counter()
    with AppendFile(folder / "block.bin") as file:
        file.append(block)
        file.sync()
    return {
        "record": layout.record_bytes,
        "index line": len(entry),
        "snapshots.json": (folder / "snapshots.json").stat().st_size,
        "metrics line": len(encode_line(_line(1000))),
        "config.yaml": len(RunConfig.parse({}).to_yaml()) + 40,
        "crc32, bytes a second": crc,
        "append and sync, bytes a second": len(block) / (time.perf_counter() - start),
    }


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def command(*arguments: str) -> float:
    line = [sys.executable, "-m", "landscape", *arguments]
    return seconds(lambda: subprocess.run(line, check=True, capture_output=True))


def measure(store: Store, with_commands: bool) -> dict[str, float]:
    """Seconds by what was done."""
    runs = store.runs()
    result = {
        "Store.runs()": seconds(store.runs),
        "states of all, first look": seconds(lambda: overview_of(store)),
        "states of all": seconds(lambda: overview_of(store)),
    }
    some = runs[:: max(len(runs) // 200, 1)]
    result["a config, validated"] = seconds(lambda: [run.config for run in some]) / len(some)
    result["a status, checked"] = seconds(lambda: [run.status for run in some]) / len(some)
    result["a run's metrics"] = seconds(lambda: [run.metrics() for run in some]) / len(some)
    if with_commands:
        result["landscape --version"] = command("--version")
        shutil.rmtree(store.path / ".cache", ignore_errors=True)
        result["landscape status, first"] = command("status", str(store.path))
        result["landscape status"] = command("status", str(store.path))
        result["landscape status --where"] = command("status", str(store.path), "--where", "rank==8 and seed<5")
        result["landscape verify"] = command("verify", str(store.path))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--lines", type=int, default=40, help="of the metrics of each run")
    parser.add_argument("--no-commands", action="store_true", help="time only the calls")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        store = build(Path(folder) / "store", options.runs, options.lines)
        print(f"{options.runs} runs made in {time.perf_counter() - start:.1f} s")
        result = measure(store, not options.no_commands)
        measured = sizes(Path(folder))
    for name, value in measured.items():
        print(f"{name:<32} {value:>15,.0f}")
    for name, value in result.items():
        print(f"{name:<26} {value:9.4f} s")
    if options.json:
        options.json.write_text(
            json.dumps({"runs": options.runs, "seconds": result, "sizes": measured}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
