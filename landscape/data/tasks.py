"""The tasks by name: where each set lies on the hub, which columns it has, and how it is put to each kind of model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Columns = Mapping[str, str]
"""Role → column name; the roles are input and target, or text, text_pair (optional) and label."""


@dataclass(frozen=True)
class Task:
    """One task.

    A task with ``label_words`` is a classification: rows are text (or a text pair) and an integer label, and a
    text-to-text model is asked for the label's word. Others map an input text to a target text.

    ``prompt`` and ``source`` are what a decoder and an encoder-decoder are given, with the roles as fields.
    ``columns`` lists the column mappings that are looked for, in order: the official set's first.
    ``eval_splits`` are the official names to look for, in order; a set without any has a part of train held out.
    """

    name: str
    summary: str
    prompt: str
    source: str
    columns: tuple[Columns, ...] = ()
    label_words: tuple[str, ...] = ()
    hub_path: str | None = None
    hub_config: str | None = None
    eval_splits: tuple[str, ...] = ()
    answer_label: int | None = None
    """Read as input → target (by ``columns``), a classification keeps only rows with this label: the true answers."""


_QUESTION = "Q: {input}\nA:"
# Alpaca's template, which LoRA-GA's reproduction code, and with it both papers, uses for dialogue and code.
_INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{input}\n\n### Response:\n"
)
_TEXT_COLUMNS: tuple[Columns, ...] = (
    {"input": "query", "target": "response"},
    {"input": "query", "target": "answer"},
    {"input": "question", "target": "answer"},
    {"input": "instruction", "target": "output"},
    {"input": "prompt", "target": "completion"},
    {"input": "input", "target": "target"},
)


def _text_columns(first: str, second: str) -> tuple[Columns, ...]:
    official = {"input": first, "target": second}
    return (official, *(columns for columns in _TEXT_COLUMNS if columns != official))


def _glue(
    name: str,
    summary: str,
    columns: Columns,
    label_words: tuple[str, ...],
    prompt: str,
    source: str,
    eval_splits: tuple[str, ...] = ("validation", "test"),
) -> Task:
    return Task(name, summary, prompt, source, (columns,), label_words, "nyu-mll/glue", name, eval_splits)


# The encoder-decoder texts and label words of the GLUE tasks are those that T5 was pretrained with (Raffel et al. 2020,
# appendix D).
_ALL = (
    Task("arithmetic", "generated two-step word problems; needs no download", _QUESTION, "{input}"),
    _glue(
        "sst2",
        "sentiment of film reviews, 2 classes",
        {"text": "sentence", "label": "label"},
        ("negative", "positive"),
        "Review: {text}\nIs this review negative or positive?\nAnswer:",
        "sst2 sentence: {text}",
    ),
    _glue(
        "cola",
        "grammatical acceptability, 2 classes",
        {"text": "sentence", "label": "label"},
        ("unacceptable", "acceptable"),
        "Sentence: {text}\nIs this sentence grammatically acceptable or unacceptable?\nAnswer:",
        "cola sentence: {text}",
    ),
    _glue(
        "mrpc",
        "paraphrase detection, 2 classes",
        {"text": "sentence1", "text_pair": "sentence2", "label": "label"},
        ("not_equivalent", "equivalent"),
        "Sentence 1: {text}\nSentence 2: {text_pair}\nAre the sentences equivalent or not_equivalent?\nAnswer:",
        "mrpc sentence1: {text} sentence2: {text_pair}",
    ),
    _glue(
        "qnli",
        "does the sentence answer the question, 2 classes",
        {"text": "question", "text_pair": "sentence", "label": "label"},
        ("entailment", "not_entailment"),
        "Question: {text}\nSentence: {text_pair}\nDoes the sentence hold the answer, entailment or not_entailment?\n"
        "Answer:",
        "qnli question: {text} sentence: {text_pair}",
    ),
    _glue(
        "mnli",
        "natural language inference, 3 classes",
        {"text": "premise", "text_pair": "hypothesis", "label": "label"},
        ("entailment", "neutral", "contradiction"),
        "Premise: {text}\nHypothesis: {text_pair}\nIs this entailment, neutral or contradiction?\nAnswer:",
        "mnli hypothesis: {text_pair} premise: {text}",
        ("validation_matched", "validation", "test"),
    ),
    Task(
        "wikiqa",
        "is the sentence an answer to the question, 2 classes; generative with columns {input, target}",
        "Question: {text}\nSentence: {text_pair}\nDoes the sentence answer the question, no or yes?\nAnswer:",
        "wikiqa question: {text} sentence: {text_pair}",
        ({"text": "question", "text_pair": "answer", "label": "label"},),
        ("no", "yes"),
        "microsoft/wiki_qa",
        None,
        ("validation", "test"),
        answer_label=1,
    ),
    Task(
        "metamathqa",
        "mathematical questions with worked answers",
        _QUESTION,
        "{input}",
        _text_columns("query", "response"),
        hub_path="meta-math/MetaMathQA",
    ),
    Task(
        "gsm8k",
        "grade school word problems with worked answers",
        _QUESTION,
        "{input}",
        _text_columns("question", "answer"),
        hub_path="openai/gsm8k",
        hub_config="main",
        eval_splits=("test", "validation"),
    ),
    Task(
        "codefeedback",
        "programming requests with answers",
        _INSTRUCTION,
        "{input}",
        _text_columns("query", "answer"),
        hub_path="m-a-p/CodeFeedback-Filtered-Instruction",
    ),
    Task(
        "wizardlm",
        "instructions with responses",
        _INSTRUCTION,
        "{input}",
        _text_columns("instruction", "output"),
        hub_path="WizardLMTeam/WizardLM_evol_instruct_70k",
    ),
    Task("files", "your own JSONL, CSV or Parquet files (data_files, columns)", "{input}", "{input}"),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
