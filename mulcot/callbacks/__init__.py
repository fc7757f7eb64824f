"""The distillation-loss callback library, and the callbacks that every run has."""

from mulcot.callbacks.best_epoch import BestEpoch
from mulcot.callbacks.distillation import CrossEntropy, DistillationLoss, ForwardKL
from mulcot.callbacks.progress import ProgressFile
from mulcot.callbacks.random_states import RandomStates

__all__ = ["BestEpoch", "CrossEntropy", "DistillationLoss", "ForwardKL", "ProgressFile", "RandomStates"]
