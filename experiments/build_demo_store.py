"""Rebuild the demo store that ``landscape app`` shows without arguments: ``landscape demo``'s runs, and three more.

    python experiments/build_demo_store.py [--store FOLDER]

Runs ``landscape demo`` in a temporary folder, or takes the store of one that was run before, trains three longer runs
whose loss rebounds, asks every kind of analysis, and packs the result into ``landscape/assets/demo-store.zip`` with a
few snapshots of three runs. It takes twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from landscape.store import Run, Store
from landscape.store.lines import read_lines

TARGET = Path(__file__).resolve().parents[1] / "landscape" / "assets" / "demo-store.zip"
MOST_BYTES = 3_000_000
LONGER = {
    "model": "tiny", "task": "arithmetic", "alpha": "r", "max_steps": 360, "warmup_ratio": 0.04,
    "per_device_train_batch_size": 16, "eval_steps": 10, "eval_examples": 128, "probe_examples": 64,
    "capture": "{every: 5}", "save_steps": 0,
}  # fmt: skip
AXES = ["--method", "lora,ggpo,mgpo", "--rank", "32", "--lr", "1.75e-2", "--seed", "1", "--workers", "1"]
"""Where the training loss of every method rebounds, each with p < 0.001."""
SHOWN = "method == lora and rank == 32 and lr == 2e-2"
REBOUNDING = "rank == 32 and lr == 1.75e-2"
SMALL = ["--num-examples", "16"]
ANALYSES = [
    ["episodes"],
    ["gap"],
    ["sharpness", "--where", REBOUNDING, "--steps", "0,40,85,105,200,360", "--tol", "1e-2", *SMALL],
    ["density", "--where", SHOWN, "--steps", "10,80,150", "--num-examples", "32", "--num-steps", "30",
     "--num-probes", "2"],
    ["slice1d", "--where", SHOWN, "--steps", "20,80,150", "--common", "150", "--draws", "2", "--points", "15", *SMALL],
    ["slice2d", "--where", SHOWN, "--directions", "pca", "--points", "15", "--trajectory", "16", *SMALL],
    ["slice2d", "--where", "rank == 32 and lr == 2e-2", "--joint", "--points", "13", "--trajectory", "12", *SMALL],
    ["layers", "--where", SHOWN, "--steps", "20,80,150", "--group", "block", "--tol", "5e-2", *SMALL],
]  # fmt: skip
SNAPSHOTS = {"lora-r8-lr0.02": (0, 60, 150), "lora-r32-lr0.02": (80,), "lora-r32-lr0.0175": (105,)}
"""Beginning of a run's id → steps whose snapshots are kept; of the others there are none."""


def landscape(*arguments: str) -> None:
    print("landscape", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "landscape", *arguments], check=True)


def copy_run(run: Run, target: Store) -> None:
    """Everything of a run but its checkpoint and most of its snapshots; who trained it where stays behind."""
    status = run.status
    copy = target.add(run.config, run.id, run.digests)
    attempt = copy.begin_attempt()
    for record in read_lines(run.path / "attempts" / str(status.attempt) / "metrics.jsonl").records:
        attempt.log(record)
    steps = next((kept for start, kept in SNAPSHOTS.items() if run.id.startswith(f"{start}-")), ())
    if steps:
        reader = run.snapshots()
        writer = attempt.snapshot_writer("params", reader.layout)
        for step in steps:
            writer.put(step, reader.tensors(step))
        writer.close()
    attempt.close()
    named = {"state", "step", "created", "started", "finished", "error", "environment", "peak_memory"}
    kept = status.model_dump(include=named)
    copy.set_status(**kept)
    if status.state == "done":
        copy.compact()
    for name in ("adapter_config.json", "analysis"):
        source = run.path / name
        if source.is_dir():
            shutil.copytree(source, copy.path / name, ignore=shutil.ignore_patterns("partial-*"))
        elif source.is_file():
            shutil.copy(source, copy.path / name)


def pack(store: Store, target: Path) -> None:
    """The store as a zip, the same bytes for the same content."""
    files = sorted(path for path in store.path.rglob("*") if path.is_file())
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in files:
            entry = zipfile.ZipInfo(f"demo/{path.relative_to(store.path).as_posix()}")
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="of a demo that was run before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = options.store or Path(folder) / "source"
        if options.store is None:
            landscape("demo", "--store", str(source))
        settings = [part for key, value in LONGER.items() for part in ("--set", f"{key}={value}")]
        landscape("sweep", *AXES, *settings, "--store", str(source))
        for analysis, *arguments in ANALYSES:
            landscape("analyze", analysis, str(source), *arguments)
        opened = Store.open(source)
        thin = Store.create(Path(folder) / "demo")
        for run in opened.runs():
            copy_run(run, thin)
        shared = source / "analysis"
        if shared.is_dir():
            shutil.copytree(shared, thin.path / "analysis", ignore=shutil.ignore_patterns("partial-*"))
        pack(thin, TARGET)
    size = TARGET.stat().st_size
    print(f"{TARGET}: {size / 1e6:.2f} MB")
    if size > MOST_BYTES:
        sys.exit(f"larger than {MOST_BYTES / 1e6:g} MB: keep fewer snapshots")


if __name__ == "__main__":
    main()
