"""What benchmarks/student_step.py found, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.presets import (
    Preset,
    frozen_backward,
    head_flops,
    text_flops,
    vision_flops,
)
from benchmarks.step_probe import PARTS
from benchmarks.workload import FIGURES, WASTED

MIB: Final = 2**20
GOALS: Final = {"cache": 3.5, "online": 1.7}
"""Samples/s over the published recipe's, with soft labels from a cache and from the assistant beside the student."""
LESS_MEMORY: Final = 1 / 3


def flops(preset: Preset, run: dict[str, Any], *, padded: bool = True) -> float:
    """FLOPs of a run by formula from the shapes that ran.

    Args:
        preset: the models.
        run: what the probe counted.
        padded: whether padding counts.
    """
    sizes = {"student": preset.student, "assistant": preset.assistant}
    total = 0.0
    for rows in run["rows"]:
        lengths = [rows["width"]] * len(rows["real"]) if padded else rows["real"]
        size = sizes[rows["role"]]
        total += text_flops(size, lengths, preset.lora)
        total += frozen_backward(size, lengths, preset.lora) if rows["grad"] else 0.0
    for head in run["heads"]:
        total += head_flops(sizes[head["role"]], head["tokens"]) * (2 if head["grad"] else 1)
    for seen in run["pictures"]:
        forward = vision_flops(preset.vision, sizes[seen["role"]].hidden, seen["pictures"])
        total += forward * (2 if seen["grad"] else 1)
    return total


class Numbers:
    """The runs of all arms, by arm.

    Args:
        found: what was measured.
        preset: the models.
    """

    def __init__(self, found: dict[str, Any], preset: Preset) -> None:
        self.found = found
        self.preset = preset

    def seconds(self, name: str, *, cpu: bool = False) -> list[float]:
        """Seconds a post of each run; a cache's building is spread over its epochs.

        Args:
            name: of the arm.
            cpu: of the processor, all threads together, and not of the clock.
        """
        found = []
        for at, run in enumerate(self.found["runs"][name]):
            seconds = run["cpu"] if cpu else sum(run["steps"])
            if name in self.found["cached"]:
                built = self.found["builds"][at]["cpu" if cpu else "seconds"] / self.found["workload"]["posts"]
                seconds += built * run["posts"] / self.found["epochs"]
            found.append(seconds / run["posts"])
        return found

    def ratios(self, name: str, *, cpu: bool = False) -> list[float]:
        """Samples/s over those of the reference, run by run."""
        theirs, mine = self.seconds(self.found["reference"], cpu=cpu), self.seconds(name, cpu=cpu)
        return [reference / own for reference, own in zip(theirs, mine, strict=True)]

    def memory(self, name: str, *, above: bool) -> float:
        """The highest memory in bytes, the median of all runs.

        Args:
            name: of the arm.
            above: above what was taken before data.
        """
        runs = [run["memory"] for run in self.found["runs"][name]]
        return median(run["peak"] - (run["before"] if above else 0) for run in runs)

    def flops(self, name: str, *, padded: bool = True) -> float:
        """FLOPs a post."""
        run = self.found["runs"][name][0]
        return flops(self.preset, run, padded=padded) / run["posts"]

    def arms(self) -> list[str]:
        """The arms in the order of the ladder."""
        return [name for name in self.found["titles"] if name in self.found["runs"]]


def goals(found: dict[str, Any], preset: Preset) -> list[tuple[str, str, str, bool]]:
    """What was measured, its goal, and whether it is met: by the best arm of each kind."""
    numbers = Numbers(found, preset)
    rows: list[tuple[str, str, str, bool]] = []
    ours = [name for name in numbers.arms() if not name.endswith(("published", "keeping"))]
    kinds = {
        "cache": [name for name in ours if name in found["cached"]],
        "online": [name for name in ours if name not in found["cached"]],
    }
    whole = numbers.memory(found["reference"], above=True)
    for kind, names in kinds.items():
        if not names:
            continue
        best = max(names, key=lambda name: median(numbers.ratios(name)))
        ratio, goal = median(numbers.ratios(best)), GOALS[kind]
        told = f"{ratio:.2f}x"
        if preset.accelerator == "cpu":
            told += f"; by processor time {median(numbers.ratios(best, cpu=True)):.2f}x"
        rows.append((f"samples/s, {kind}: {best}", told, f">= {goal}x", ratio >= goal))
        share = min(numbers.memory(name, above=True) for name in names) / whole
        rows.append((f"peak memory, {kind}", f"{share:.2f}", f"<= {LESS_MEMORY:.2f}", share <= LESS_MEMORY))
    for name, seconds in found["forwards"]["seconds"].items():
        apart = median(seconds["recipe"]) / median(seconds["adapter"])
        rows.append((f"recipe's forward over a bare one: {name}", f"{apart:.2f}", "0.90-1.10", 0.9 <= apart <= 1.1))
    return rows


def show(found: dict[str, Any], preset: Preset) -> None:
    """All tables."""
    out = Console(width=200)
    numbers = Numbers(found, preset)
    on = found["machine"]
    out.print(
        f"{preset.name}: {on['gpu'] or on['cpu']}, {on['threads']} of {on['cores']} cores, torch {on['torch']}, load "
        f"{on['load_before']:.1f} before; runs an arm: {len(next(iter(found['runs'].values())))}, of "
        f"{found['workload']['posts']} posts, median (lowest-highest)"
    )
    out.print(_shapes(preset))
    for table in (_ladder(numbers), _parts(numbers), _forwards(found), _lengths(found), _goals(found, preset)):
        out.print(table)


def _shapes(preset: Preset) -> str:
    parts = [
        f"{role} {size.hidden} x {size.layers}, MLP {size.mlp}, V={size.vocab:,}"
        for role, size in (("assistant", preset.assistant), ("student", preset.student))
    ]
    tower = preset.vision
    parts.append(f"Qwen2.5-VL tower {tower.hidden} x {tower.layers}, MLP {tower.mlp}")
    return f"{'; '.join(parts)}; LoRA r={preset.lora}; {preset.dtype}; micro-batches of {preset.micro_batch} posts"


def _ladder(numbers: Numbers) -> Table:
    found, reference = numbers.found, numbers.found["reference"]
    on_cpu = numbers.preset.accelerator == "cpu"
    table = Table(title="a post's training step, against the published recipe")
    columns = ["", "samples/s", "against", "by processor time", "GFLOP (unpadded)", "by GFLOP", "utilisation"]
    for column in (*columns, "peak above start, MiB", "against", "peak, MiB"):
        table.add_column(column, justify="left" if not column else "right")
    for name in numbers.arms():
        work, needed, theirs = numbers.flops(name), numbers.flops(name, padded=False), numbers.flops(reference)
        taken, beside = numbers.memory(name, above=True), numbers.memory(reference, above=True)
        busy = needed / median(numbers.seconds(name, cpu=on_cpu)) / found["peak_flops"]
        table.add_row(
            f"{name}: {found['titles'][name]}",
            spread([1 / value for value in numbers.seconds(name)], "{:.2f}"),
            spread(numbers.ratios(name), "{:.2f}"),
            spread(numbers.ratios(name, cpu=True), "{:.2f}"),
            f"{work / 1e9:,.1f} ({needed / 1e9:,.1f})",
            f"{theirs / work:.2f}",
            f"{100 * busy:.0f}%",
            f"{taken / MIB:,.0f}",
            f"{taken / beside:.2f}",
            f"{numbers.memory(name, above=False) / MIB:,.0f}",
        )
    table.caption = (
        "GFLOP a post by formula from the shapes that ran (in brackets without the rows' padding); utilisation: these "
        f"of the {found['peak_flops'] / 1e12:.3f} TFLOP {'a processor second' if on_cpu else 'a second'} of a large "
        f"product; a cache's building is counted once over {found['epochs']} epochs"
    )
    if found["builds"]:
        per_post = [build["cpu" if on_cpu else "seconds"] / found["workload"]["posts"] for build in found["builds"]]
        table.caption += f" ({spread(per_post, '{:.2f}')} {'processor ' if on_cpu else ''}s a post)"
    return table


def _parts(numbers: Numbers) -> Table:
    """Where the time of each arm goes."""
    clock = "processor time" if numbers.preset.accelerator == "cpu" else "time"
    table = Table(title=f"ms of {clock} a post, by part")
    table.add_column("")
    for name in numbers.arms():
        table.add_column(name, justify="right")
    columns = {name: _part_seconds(numbers.found["parts"][name], clock) for name in numbers.arms()}
    for part in (*PARTS, "rest", "all"):
        cells = []
        for name in numbers.arms():
            seconds, whole = columns[name].get(part, 0.0), columns[name]["all"]
            cells.append(f"{1000 * seconds:,.0f} ({100 * seconds / whole:.0f}%)" if seconds else "")
        table.add_row(part, *cells)
    return table


def _part_seconds(run: dict[str, Any], clock: str) -> dict[str, float]:
    """Seconds a post by part."""
    whole = (run["cpu"] if clock == "processor time" else sum(run["steps"])) / run["posts"]
    parts = {part: run["seconds"].get(part, 0.0) / run["posts"] for part in PARTS}
    return parts | {"rest": whole - sum(parts.values()), "all": whole}


def _forwards(found: dict[str, Any]) -> Table:
    clock = "time" if found["machine"]["gpu"] else "processor time"
    table = Table(
        title=f"the recipe's four forwards, in turns with bare ones of transformers on the same rows, {clock}, s"
    )
    for column in ("", "rows", "recipe", "bare, adapter by peft", "recipe over bare", "bare, no adapter"):
        table.add_column(column, justify="left" if not column else "right")
    for name, seconds in found["forwards"]["seconds"].items():
        rows = found["forwards"]["shapes"][name.split(", ")[1]]
        shown = {kind: spread(values, "{:.3f}") for kind, values in seconds.items()}
        apart = median(seconds["recipe"]) / median(seconds["adapter"])
        table.add_row(
            name, " x ".join(map(str, rows)), shown["recipe"], shown["adapter"], f"{apart:.2f}", shown["plain"]
        )
    return table


def _lengths(found: dict[str, Any]) -> Table:
    table = Table(title="tokens, mean and longest, of all posts with a rationale")
    for column in ("", "here", "published workload", "the posts trained on"):
        table.add_column(column, justify="left" if not column else "right")
    sample = found["workload"]["sample"]
    for part, figures in FIGURES.items():
        mean, longest = found["workload"]["lengths"][part]
        told = " / ".join(str(figure) for figure in figures if figure is not None)
        of_sample = sample.get(part.removesuffix(" row")) if part.endswith(" row") else None
        table.add_row(part, f"{mean:.0f} / {longest}", told, "" if of_sample is None else f"{of_sample:.0f}")
    wastes = []
    for task, width in found["workload"]["widths"].items():
        mean, _ = found["workload"]["lengths"][f"{task} row"]
        wastes.append(f"{task} {100 * (1 - mean / width):.0f}% (published {WASTED[task]}%)")
    table.caption = "padding to the longest wastes: " + ", ".join(wastes)
    return table


def _goals(found: dict[str, Any], preset: Preset) -> Table:
    table = Table("", "measured", "goal", "", title="goals")
    for name, told, goal, met in goals(found, preset):
        table.add_row(name, told, goal, "[green]met[/green]" if met else "[red]missed[/red]")
    return table


def spread(values: Sequence[float], form: str) -> str:
    """A median with its range; a single value alone."""
    if len(values) == 1:
        return form.format(values[0])
    return f"{form.format(median(values))} ({form.format(min(values))}-{form.format(max(values))})"
