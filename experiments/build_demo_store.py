"""Rebuild the demo store that ``landscape app`` shows without arguments.

    python experiments/build_demo_store.py [--store FOLDER] [--out FILE]

Trains LoRA, LoRA-GGPO and LoRA-MGPO on the tiny model over three seeds, at a rate where the loss of rank 32 rebounds
and at a lower one, and LoRA at rank 8, where it does not; asks every kind of analysis; and packs the result into
``landscape/assets/demo-store.zip``, with two snapshots of one rebound. It took more than an hour on two busy
cores. With ``--store`` what was trained and measured is kept there, and a second call goes on from it.
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
SETTINGS = {
    "model": "tiny", "task": "arithmetic", "alpha": "r", "max_steps": 360, "warmup_ratio": 0.04,
    "per_device_train_batch_size": 16, "eval_steps": 20, "eval_examples": 128, "probe_examples": 64,
    "capture": "{every: 10, moments: true}", "save_steps": 0,
}  # fmt: skip
SWEEPS = (("lora", "8", "1.75e-2"), ("lora,ggpo,mgpo", "32", "1.75e-2,5e-3"))
"""Methods, rank and learning rates: at rank 32 and the higher rate the training loss of every method rebounds."""
REBOUNDING = "rank == 32 and lr == 1.75e-2"
THREE = f"{REBOUNDING} and seed == 1"
SHOWN = f"{THREE} and method == lora"
STEPS = "0,40,80,100,130,200,360"
"""Before, along, at the peak of and after the rebound of the run that is shown."""
LATER = f"10{STEPS[1:]}"
"""Before the first step Adam has no moments."""
SMALL = ["--num-examples", "16"]
ANALYSES = [
    ["episodes"],
    ["gap"],
    ["sharpness", "--steps", STEPS, "--tol", "1e-2", *SMALL],
    ["sharpness", "--where", THREE, "--space", "preconditioned", "--steps", LATER, "--tol", "1e-2", *SMALL],
    ["density", "--where", SHOWN, "--steps", "40,100,360", "--num-examples", "32", "--num-steps", "30",
     "--num-probes", "2"],
    ["layers", "--where", SHOWN, "--steps", "40,100,360", "--group", "block", "--tol", "5e-2", *SMALL],
    ["slice1d", "--where", SHOWN, "--steps", "40,100,360", "--common", "360", "--draws", "3", "--points", "15", *SMALL],
    ["slice1d", "--where", "lr == 1.75e-2", "--steps", "100,360", "--draws", "3", "--points", "15", *SMALL],
    ["slice2d", "--where", SHOWN, "--directions", "pca", "--points", "17", "--trajectory", "16", *SMALL],
    ["slice2d", "--where", THREE, "--joint", "--points", "15", "--trajectory", "12", *SMALL],
]  # fmt: skip
SNAPSHOTS = {"lora-r32-lr0.0175-s1": (80, 100)}
"""Beginning of a run's id → steps whose snapshots are kept: the foot and the peak of its rebound."""


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
    copy.set_status(**kept)  # no Parquet: it holds the same numbers again
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
    parser.add_argument("--store", type=Path, help="train here and keep it (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = options.store or Path(folder) / "source"
        settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
        for methods, rank, rates in SWEEPS:
            axes = ["--method", methods, "--rank", rank, "--lr", rates, "--seed", "0..2", "--workers", "1"]
            landscape("sweep", *axes, *settings, "--store", str(source))
        for analysis, *arguments in ANALYSES:
            landscape("analyze", analysis, str(source), *arguments)
        opened = Store.open(source)
        thin = Store.create(Path(folder) / "demo")
        for run in opened.runs():
            copy_run(run, thin)
        shared = source / "analysis"
        if shared.is_dir():
            shutil.copytree(shared, thin.path / "analysis", ignore=shutil.ignore_patterns("partial-*"))
        pack(thin, options.out)
    size = options.out.stat().st_size
    print(f"{options.out}: {size / 1e6:.2f} MB")
    if size > MOST_BYTES:
        sys.exit(f"larger than {MOST_BYTES / 1e6:g} MB: keep fewer snapshots")


if __name__ == "__main__":
    main()
