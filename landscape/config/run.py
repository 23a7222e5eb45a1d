"""The configuration of one run: one flat, frozen, validated model whose keys are Hugging Face's where one exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from landscape.config.values import parse_scalar
from landscape.config.yaml_text import load_yaml
from landscape.errors import UsageError, nearest

ALIASES = {
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "r": "rank",
    "lora_alpha": "alpha",
}
"""Accepted short spellings; the canonical config always carries the full key."""

MOST_SHOWN = 200
"""Characters of a refused value that an error shows."""

ModelT = TypeVar("ModelT", bound=BaseModel)
_ALPHA_RULE = re.compile(r"(\d+(?:\.\d+)?)?\s*\*?\s*r(?:\s*/\s*(\d+(?:\.\d+)?))?")


class Capture(BaseModel):
    """Which optimizer steps leave a snapshot.

    ``auto`` takes every step where that fits ``budget_gb``, else log-spaced steps plus a ring around events.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Literal["auto", "every", "log", "events", "none"] = "auto"
    every: int = Field(1, ge=1, description="with policy every: one snapshot each so many steps")
    ring: int = Field(50, ge=1, description="with policy events: snapshots kept before (and after) an event")
    budget_gb: float = Field(2.0, gt=0, description="with policy auto: disk that one run's snapshots may take")
    moments: bool = Field(False, description="also capture Adam's second moments (stream adam_v)")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"policy": value}
        if isinstance(value, dict) and "every" in value and "policy" not in value:
            return {"policy": "every", **value}
        return value


class RunConfig(BaseModel):
    """Everything that defines a run. Build it with `RunConfig.parse`, which names the nearest key on a typo."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field("tiny", description="preset, hub id, or local folder")
    model_kwargs: dict[str, Any] = Field({}, description="passed to from_pretrained, e.g. {gguf_file: ...}")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field("float32", description="of the base weights")

    task: str = Field("arithmetic", description="task name, or 'files' together with data_files and columns")
    data_dir: str | None = Field(None, description="folder of Parquet files that replaces the hub download")
    data_files: dict[str, str] | None = Field(None, description="{train: ..., eval: ...}: JSONL, CSV or Parquet")
    columns: dict[str, str] | None = Field(None, description="{input: ..., target: ...} or {text: ..., label: ...}")
    label_noise: float = Field(0.0, ge=0, le=1, description="share of training targets replaced at random")
    train_examples: int | None = Field(None, ge=1, description="use only so many training examples")
    eval_examples: int | None = Field(256, ge=1, description="size of the evaluation subset; null: all")
    probe_examples: int = Field(128, ge=1, description="size of the fixed training subset for gap and curvature")
    max_length: int = Field(128, ge=2, description="tokens an example; longer ones are truncated")

    method: str = Field("lora", description="landscape methods lists them")
    method_args: dict[str, Any] = Field({}, description="the method's own hyperparameters")
    adapter: str | None = Field(None, description="another method's adapter below a perturbation; null: lora")
    adapter_args: dict[str, Any] = Field({}, description="that adapter's hyperparameters")
    rank: int | None = Field(8, ge=1, description="LoRA rank r; ignored by full fine-tuning")
    alpha: float | str | None = Field(16.0, description="LoRA alpha: a number or a rule such as r, 2r, r/2")
    lora_dropout: float | None = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] | None = Field("all-linear", description="PEFT's target_modules")

    learning_rate: float = Field(1e-4, gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    lr_scheduler_steps: int | None = Field(None, ge=1, description="length of the schedule; null: max_steps")
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="share of the schedule's length")
    max_steps: int = Field(200, ge=1)
    per_device_train_batch_size: int = Field(16, ge=1)
    per_device_eval_batch_size: int = Field(32, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    max_grad_norm: float = Field(0.0, ge=0, description="0: no clipping, as the papers mention none")
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    bf16: bool = Field(False, description="bfloat16 autocast")
    gradient_checkpointing: bool = False
    seed: int = Field(0, ge=0)
    data_seed: int | None = Field(None, ge=0, description="order of the data; null: seed")

    eval_steps: int = Field(10, ge=0, description="steps between evaluations; 0: only at start and end")
    clean_loss_every: int = Field(1, ge=0, description="measure the unperturbed loss each so many steps; 0: never")
    base_loss: bool = Field(True, description="log the untouched base model's loss on the same batches")
    capture: Capture = Capture.model_validate({})
    save_steps: int = Field(50, ge=0, description="steps between resumable checkpoints; 0: none")
    report_to: list[str] = Field([], description="transformers' own integrations: tensorboard, wandb, mlflow...")

    @field_validator("alpha")
    @classmethod
    def _check_alpha(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, str):
            text = value.strip().lower()
            if not _ALPHA_RULE.fullmatch(text):
                raise ValueError("is neither a number nor a rule such as r, 2r or r/2")
            return text.replace(" ", "").replace("*", "")
        if value is not None and value <= 0:
            raise ValueError("must be greater than 0")
        return value

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if self.task == "files" and not (self.data_files and self.columns):
            raise ValueError("task: 'files' needs data_files and columns")
        if self.data_files is not None and "train" not in self.data_files:
            raise ValueError("data_files: needs a 'train' entry")
        return self

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """A config from plain values, with aliases and number strings accepted.

        Raises:
            UsageError: unknown key (with the nearest match), a key given twice, or a value out of range.
        """
        return parse_model(cls, canonical_keys(values))

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some keys changed."""
        return type(self).parse({**self.model_dump(), **changes})

    def to_yaml(self) -> str:
        """Every key in declaration order; reading it back gives an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def alpha_value(alpha: float | str, rank: int) -> float:
    """The number that an alpha rule means at this rank: ``r`` → r, ``2r`` → 2·r, ``r/2`` → r/2."""
    if not isinstance(alpha, str):
        return float(alpha)
    match = _ALPHA_RULE.fullmatch(alpha)
    if match is None:
        raise UsageError(f"alpha: {alpha!r} is neither a number nor a rule such as r, 2r or r/2")
    return float(match[1] or 1) * rank / float(match[2] or 1)


def canonical_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Replace aliases by full keys and refuse unknown ones."""
    fields = set(RunConfig.model_fields)
    result: dict[str, Any] = {}
    for key, value in values.items():
        full = ALIASES.get(key, key)
        if full not in fields:
            raise UsageError(f"unknown config key {key!r}.{nearest(key, fields | set(ALIASES))}")
        if full in result:
            raise UsageError(f"{key}: given twice (it is another spelling of {full})")
        result[full] = parse_scalar(value) if isinstance(value, str) and _is_number(value) else value
    return result


def parse_model(model: type[ModelT], values: dict[str, Any]) -> ModelT:
    """Validate and turn pydantic's report into one readable line.

    Raises:
        UsageError: names each key, its value and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"] if not _is_union_tag(part))
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                message = f"unknown key.{nearest(str(item['loc'][-1]), _sibling_keys(model, item['loc']))}"
            value = repr(item["input"])[:MOST_SHOWN]
            shown = "" if item["type"] in ("missing", "extra_forbidden") or not key else f"{value}: "
            problems.append(f"{key}: {shown}{message}" if key else message)
        raise UsageError("; ".join(dict.fromkeys(problems))) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, with numbers such as ``2e-4`` read as numbers.

    Raises:
        UsageError: the file is missing, is not YAML, or does not hold a mapping.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    return parse_yaml(content, path)


def parse_yaml(content: bytes, path: str | Path) -> dict[str, Any]:
    """The mapping in the content of a YAML file, with numbers such as ``2e-4`` read as numbers.

    Raises:
        UsageError: it is not YAML, or does not hold a mapping; names the file.
    """
    try:
        data = load_yaml(content.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold a mapping of keys to values, not {type(data).__name__}")
    return _numbers(data)


def _numbers(value: Any) -> Any:
    """PyYAML follows YAML 1.1, where 2e-4 is a string."""
    if isinstance(value, dict):
        return {str(key): _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UsageError(f"a number with {value.bit_length()} bits is no value of a config")
    return parse_scalar(value) if isinstance(value, str) and _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return len(text) < MOST_SHOWN and text.strip().lower().lstrip("+-") not in ("nan", "inf", "infinity")


def _is_union_tag(part: object) -> bool:
    return isinstance(part, str) and (part in ("float", "str", "int", "list[str]") or "[" in part)


def _sibling_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    fields = model.model_fields
    for part in location[:-1]:
        annotation = fields[str(part)].annotation if str(part) in fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        fields = annotation.model_fields
    return list(fields)
