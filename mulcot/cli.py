"""The command line: `mulcot VERB ...`. Each verb is loaded when it is used, so that light ones start at once."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from rich.console import Console
from rich.table import Table

from mulcot.interruptions import Interrupted, Interruptions, is_first_process
from mulcot.shown_text import visible
from mulcot.types import InputError

VERBS: Final[dict[str, tuple[str, str]]] = {
    "run": ("mulcot.chain:main_run", "runs the whole chain: mulcot run --config demo.yaml"),
    "fit": ("mulcot.stage_process:run_stage", "trains one stage: mulcot fit --config student.yaml"),
    "validate": ("mulcot.stage_process:run_stage", "evaluates a trained stage on the validation split"),
    "test": ("mulcot.stage_process:run_stage", "evaluates a trained stage on the test split"),
    "predict": (
        "mulcot.stage_process:run_stage",
        "labels posts (teacher.yaml), samples rationales (augment.yaml), caches soft labels (soft_labels.yaml)",
    ),
    "data": ("mulcot.data_commands:main_data", "checks, converts and splits posts: mulcot data check --help"),
    "infer": ("mulcot.infer:main_infer", "answers one post: mulcot infer --model DIR --image F --text T"),
    "eval": ("mulcot.evaluation:main_eval", "scores files: mulcot eval --predictions FILE --references FILE"),
    "report": (
        "mulcot.report:main_report",
        "writes the tables and the page of a run: mulcot report --run_dir runs/demo",
    ),
    "export": ("mulcot.export:main_export", "merges an adapter into its base: mulcot export --model DIR --out DIR"),
    "demo-posts": ("mulcot.embedded:main_demo_posts", "writes the embedded data set to a folder"),
    "tiny-models": ("mulcot.embedded:main_tiny_models", "builds the embedded pair of tiny models in a folder"),
}
RESUMED: Final = ("run", "fit", "validate", "test", "predict")
"""Verbs that signals end in good order."""
INTERRUPTED: Final = 130


def main(args: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        args: the command line without the program's name; None takes it from the process.

    Returns:
        The exit code: 0 when all went well, 1 for a mistake in what was given, 2 for an unknown verb or a missing
        input, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 0 after SIGUSR1.
    """
    argv = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in argv
    argv = [arg for arg in argv if arg != "--debug"]
    if not argv or argv[0] in ("-h", "--help"):
        _print_help()
        return 0
    verb = argv[0]
    try:
        if verb not in VERBS:
            raise UnknownVerbError(f"there is no verb {verb!r}; there are {', '.join(VERBS)}")
        module, function = VERBS[verb][0].split(":")
        if verb not in RESUMED:
            return int(getattr(import_module(module), function)(argv[1:]))
        with Interruptions() as interruptions:  # before the verb is imported: with torch that takes seconds
            verb_function = getattr(import_module(module), function)
            return int(verb_function(argv[1:]) if verb == "run" else verb_function(argv, interruptions))
    except InputError as error:
        if debug:
            traceback.print_exc()
        print(f"mulcot: error: {visible(_one_line(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        if is_first_process():
            print(f"mulcot: {interrupt if isinstance(interrupt, Interrupted) else 'interrupted'}", file=sys.stderr)
        return interrupt.code if isinstance(interrupt, Interrupted) else INTERRUPTED


class UnknownVerbError(InputError):
    """The first word is no verb."""

    exit_code = 2


def console() -> None:
    """The console script."""
    sys.exit(main())


def _one_line(error: InputError) -> str:
    """The message; a worker process of a DataLoader wraps it in its own traceback, of which the last line counts."""
    text = str(error).strip()
    return text.splitlines()[-1].split("Error: ", 1)[-1] if "Original Traceback" in text else text


def _print_help() -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for verb, (_, summary) in VERBS.items():
        table.add_row(f"[bold]{verb}[/bold]", summary)
    out = Console()
    out.print("usage: mulcot VERB \\[options]    (mulcot VERB --help says more; --debug shows tracebacks)\n")
    out.print(table)
