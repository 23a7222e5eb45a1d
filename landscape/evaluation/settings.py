"""What an evaluation is asked for, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from landscape.errors import UsageError, unknown
from landscape.evaluation.base import Benchmark
from landscape.evaluation.gsm8k import GSM8K
from landscape.evaluation.humaneval import PROMPTINGS, HumanEval
from landscape.evaluation.judge import KEY_VARIABLE, Judge
from landscape.evaluation.mt_bench import TURNS, MTBench
from landscape.evaluation.sandbox import Limits, check_platform

METRICS = ("gsm8k", "humaneval", "mt-bench")
_NEW_TOKENS = {"gsm8k": 512, "humaneval": 512, "mt-bench": 1024}


def _only(*metrics: str, default: Any) -> Any:
    """A field that belongs to these metrics; elsewhere it must keep its default."""
    return field(default=default, metadata={"metrics": metrics})


@dataclass(frozen=True)
class EvaluationSettings:
    """Options of ``landscape evaluate --metric``, as plain values.

    Attributes:
        data: file or folder with the benchmark; see `landscape.evaluation.problems`.
        limit: only its first so many problems.
        max_new_tokens: default by metric.
        batch_size: prompts at a time; default: the run's ``per_device_eval_batch_size``.
        samples: replies a problem, for pass@k; with a temperature.
        time_limit: seconds, of one program.
        memory_limit: megabytes (2²⁰ bytes), of one program.
    """

    metric: str
    data: str | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    batch_size: int | None = None
    seed: int = 0
    samples: int = _only("humaneval", default=1)
    temperature: float = _only("humaneval", default=0.0)
    prompting: str = _only("humaneval", default=PROMPTINGS[0])
    allow_code_execution: bool = _only("humaneval", default=False)
    time_limit: float = _only("humaneval", default=10.0)
    memory_limit: int = _only("humaneval", default=1024)
    judge_url: str | None = _only("mt-bench", default=None)
    judge_model: str | None = _only("mt-bench", default=None)
    judge_key_variable: str = _only("mt-bench", default=KEY_VARIABLE)
    turns: int = _only("mt-bench", default=TURNS)

    def checked(self) -> EvaluationSettings:
        """Itself.

        Raises:
            UsageError: an unknown metric, an option of another metric or out of range, HumanEval without leave to run
                code, or MT-Bench without a judge.
        """
        if self.metric not in METRICS:
            raise unknown("--metric", self.metric, METRICS)
        for one in fields(self):
            metrics = one.metadata.get("metrics")
            if metrics and self.metric not in metrics and getattr(self, one.name) != one.default:
                raise UsageError(f"{_flag(one.name)}: only for --metric {' or '.join(metrics)}, not {self.metric}")
        for name in ("limit", "max_new_tokens", "batch_size", "samples", "memory_limit", "turns"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{_flag(name)}: {value}; allowed: at least 1")
        if self.metric == "humaneval":
            self._check_code()
        if self.metric == "mt-bench":
            self._check_judge()
        return self

    @property
    def new_tokens(self) -> int:
        """Of a reply, at most."""
        return self.max_new_tokens or _NEW_TOKENS[self.metric]

    def benchmark(self) -> Benchmark[Any]:
        """What is to be asked and how it is judged."""
        if self.metric == "gsm8k":
            return GSM8K()
        if self.metric == "humaneval":
            return HumanEval(self.samples, self.prompting, Limits(self.time_limit, self.memory_limit << 20))
        return MTBench(Judge(self.judge_url or "", self.judge_model or "", self.judge_key_variable), self.turns)

    def _check_code(self) -> None:
        if self.prompting not in PROMPTINGS:
            raise unknown("--prompting", self.prompting, PROMPTINGS)
        if self.temperature < 0:
            raise UsageError(f"--temperature: {self.temperature:g} is negative; 0 is greedy")
        if self.samples > 1 and self.temperature == 0:
            raise UsageError(f"--samples: {self.samples} greedy replies are all the same; give --temperature, e.g. 0.2")
        if not 0 < self.time_limit <= 600:
            raise UsageError(f"--time-limit: {self.time_limit:g} seconds; allowed: more than 0, at most 600")
        if self.memory_limit < 128:
            raise UsageError(f"--memory-limit: {self.memory_limit} MB; allowed: at least 128, as Python needs some")
        if not self.allow_code_execution:
            raise UsageError(
                "--metric humaneval runs programs that the model wrote, which is off by default: read what keeps them "
                "in (docs/evaluation.md), then add --allow-code-execution"
            )
        check_platform()

    def _check_judge(self) -> None:
        if self.turns > TURNS:
            raise UsageError(f"--turns: {self.turns}; allowed: 1 or {TURNS}")
        if not self.judge_url or not self.judge_model:
            missing = "--judge-url" if not self.judge_url else "--judge-model"
            raise UsageError(
                f"{missing}: missing; --metric mt-bench needs a judge that speaks OpenAI's protocol: --judge-url "
                f"https://api.openai.com/v1 --judge-model gpt-4, its key in ${KEY_VARIABLE}"
            )
        Judge(self.judge_url, self.judge_model, self.judge_key_variable).checked()


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
