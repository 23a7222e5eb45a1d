"""Writes tests/importers/data with W&B and MLflow themselves; neither is needed to run the tests.

python -m pip install wandb==0.31.0 mlflow-skinny==3.17.2 sqlalchemy alembic
python tests/importers/write_data.py wandb|mlflow
"""

from __future__ import annotations

import gzip
import math
import os
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

DATA = Path(__file__).parent / "data"
STEPS = 40


def loss(step: int, run: int) -> float:
    return 1 / (1 + step) + run


def write_wandb(folder: Path) -> None:
    """Two offline runs: one as transformers' callback logs, one as ``wandb.log`` alone, longer than one block."""
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(folder))
    import wandb

    settings = wandb.Settings(
        console="off", x_disable_meta=True, x_disable_stats=True, disable_git=True, disable_code=True, host="host",
        program="train.py", program_relpath="train.py", program_abspath="train.py", x_save_requirements=False,
        root_dir=str(folder), username="user", email="",
    )  # fmt: skip
    config = {"learning_rate": 5e-4, "seed": 3, "per_device_train_batch_size": 8, "lr_scheduler_type": "linear"}
    config["peft_config"] = {"default": {"r": 16, "lora_alpha": 32, "peft_type": "LORA"}}
    with wandb.init(project="test", id="aaaa1111", name="first run", config=config, settings=settings) as run:
        for step in range(1, STEPS + 1):
            values = {"train/loss": loss(step, 0), "train/learning_rate": 5e-4 * (1 - step / STEPS)}
            run.log({**values, "train/global_step": step, "train/epoch": step / 10})
            if step % 10 == 0:
                run.log({"eval/loss": loss(step, 1), "train/global_step": step})
    with wandb.init(project="test", id="bbbb2222", settings=settings) as run:
        for step in range(STEPS):
            value = {30: math.nan, 31: math.inf}.get(step, loss(step, 2))
            run.log({"loss": value, "nested": {"depth": step}, "histogram": wandb.Histogram([step, 1.0])})
        run.log({"note": "x" * 10_000})
    wandb.teardown()


def write_mlflow(folder: Path) -> None:
    """A file store and a database, each with the same two runs."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow

    for uri in (f"file:{folder / 'mlruns'}", f"sqlite:///{folder / 'mlflow.db'}"):
        mlflow.set_tracking_uri(uri)
        mlflow.create_experiment("test", artifact_location="artifacts")
        mlflow.set_experiment("test")
        for number in range(2):
            with mlflow.start_run(run_name="same name" if number else "first run"):
                mlflow.log_params({"learning_rate": 5e-4, "seed": number, "optim": "adamw"})
                for step in range(1, STEPS + 1):
                    value = math.inf if (number, step) == (1, STEPS) else loss(step, number)
                    mlflow.log_metric("train/loss", value, step=step)
                    if step % 10 == 0:
                        mlflow.log_metric("eval_loss", math.nan if step == 20 else loss(step, 5), step=step)
        with mlflow.start_run(run_name="same name"):
            mlflow.log_metric("loss", 1.0, step=0)


def keep_wandb(scratch: Path, target: Path) -> None:
    """The logs alone."""
    for path in scratch.glob("wandb/offline-run-*/*.wandb"):
        name = path.parent.name.rsplit("-", 1)[-1]
        (target / f"offline-run-20260101_000000-{name}").mkdir(parents=True)
        shutil.copy(path, target / f"offline-run-20260101_000000-{name}" / path.name)


def keep_mlflow(scratch: Path, target: Path) -> None:
    """The database compressed; of the file store what says nothing of the machine that wrote it."""
    target.mkdir(parents=True)
    with sqlite3.connect(scratch / "mlflow.db") as database:
        database.execute("DELETE FROM tags WHERE key != 'mlflow.runName'")
        database.execute("UPDATE runs SET user_id = 'user', source_name = '', artifact_uri = 'artifacts'")
        database.execute("UPDATE experiments SET artifact_location = 'artifacts'")
        database.commit()
        database.execute("VACUUM")
    (target / "mlflow.db.gz").write_bytes(gzip.compress((scratch / "mlflow.db").read_bytes(), mtime=0))
    shutil.copytree(scratch / "mlruns", target / "mlruns", ignore=shutil.ignore_patterns("artifacts", "mlflow.[!r]*"))
    for path in target.rglob("meta.yaml"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.startswith(("artifact_", "user_id"))))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        name, scratch = sys.argv[1], Path(folder)
        shutil.rmtree(DATA / name, ignore_errors=True)
        write, keep = {"wandb": (write_wandb, keep_wandb), "mlflow": (write_mlflow, keep_mlflow)}[name]
        write(scratch)
        keep(scratch, DATA / name)
