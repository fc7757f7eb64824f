"""The distillation-loss callback library, and the callbacks that every run has."""

from mulcot.callbacks.best_epoch import BestEpoch
from mulcot.callbacks.distillation import CrossEntropy, DistillationLoss, SoftLoss
from mulcot.callbacks.feature_losses import FeatureLoss, HiddenCosine, HiddenMSE
from mulcot.callbacks.held_out import HeldOutLosses
from mulcot.callbacks.inspection import Inspection
from mulcot.callbacks.own_signals import OwnSignals
from mulcot.callbacks.progress import ProgressFile
from mulcot.callbacks.random_states import RandomStates
from mulcot.callbacks.sampled_rationales import Judged
from mulcot.callbacks.soft_losses import (
    ForwardKL,
    GeneralizedJSD,
    LogitMSE,
    ReverseKL,
    SkewedKL,
    SkewedReverseKL,
    TotalVariation,
    UniversalLogit,
)
from mulcot.callbacks.step_checkpoints import StepCheckpoints
from mulcot.callbacks.task_loss import TaskLoss

__all__ = [
    "BestEpoch",
    "CrossEntropy",
    "DistillationLoss",
    "FeatureLoss",
    "ForwardKL",
    "GeneralizedJSD",
    "HeldOutLosses",
    "HiddenCosine",
    "HiddenMSE",
    "Inspection",
    "Judged",
    "LogitMSE",
    "OwnSignals",
    "ProgressFile",
    "RandomStates",
    "ReverseKL",
    "SkewedKL",
    "SkewedReverseKL",
    "SoftLoss",
    "StepCheckpoints",
    "TaskLoss",
    "TotalVariation",
    "UniversalLogit",
]
