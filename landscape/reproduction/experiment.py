"""An experiment file: a figure or table of a paper, its settings at several scales, and the rules that judge it.

The file holds the paper's settings (``config``), what is compared (``variants``) and what is varied (``grid``); each
scale overrides parts of them. Every variant is trained in every cell of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from landscape.config import RunConfig, canonical_keys, parse_model, read_yaml
from landscape.config.overrides import assign, canonical_key, lookup
from landscape.config.sweep import SweepConfig
from landscape.errors import UsageError, unknown
from landscape.reproduction.rules import Rule
from landscape.resources import folder

SCALES = ("paper", "one-gpu", "cpu", "smoke")
"""Every file has all of them."""
_OWN_DATA = ("arithmetic", "files")
"""Tasks that need no folder of data."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EpisodeAnalysis(_Part):
    """As `landscape.analysis.EpisodeSettings`; ``column: eval`` tests the evaluations."""

    column: str = "loss_clean"
    adjust: Literal["none", "base", "siblings"] = "none"


class SharpnessAnalysis(_Part):
    """The largest Hessian eigenvalue at the last snapshot, or at the first and the last."""

    steps: Literal["last", "ends"] = "last"
    spaces: tuple[str, ...] = ("adapter",)
    num_examples: int | None = Field(32, ge=1)
    tol: float = Field(1e-2, gt=0)
    max_matvecs: int = Field(60, ge=1)


class SliceAnalysis(_Part):
    """Loss along random directions from the last snapshot, with its width."""

    num_examples: int | None = Field(32, ge=1)
    draws: int = Field(5, ge=1)
    points: int = Field(21, ge=3)
    radius: float = Field(1.0, gt=0)
    delta: float = Field(0.1, gt=0)


class GenerationAnalysis(_Part):
    """GSM8K's exact match of what the last snapshot writes, for runs on ``tasks``.

    HumanEval runs the model's programs and MT-Bench asks a judge, so both are left to ``landscape evaluate``; what it
    found at the last snapshot is read just the same.
    """

    tasks: tuple[str, ...] = ("gsm8k", "metamathqa")
    limit: int | None = Field(None, ge=1)
    max_new_tokens: int | None = Field(None, ge=1)


class Analyses(_Part):
    """What is measured after training; the generalization gap always is."""

    episodes: EpisodeAnalysis | None = None
    sharpness: SharpnessAnalysis | None = None
    slice: SliceAnalysis | None = None
    generation: GenerationAnalysis | None = None


class PaperValue(_Part):
    """One number of the paper's table: of a variant on a task (``value`` ± ``sd``, in the paper's unit)."""

    variant: str
    task: str
    value: float
    sd: float | None = None


class Scale(_Part):
    """What a scale changes. ``about`` says in words what is run.

    A grid key with a null leaves the grid, a variant with a null is left out; ``data`` names the folder that stands in
    for a task's own, within the folder of data sets. ``by_task`` holds config keys of one task alone.
    """

    about: str
    config: dict[str, Any] = {}
    variants: dict[str, dict[str, Any] | None] = {}
    grid: dict[str, Any] = {}
    exclude: list[dict[str, Any]] | None = None
    data: dict[str, str] = {}
    by_task: dict[str, dict[str, Any]] = {}
    analyses: Analyses | None = None


@dataclass(frozen=True)
class Cell:
    """One run to be trained: ``place`` holds its values of the grid's keys, seeds left out."""

    variant: str
    config: RunConfig
    place: Mapping[str, Any]


class Experiment(_Part):
    """A whole file; build it with `load_experiment`."""

    name: str
    title: str
    source: str = Field(description="the paper, e.g. LoRA-MGPO")
    place: str = Field(description="its figure or table, e.g. Figure 2")
    claim: str
    notes: str = Field("", description="what the text states, what it leaves open, and what was taken instead")
    figure: str = Field(description="of `landscape figures`")
    alone: bool = Field(False, description="one run at a time, each in its own process: for time and memory")
    config: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    grid: dict[str, Any]
    exclude: list[dict[str, Any]] = []
    analyses: Analyses = Analyses()
    paper_values: tuple[PaperValue, ...] = ()
    rules: tuple[Rule, ...]
    scales: dict[str, Scale]

    @model_validator(mode="after")
    def _names_fit(self) -> Experiment:
        if missing := [name for name in SCALES if name not in self.scales]:
            raise ValueError(f"scales: {missing[0]!r} is missing; needed: {', '.join(SCALES)}")
        known = {*self.variants, *(name for scale in self.scales.values() for name in scale.variants)}
        named = [value.variant for value in self.paper_values]
        named += [name for rule in self.rules for name in (*rule.named, *getattr(rule, "among", ()))]
        if wrong := [name for name in named if name not in known]:
            raise unknown("variant", wrong[0], known)
        if "seed" not in self.grid:
            raise ValueError("grid: needs seed")
        return self

    def scale(self, name: str) -> Scale:
        """One of the scales; `UsageError` names the nearest."""
        if name not in self.scales:
            raise unknown("scale", name, self.scales)
        return self.scales[name]

    def variants_at(self, scale: str) -> dict[str, dict[str, Any]]:
        """The variants of a scale, with canonical keys."""
        changed = self.scale(scale).variants
        merged = {name: assign(_keys(self.variants.get(name, {})), _keys(changed.get(name) or {}))
                  for name in {**self.variants, **changed}}  # fmt: skip
        return {name: values for name, values in merged.items() if name not in changed or changed[name] is not None}

    def analyses_at(self, scale: str) -> Analyses:
        """What is measured at a scale."""
        return self.scale(scale).analyses or self.analyses

    def cells(
        self, scale: str, *, data_dir: str | Path | None = None, seeds: Sequence[int] | None = None
    ) -> list[Cell]:
        """Every run of a scale, seed by seed, so that what there is after a while is whole for the first seeds.

        Args:
            scale: one of `SCALES`.
            data_dir: a folder with one folder of Parquet files a task; None: sets are loaded by their hub names.
            seeds: in place of the file's.

        Raises:
            UsageError: an unknown scale, key or value.
        """
        chosen = self.scale(scale)
        grid = {key: value for key, value in {**_keys(self.grid), **_keys(chosen.grid)}.items() if value is not None}
        if seeds is not None:
            grid["seed"] = list(seeds)
        exclude = self.exclude if chosen.exclude is None else chosen.exclude
        base = assign(canonical_keys(self.config), _keys(chosen.config))
        cells = []
        for name, values in self.variants_at(scale).items():
            own = assign(base, values)
            # Full fine-tuning has neither.
            set_already = {*values, *(("rank", "alpha") if own.get("method") == "full" else ())}
            axes = {key: value for key, value in grid.items() if key not in set_already}
            sweep = SweepConfig.parse({**own, "sweep": {"grid": axes, "exclude": exclude}})
            for config in sweep.expand():
                plain = config.model_dump()
                place = {key: lookup(plain, key) for key in axes if key not in ("seed", "data_seed")}
                whole = config.replace(**canonical_keys(chosen.by_task.get(config.task, {})))
                cells.append(Cell(name, _with_data(whole, chosen, data_dir), place))
        return sorted(cells, key=lambda cell: cell.config.seed)

    def needed_data(self, scale: str) -> dict[str, str]:
        """Folder within the data directory by task, of the tasks that a scale reads from files or from the hub."""
        tasks = dict.fromkeys(cell.config.task for cell in self.cells(scale))
        return {task: self.scale(scale).data.get(task, task) for task in tasks if task not in _OWN_DATA}

    def check_data(self, scale: str, data_dir: str | Path | None) -> None:
        """Refuse to start without the data, before anything is loaded.

        Raises:
            UsageError: a missing folder, or no folder at all where the hub cannot stand in; says what to put where.
        """
        from landscape.data.tasks import TASKS
        from landscape.hub import unreachable

        needed = self.needed_data(scale)
        if not needed:
            return
        wanted = "; ".join(
            f"{name}/train.parquet"
            + (f" (the hub's {TASKS[task].hub_path})" if name == task else f" (stands in for {task})")
            for task, name in needed.items()
        )
        if data_dir is None:
            stand_ins = [name for task, name in needed.items() if name != task]
            reason = f"{stand_ins[0]} is not on the hub" if stand_ins else unreachable()
            if reason:
                raise UsageError(
                    f"{self.name}, scale {scale}, needs data ({reason}): give --data-dir DIR, with {wanted}"
                )
            return
        for name in needed.values():
            if not (Path(data_dir).expanduser() / name / "train.parquet").is_file():
                raise UsageError(f"--data-dir {data_dir}: no {name}/train.parquet; {self.name} needs {wanted}")


def names() -> list[str]:
    """The shipped experiments: the papers' figures and tables first."""
    found = sorted(path.stem for path in (folder("experiments") / "reproduce").glob("*.yaml"))
    return sorted(found, key=lambda name: (name[:4] not in ("ggpo", "mgpo"), name))


def load_experiment(name: str) -> Experiment:
    """A shipped experiment by name, or any file by its path.

    Raises:
        UsageError: no such name (the nearest is named), or a file that is not valid.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in names():
            raise unknown("experiment", name, names())
        path = folder("experiments") / "reproduce" / f"{name}.yaml"
    return parse_model(Experiment, {"name": path.stem, **read_yaml(path)})


def _keys(values: Mapping[str, Any]) -> dict[str, Any]:
    return {canonical_key(key): value for key, value in values.items()}


def _with_data(config: RunConfig, scale: Scale, data_dir: str | Path | None) -> RunConfig:
    if data_dir is None or config.task in _OWN_DATA:
        return config
    place = Path(data_dir).expanduser() / scale.data.get(config.task, config.task)
    return config.replace(data_dir=str(place))
