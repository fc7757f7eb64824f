"""What saving and the checks before a step cost a fit of the demo's student.

    mulcot run --config demo.yaml && python -m benchmarks.checkpoints      # a minute or two on two cores
    python -m benchmarks.checkpoints --run_dir DIR --stage_config student.yaml --json FILE

Every other step goes without the check of the gradients, so that both are compared in turns. By processor time instead
of the clock, for the machine may be busy; a save is told in both, since it waits for the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from lightning import LightningModule, Trainer
from rich.console import Console
from rich.table import Table

import mulcot.lightning_cli as command_line
import stages.base
from mulcot.callbacks import StepCheckpoints
from mulcot.cli import main as mulcot

_SECONDS: dict[str, list[float]] = {"plain": [], "checked": [], "asked": [], "save": [], "save_waited": []}
_BYTES: list[int] = []


class Timed(StepCheckpoints):
    """Notes what every step and every save takes, and has every other step go unchecked."""

    _since: float | None = None
    _saving = 0.0
    epochs = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A step begins, and the one before has ended, waiting for the batch included."""
        now = time.process_time()
        if self._since is not None:
            _SECONDS["checked" if trainer.global_step % 2 else "plain"].append(now - self._since)
        self._saving = 0.0
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        _SECONDS["asked"].append(time.process_time() - now - self._saving)
        is_checked = trainer.global_step % 2 == 0
        stages.base.has_loss_scale = lambda _: not is_checked  # type: ignore[attr-defined]
        self._since = time.process_time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No step lasts over a validation."""
        super().on_validation_end(trainer, pl_module)
        self._since = None
        Timed.epochs += 1

    def _save(self, trainer: Trainer, within: Any) -> None:
        processor, clock = time.process_time(), time.perf_counter()
        super()._save(trainer, within)
        self._saving = time.process_time() - processor
        _SECONDS["save"].append(self._saving)
        _SECONDS["save_waited"].append(time.perf_counter() - clock)
        _BYTES.append(self.path.stat().st_size)


def measure(run_dir: Path, config: str, extra: Sequence[str]) -> dict[str, float]:
    """Fits for an epoch, with a save at every tenth step.

    Args:
        run_dir: a run with finished soft labels.
        config: which stage is fitted.
        extra: further arguments of the fit.
    """
    command_line.StepCheckpoints = Timed  # type: ignore[misc]
    with TemporaryDirectory() as folder:
        command = ["fit", "--config", config, "--run_dir", str(run_dir), "--stage_dir", folder]
        command += ["--test_after_fit", "false", "--trainer.max_epochs", "1", "--checkpoints.every_steps", "10"]
        command += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", *extra]
        if mulcot(command):
            raise SystemExit("the fit failed")
    plain, checked = median(_SECONDS["plain"][1:]), median(_SECONDS["checked"][1:])
    asked, save, waited = (median(_SECONDS[name]) for name in ("asked", "save", "save_waited"))
    steps = len(_SECONDS["asked"])
    return {
        "steps": steps,
        "plain_ms": 1e3 * plain,
        "checked_ms": 1e3 * checked,
        "asked_ms": 1e3 * asked,
        "guards_share": (checked + asked - plain) / plain,
        "save_processor_ms": 1e3 * save,
        "save_ms": 1e3 * waited,
        "save_mb": median(_BYTES) / 1e6,
        "saves_share_of_epoch": save * Timed.epochs / (plain * steps),
        "saves_share_of_ten_minutes": waited / 600,
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, default=Path("runs/demo"), help="a run with finished soft labels")
    parser.add_argument("--stage_config", default="student.yaml", help="which stage is fitted")
    parser.add_argument("--json", type=Path, help="where every number goes")
    given, extra = parser.parse_known_args()
    found = measure(given.run_dir, given.stage_config, extra)
    table = Table(title=f"{found['steps']:.0f} steps, every other one unchecked, processor time")
    for name in ("", "ms", "costs"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("a step without the check", f"{found['plain_ms']:.1f}", "")
    table.add_row("a step with it", f"{found['checked_ms']:.1f}", f"{found['guards_share']:+.1%} of a step")
    table.add_row("asking whether to save", f"{found['asked_ms']:.3f}", "(included above)")
    share = f"{found['saves_share_of_epoch']:.2%} of an epoch each"
    table.add_row(f"a save of {found['save_mb']:.1f} MB", f"{found['save_processor_ms']:.1f}", share)
    waited = f"{found['saves_share_of_ten_minutes']:.3%} of ten minutes"
    table.add_row("the same by the clock", f"{found['save_ms']:.1f}", waited)
    Console().print(table)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
