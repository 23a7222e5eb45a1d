"""Task metrics of captured snapshots: GSM8K, HumanEval, MT-Bench, and what lm-eval offers (``landscape evaluate``).

Accuracy, F1 and Matthews correlation of tasks with labels are logged while a run trains (`landscape.data.metrics`).
"""

from landscape.evaluation.results import stored_scores
from landscape.evaluation.run import Evaluation
from landscape.evaluation.settings import METRICS, EvaluationSettings

__all__ = ["METRICS", "Evaluation", "EvaluationSettings", "stored_scores"]
