"""The verbs that make the embedded default: generated posts, and the pair of tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from jsonargparse import ArgumentParser

from mulcot.demo_posts import write_demo_posts
from mulcot.files import write_atomic
from mulcot.manifests import input_digests, make_manifest, output_digests, write_manifest
from mulcot.prompts import get_prompt
from mulcot.types import DEFAULT_LABELS, TASKS, InputError, MissingInputError, Post

_POST_KEYS: Final = ("id", "text", "aspect", "label", "image")


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
    """
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
    make(**given.as_dict())
    made = [path for path in given.out.iterdir() if path.name not in ("log.txt", "command.key", "manifest.json")]
    outputs = output_digests(given.out, sorted(made))
    manifest = make_manifest([verb, *argv], inputs=inputs, outputs=outputs, seed=given.seed, started=started)
    write_manifest(given.out, manifest)
    return 0


def _texts(corpus: Sequence[Path]) -> Iterator[str]:
    """What the models will read: every text of the files, rationales as JSON, and the prompts around each of them."""
    post = Post(id="", text="", image=Path(), aspect="")
    prompts = [get_prompt("masc", task).render(post, DEFAULT_LABELS).text for task in TASKS]
    for path in corpus:
        if path.is_dir():
            from data_modules.readers import Converted  # what demo-posts and JSON Lines do not need

            for post in Converted(path).read("train"):
                yield from prompts
                yield from (part for part in (post.text, post.aspect) if part)
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                values = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path} line {number}: not JSON ({error}); each line must be one object") from error
            yield from prompts
            # Without the groups that a post belongs to, such as `conflict`: no model reads them.
            written = {key: value for key, value in values.items() if key in _POST_KEYS}
            yield json.dumps(values.get("rationale", written), ensure_ascii=False)
            yield from (str(values[key]) for key in ("text", "aspect") if values.get(key))
