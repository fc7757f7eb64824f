"""The verbs that make the embedded default: generated posts, and the pair of tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

from jsonargparse import ArgumentParser
from pydantic import Field

from data_modules.readers.row_log import Row, RowError
from mulcot.demo_posts import write_demo_posts
from mulcot.files import write_atomic
from mulcot.manifests import input_digests, make_manifest, output_digests, write_manifest
from mulcot.prompts import get_prompt
from mulcot.ranges import Count, Seed, check_number
from mulcot.types import DEFAULT_LABELS, TASKS, MissingInputError, Post

_POST_KEYS: Final = ("id", "text", "aspect", "label", "image")
_Most = Annotated[Count, Field(le=1_000_000)]
"""Far more than is of use to models so small."""


def demo_posts(out: Path, train: int = 1000, val: int = 150, test: int = 300, seed: int = 0) -> None:
    """Writes the embedded data set: pictures, posts of three splits, and what the oracle teacher knows of them.

    Args:
        out: the folder that appears; its `posts` holds the data set.
        train: training posts.
        val: validation posts.
        test: test posts.
        seed: decides all of them.
    """
    write_demo_posts(out / "posts", train, val, test, seed)


def tiny_models(
    out: Path,
    corpus: list[Path],
    vocab_size: int = 1536,
    max_pixels: int = 56 * 56,
    seed: int = 0,
) -> None:
    """Builds the embedded pair of tiny Qwen2.5-VL models, `out/assistant` and `out/student`, with random weights.

    Args:
        out: the folder that appears.
        corpus: what the tokenizer is trained on: JSON Lines, or folders of converted data, of which the training
            split is taken.
        vocab_size: entries of the tokenizer at most.
        max_pixels: pictures are shrunk to at most so many pixels; 784 of them make a token.
        seed: decides the weights.

    Raises:
        InputError: a number is out of range, or the corpus cannot be read; the message names file and line.
    """
    for name, kind, value in (
        ("vocab_size", _Most, vocab_size),
        ("max_pixels", _Most, max_pixels),
        ("seed", Seed, seed),
    ):
        check_number(name, kind, value)
    from mulcot.models.tiny import build_pair  # imports torch and transformers, which the other verb does not need

    parameters = build_pair(out, _texts(corpus), vocab_size, max_pixels, seed)
    write_atomic(out / "parameters.json", json.dumps(parameters, indent=2) + "\n")


def main_demo_posts(argv: Sequence[str]) -> int:
    """`mulcot demo-posts`."""
    parser = ArgumentParser(prog="mulcot demo-posts", description=(demo_posts.__doc__ or "").splitlines()[0])
    parser.add_function_arguments(demo_posts)
    return _make("demo-posts", demo_posts, parser, argv)


def main_tiny_models(argv: Sequence[str]) -> int:
    """`mulcot tiny-models`."""
    parser = ArgumentParser(prog="mulcot tiny-models", description=(tiny_models.__doc__ or "").splitlines()[0])
    parser.add_function_arguments(tiny_models)
    return _make("tiny-models", tiny_models, parser, argv)


def _make(verb: str, make: Callable[..., None], parser: ArgumentParser, argv: Sequence[str]) -> int:
    """Runs one of the two and leaves a manifest, as every stage does."""
    started = datetime.now(UTC)
    given = parser.parse_args(list(argv))
    corpus = list(given.get("corpus") or [])
    for path in corpus:
        if not path.exists():
            raise MissingInputError(
                f"{path} is missing: `mulcot predict --config teacher.yaml` makes rationale files, `mulcot data` "
                "folders of posts"
            )
    inputs = input_digests(given.out, corpus)
    try:
        make(**given.as_dict())
    except OSError as error:
        from data_modules.conversion import no_folder  # with it comes pyarrow

        raise no_folder(given.out, error) from error
    made = [path for path in given.out.iterdir() if path.name not in ("log.txt", "command.key", "manifest.json")]
    outputs = output_digests(given.out, sorted(made))
    manifest = make_manifest([verb, *argv], inputs=inputs, outputs=outputs, seed=given.seed, started=started)
    write_manifest(given.out, manifest)
    return 0


def _texts(corpus: Sequence[Path]) -> Iterator[str]:
    """What the models will read: every text of the files, rationales as JSON, and the prompts around each of them."""
    from data_modules.readers import Converted  # what demo-posts does not need
    from data_modules.readers.base import read_lines
    from data_modules.readers.json_files import json_line

    post = Post(id="", text="", image=Path(), aspect="")
    prompts = [get_prompt("masc", task).render(post, DEFAULT_LABELS).text for task in TASKS]
    for path in corpus:
        if path.is_dir():
            for post in Converted(path).read("train"):
                yield from prompts
                yield from (part for part in (post.text, post.aspect) if part)
            continue
        for row, line in read_lines(path):
            yield from prompts
            yield from _parts(row, json_line(row, line))


def _parts(row: Row, values: Mapping[str, Any]) -> list[str]:
    """What is read of a line of JSON."""
    # Without the groups that a post belongs to, such as `conflict`: no model reads them.
    written = {key: value for key, value in values.items() if key in _POST_KEYS}
    parts = [json.dumps(values.get("rationale", written), ensure_ascii=False)]
    parts += [str(values[key]) for key in ("text", "aspect") if values.get(key)]
    try:
        "".join(parts).encode()
    except UnicodeEncodeError as error:
        raise RowError(row, None, "it holds half a surrogate pair", "take that character out") from error
    return parts
