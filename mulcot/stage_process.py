"""A process that runs one stage: what it prints, which signals it takes, and how its errors leave."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from transformers.utils import logging as transformers_logging

from mulcot.checkpoints import NO_ROOM
from mulcot.config_errors import first_line, with_place
from mulcot.interruptions import Interrupted, Interruptions, requeue
from mulcot.lightning_cli import MulcotCLI
from mulcot.types import InputError

_ALLOCATORS: Final = ("can't allocate memory", "out of memory", "failed to allocate memory", "Cannot allocate memory")
"""How torch's allocators of host memory, and libraries below it, say that there is none left."""


def run_stage(argv: Sequence[str]) -> int:
    """Runs one Lightning verb; the exit code says whether it came to its end."""
    # Tips for other products, a bar for each file that is read and advice that does not apply here would bury what a
    # reader looks for: resuming into a folder with checkpoints is meant, the data module knows what an epoch has seen,
    # and decoding in the main process is meant, too.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log")  # what is logged is of all ranks
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec")  # lightning 2.6.6 on the newest torch
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # peft on the newest transformers
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # no one writes into it
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    # A class of the user's own lies beside the configuration, and never hides an installed package.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    with Interruptions() as interruptions, ExitStack() as resources:
        try:
            MulcotCLI(argv, interruptions, resources)
        except MisconfigurationException as error:
            raise with_place(InputError(first_line(error)), argv) from error
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise InputError(
                f"{error.filename or 'a file of this stage'}: no room ({error.strerror}); what was finished is kept: "
                "make room and give the same command again"
            ) from error
        except (RuntimeError, MemoryError) as error:
            told = memory_advice(error)
            if told is None:
                raise
            raise InputError(told) from error
        except (SystemExit, KeyboardInterrupt) as left:
            cause = left.__context__ if isinstance(left, SystemExit) else left
            if not isinstance(cause, KeyboardInterrupt):
                raise
            if isinstance(cause, Interrupted) and cause.number == signal.SIGUSR1 and interruptions.requeues:
                _requeue()
            raise cause from None  # Lightning leaves with 1 after Ctrl-C
    return 0


def _requeue() -> None:
    """Has SLURM start the job again, unless `mulcot run` does so for all its steps."""
    if getattr(rank_zero_only, "rank", 0) == 0 and "MULCOT_CHAIN" not in os.environ:
        requeue()


def memory_advice(error: BaseException) -> str | None:
    """What to lower where memory ran out, in one line; None for another error.

    Args:
        error: what ended the stage.
    """
    is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not is_memory and not any(text in str(error) for text in _ALLOCATORS):
        return None
    said = next((line.strip() for line in str(error).splitlines() if any(text in line for text in _ALLOCATORS)), "")
    return (
        f"out of memory{f' ({said[:200]})' if said else ''}. In training deal a step into more micro-batches "
        "(trainer.accumulate_grad_batches; data.init_args.max_tokens says which micro-batch is too large), set "
        "model.init_args.activation_checkpointing=true, train an adapter (model.init_args.lora) on quantised weights "
        "(model.init_args.quantise=4bit), or take smaller pictures (model.init_args.image_size); in evaluation lower "
        "data.init_args.eval_max_tokens or eval_batch_size. A fit goes on from its last checkpoint"
    )
