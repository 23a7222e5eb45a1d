"""Tasks of EleutherAI's lm-eval on captured snapshots, where that package is installed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from landscape.analysis.restored import RestoredRun, check_steps, open_run
from landscape.errors import UsageError, nearest
from landscape.evaluation.base import Score
from landscape.evaluation.results import store_scores, stored_scores

if TYPE_CHECKING:
    from landscape.analysis.tables import Row
    from landscape.store import Run

METRIC = "lm-eval"
INSTALL = "pip install 'lora-landscape[lm-eval]'"


@dataclass(frozen=True)
class HarnessSettings:
    """Options of ``landscape evaluate --harness``, as plain values.

    Attributes:
        tasks: lm-eval's names.
        task_folder: of further task files, as lm-eval's ``--include_path``.
        limit: only so many examples a task.
        num_fewshot: default: the task's own.
        batch_size: default: the run's ``per_device_eval_batch_size``.
        seed: of everything that lm-eval draws.
    """

    tasks: tuple[str, ...]
    task_folder: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int | None = None
    seed: int = 0

    def checked(self) -> HarnessSettings:
        """Itself.

        Raises:
            UsageError: lm-eval is not installed, a task that it does not know, or a number out of range.
        """
        if importlib.util.find_spec("lm_eval") is None:
            raise UsageError(f"--harness: lm-eval is not installed; {INSTALL}")
        for name, least in (("limit", 1), ("batch_size", 1), ("num_fewshot", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')}: {value}; allowed: at least {least}")
        if not self.tasks:
            raise UsageError("--harness: name at least one task, e.g. --harness hellaswag,arc_easy")
        try:
            known = set(_task_manager(self.task_folder).all_tasks)
        except ImportError as error:  # of a part of its dependencies
            raise UsageError(f"--harness: lm-eval cannot be imported ({error}); {INSTALL}") from error
        for task in self.tasks:
            if task not in known:
                raise UsageError(
                    f"--harness: lm-eval knows no task {task!r}; `lm-eval ls tasks` lists them.{nearest(task, known)}"
                )
        return self


def evaluate_with_harness(
    run: Run, steps: Iterable[int], settings: HarnessSettings, *, device: str | None = None
) -> list[Row]:
    """What lm-eval finds at each snapshot, also kept in the run's table of evaluations; what is there is not repeated.

    Raises:
        UsageError: as `HarnessSettings.checked`; a model that is no decoder.
        StoreError: as `landscape.analysis.restored.restore`.
    """
    import lm_eval  # type: ignore[import-not-found]

    settings.checked()
    restored: RestoredRun | None = None
    rows: list[Row] = []
    for step in check_steps(run, steps):
        identity = {**asdict(settings), "snapshot": run.snapshots().checksum(step), "lm_eval": lm_eval.__version__}
        number = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
        known = [row for row in stored_scores(run) if (row["metric"], row["step"], row["id"]) == (METRIC, step, number)]
        if known:
            rows += known
            continue
        restored = restored or open_run(run, device=device)
        restored.load(step)
        began = time.perf_counter()
        scores = read_scores(_asked(run, restored, settings))
        shared = {
            "metric": METRIC,
            "step": step,
            "split": METRIC,
            "truncated": 0,
            "seconds": time.perf_counter() - began,
            "settings": identity,
            "id": number,
        }
        rows += store_scores(run, shared, scores)
    return rows


def read_scores(results: Mapping[str, Any]) -> list[Score]:
    """Scores named ``task/metric``, or ``task/metric:filter``, from what ``simple_evaluate`` returns."""
    scores = []
    for task, values in results["results"].items():
        counts = results.get("n-samples", {}).get(task, {})
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{chosen}")
            scores.append(
                Score(
                    f"{task}/{metric}" if chosen == "none" else f"{task}/{metric}:{chosen}",
                    float(value),
                    float(error) if isinstance(error, int | float) else math.nan,
                    int(counts.get("effective", 0)),
                    {"version": results.get("versions", {}).get(task)},
                )
            )
    return scores


def harness_cell(store: str, run_id: str, steps: list[int], options: dict[str, Any]) -> list[dict[str, Any]]:
    """What a worker does for one run: plain values in and out."""
    from landscape.store import Store

    settings = HarnessSettings(**{**options, "tasks": tuple(options["tasks"])})
    return evaluate_with_harness(Store.open(store).get(run_id), steps, settings)


def _asked(run: Run, restored: RestoredRun, settings: HarnessSettings) -> Mapping[str, Any]:
    # By name: an optional package, whose decorators hide its parameters from type checkers.
    harness: Any = importlib.import_module("lm_eval")
    models: Any = importlib.import_module("lm_eval.models.huggingface")
    encoder = restored.data.eval.examples.encoder
    if encoder.kind != "causal":
        raise UsageError(f"run {run.id}: --harness is for decoders; {run.config.model!r} is a {encoder.kind} model")
    # PEFT keeps the base model's class inside; lm-eval asks the outer one for what both have.
    model = models.HFLM(
        pretrained=restored.model,
        tokenizer=encoder.tokenizer,
        backend="causal",
        batch_size=settings.batch_size or restored.batch_size,
    )
    results = harness.simple_evaluate(
        model=model,
        tasks=list(settings.tasks),
        task_manager=_task_manager(settings.task_folder),
        limit=settings.limit,
        num_fewshot=settings.num_fewshot,
        log_samples=False,
        random_seed=settings.seed,
        numpy_random_seed=settings.seed,
        torch_random_seed=settings.seed,
        fewshot_random_seed=settings.seed,
    )
    assert results is not None  # it is None on processes other than the first
    return results


def _task_manager(folder: str | None) -> Any:
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    paths: Sequence[str] | None = None if folder is None else [folder]
    return TaskManager(include_path=paths)  # type: ignore[arg-type]
