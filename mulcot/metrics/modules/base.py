"""What the modules of this folder share: a thin `evaluate.Metric` over a pure function.

`evaluate.load` copies a module into its own cache and takes the first class in it that is a metric. A module therefore
imports this one as a whole and never the class by name, and finds everything else in the installed package.
"""

from __future__ import annotations

from typing import Any, ClassVar

import datasets
import evaluate


class TextMetric(evaluate.Metric):
    """A score of texts; every input is a plain text, and an empty one is a text like any other."""

    inputs: ClassVar[tuple[str, ...]] = ("predictions", "references")
    """What `compute` is given, one text a post each."""
    description: ClassVar[str] = ""
    """What is computed."""
    citation: ClassVar[str] = ""
    """Where it was described."""

    def _info(self) -> Any:
        texts = {name: datasets.Value("string") for name in self.inputs}
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description=f"{' and '.join(self.inputs)}: a list of texts each, one a post, in the same order",
            features=datasets.Features(texts),
        )
