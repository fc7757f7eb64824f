"""The resolved configuration that a stage keeps of itself."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from mulcot.files import write_atomic


class StageConfigFile(SaveConfigCallback):
    """Keeps the resolved configuration as `config-<verb>.yaml`: `predict` never overwrites the file of `fit`."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file into the stage's directory."""
        text = self.parser.dump(self.config, skip_none=False, skip_validation=True)  # it was parsed
        write_atomic(Path(self.config.stage_dir) / f"config-{TrainerFn(stage).value}.yaml", text)
