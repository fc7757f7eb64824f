"""One page of TensorBoard for a run: which curves share a chart, hard beside soft."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from mulcot.rows import SECTIONS
from mulcot.types import Task

BUCKETS: Final = 8
"""Curves of the loss by position, from the beginning of a response to its end."""
STATISTIC_TAGS: Final = {
    "entropy": "assistant/{}/entropy",
    "kept_mass": "assistant/{}/kept_mass",
    "kept_mass_at_T": "assistant/{}/kept_mass_at_T",
    "agreement": "top1/{}/student_is_assistant",
    "assistant_right": "top1/{}/assistant_is_target",
    "student_right": "top1/{}/student_is_target",
}
"""Where each statistic of a task is found."""
Layout = dict[str, dict[str, list[object]]]
"""Category, then the title of a chart, then what `SummaryWriter.add_custom_scalars` takes: its kind and its tags."""


def bucket_name(bucket: int) -> str:
    """What part of a response a bucket is, in hundredths: `000-012` and so on, so that names sort by position."""
    edges = [100 * edge // BUCKETS for edge in (bucket, bucket + 1)]
    return "{:03d}-{:03d}".format(*edges)


def layout(terms: Mapping[Task, Sequence[str]], soft: Collection[str]) -> Layout:
    """The page.

    Args:
        terms: the names of each task's loss terms.
        soft: which of them learn from the assistant.
    """
    charts: Layout = {"1 Hard against soft": {}}
    for task, names in terms.items():
        charts["1 Hard against soft"] |= {
            f"{task}: loss per token": _lines(*(f"loss/{task}/{name}" for name in names)),
            f"{task}: gradient norm at the head": _lines(f"gradient/{task}/hard", f"gradient/{task}/soft"),
        }
    if "reasoning" in terms:
        named = [*(name for name in terms["reasoning"] if name in soft)]
        named += [name for name in terms["reasoning"] if name not in soft]
        charts["2 Rationales by section"] = {
            f"{name} per token by section": _lines(*(f"sections/{name}/{section}" for section in SECTIONS))
            for name in named
        }
        charts["3 Rationales by position"] = {
            f"{name} per token by position (%)": _lines(
                *(f"positions/{name}/{bucket_name(bucket)}" for bucket in range(BUCKETS))
            )
            for name in named
        }
    if soft:
        charts["4 The assistant"] = {title: _lines(*tags) for title, tags in _assistant(list(terms)).items()}
    charts["5 Quality and schedules"] = {
        "validation": _lines("val/accuracy", "val/macro_f1", "val/weighted_f1"),
        "objective": _lines("loss/total"),
        "λ": _lines("schedule/lambda"),
        "temperature": ["Multiline", ["^schedule/temperature/"]],
        "learning rate": ["Multiline", ["^lr-"]],
    }
    return charts


def _assistant(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """What is told of the assistant: the title of a chart and its tags."""
    charts = {
        "entropy (nats per token)": ("entropy",),
        "same likeliest token": ("agreement", "assistant_right", "student_right"),
        "kept mass": ("kept_mass", "kept_mass_at_T"),
    }
    return {
        title: [STATISTIC_TAGS[name].format(task) for task in tasks for name in names]
        for title, names in charts.items()
    }


def _lines(*tags: str) -> list[object]:
    """A chart of these curves and no others: TensorBoard takes tags for the beginnings of regular expressions."""
    return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]
