"""The real lm-eval on a run's snapshot, with a task file and data of one's own; nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from landscape.analysis.restored import open_run
from landscape.store import Run
from tests.command_line import invoke, payload

pytest.importorskip("lm_eval", reason="pip install 'lora-landscape[lm-eval]'")
pytestmark = [
    # lm-eval and what it imports warn of one another.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
QUESTIONS = [
    {"question": f"What is {left} plus {right}?", "choices": [str(left + right), str(left + right + 1)], "label": 0}
    for left in range(1, 6)
    for right in range(2, 6)
]
TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture
def task_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (folder / "sums.yaml").write_text(TASK.format(data=data))
    return folder


def log_likelihood(model: torch.nn.Module, context: list[int], continuation: list[int]) -> float:
    tokens = torch.tensor([[*context, *continuation]])
    with torch.no_grad():
        scores = model(input_ids=tokens).logits.double().log_softmax(-1)[0]
    return float(sum(scores[len(context) + i - 1, token] for i, token in enumerate(continuation)))


def test_accuracy_is_that_of_the_more_likely_answers(store: Path, run: Run, task_folder: Path) -> None:
    arguments = ["evaluate", store, "--harness", "sums", "--harness-folder", task_folder, "--steps", 2, "--json"]
    row = payload(invoke(*arguments))["results"][run.id][0]
    restored = open_run(run)
    restored.load(2)
    tokenizer = restored.data.eval.examples.encoder.tokenizer
    right = 0
    for question in QUESTIONS:
        context = tokenizer(question["question"])["input_ids"]
        whole = [tokenizer(f"{question['question']} {choice}")["input_ids"] for choice in question["choices"]]
        likely = [log_likelihood(restored.model, context, tokens[len(context) :]) for tokens in whole]
        right += likely.index(max(likely)) == question["label"]
    assert (row["metric"], row["name"], row["num_examples"]) == ("lm-eval", "sums/acc", len(QUESTIONS))
    assert row["value"] == pytest.approx(right / len(QUESTIONS))
