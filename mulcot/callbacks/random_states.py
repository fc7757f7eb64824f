"""The states of the random generators in every checkpoint: a resumed fit draws what the other would have drawn."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

State = dict[str, Any]


class RandomStates(Callback):
    """Saves the generators of Python, NumPy and torch, on every device and every rank, and puts them back on a resume.

    Dropout draws from them. Without their states a resumed fit would go on well, but not as the undisturbed one.
    """

    def __init__(self) -> None:
        self._saved: list[State] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks; Lightning asks for them on every rank."""
        mine = _states()
        ranks = [mine]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, mine)
            ranks = gathered
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until training starts: what is set up before then draws numbers too."""
        self._saved = state_dict["ranks"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the states back, where there are as many ranks as there were."""
        saved, self._saved = self._saved, None
        if saved is not None and len(saved) == trainer.world_size:
            _restore(saved[trainer.global_rank])


def _states() -> State:
    version, numbers, gauss = random.getstate()
    words = np.random.get_state(legacy=False)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": {
            "key": words["state"]["key"].tolist(),
            "pos": int(words["state"]["pos"]),
            "has_gauss": int(words["has_gauss"]),
            "gauss": float(words["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore(state: State) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    words = state["numpy"]
    key = np.array(words["key"], dtype=np.uint32)
    np.random.set_state(("MT19937", key, words["pos"], words["has_gauss"], words["gauss"]))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
