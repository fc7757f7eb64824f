"""Evaluation and augmentation: labels scored against labels generated, our decoding against `generate`.

    python -m benchmarks.evaluation --data_root FOLDER              # val.json and Images/ inside; about 20 minutes
    python -m benchmarks.evaluation --data_root FOLDER --posts 16 --repeats 1 --only labels --json FILE

Both sides have the same model, posts, pictures, batch size and threads. The other side is transformers' `generate` on
batches in the posts' order, padded on the left, a batch after the other; ours takes the batches that the data module
makes, sorted by length, and fills a batch up with the next. Batches are made before the clock starts. Sides take turns;
times are of the processor, so that a loaded machine does not lengthen them.

Models are those of the preset, with random weights but for the rows of the head that write answers, which are fitted to
the answers of some of the posts. Untrained models do not keep to a form, so both sides write by a rule. A generated
classification is the likeliest of the label set's answers, token by token, and ends by itself where the answer does. A
rationale ends after as many tokens as the teacher's of that post has (`val.json` holds it), and not before. That labels
and tokens of both sides are the same is checked in the run: labels may differ where a token alone is likelier than the
answer as a whole, tokens where two are equally likely up to rounding.

Labels are measured twice: alone, and beside rationales. There ours adds two branches to prompts that are read anyway,
and its time is the difference of reading with and without them; the other side has to read the prompts once more.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.evaluation_inputs import Answers, Ending, Workload, generate, prepare
from mulcot.generation import (
    RationaleRefusedError,
    Reading,
    ReplyWriter,
    SeededSampler,
    label_probabilities,
    parse_prediction,
    read,
    sample_seed,
)
from mulcot.models import row_form
from mulcot.rows import QuestionBatch, RowBatch, RowCollator, RowForm
from mulcot.types import DEFAULT_LABELS, Task

TEMPERATURE = 0.7


@dataclass
class Result:
    """What one comparison came to, over all posts."""

    name: str
    ours: list[float]
    """Seconds of each repeat."""
    other: list[float]
    same: float
    """Share of the posts with the same outcome on both sides."""

    @property
    def ratio(self) -> float:
        """How many times as fast ours is, by medians."""
        return median(self.other) / median(self.ours)


def compare(name: str, repeats: int, ours: Callable[[], dict[str, Any]], other: Callable[[], dict[str, Any]]) -> Result:
    """Runs both sides in turns.

    Args:
        name: of the comparison.
        repeats: runs of each.
        ours: gives an outcome for each post.
        other: likewise.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        found: list[dict[str, Any]] = [{}, {}]
        sides = [(0, ours), (1, other)]
        for side, run in sides if repeat % 2 else reversed(sides):
            began = time.process_time()
            found[side] = run()
            times[side].append(time.process_time() - began)
    same = sum(found[0].get(key) == value for key, value in found[1].items()) / max(1, len(found[1]))
    return Result(name, *times, same)


def by_post(batches: Sequence[QuestionBatch], values: Sequence[Sequence[Any]], copies: int = 1) -> dict[str, Any]:
    """The outcomes of batches by post and copy."""
    keys = [f"{post.id}/{copy}" for batch in batches for copy in range(copies) for post in batch.posts]
    return dict(zip(keys, [value for each in values for value in each], strict=True))


def labels(load: Workload, repeats: int) -> Result:
    """Labels alone: one pass over prompt and answers against answers that are generated."""
    ours = load.batches(["classification"], row_form(load.model), by_length=True)

    def score() -> dict[str, Any]:
        return by_post(ours, [chosen(load, batch) for batch in ours])

    return compare("labels alone", repeats, score, generated_labels(load))


def labels_beside(load: Workload, repeats: int) -> Result:
    """Labels of posts whose reasoning prompts are read anyway: what they add to that."""
    ours = load.batches(["classification", "reasoning"], row_form(load.model), by_length=True)
    prompts = load.batches(["reasoning"], row_form(load.model), by_length=True)

    def score() -> dict[str, Any]:
        return by_post(ours, [chosen(load, batch, read(load.model, batch.candidates.inputs)) for batch in ours])

    def read_prompts() -> dict[str, Any]:
        for batch in prompts:
            read(load.model, batch.prompts.inputs)
        return {}

    whole = compare("labels beside rationales", repeats, score, generated_labels(load))
    without = compare("", repeats, read_prompts, dict)
    return replace(whole, ours=[seconds - median(without.ours) for seconds in whole.ours])


def chosen(load: Workload, batch: QuestionBatch, reading: Reading | None = None) -> list[str]:
    """The likeliest label of each post of a batch."""
    table = label_probabilities(load.model, batch.candidates, len(DEFAULT_LABELS), reading)
    return [DEFAULT_LABELS[index] for index in table.argmax(dim=-1).tolist()]


def generated_labels(load: Workload) -> Callable[[], dict[str, Any]]:
    """The other side of both: a run that generates the answers."""
    prompts = load.batches(["reasoning"], RowForm(), by_length=False)
    asked = questions_alone(load, prompts)

    def write() -> dict[str, Any]:
        return by_post(prompts, [written_labels(load, each) for each in asked])

    return write


def written_labels(load: Workload, prompts: RowBatch) -> list[str]:
    """The labels that are generated for a batch."""
    rule = Answers(load.encoder, len(prompts.rows))
    return [label_of(load, ids) for ids in generate(load, prompts, rule.most, rule)]


def questions_alone(load: Workload, batches: Sequence[QuestionBatch]) -> list[RowBatch]:
    """The classification prompts of batches, padded on the left."""
    collator = RowCollator(load.encoder)
    return [
        collator.batch([load.encoder.row(post, "classification") for post in batch.posts], side="left")
        for batch in batches
    ]


def label_of(load: Workload, ids: list[int]) -> str:
    """The label that a reply names."""
    try:
        return parse_prediction(load.encoder.decode(ids), DEFAULT_LABELS)
    except RationaleRefusedError:
        return ""


def rationales(load: Workload, repeats: int, copies: int = 0) -> Result:
    """One greedy reply to each post, or `copies` sampled ones as the augmentation samples them."""
    ours = load.batches(["reasoning"], row_form(load.model), by_length=True)
    other = load.batches(["reasoning"], RowForm(), by_length=False)
    most, count = max(load.lengths), max(1, copies)

    def ending(batch: QuestionBatch) -> Ending:
        seeds = [sample_seed(0, post.id, index) for index in range(copies) for post in batch.posts]
        return load.ending(batch, SeededSampler(seeds, TEMPERATURE) if copies else None, count)

    def write() -> dict[str, Any]:
        writer = ReplyWriter(load.model, load.encoder, most)
        replies = [writer.add(batch.prompts, ending(batch), copies=count) for batch in ours]
        writer.finish()
        return by_post(ours, [each.ids for each in replies], count)

    def with_generate() -> dict[str, Any]:
        found = []
        for batch in other:
            rule = ending(batch)
            found.append([ids for copy in range(count) for ids in generate(load, batch.prompts, most, rule, copy)])
        return by_post(other, found, count)

    name = f"augmentation, {copies} samples a post" if copies else "rationales alone"
    return compare(name, repeats, write, with_generate)


def both(load: Workload, repeats: int) -> Result:
    """Labels and rationales of all posts, as `test` wants them."""
    tasks: list[Task] = ["classification", "reasoning"]
    ours = load.batches(tasks, row_form(load.model), by_length=True)
    other = load.batches(["reasoning"], RowForm(), by_length=False)
    asked, most = questions_alone(load, other), max(load.lengths)

    def answer() -> dict[str, Any]:
        # What `stages.answering.Answering` does, but for the rule by which replies end.
        writer, given, replies = ReplyWriter(load.model, load.encoder, most), [], []
        for batch in ours:
            reading = read(load.model, batch.candidates.inputs)
            given.append(chosen(load, batch, reading))
            replies.append(writer.add(batch.prompts, load.ending(batch), reading))
        writer.finish()
        labels_of, texts_of = by_post(ours, given), by_post(ours, [each.ids for each in replies])
        return {key: (labels_of[key], texts_of[key]) for key in labels_of}

    def write() -> dict[str, Any]:
        found = []
        for batch, prompts in zip(other, asked, strict=True):
            given = written_labels(load, prompts)
            found.append(list(zip(given, generate(load, batch.prompts, most, load.ending(batch)), strict=True)))
        return by_post(other, found)

    return compare("labels and rationales", repeats, answer, write)


# --- the command line


def show(console: Console, results: Sequence[tuple[str, Result]], title: str) -> None:
    """The table of all comparisons."""
    table = Table("model", "what", "ours s", "generate s", "times as fast", "same", title=title)
    for role, result in results:
        sides = [f"{median(side):.2f} ({min(side):.2f} to {max(side):.2f})" for side in (result.ours, result.other)]
        table.add_row(role, result.name, *sides, f"{result.ratio:.2f}", f"{result.same:.1%}")
    console.print(table)


MEASURES: dict[str, tuple[str, Callable[[Workload, int], Result]]] = {
    "labels": ("student", labels),
    "labels_beside": ("student", labels_beside),
    "rationales": ("student", rationales),
    "both": ("student", both),
    "augmentation": ("assistant", partial(rationales, copies=2)),
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True, help="Holds val.json and Images/.")
    parser.add_argument("--posts", type=int, default=64, help="How many of them.")
    parser.add_argument("--batch_size", type=int, default=16, help="Of both sides.")
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each side.")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), help="Measure these alone.")
    parser.add_argument("--threads", type=int, default=1, help="Of both sides.")
    parser.add_argument("--json", type=Path, help="Where the numbers go, too.")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results: list[tuple[str, Result]] = []
    loaded: dict[str, Workload] = {}
    with TemporaryDirectory() as folder:
        for role, measure in (MEASURES[name] for name in given.only):
            if role not in loaded:
                loaded = {role: prepare(given.data_root, Path(folder), role, given.posts, given.batch_size)}
            results.append((role, measure(loaded[role], given.repeats)))
    title = f"{given.posts} posts, batches of {given.batch_size}, {given.threads} thread(s), {given.repeats} repeats"
    show(Console(), results, f"{title}: median seconds of the processor (least to most)")
    if given.json:
        found = [{"model": role, **asdict(result), "ratio": result.ratio} for role, result in results]
        whole = {"settings": vars(given), "torch": torch.__version__, "results": found}
        given.json.write_text(json.dumps(whole, default=str, indent=2))


if __name__ == "__main__":
    main()
