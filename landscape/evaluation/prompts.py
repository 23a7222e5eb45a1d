"""How questions are put to a model: as its training task was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from landscape.config import RunConfig
    from landscape.loss import LossKind

_QUESTION = "Q: {input}\nA:"


@dataclass(frozen=True)
class Template:
    """A prompt with ``{input}`` where the question stands."""

    text: str

    @classmethod
    def of(cls, config: RunConfig, kind: LossKind) -> Template:
        """The one that the run was trained with; "Q: … A:" where its task has labels instead of questions."""
        from landscape.data import TASKS

        task = TASKS[config.task]
        text = task.prompt if kind == "causal" else task.source
        return cls(text if "{input}" in text else _QUESTION)

    def prompt(self, questions: Sequence[str], replies: Sequence[str] = ()) -> str:
        """A conversation up to the last question, which is without a reply yet."""
        text = ""
        for index, question in enumerate(questions):
            part = (self._turn if index else self.text).format(input=question)
            text = f"{text}\n\n{part}" if index else part
            if index < len(replies):
                text += f"{'' if text[-1:].isspace() else ' '}{replies[index].strip()}"
        return text

    def cut(self, reply: str) -> str:
        """The reply without further questions that the model goes on to ask itself."""
        label = self._turn.partition("{input}")[0].strip()
        return reply.partition(f"\n{label}")[0] if label else reply

    @property
    def _turn(self) -> str:
        """Without the paragraphs that introduce a conversation, which are said once."""
        paragraphs = self.text.split("\n\n")
        first = next(index for index, paragraph in enumerate(paragraphs) if "{input}" in paragraph)
        return "\n\n".join(paragraphs[first:])
