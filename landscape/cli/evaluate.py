"""``landscape evaluate``: task metrics of captured snapshots; results go into each run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli.along_runs import Rows, Workplace, check_anything_left, engine_for, finish, whole_numbers
from landscape.cli.console import JsonOption, StoreArgument, WhereOption, errors_as_exits, print_json, stderr
from landscape.errors import StoreError, UsageError

if TYPE_CHECKING:
    from landscape.store import Run

_CELL = "landscape.evaluation.run:evaluate_cell"
_HARNESS_CELL = "landscape.evaluation.harness:harness_cell"
_ONLY_HARNESS = ("harness_folder", "num_fewshot")
_BOTH = ("limit", "batch_size", "seed")

MetricOption = Annotated[str | None, typer.Option(help="gsm8k, humaneval or mt-bench.")]
StepsOption = Annotated[
    str | None, typer.Option("--steps", "--step", help="Snapshots at these steps, e.g. 0,50 (default: the last).")
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        help="The benchmark's Parquet or JSONL file, or its folder (default: the run's data_dir, or the hub)."
    ),
]
LimitOption = Annotated[int | None, typer.Option(help="Only the first so many problems.")]
TokensOption = Annotated[int | None, typer.Option(help="Of a reply, at most (default: 512; mt-bench: 1024).")]
BatchOption = Annotated[int | None, typer.Option(help="Prompts at a time (default: as the evaluations in training).")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of samples.")]
SamplesOption = Annotated[int, typer.Option(help="humaneval: replies a problem; 10 give pass@10 too.")]
TemperatureOption = Annotated[float, typer.Option(help="humaneval: of the samples; 0: greedy.")]
PromptingOption = Annotated[str, typer.Option(help="humaneval: instruction, or completion of the bare prompt.")]
CodeOption = Annotated[
    bool, typer.Option("--allow-code-execution", help="humaneval: run what the model wrote, in a sandbox.")
]
TimeOption = Annotated[float, typer.Option(help="humaneval: seconds that a program may take.")]
MemoryOption = Annotated[int, typer.Option(help="humaneval: MB that a program may take.")]
JudgeOption = Annotated[
    str | None, typer.Option(help="mt-bench: an API that speaks OpenAI's protocol, e.g. https://api.openai.com/v1")
]
JudgeModelOption = Annotated[str | None, typer.Option(help="mt-bench: the judge's name there, e.g. gpt-4.")]
KeyOption = Annotated[str, typer.Option(help="mt-bench: the environment variable that holds the key.")]
TurnsOption = Annotated[int, typer.Option(help="mt-bench: 1: the first turn alone, the papers' score.")]
HarnessOption = Annotated[
    str | None, typer.Option(help="Tasks of lm-eval instead of --metric, e.g. hellaswag,arc_easy.")
]
FolderOption = Annotated[Path | None, typer.Option(help="harness: folder of further task files.")]
FewshotOption = Annotated[int | None, typer.Option(help="harness: examples in the prompt (default: the task's).")]
WorkersOption = Annotated[
    int | None, typer.Option(help="Processes at a time (default: cores); 0: everything in this one.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what there is to do, and stop.")]


@errors_as_exits
def evaluate(
    *,
    store: StoreArgument,
    where: WhereOption = None,
    metric: MetricOption = None,
    steps: StepsOption = None,
    data: DataOption = None,
    limit: LimitOption = None,
    max_new_tokens: TokensOption = None,
    batch_size: BatchOption = None,
    seed: SeedOption = 0,
    samples: SamplesOption = 1,
    temperature: TemperatureOption = 0.0,
    prompting: PromptingOption = "instruction",
    allow_code_execution: CodeOption = False,
    time_limit: TimeOption = 10.0,
    memory_limit: MemoryOption = 1024,
    judge_url: JudgeOption = None,
    judge_model: JudgeModelOption = None,
    judge_key_variable: KeyOption = "LANDSCAPE_JUDGE_KEY",
    turns: TurnsOption = 2,
    harness: HarnessOption = None,
    harness_folder: FolderOption = None,
    num_fewshot: FewshotOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Task metrics at captured steps: GSM8K, HumanEval, MT-Bench, or tasks of lm-eval (default: the last step)."""
    given = dict(locals())
    if (metric is None) == (harness is None):
        raise UsageError("give either --metric gsm8k, humaneval or mt-bench, or --harness TASKS")
    for name in ("data", "harness_folder"):
        given[name] = None if given[name] is None else str(given[name].expanduser().absolute())
    if harness is None:
        for name in _ONLY_HARNESS:
            if given[name] is not None:
                raise UsageError(f"--{name.replace('_', '-')}: only with --harness")
        elsewhere = {"store", "where", "steps", "workers", "dry_run", "as_json", "harness", *_ONLY_HARNESS}
        work = _with_benchmark(store, where, steps, {k: v for k, v in given.items() if k not in elsewhere})
    else:
        tasks = [name.strip() for name in harness.split(",") if name.strip()]
        options = {"tasks": tasks, "task_folder": given["harness_folder"], "num_fewshot": num_fewshot}
        work = _with_harness(store, where, steps, options | {key: given[key] for key in _BOTH})
    if not dry_run:
        _run(store, work, workers, as_json)
    elif as_json:
        print_json({"store": store, "missing": work.missing, "skipped": list(work.skipped)})
    else:
        typer.echo(work.sentence)


@dataclass(frozen=True)
class _Work:
    """What there is to do.

    Attributes:
        function: called in a worker with each run's arguments.
        skipped: why, by run id.
        missing: how much is not known yet.
    """

    title: str
    function: str
    arguments: dict[str, dict[str, Any]]
    skipped: dict[str, str]
    missing: dict[str, int]
    sentence: str


def _with_benchmark(store: Path, where: str | None, steps: str | None, options: dict[str, Any]) -> _Work:
    """Whatever can be checked, the problems among it, is checked before anything is loaded."""
    from landscape.evaluation import Evaluation, EvaluationSettings

    settings = EvaluationSettings(**options).checked()
    runs, arguments, skipped = _choose(store, where, steps, options)
    replies = verdicts = 0
    for run in runs:
        evaluation = Evaluation(run, settings)
        for step in arguments[run.id]["steps"]:
            missing = evaluation.missing(step)
            replies, verdicts = replies + missing.replies, verdicts + missing.verdicts
    what = {"humaneval": "programs to run", "mt-bench": "to have rated"}.get(settings.metric, "to compare")
    sentence = f"{replies} replies to write, {verdicts} {what}, of {len(runs)} runs"
    return _Work(settings.metric, _CELL, arguments, skipped, {"replies": replies, "verdicts": verdicts}, sentence)


def _with_harness(store: Path, where: str | None, steps: str | None, options: dict[str, Any]) -> _Work:
    """As `_with_benchmark`; what lm-eval needs of the network only lm-eval finds out."""
    from landscape.evaluation.harness import HarnessSettings

    HarnessSettings(**{**options, "tasks": tuple(options["tasks"])}).checked()
    runs, arguments, skipped = _choose(store, where, steps, options)
    count = sum(len(values["steps"]) for values in arguments.values())
    sentence = f"{len(options['tasks'])} tasks at {count} snapshots of {len(runs)} runs"
    return _Work("lm-eval", _HARNESS_CELL, arguments, skipped, {"snapshots": count}, sentence)


def _choose(
    store: Path, where: str | None, steps: str | None, options: dict[str, Any]
) -> tuple[list[Run], dict[str, dict[str, Any]], dict[str, str]]:
    """The runs that have snapshots and write text, the arguments of their jobs, and why the others are skipped."""
    from landscape.analysis import captured_steps
    from landscape.analysis.restored import check_steps
    from landscape.cli.selection import select_runs
    from landscape.config.values import parse_values
    from landscape.evaluation.run import writes_text

    wanted = None if steps is None else whole_numbers(parse_values(steps, "--steps"))
    runs, arguments, skipped = [], {}, {}
    for run in select_runs(store, where):
        try:
            available = captured_steps(run, "adapter")
        except StoreError:
            available = []
        if not available:
            skipped[run.id] = "no snapshots"
        elif not writes_text(run):
            skipped[run.id] = "its model classifies and writes no text"
        else:
            chosen = available[-1:] if wanted is None else check_steps(run, wanted)
            place = {"store": str(store.absolute()), "run_id": run.id, "steps": chosen}
            arguments[run.id] = {**place, "options": options}
            runs.append(run)
    check_anything_left(store, len(runs), skipped)
    return runs, arguments, skipped


def _run(store: Path, work: _Work, workers: int | None, as_json: bool) -> None:
    """Do it, and print what came out."""
    from landscape.sweeps.analyses import run_analyses

    console = stderr(quiet=as_json)
    with engine_for(len(work.arguments), Workplace(store, workers=workers)) as engine:
        console.print(f"{work.title}: {work.sentence}", markup=False, soft_wrap=True)
        arguments, shown = work.arguments, console
        alone = engine.num_workers == 0 and len(arguments) == 1 and work.function == _CELL
        if alone and console.is_terminal and not as_json:
            # A bar over the problems of the run says more than one over one run.
            arguments, shown = {key: {**values, "progress": True} for key, values in arguments.items()}, None
        result = run_analyses(work.title, work.function, arguments, engine, shown)
        if shown is None:
            for run_id, error in result.errors.items():
                console.print(f"failed {run_id}: {error.strip().splitlines()[-1]}", markup=False, soft_wrap=True)
    finish(store, result, _line, work.skipped, as_json)


def _line(rows: Rows) -> str:
    steps: dict[int, list[str]] = {}
    for row in rows:
        text = f"{row['name']} {row['value']:.4g} ± {row['standard_error']:.2g}"
        cut = f", {row['truncated']} cut short" if row["truncated"] else ""
        steps.setdefault(row["step"], []).append(f"{text} ({row['num_examples']} problems{cut})")
    return "  ".join(f"step {step}: {', '.join(texts)}" for step, texts in steps.items())
