"""Signals stay ours while a trainer runs."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

from mulcot.interruptions import Interruptions


class OwnSignals(Callback):
    """Takes the signals back: Lightning's handlers end a fit between micro-batches, unsaved, and with exit code 0.

    Args:
        interruptions: what tells of signals.
    """

    def __init__(self, interruptions: Interruptions) -> None:
        self.interruptions = interruptions

    def on_sanity_check_start(self, *_: Any) -> None:
        """Before the validation that a fit may begin with."""
        self.interruptions.install()

    def on_train_start(self, *_: Any) -> None:
        """Before the first step."""
        self.interruptions.install()

    def on_validation_start(self, *_: Any) -> None:
        """Before an evaluation."""
        self.interruptions.install()

    def on_test_start(self, *_: Any) -> None:
        """Before a test."""
        self.interruptions.install()

    def on_predict_start(self, *_: Any) -> None:
        """Before a prediction."""
        self.interruptions.install()
