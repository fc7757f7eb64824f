"""AdamW in one kernel, and clipping before it, whatever the precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stages import AssistantStage
from stages.optimizer import Optimizer

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


class Line(AssistantStage):
    """A stage of one linear layer that keeps the gradients as they come and as the optimizer gets them."""

    def configure_model(self) -> None:
        if self.model is None:
            torch.manual_seed(0)
            self.model = nn.Linear(4, 3)
            self.came: list[Tensor] = []
            self.taken: list[Tensor] = []

    def on_fit_start(self) -> None:
        pass

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        pass

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert self.model is not None
        return self.model(batch).square().sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.came.append(torch.cat([value.grad.flatten() for value in self.parameters()]).clone())

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        if any(value.grad is not None for value in self.parameters()):
            self.taken.append(torch.cat([value.grad.flatten() for value in self.parameters()]).clone())


def fit(folder: Path, **options: Any) -> Line:
    stage = Line("nothing", folder, optimizer=Optimizer(learning_rate=0.01, schedule="cosine"))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=3,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(stage, DataLoader(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), batch_size=2))
    return stage


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("algorithm", "limit"), [("norm", 0.5), ("value", 0.1)])
def test_a_fused_step_follows_on_clipped_gradients(
    tmp_path: Path, precision: Any, algorithm: str, limit: float
) -> None:
    stage = fit(tmp_path, precision=precision, gradient_clip_val=limit, gradient_clip_algorithm=algorithm)
    groups = stage.trainer.optimizers[0].param_groups
    assert [group["fused"] for group in groups] == [True, True]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    # The last step's gradients are not looked at again: nothing sets them back.
    assert len(stage.came) == 3
    assert len(stage.taken) >= 2
    for came, taken in zip(stage.came, stage.taken, strict=False):
        if algorithm == "norm":
            assert float(came.norm()) > limit
            torch.testing.assert_close(taken, came * (limit / came.norm()), rtol=1e-5, atol=1e-7)
        else:
            assert float(came.abs().max()) > limit
            torch.testing.assert_close(taken, came.clamp(-limit, limit))


def test_without_a_limit_nothing_is_clipped(tmp_path: Path) -> None:
    stage = fit(tmp_path, precision="bf16-mixed")
    for came, taken in zip(stage.came, stage.taken, strict=False):
        assert torch.equal(came, taken)


def test_the_weights_are_those_of_an_unfused_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"precision": "bf16-mixed", "gradient_clip_val": 0.5}
    fused = fit(tmp_path, **options)
    made = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, **settings: made(*args, **(settings | {"fused": False})))
    plain = fit(tmp_path, **options)
    assert not plain.trainer.optimizers[0].param_groups[0]["fused"]
    for mine, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
