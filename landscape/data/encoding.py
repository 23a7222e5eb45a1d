"""From texts to token ids, for each kind of model; batched by the fast tokenizer, lazily, and kept in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from string import Formatter
from typing import TYPE_CHECKING, Any, overload

from landscape.data.metrics import LabelTokens, label_tokens
from landscape.data.rows import Rows, TaskRows
from landscape.data.tasks import Task
from landscape.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from landscape.loss import LossKind

IGNORE_INDEX = -100
Example = dict[str, Any]
"""``input_ids``, ``attention_mask`` (lists of int, unpadded) and ``labels`` (a list, or one int for classification)."""


class Encoder:
    """Turns rows of one task into examples for one tokenizer and kind of model.

    Causal: prompt, target and end-of-sequence in one sequence, cut at ``max_length`` from the right; only the target
    and the end count. Seq2seq: source and target cut apart. Classification: text or text pair, integer label.
    """

    def __init__(
        self,
        task: Task,
        label_words: tuple[str, ...],
        tokenizer: PreTrainedTokenizerBase,
        kind: LossKind,
        max_length: int,
    ) -> None:
        if kind == "classification" and not label_words:
            raise UsageError(
                f"task: {task.name!r} has text targets; a classification model needs a task with labels, "
                "such as sst2, or files with columns {text, label}"
            )
        if kind == "classification" and max_length > tokenizer.model_max_length:
            raise UsageError(
                f"max_length: {max_length} exceeds the {tokenizer.model_max_length} positions of this encoder"
            )
        if kind != "classification" and tokenizer.eos_token_id is None:
            raise UsageError(f"model: the tokenizer has no end-of-sequence token, which {kind} targets need")
        self.tokenizer, self.kind, self.max_length = tokenizer, kind, max_length
        self._task, self._label_words = task, label_words

    def encode(self, rows: Rows) -> list[Example]:
        """The examples of these rows, in their order."""
        if not len(rows):
            return []
        return {"causal": self._causal, "seq2seq": self._seq2seq, "classification": self._classification}[self.kind](
            rows
        )

    def prompts(self, rows: Rows) -> list[str]:
        """What precedes the target: the prompt of a decoder, the source of an encoder-decoder."""
        template = self._task.prompt if self.kind == "causal" else self._task.source
        columns = zip(*rows.fields.values(), strict=True)
        return [template.format(**dict(zip(rows.fields, texts, strict=True))) for texts in columns]

    def targets(self, rows: Rows) -> list[str]:
        """Target texts; a label's word where the task is a classification."""
        return [self._label_words[t] if isinstance(t, int) else t for t in rows.targets]

    def label_tokens(self) -> LabelTokens | None:
        """Where the label words part when they follow a prompt; None without label words or where no token tells."""
        if self.kind == "classification" or not self._label_words:
            return None
        count = len(self._label_words)
        fields = [name for _, name, _, _ in Formatter().parse(self._task.prompt + self._task.source) if name]
        examples = self.encode(Rows({name: [""] * count for name in fields}, list(range(count))))
        return label_tokens([[t for t in example["labels"] if t != IGNORE_INDEX] for example in examples])

    def fingerprint(self, rows: Rows) -> str:
        """A sha256 over all that decides the tokens and labels of these rows, without tokenizing them."""
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        # Left behind by the last call, and given with every call.
        del tokenizer["truncation"], tokenizer["padding"]
        template = self._task.prompt if self.kind == "causal" else self._task.source
        special = [self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]
        described = [self.kind, self.max_length, template, self._label_words, special, dict(rows.fields), rows.targets]
        return hashlib.sha256(json.dumps([tokenizer, described], sort_keys=True).encode()).hexdigest()

    def _causal(self, rows: Rows) -> list[Example]:
        prompts, targets = self.prompts(rows), self.targets(rows)
        texts = [f"{p}{'' if p[-1:].isspace() else ' '}{t}" for p, t in zip(prompts, targets, strict=True)]
        # Prompt and target are tokenized as one text, as they would be read; offsets tell which token belongs where.
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        eos = self.tokenizer.eos_token_id
        examples = []
        for ids, offsets, prompt in zip(encoded["input_ids"], encoded["offset_mapping"], prompts, strict=True):
            labels = [
                token if end > len(prompt) else IGNORE_INDEX for token, (_, end) in zip(ids, offsets, strict=True)
            ]
            if ids and ids[-1] == eos and offsets[-1] == (0, 0):
                ids, labels = ids[:-1], labels[:-1]  # noqa: PLW2901
            ids, labels = [*ids, eos][: self.max_length], [*labels, eos][: self.max_length]  # noqa: PLW2901
            examples.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
        return examples

    def _seq2seq(self, rows: Rows) -> list[Example]:
        sources = self.tokenizer(self.prompts(rows), truncation=True, max_length=self.max_length)["input_ids"]
        targets = self.tokenizer(
            self.targets(rows), truncation=True, max_length=self.max_length, add_special_tokens=False
        )["input_ids"]
        return [
            {
                "input_ids": source,
                "attention_mask": [1] * len(source),
                "labels": [*target, self.tokenizer.eos_token_id][: self.max_length],
            }
            for source, target in zip(sources, targets, strict=True)
        ]

    def _classification(self, rows: Rows) -> list[Example]:
        text, *pair = rows.fields.values()
        encoded = self.tokenizer(text, pair[0] if pair else None, truncation=True, max_length=self.max_length)
        keys = [key for key in ("input_ids", "attention_mask", "token_type_ids") if key in encoded]
        columns = [encoded[key] for key in keys]
        return [
            {**dict(zip(keys, values, strict=True)), "labels": label}
            for *values, label in zip(*columns, rows.targets, strict=True)
        ]


def count_labels(example: Example, kind: LossKind) -> int:
    """How many labels of an example the loss counts; a decoder's first position predicts nothing."""
    if kind == "classification":
        return 1
    labels = example["labels"][1:] if kind == "causal" else example["labels"]
    return sum(label != IGNORE_INDEX for label in labels)


class Examples(Sequence[Example]):
    """A list of examples that are tokenized, in batches, when first asked for."""

    def __init__(self, rows: Rows, encoder: Encoder, known: dict[int, Example] | None = None) -> None:
        self.rows, self.encoder = rows, encoder
        self._cache = known or {}

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        chosen = range(len(self))[index]
        return self.fetch(chosen) if isinstance(chosen, range) else self.fetch([chosen])[0]

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), 1024):
            yield from self.fetch(range(start, min(start + 1024, len(self))))

    def fetch(self, indices: Sequence[int]) -> list[Example]:
        """The examples at these indices (0 ≤ index < length), tokenizing those not seen before together."""
        missing = [index for index in dict.fromkeys(indices) if index not in self._cache]
        if missing:
            self._cache.update(zip(missing, self.encoder.encode(self.rows.take(missing)), strict=True))
        return [self._cache[index] for index in indices]


def encode_rows(rows: Rows, encoder: Encoder) -> Examples:
    """Examples without those that truncation leaves with no counted label.

    Only rows whose prompt could fill ``max_length`` are tokenized now: after the tokenizer's own normalization a text
    has at most a token a byte, plus specials.
    """
    if encoder.kind != "causal":
        return Examples(rows, encoder)
    bound = encoder.max_length - encoder.tokenizer.num_special_tokens_to_add() - 2
    normalizer = encoder.tokenizer.backend_tokenizer.normalizer  # type: ignore[attr-defined]
    normalize = normalizer.normalize_str if normalizer is not None else str
    doubtful = [index for index, prompt in enumerate(encoder.prompts(rows)) if len(normalize(prompt).encode()) > bound]
    encoded = dict(zip(doubtful, encoder.encode(rows.take(doubtful)), strict=True))
    dropped = {index for index, example in encoded.items() if count_labels(example, encoder.kind) == 0}
    kept = [index for index in range(len(rows)) if index not in dropped]
    known = {new: encoded[old] for new, old in enumerate(kept) if old in encoded}
    return Examples(rows.take(kept) if dropped else rows, encoder, known)


def make_encoder(data: TaskRows, tokenizer: PreTrainedTokenizerBase, kind: LossKind, max_length: int) -> Encoder:
    """The encoder of a task's rows.

    Raises:
        UsageError: a classification model on text targets, or a tokenizer without end-of-sequence token.
    """
    return Encoder(data.task, data.label_words, tokenizer, kind, max_length)
