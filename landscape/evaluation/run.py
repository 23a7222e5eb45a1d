"""Evaluating snapshots of a run: what is not known yet is generated, then judged, then scored."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from landscape.analysis.restored import check_steps, open_run
from landscape.errors import UsageError
from landscape.evaluation.base import Benchmark, Reply
from landscape.evaluation.generation import Generator
from landscape.evaluation.problems import read_problems
from landscape.evaluation.prompts import Template
from landscape.evaluation.results import store_scores
from landscape.evaluation.settings import EvaluationSettings
from landscape.evaluation.transcript import Place, Transcript

if TYPE_CHECKING:
    from landscape.analysis.restored import RestoredRun
    from landscape.analysis.tables import Row
    from landscape.store import Run


@dataclass(frozen=True)
class Missing:
    """What is still to be done: replies to write, and verdicts to reach (also on those replies)."""

    replies: int
    verdicts: int


class Evaluation:
    """One benchmark on one run, of which nothing is loaded before it has to be.

    Args:
        settings: as asked; checked here.
        device: default: CUDA where there is one.
        progress: show progress bars.

    Raises:
        UsageError: settings out of range, a run that writes no text, or problems that cannot be read.
    """

    def __init__(
        self, run: Run, settings: EvaluationSettings, *, device: str | None = None, progress: bool = False
    ) -> None:
        self._run, self._settings = run, settings.checked()
        self._device, self._progress = device, progress
        if not writes_text(run):
            raise _refuse_classes(run)
        self._benchmark: Benchmark[Any] = settings.benchmark()
        self._table, self._split = read_problems(settings.metric, self._benchmark.hub, settings.data, run.config)
        self._problems = self._benchmark.read(self._table)[: settings.limit]
        if len({problem.key for problem in self._problems}) < len(self._problems):
            raise UsageError(f"--data: {self._table.origin} holds a problem twice")
        self._batch_size = settings.batch_size or run.config.per_device_eval_batch_size

    def missing(self, step: int) -> Missing:
        """How much there is to do for one snapshot; reads what is on disk, and changes nothing."""
        check_steps(self._run, [step])
        transcript = self._transcript(step)
        places = list(self._places())
        return Missing(
            sum(place not in transcript.replies for place in places),
            sum(place not in transcript.verdicts for place in places),
        )

    def at(self, step: int) -> list[Row]:
        """The scores of one snapshot, also kept in the run's ``analysis`` folder, with the replies beside them.

        Every batch of replies and every verdict is on disk before the next is looked for.

        Raises:
            StoreError, UsageError: as `landscape.analysis.restored.restore`; a prompt too long for the model.
            SandboxError, JudgeError: no verdict could be reached.
        """
        check_steps(self._run, [step])
        began = time.perf_counter()
        with self._transcript(step) as transcript:
            self._write_replies(transcript, step)
            self._reach_verdicts(transcript)
        parts = range(self._benchmark.parts)
        verdicts = {one.key: [transcript.verdicts[one.key, part] for part in parts] for one in self._problems}
        shared = {
            "metric": self._benchmark.name,
            "step": step,
            "split": self._split,
            "truncated": sum(transcript.replies[place].truncated for place in self._places()),
            "seconds": time.perf_counter() - began,
            "settings": {**self._identity(step), "batch_size": self._batch_size},
            "id": transcript.id,
        }
        return store_scores(self._run, shared, self._benchmark.scores(self._problems, verdicts))

    @cached_property
    def _restored(self) -> RestoredRun:
        return open_run(self._run, device=self._device)

    def _transcript(self, step: int) -> Transcript:
        return Transcript(self._run.analysis_dir, self._benchmark.name, step, self._identity(step))

    def _identity(self, step: int) -> dict[str, Any]:
        """All that decides replies and verdicts; how many problems were asked does not."""
        settings, config = self._settings, self._run.config
        sampled = {"temperature": settings.temperature, "seed": settings.seed, "batch_size": self._batch_size}
        return {
            "metric": settings.metric,
            "data": self._table.digest,
            "snapshot": self._run.snapshots().checksum(step),
            "prompts": [Template.of(config, kind).text for kind in ("causal", "seq2seq")],
            "max_new_tokens": settings.new_tokens,
            **(sampled if settings.temperature else {}),
            **self._benchmark.settings(),
        }

    def _places(self) -> Iterator[Place]:
        for part in range(self._benchmark.parts):
            for problem in self._problems:
                yield problem.key, part

    def _write_replies(self, transcript: Transcript, step: int) -> None:
        from tqdm import tqdm

        left = sum(place not in transcript.replies for place in self._places())
        if not left:
            return
        generator, template = self._generator(), self._template()
        self._restored.load(step)
        generator.check([self._benchmark.prompt(problem, template, []) for problem in self._problems])
        with tqdm(total=left, desc=f"{self._benchmark.name} step {step}: replies", disable=not self._progress) as bar:
            for part in range(self._benchmark.parts):
                for start in range(0, len(self._problems), self._batch_size):
                    block = self._problems[start : start + self._batch_size]
                    bar.update(self._write_block(transcript, generator, template, block, part, start))

    def _write_block(
        self,
        transcript: Transcript,
        generator: Generator,
        template: Template,
        block: Sequence[Any],
        part: int,
        start: int,
    ) -> int:
        """Replies to those of one batch that have none; samples are drawn for whole batches, so for all of it."""
        missing = [problem for problem in block if (problem.key, part) not in transcript.replies]
        if not missing:
            return 0
        asked = block if self._settings.temperature else missing
        earlier = [[transcript.replies[one.key, index].text for index in range(part)] for one in asked]
        prompts = [self._benchmark.prompt(one, template, said) for one, said in zip(asked, earlier, strict=True)]
        for problem, reply in zip(asked, generator.write(prompts, f"{start} {part}"), strict=True):
            if problem in missing:
                cut = template.cut(reply.text)
                transcript.add_reply((problem.key, part), Reply(cut, reply.truncated and cut == reply.text))
        return len(missing)

    def _reach_verdicts(self, transcript: Transcript) -> None:
        from tqdm import tqdm

        left = [place for place in self._places() if place not in transcript.verdicts]
        problems = {problem.key: problem for problem in self._problems}
        parts = range(self._benchmark.parts)
        for key, part in tqdm(left, desc=f"{self._benchmark.name}: verdicts", disable=not self._progress):
            replies = [transcript.replies[key, index] for index in parts]
            transcript.add_verdict((key, part), self._benchmark.judge(problems[key], replies, part))

    def _generator(self) -> Generator:
        restored, settings = self._restored, self._settings
        kind, tokenizer = restored.data.eval.kind, restored.data.eval.examples.encoder.tokenizer
        if kind == "classification":
            raise _refuse_classes(self._run)
        return Generator(restored.model, tokenizer, kind, settings.new_tokens, settings.temperature, settings.seed)

    def _template(self) -> Template:
        return Template.of(self._run.config, self._restored.data.eval.kind)


def evaluate_cell(
    store: str, run_id: str, steps: list[int], options: dict[str, Any], progress: bool = False
) -> list[dict[str, Any]]:
    """What a worker does for one run: plain values in and out."""
    from landscape.store import Store

    evaluation = Evaluation(Store.open(store).get(run_id), EvaluationSettings(**options), progress=progress)
    return [row for step in steps for row in evaluation.at(step)]


def writes_text(run: Run) -> bool:
    """False where it is known without loading that the model has a head of classes instead of words."""
    from landscape.models import known_kind

    return known_kind(run.config) != "classification"


def _refuse_classes(run: Run) -> UsageError:
    return UsageError(
        f"run {run.id}: its model {run.config.model!r} classifies and writes no text; its accuracy, F1 and Matthews "
        "correlation are in its evaluations"
    )
