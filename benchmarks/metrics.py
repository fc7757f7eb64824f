"""What the metrics cost: 10,000 rationales against references, part by part, and what memory that takes.

    python -m benchmarks.metrics                                  # about a minute of two cores
    python -m benchmarks.metrics --data_root FOLDER --json FILE   # FOLDER/twitter15/val.json: rationales of a teacher

Every pair is another one: the fields of a rationale are taken from different rationales, so that nothing that remembers
texts gains by it. Without real rationales they are made of invented words, as many as real ones have. The part without
Sim is timed as `mulcot eval` computes it, in a process of its own for each number of pairs; Sim for fewer pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mulcot.metrics import ClassificationReport, ReasoningReport
from mulcot.metrics.functional import text
from mulcot.metrics.resources import load_encoder, load_wordnet
from mulcot.types import DEFAULT_LABELS, Answer, Rationale, RationaleRecord

GOAL: Final = 60.0
"""Seconds that 10,000 pairs may take without Sim."""
WORDS: Final = {"text_analysis": 45, "image_analysis": 45, "conflict_resolution": 45, "final_conclusion": 55}
"""Words of each field of an invented rationale."""
MIB: Final = 2**20


def rationales(data_root: Path | None) -> list[Rationale]:
    """Real rationales where they are, else invented ones."""
    if data_root is None:
        rng = random.Random(0)
        words = ["".join(rng.choices("aeioulnrst", k=rng.randint(2, 9))) for _ in range(4000)]
        return [
            Rationale(*(" ".join(rng.choices(words, k=n)) + "." for n in WORDS.values()), rng.choice(DEFAULT_LABELS))
            for _ in range(1100)
        ]
    from mulcot.generation import RationaleRefusedError, parse_rationale

    found = []
    for row in json.loads((data_root / "twitter15" / "val.json").read_text(encoding="utf-8")):
        try:
            found.append(parse_rationale(row["cot"], DEFAULT_LABELS))
        except RationaleRefusedError:
            continue
    return found


def pairs(data_root: Path | None, count: int) -> tuple[list[Answer], list[RationaleRecord], list[str]]:
    """Answers, references and gold labels, no two answers and no two references alike."""
    known = rationales(data_root)

    def mixed(number: int, shift: int) -> Rationale:
        step = 1 + number // len(known)
        places = [(number + shift + step * place) % len(known) for place in range(5)]
        return Rationale(*(getattr(known[at], f.name) for at, f in zip(places, fields(Rationale), strict=True)))

    answers, references, golds = [], [], []
    for number in range(count):
        said, right = mixed(number, 0), mixed(number, 7)
        sure = {label: 0.8 if label == said.prediction else 0.1 for label in DEFAULT_LABELS}
        answers.append(Answer(str(number), said.prediction, sure, said, said.to_json(), ""))
        source = "teacher-explained" if number % 5 == 0 else "teacher-predicted"
        references.append(RationaleRecord(str(number), right, source, "model", "hash"))
        golds.append(right.prediction)
    return answers, references, golds


def measure(data_root: Path | None, count: int) -> dict[str, Any]:
    """Seconds and memory of both reports without Sim, and of their parts; in this process."""
    answers, references, golds = pairs(data_root, count)
    from mulcot.generation import parsing  # noqa: F401 - imported before the clock runs, with all that comes along

    found: dict[str, Any] = {"pairs": count, "start_mib": _peak()}
    wordnet, found["wordnet"] = _timed(load_wordnet)
    said, right = ([" ".join(_values(r)) for r in side] for side in (answers, references))
    parts: dict[str, Callable[[], Any]] = {
        "classification": lambda: _classification(answers, golds),
        "bleu": lambda: text.bleu_counts(said, right),
        "rouge_l": lambda: text.rouge_l(said, right),
        "meteor": lambda: text.meteor(said, right, wordnet),
        "distinct": lambda: [text.distinct(said, n) for n in (1, 2)],
    }
    found["whole"] = _timed(lambda: _both(answers, references, golds, wordnet))[1]
    found["peak_mib"] = _peak()
    # After the whole, so that its peak is its own; what was remembered of the texts is forgotten first.
    text._tokenizer.cache_clear()
    text._stemmer.cache_clear()
    found["parts"] = {name: _timed(part)[1] for name, part in parts.items()}
    return found


def measure_sim(data_root: Path | None, count: int) -> dict[str, Any]:
    """Sim in batches and text by text."""
    answers, references, _ = pairs(data_root, count)
    said, right = ([" ".join(_values(r)) for r in side] for side in (answers, references))
    encoder, loading = _timed(load_encoder)
    few = max(1, count // 8)
    text.sim(said[:2], right[:2], encoder)
    batched, alone = (
        _timed(lambda: text.sim(said, right, encoder))[1],
        _timed(lambda: [text.sim([p], [r], encoder) for p, r in zip(said[:few], right[:few], strict=True)])[1],
    )
    return {
        "pairs": count,
        "loading": loading,
        "batched": batched,
        "alone": {"pairs": few, **alone},
        "peak_mib": _peak(),
    }


def _both(answers: Sequence[Answer], references: Sequence[RationaleRecord], golds: Sequence[str], wordnet: Any) -> None:
    _classification(answers, golds)
    report = ReasoningReport(DEFAULT_LABELS, wordnet)
    report.update(answers, references, golds)
    report.compute()


def _classification(answers: Sequence[Answer], golds: Sequence[str]) -> None:
    report = ClassificationReport(DEFAULT_LABELS)
    report.update([answer.label for answer in answers], golds, [answer.probabilities for answer in answers])
    report.compute()


def _values(told: Answer | RationaleRecord) -> list[str]:
    assert told.rationale is not None
    return [getattr(told.rationale, field.name) for field in fields(Rationale)]


def _timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, processor = time.perf_counter(), time.process_time()
    made = call()
    return made, {"wall_s": time.perf_counter() - wall, "processor_s": time.process_time() - processor}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def _in_a_process(kind: str, count: int, data_root: Path | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.metrics", "--only", kind, "--pairs", str(count)]
    command += [] if data_root is None else ["--data_root", str(data_root)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def show(found: dict[str, Any]) -> None:
    """The tables."""
    few, many = found["metrics"]
    table = Table(title=f"{found['source']}, {found['cores']} cores")
    for column in ("", f"{few['pairs']:,} pairs", f"{many['pairs']:,} pairs"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("wordnet", *many["parts"], "whole"):
        sides = [side["parts"].get(name) or side[name] for side in (few, many)]
        label = {"wordnet": "loading WordNet", "whole": "both reports, without Sim"}.get(name, name)
        table.add_row(label, *(f"{s['processor_s']:.1f} s ({s['wall_s']:.1f} s)" for s in sides))
    memory = (f"{side['peak_mib'] - side['start_mib']:,.0f} MiB" for side in (few, many))
    table.add_row("memory above the start", *memory)
    Console().print(table)
    # One thread does all of it: beside other work the clock says how long that took, the core what it needs.
    met = many["whole"]["processor_s"] < GOAL
    Console().print("seconds of a core (of the clock); the parts were timed again, one by one")
    Console().print(f"goal: {many['pairs']:,} pairs in {GOAL:.0f} s of a core: {'met' if met else 'not met'}")
    if sim := found["sim"]:
        batched, alone = sim["batched"], sim["alone"]
        Console().print(
            f"Sim: {sim['pairs'] / batched['processor_s']:.1f} pairs a second of a core in batches, "
            f"{alone['pairs'] / alone['processor_s']:.1f} one by one ({sim['pairs']:,} pairs; loading "
            f"{sim['loading']['processor_s']:.1f} s; {sim['peak_mib']:,.0f} MiB at most in all)"
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics", description="What the metrics cost.")
    parser.add_argument("--pairs", type=int, default=10_000, help="pairs; a tenth of them is measured, too")
    parser.add_argument("--sim", type=int, default=128, help="pairs that Sim is measured on; 0 leaves it out")
    parser.add_argument(
        "--data_root", type=Path, help="the folder of twitter15/val.json; without it texts are invented"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all numbers are written")
    parser.add_argument("--only", choices=("metrics", "sim"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        one = measure if given.only == "metrics" else measure_sim
        print(json.dumps(one(given.data_root, given.pairs)))
        return
    found = {
        "source": "invented rationales" if given.data_root is None else "rationales of Twitter-2015",
        "cores": os.cpu_count(),
        "metrics": [_in_a_process("metrics", n, given.data_root) for n in (given.pairs // 10, given.pairs)],
        "sim": _in_a_process("sim", given.sim, given.data_root) if given.sim else None,
    }
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    show(found)


if __name__ == "__main__":
    main()
