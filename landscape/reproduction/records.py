"""One run of an experiment as the verdicts need it: small enough to commit, complete enough to judge again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.reproduction.verdict import rounded

if TYPE_CHECKING:
    import pandas as pd

    from landscape.reproduction.experiment import Analyses, Cell
    from landscape.store import Run

SCORES = ("accuracy", "exact_match")
"""Metrics of an evaluation that a paper's table reports, the first that there is. CoLA's is accuracy too: both papers
name Matthews' correlation and print, for LoRA, the share of the larger class (69.35)."""
GENERATIVE = ("codefeedback", "gsm8k", "metamathqa", "wizardlm")
"""Tasks that are scored by what the model generates and by nothing that an evaluation measures."""
GENERATED = {("gsm8k", "exact_match"): 100, ("humaneval", "pass@1"): 100, ("mt-bench", "first_turn"): 1}
"""Scores of ``landscape evaluate`` that the papers report, and their factor to the papers' unit."""
SKIPPED = 5
"""First steps, whose time is that of caches and allocators."""


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        place: its values of the grid's keys, seeds left out.
        final_train: mean clean training loss of the last steps; ``final_eval`` the last held-out loss. NaN where lost.
        score: the task's metric on the eval split in percent, and ``metrics`` everything else measured there.
        p_value: smallest of the run's candidate rebounds; ``q_value`` over the experiment's runs.
        rise, rise_area: largest rise of the smoothed loss after the warm-up (of a run that is lost at least what it
            ends above its beginning, which may lie in the warm-up) and the area above its running minimum.
        seconds: median of a step; ``memory`` the peaks in bytes (rss, cuda); ``parameters`` that are trained.
        first_lambda_max, lambda_max: largest Hessian eigenvalue at the first and the last snapshot, adapter space.
        balanced_lambda_max: at the last, free of LoRA's gauge.
        curve: evaluations (step, loss).
    """

    run_id: str
    variant: str
    method: str
    task: str
    seed: int
    learning_rate: float
    rank: int | None
    place: Mapping[str, Any]
    state: str
    step: int
    final_train: float = math.nan
    final_eval: float = math.nan
    gap: float = math.nan
    score: float = math.nan
    metrics: Mapping[str, float] = field(default_factory=dict)
    p_value: float = math.nan
    q_value: float = math.nan
    rise: float = math.nan
    rise_area: float = math.nan
    episode: Mapping[str, Any] | None = None
    seconds: float = math.nan
    memory: Mapping[str, int] = field(default_factory=dict)
    parameters: int | None = None
    first_lambda_max: float = math.nan
    lambda_max: float = math.nan
    balanced_lambda_max: float = math.nan
    width: float = math.nan
    curve: tuple[tuple[int, float], ...] = ()

    @property
    def diverged(self) -> bool:
        """Its loss stopped being finite."""
        return self.state == "diverged"

    @property
    def gives_one_answer(self) -> bool:
        """A classifier that says the same of every example: Matthews' correlation is 0, its score a class's share."""
        return self.metrics.get("matthews_correlation") == 0

    @property
    def is_lost(self) -> bool:
        """It diverged, or ends above the held-out loss that it began with."""
        return self.diverged or _lost_by(self.curve, self.final_eval) > 0

    def measure(self, name: str) -> float:
        """One of the numbers by name; ``peak_memory`` is the device's where there is one."""
        if name == "peak_memory":
            return float(self.memory.get("cuda", self.memory.get("rss", math.nan)))
        if name in self.metrics and name not in _NAMES:
            return self.metrics[name]
        return float(getattr(self, name))

    def plain(self) -> dict[str, Any]:
        """For JSON; what is unknown is left out."""
        values = {key: rounded(value) for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if value not in (None, {}, [], ())}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Record:
        """What `plain` gave."""
        known = {name.name for name in fields(cls)}
        curve = tuple((int(step), math.nan if loss is None else loss) for step, loss in values.get("curve", ()))
        return cls(**{"place": {}, "rank": None, **{k: v for k, v in values.items() if k in known}, "curve": curve})


_NAMES = {item.name for item in fields(Record)}
MEASURES = (*(item.name for item in fields(Record) if item.type == "float"), "peak_memory")


def read_record(run: Run, cell: Cell, analyses: Analyses) -> Record:
    """The run's numbers from its folder; nothing is measured.

    Raises:
        StoreError: a damaged file, which it names.
    """
    status, config = run.status, cell.config
    metrics, evaluations = run.metrics(), run.evaluations()
    held_out = evaluations.loc[evaluations["split"] == "eval"] if len(evaluations) else evaluations
    lost = status.state != "done"
    last = {} if held_out.empty or lost else _finite(held_out.iloc[-1].to_dict())
    clean = _column(metrics, "loss_clean")
    tail = clean[np.isfinite(clean)][-max(5, math.ceil(0.05 * len(clean))) :]
    curve = tuple((int(row.step), float(row.loss)) for row in held_out.itertuples())  # type: ignore[arg-type]
    episodes = _episodes(run, analyses)
    if "rise" in episodes:
        episodes["rise"] = max(episodes["rise"], _lost_by(curve, last.get("loss", math.nan)))
    return Record(
        run_id=run.id,
        variant=cell.variant,
        method=config.method,
        task=config.task,
        seed=config.seed,
        learning_rate=config.learning_rate,
        rank=None if config.method == "full" else config.rank,
        place=dict(cell.place),
        state=status.state,
        step=status.step,
        final_train=math.nan if lost or not len(tail) else float(tail.mean()),
        final_eval=last.get("loss", math.nan),
        gap=_gap(evaluations) if not lost else math.nan,
        score=_generated(run) if config.task in GENERATIVE and not lost else score_of(config.task, last),
        metrics={key: value for key, value in last.items() if key not in ("step", "loss", "attempt")},
        seconds=_median_seconds(metrics),
        memory=dict(status.peak_memory),
        curve=curve,
        **episodes,
        **_flatness(run, analyses),
    )


def _lost_by(curve: Sequence[tuple[int, float]], final_eval: float) -> float:
    """What the last held-out loss lies above that before training; 0 where it does not, or one is unknown."""
    if not curve or curve[0][0] != 0:
        return 0.0
    above = final_eval - curve[0][1]
    return above if above > 0 else 0.0


def _finite(row: Mapping[str, Any]) -> dict[str, float]:
    return {str(k): float(v) for k, v in row.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def _column(frame: pd.DataFrame, name: str) -> np.ndarray:
    return np.asarray(frame[name], dtype=np.float64) if name in frame else np.array([])


def score_of(task: str, last: Mapping[str, Any]) -> float:
    """The task's metric of an evaluation's row, in percent; NaN where it has none."""
    names = () if task in GENERATIVE else SCORES
    known = (float(last[name]) for name in names if isinstance(last.get(name), (int, float)))
    return next((100 * value for value in known if math.isfinite(value)), math.nan)


def _generated(run: Run) -> float:
    """The score of what the last snapshot generates, as the papers' tables have it; NaN where it was not evaluated.

    MT-Bench's first turn is from 1 to 10, everything else in percent.
    """
    from landscape.evaluation.results import stored_scores

    found = [row for row in stored_scores(run) if (row["metric"], row["name"]) in GENERATED]
    if not found:
        return math.nan
    last = max(found, key=lambda row: row["step"])
    return float(last["value"]) * GENERATED[last["metric"], last["name"]]


def _gap(evaluations: pd.DataFrame) -> float:
    from landscape.generalization import generalization_gap

    table = generalization_gap(evaluations)
    return float(table["gap"].iloc[-1]) if len(table) else math.nan


def _median_seconds(metrics: pd.DataFrame) -> float:
    seconds = _column(metrics, "seconds")
    later = seconds[SKIPPED:] if len(seconds) > 2 * SKIPPED else seconds
    return float(np.median(later)) if len(later) else math.nan


def _episodes(run: Run, analyses: Analyses) -> dict[str, Any]:
    """The run's tests: its p-value, rise and most significant candidate."""
    from landscape.analysis.episodes import EPISODES_FILE, TYPES
    from landscape.analysis.tables import read_rows

    wanted = analyses.episodes
    if wanted is None:
        return {}
    rows = read_rows(run.analysis_dir / EPISODES_FILE, TYPES)
    rows = [row for row in rows if (row["column"], row["adjust"]) == (wanted.column, wanted.adjust)]
    if not rows:
        return {}
    first = rows[0]
    kept = ("kind", "onset", "peak", "recovery", "amplitude", "p_value", "flags")
    return {
        "p_value": first["run_p_value"],
        "rise": first["rise"],
        "rise_area": first["rise_area"],
        "episode": None if first["kind"] == "none" else {key: first[key] for key in kept},
    }


def _flatness(run: Run, analyses: Analyses) -> dict[str, Any]:
    """λmax at the first and last snapshot, and the width of the last one's slice."""
    if analyses.sharpness is None and analyses.slice is None:
        return {}
    from landscape.analysis.flatness import flatness_table

    cut = analyses.slice
    table = flatness_table([run]) if cut is None else flatness_table([run], delta=cut.delta, dims=1, radius=cut.radius)
    if table.empty:
        return {}
    first, last = table.iloc[0], table.iloc[-1]
    # Another experiment may have measured more of the same runs, and of some of them alone.
    spaces = analyses.sharpness.spaces if analyses.sharpness else ()
    found = {}
    if "adapter" in spaces:
        found["lambda_max"] = last["lambda_max"]
        if len(table) > 1:
            found["first_lambda_max"] = first["lambda_max"]
    if "balanced" in spaces:
        found["balanced_lambda_max"] = last["lambda_max_balanced"]
    if cut is not None:
        # A loss that never rises by delta within the slice: its width is at least the whole of it.
        found["width"] = 2 * cut.radius if math.isinf(last["width"]) else last["width"]
    return {key: float(value) for key, value in found.items()}
