"""What inspection costs a fit of the demo's student: every other step is looked at, in one epoch.

    mulcot run --config demo.yaml && python -m benchmarks.inspection      # about a minute on two cores
    python -m benchmarks.inspection --run_dir DIR --stage_config student.yaml

Steps of one process are compared in turns, and by processor time instead of the clock: the machine may be busy.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from lightning import LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from mulcot.callbacks import Inspection
from mulcot.cli import main as mulcot

_SECONDS: dict[str, list[float]] = {"plain": [], "inspected": [], "validation": [], "shown": []}


class Alternating(Inspection):
    """Looks at every other step, and notes what every step and validation takes."""

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the step's number is odd."""
        return trainer.global_step % 2 == 1

    def on_train_batch_start(self, *_: Any) -> None:
        """The first step begins; later ones begin where the one before has ended, waiting for the batch included."""
        if not _SECONDS["plain"]:
            self._since = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """A step has ended."""
        now = time.process_time()
        _SECONDS["plain" if trainer.global_step % 2 else "inspected"].append(now - self._since)
        self._since = now

    def on_validation_start(self, *_: Any) -> None:
        """A validation begins."""
        self._since = time.process_time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation has ended but for what inspection shows of it."""
        before = time.process_time()
        super().on_validation_end(trainer, pl_module)
        after = time.process_time()
        _SECONDS["validation"].append(before - self._since)
        _SECONDS["shown"].append(after - before)
        self._since = after


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, default=Path("runs/demo"), help="a run with finished soft labels")
    parser.add_argument("--stage_config", default="student.yaml", help="which stage is fitted")
    parser.add_argument("--every", type=int, default=5, help="the demo's trainer.log_every_n_steps")
    given, extra = parser.parse_known_args()
    import mulcot.lightning_cli as command_line

    command_line.Inspection = Alternating  # type: ignore[misc]
    with TemporaryDirectory() as folder:
        command = ["fit", "--config", given.stage_config, "--run_dir", str(given.run_dir), "--stage_dir", folder]
        command += ["--test_after_fit", "false", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"]
        command += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--fresh", *extra]
        if mulcot(command):
            raise SystemExit("the fit failed")
    plain, inspected = median(_SECONDS["plain"][1:]), median(_SECONDS["inspected"][1:])
    steps, epochs = len(_SECONDS["plain"]) + len(_SECONDS["inspected"]), len(_SECONDS["shown"])
    epoch = plain * steps / epochs + mean(_SECONDS["validation"])
    table = Table(title=f"{steps} steps, every other one inspected, processor time")
    for name in ("", "ms", "costs"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("a plain step", f"{1e3 * plain:.1f}", "")
    table.add_row("an inspected step", f"{1e3 * inspected:.1f}", f"{inspected / plain - 1:+.1%} of the step")
    every = (inspected - plain) / given.every
    table.add_row(
        f"a step, one of {given.every} inspected", f"{1e3 * (plain + every):.1f}", f"{every / plain:+.1%} of the step"
    )
    shown = mean(_SECONDS["shown"])
    table.add_row("rationales and confusion matrix", f"{1e3 * shown:.0f}", f"{shown / epoch:+.1%} of an epoch")
    Console().print(table)


if __name__ == "__main__":
    main()
