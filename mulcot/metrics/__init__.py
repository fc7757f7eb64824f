"""Metrics: what a model's answers are worth against gold labels and reference rationales."""

from mulcot.metrics.classification import ClassificationReport
from mulcot.metrics.reasoning import ReasoningReport

__all__ = ["ClassificationReport", "ReasoningReport"]
