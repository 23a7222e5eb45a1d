"""Templates of the tasks, conversations in them, and where a reply ends."""

from __future__ import annotations

import pytest

from landscape.config import RunConfig
from landscape.evaluation.prompts import Template

QUESTION = Template("Q: {input}\nA:")
BARE = Template("{input}")
ALPACA = Template("Below.\n\n### Instruction:\n{input}\n\n### Response:\n")


@pytest.mark.parametrize(
    ("task", "kind", "text"),
    [
        ("gsm8k", "causal", "Q: {input}\nA:"),
        ("gsm8k", "seq2seq", "{input}"),
        ("sst2", "causal", "Q: {input}\nA:"),
        ("codefeedback", "causal", None),
    ],
)
def test_the_template_is_that_of_training(task: str, kind: str, text: str | None) -> None:
    found = Template.of(RunConfig.parse({"task": task}), kind).text  # type: ignore[arg-type]
    assert found == text if text else found.endswith("### Instruction:\n{input}\n\n### Response:\n")


def test_conversations() -> None:
    assert QUESTION.prompt(["a"]) == "Q: a\nA:"
    assert QUESTION.prompt(["a", "b"], [" c "]) == "Q: a\nA: c\n\nQ: b\nA:"
    assert BARE.prompt(["a", "b"], ["c"]) == "a c\n\nb"
    assert ALPACA.prompt(["{a}"]) == "Below.\n\n### Instruction:\n{a}\n\n### Response:\n"


@pytest.mark.parametrize(
    ("template", "reply", "kept"),
    [
        (QUESTION, " 4\nQ: and 5?\nA: 9", " 4"),
        (QUESTION, " Q: 4", " Q: 4"),
        (ALPACA, "yes\n\n### Instruction:\nmore", "yes\n"),
        (BARE, "a\nb", "a\nb"),
    ],
)
def test_where_a_model_asks_itself_more_its_reply_is_over(template: Template, reply: str, kept: str) -> None:
    assert template.cut(reply) == kept
