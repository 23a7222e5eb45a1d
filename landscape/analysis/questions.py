"""The analyses along a run by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from landscape.analysis.density import density_question
from landscape.analysis.layers import layers_question
from landscape.analysis.series import Question
from landscape.analysis.sharpness import sharpness_question
from landscape.analysis.trace import trace_question

QUESTIONS: Mapping[str, Callable[..., Question]] = {
    "sharpness": sharpness_question,
    "trace": trace_question,
    "density": density_question,
    "layers": layers_question,
}
