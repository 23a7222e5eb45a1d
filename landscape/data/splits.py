"""What training and analysis get: train, eval and probe splits that collate to right-padded tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from landscape.config import RunConfig
from landscape.data.encoding import IGNORE_INDEX, Examples, encode_rows, make_encoder
from landscape.data.metrics import LabelTokens
from landscape.data.rows import find_task, is_local, load_rows
from landscape.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from landscape.loss import LossKind


@dataclass(frozen=True)
class Split:
    """A list of examples of one kind.

    ``examples`` are dicts of ``input_ids``, ``attention_mask`` and ``labels``, tokenized when first asked for.
    """

    examples: Examples
    pad_token_id: int
    kind: LossKind

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def fingerprint(self) -> str:
        """A sha256 over all that decides the tokens and labels of this split."""
        return self.examples.encoder.fingerprint(self.examples.rows)

    @cached_property
    def label_tokens(self) -> LabelTokens | None:
        """How a model of text's answers are read as classes; None where the task has none."""
        return self.examples.encoder.label_tokens()

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The examples at ``indices``, padded on the right to the longest.

        Returns:
            ``input_ids`` and ``attention_mask`` (batch, positions), int64, and ``labels``: (batch, positions) with
            -100 where padded, or (batch,) for classification. BERT's ``token_type_ids`` where the tokenizer has them.
        """
        import torch

        rows = self.examples.fetch([int(index) for index in indices])
        padding = {"input_ids": self.pad_token_id, "attention_mask": 0, "token_type_ids": 0, "labels": IGNORE_INDEX}
        return {
            key: torch.tensor([row[key] for row in rows])
            if isinstance(rows[0][key], int)
            else _pad([row[key] for row in rows], padding[key])
            for key in rows[0]
        }

    def batches(self, batch_size: int, indices: Sequence[int] | None = None) -> Iterator[dict[str, Tensor]]:
        """Batches in order over all examples, or over those at ``indices``; the last may be smaller."""
        chosen = range(len(self)) if indices is None else indices
        for start in range(0, len(chosen), batch_size):
            yield self.collate(chosen[start : start + batch_size])


@dataclass(frozen=True)
class TaskData:
    """A task's splits. ``probe`` is a fixed subset of train, in the labels it is trained on; ``eval`` is held out."""

    name: str
    train: Split
    eval: Split
    probe: Split
    num_labels: int | None


def load_task(config: RunConfig, tokenizer: PreTrainedTokenizerBase, kind: LossKind) -> TaskData:
    """The task's data for one tokenizer and kind of model; the same for every seed, method and rank.

    Raises:
        UsageError: as `check_task`; also a hub set that cannot be reached, and a ``max_length`` that leaves no label.
    """
    data = load_rows(config)
    encoder = make_encoder(data, tokenizer, kind, config.max_length)
    pad = tokenizer.pad_token_id
    if not isinstance(pad, int):
        raise UsageError("model: the tokenizer has no pad token; set tokenizer.pad_token")
    examples = {
        name: encode_rows(rows, encoder)
        for name, rows in (("train", data.train), ("eval", data.eval), ("probe", data.probe))
    }
    _report_dropped(config, {"train": len(data.train), "eval": len(data.eval), "probe": len(data.probe)}, examples)
    splits = {name: Split(part, pad, kind) for name, part in examples.items()}
    return TaskData(data.task.name, **splits, num_labels=len(data.label_words) or None)


def check_task(config: RunConfig, kind: LossKind | None = None) -> None:
    """Find what is wrong with the task and its data before any model is loaded.

    Files are read and checked in full; of sets on the hub only the names are, nothing is downloaded.

    Args:
        config: ``task``, ``data_dir``, ``data_files``, ``columns`` and the sizes are read.
        kind: the model's kind where it is known (`landscape.models.known_kind`).

    Raises:
        UsageError: unknown task, a missing, empty or broken file (naming the line), a missing column (listing those
            there are), a label out of range, or text targets for a classification model.
    """
    task = find_task(config)
    label_words = load_rows(config).label_words if is_local(config) else task.label_words
    if kind == "classification" and not label_words:
        raise UsageError(
            f"task: {task.name!r} has text targets; model {config.model!r} is a classification model and needs a task "
            "with labels, such as sst2"
        )


def num_labels(config: RunConfig) -> int | None:
    """The number of classes, for a model's new head; None where the targets are texts.

    Raises:
        UsageError: as `check_task`.
    """
    task = find_task(config)
    words = load_rows(config).label_words if is_local(config) else task.label_words
    return len(words) or None


def _report_dropped(config: RunConfig, before: dict[str, int], examples: dict[str, Examples]) -> None:
    """One warning about all examples that lost their labels to truncation; an error where a split lost all."""
    dropped = {name: before[name] - len(examples[name]) for name in before}
    for name, count in dropped.items():
        if count == before[name]:
            raise UsageError(
                f"max_length: {config.max_length} tokens leave no label in any of the {count} {name} examples; raise it"
            )
    counts = [f"{dropped[name]} of {before[name]} {name}" for name in ("train", "eval") if dropped[name]]
    if counts:
        warnings.warn(
            f"max_length: {config.max_length} tokens leave no label in {' and '.join(counts)} examples; left out",
            stacklevel=3,
        )


def _pad(rows: list[list[Any]], value: int) -> Tensor:
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
