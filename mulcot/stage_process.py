"""A process that runs one stage: what it prints, which signals it takes, and how its errors leave."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers.utils import logging as transformers_logging

from mulcot.config_errors import with_place
from mulcot.interruptions import Interruptions
from mulcot.launching import has_lost_other
from mulcot.lightning_cli import MulcotCLI
from mulcot.memory import is_out_of_memory, memory_advice
from mulcot.shown_text import first_line
from mulcot.types import InputError


def run_stage(argv: Sequence[str], interruptions: Interruptions) -> int:
    """Runs one Lightning verb; the exit code says whether it came to its end.

    Args:
        argv: the verb and its arguments.
        interruptions: tells of signals.
    """
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
    with ExitStack() as resources:
        try:
            MulcotCLI(argv, interruptions, resources)
        except MisconfigurationException as error:
            raise with_place(InputError(first_line(error)), argv) from error
        except (RuntimeError, MemoryError) as error:
            advice = _advice(error, interruptions.again)
            if advice is None:
                raise
            raise InputError(advice) from error
        except (SystemExit, KeyboardInterrupt) as left:
            cause = left.__context__ if isinstance(left, SystemExit) else left
            if not isinstance(cause, KeyboardInterrupt):
                raise
            raise cause from None  # Lightning leaves with 1 after Ctrl-C
    return 0


def _advice(error: RuntimeError | MemoryError, again: str) -> str | None:
    """What to do about an error that the machine made, not the stage; None for all others."""
    if is_out_of_memory(error):
        return memory_advice(error)
    if has_lost_other(error):
        return (
            "another process of this stage ended; its own message, if it left one, stands above. A fit's last "
            f"checkpoint is kept: {again} goes on from there ({first_line(error)[:160]})"
        )
    return None
