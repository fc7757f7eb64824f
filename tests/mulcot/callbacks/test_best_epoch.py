from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from mulcot.callbacks import BestEpoch


class Scripted(LightningModule):
    """Validates to a given score in each epoch."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = scores
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("score", self.scores[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    ("scores", "best"),
    [([0.5, 0.5, 0.5], 2), ([0.5, 0.7, 0.6], 1), ([0.5, 0.7, 0.7, 0.6], 2), ([0.7, 0.6, 0.5], 0)],
)
def test_the_latest_of_the_best_epochs_is_kept(tmp_path: Path, scores: list[float], best: int) -> None:
    keeper = BestEpoch(dirpath=tmp_path, filename="best", monitor="score", mode="max", enable_version_counter=False)
    trainer = Trainer(
        max_epochs=len(scores),
        callbacks=[keeper],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    data = DataLoader(torch.ones(2, 1))
    trainer.fit(Scripted(scores), data, data)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == best
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
