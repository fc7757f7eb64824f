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

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from transformers.utils import logging as transformers_logging

from mulcot.config_errors import with_place
from mulcot.interruptions import Interrupted, Interruptions, requeue
from mulcot.lightning_cli import MulcotCLI
from mulcot.memory import is_out_of_memory, memory_advice
from mulcot.shown_text import first_line
from mulcot.types import InputError


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
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(memory_advice(error)) from error
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
