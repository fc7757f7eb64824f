"""`mulcot infer`: one post from the command line, answered with label, probabilities and rationale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from mulcot.shown_text import printable_json
from mulcot.terminal_tables import words
from mulcot.types import RATIONALE_KEYS, Answer, InputError, Post


def infer(
    model: str,
    image: Path,
    text: str,
    aspect: str | None = None,
    max_new_tokens: int = 512,
    device: str = "auto",
    as_json: bool = False,
) -> Answer:
    """Answers one post with label, probabilities and rationale.

    Args:
        model: a finished stage, a model folder, or a name on the hub.
        image: the post's picture.
        text: the post's text.
        aspect: the target of the sentiment; left out, the whole post is judged.
        max_new_tokens: where the rationale is cut off at the latest.
        device: `cpu`, `cuda`, ..., or `auto`.
        as_json: prints the answer as JSON.
    """
    if not image.is_file():
        raise InputError(f"--image {image}: there is no such file; give the post's picture")
    if not text.strip():
        raise InputError("--text is empty; give what the post says")
    answer = _answer(model, Post("post", text, image, aspect), max_new_tokens, device)
    _print(answer, as_json)
    return answer


def main_infer(argv: Sequence[str]) -> int:
    """`mulcot infer`."""
    parser = ArgumentParser(prog="mulcot infer", description="Answers one post with label, probabilities, rationale.")
    parser.add_function_arguments(infer)
    infer(**parser.parse_args(list(argv)).as_dict())
    return 0


def _answer(model: str, post: Post, max_new_tokens: int, device: str) -> Answer:
    # Imported here: loading torch and transformers takes seconds, which a mistyped path should not cost.
    import torch

    from data_modules.collate import QuestionSet
    from data_modules.encoded import EncodedPosts
    from mulcot.models import find_model, load_model, load_processor, merged_if_exact, read_settings, row_form
    from mulcot.rows import RowCollator, RowEncoder
    from mulcot.types import TASKS
    from stages.answering import answer_questions

    chosen = _usable(device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu"))
    trained = read_settings(find_model(model))
    encoder = RowEncoder(load_processor(model), trained.labels, trained.image_size, pad_end=trained.pad_end)
    encoded = EncodedPosts.encode([post], encoder, TASKS)
    network: Any = merged_if_exact(load_model(model, processor=encoder.processor)).eval().to(chosen)
    collator = RowCollator(encoder, form=row_form(network))
    batch = QuestionSet([[0]], encoded, collator, TASKS, {})[0].to(chosen)
    return answer_questions(network, batch, encoder, max_new_tokens)[0]


def _usable(device: str) -> str:
    """The device, after a first number was computed on it: a known name alone says little."""
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # by device and build of torch
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise InputError(f"--device {device!r} cannot be used here: give {', '.join(here)} or auto") from error
    return device


def _print(answer: Answer, as_json: bool) -> None:
    out = Console()
    if as_json:
        print(printable_json(asdict(answer)))
        return
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("label", words(answer.label))
    shares = sorted(answer.probabilities.items(), key=lambda item: -item[1])
    table.add_row("probabilities", words("  ".join(f"{label} {share:.3f}" for label, share in shares)))
    if answer.rationale is None:
        table.add_row("rationale", words(f"refused: {answer.refusal}"))
        table.add_row("reply", words(answer.reply))
    else:
        for key, name in RATIONALE_KEYS.items():
            table.add_row(key, words(getattr(answer.rationale, name)))
    out.print(table)
