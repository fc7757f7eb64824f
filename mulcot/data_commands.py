"""`mulcot data check|convert|split|rationales`: any source of posts, looked at and brought into the common format."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jsonargparse import ArgumentError, ArgumentParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from data_modules.readers import GroupedSplit, Reader
from data_modules.readers.converted import BUILDING, DESCRIPTION
from data_modules.readers.row_log import OnBadRow, RowLog, one_line, summarise
from mulcot.config_errors import check_unicode, explain_config_error
from mulcot.config_files import find_config, read_yaml
from mulcot.files import write_atomic
from mulcot.manifests import CHAIN_FILES, MANIFEST_NAME, input_digests, make_manifest, output_digests, write_manifest
from mulcot.rationale_commands import main_rationales
from mulcot.shown_text import printable_json
from mulcot.terminal_tables import say
from mulcot.types import DEFAULT_LABELS, InputError, MissingInputError

if TYPE_CHECKING:
    from data_modules.conversion import Plan
    from data_modules.readers.converted import Description

COMMANDS: Final = {
    "check": "reads everything and says what is in it and what is wrong with it",
    "convert": "writes the common format: Parquet, and Arrow files that a stage maps into memory",
    "split": "as convert, and deals the posts to train, val and test",
    "rationales": "says what a label store holds; exports, imports and merges",
}
BAD_ROWS: Final = "bad_rows.jsonl"
"""The wrong rows that a conversion left out, beside the data set."""
METRICS_NAME: Final = "metrics.json"
MADE: Final = (DESCRIPTION, METRICS_NAME, BAD_ROWS)
"""What a conversion's manifest lists: the description names the digests of all data files."""


@dataclass
class Target:
    """Where and how the common format is written."""

    out: Path
    """The folder to write."""
    image_root: Path | None = None
    """The folder that picture paths are written relative to; the source's own when left out."""
    embed_images: bool = False
    """Puts the pictures into the table instead of naming their files."""
    model: str | None = None
    """Also stores the tokens of all posts for this model: a folder, a finished stage, or a name on the hub."""
    labels: list[str] | None = None
    """The stages' label set in their order, for these tokens; the source's when left out."""
    image_size: tuple[int, int] | None = None
    """As the stage's image_size, when the tokens are to be used by a stage that squeezes pictures."""
    workers: int = 0
    """Processes that decode and tokenise; 0 takes one for each core, 8 at most."""
    on_bad_row: OnBadRow = "error"
    """Stops at the first wrong row, or leaves wrong rows out and lists them in OUT/bad_rows.jsonl."""
    fresh: bool = False
    """Replaces the data set that OUT holds, once the new one is whole."""


def main_data(argv: Sequence[str]) -> int:
    """`mulcot data`."""
    if not argv or argv[0] not in COMMANDS:
        asked = bool(argv) and argv[0] in ("-h", "--help")
        lines = [f"  mulcot data {name:10} {summary}" for name, summary in COMMANDS.items()]
        print("usage:\n" + "\n".join(lines) + "\n(each takes --help)", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else MissingInputError.exit_code
    verbs = {"check": main_check, "convert": main_convert, "split": main_split, "rationales": main_rationales}
    return verbs[argv[0]](argv[1:])


def main_check(argv: Sequence[str]) -> int:
    """`mulcot data check`: exit code 1 when something would be dropped."""
    from data_modules.check_display import print_report
    from data_modules.checking import check

    parser = _parser("check", "Reads a source of posts and says what is in it; exit code 1 when rows would be dropped.")
    parser.add_argument("--rationales", type=list[Path], default=[], help="Rationale files of any of the splits.")
    parser.add_argument("--near_copies", type=float | None, default=0.8, help="Word overlap of near-copies; null: off.")
    parser.add_argument("--decode", type=bool, default=True, help="Decodes every picture; false reads headers alone.")
    parser.add_argument("--other_prompts", action="store_true", help="Takes rationales of other prompts than today's.")
    parser.add_argument("--rows", type=int, default=20, help="Wrong rows that are printed at most.")
    parser.add_argument("--json", action="store_true", help="Prints everything as JSON.")
    given, reader = _parse(parser, argv)
    with Console(stderr=True).status("reading") as status:
        found = check(
            reader,
            rationales=given.rationales,
            labels=reader.labels,
            near_copies=given.near_copies,
            decode=given.decode,
            other_prompts=given.other_prompts,
            progress=lambda split, posts: status.update(f"reading {split}: {posts:,} posts"),
        )
    if given.json:
        print(printable_json(found.to_dict()))
    else:
        print_report(found, Console(), given.rows)
    return 1 if found.problems else 0


def main_convert(argv: Sequence[str]) -> int:
    """`mulcot data convert`."""
    parser = _parser("convert", "Writes a source of posts in the common format; an interrupted conversion goes on.")
    _add_target(parser)
    given, reader = _parse(parser, argv)
    _convert(["data", "convert", *argv], reader, _target(given))
    return 0


def main_split(argv: Sequence[str]) -> int:
    """`mulcot data split`."""
    parser = _parser(
        "split", "Deals a source's posts to three splits that share no picture and no near-copy of a text."
    )
    _add_target(parser)
    parser.add_argument("--train", type=int | float, required=True, help="Posts, or their share (0.8).")
    parser.add_argument("--val", type=int | float, required=True, help="Likewise.")
    parser.add_argument("--test", type=int | float | None, default=None, help="Likewise; left out: all others.")
    parser.add_argument("--seed", type=int, default=0, help="Another seed gives another split of the same sizes.")
    parser.add_argument("--near_copies", type=float | None, default=0.8, help="Word overlap of near-copies; null: off.")
    given, reader = _parse(parser, argv)
    split = GroupedSplit(reader, given.train, given.val, given.test, given.seed, given.near_copies)
    _convert(["data", "split", *argv], split, _target(given))
    return 0


def _add_target(parser: ArgumentParser) -> None:
    parser.add_class_arguments(Target, skip={"embed_images", "fresh"})
    parser.add_argument("--embed_images", action="store_true", help="Puts the pictures into the table.")
    parser.add_argument("--fresh", action="store_true", help="Replaces what OUT holds, once all is done.")


def _target(given: Any) -> Target:
    return Target(**{name: given[name] for name in Target.__dataclass_fields__})


def _parser(command: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"mulcot data {command}", description=description, exit_on_error=False)
    parser.add_argument(
        "--config", "-c", type=str, action="append", default=[],
        help="A stage's or overlay's YAML file: its data.init_args.posts is the source. May be given several times.",
    )  # fmt: skip
    parser.add_argument("--data_root", type=str, help="What ${data_root} stands for in these files.")
    parser.add_argument("--run_dir", type=str, help="What ${run_dir} stands for in these files.")
    parser.add_subclass_arguments(
        Reader, "posts", required=False, help="The source: --posts Table --posts.files.train posts.csv ..."
    )
    return parser


def _parse(parser: ArgumentParser, argv: Sequence[str]) -> tuple[Any, Reader]:
    """The arguments and the source; what the YAML files say of the source comes before what flags say."""
    check_unicode(argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", "-c", action="append", default=[])
    first.add_argument("--data_root")
    first.add_argument("--run_dir")
    files, _ = first.parse_known_args(list(argv))
    given = list(argv)
    if files.config:
        given = ["--posts", json.dumps(_source(files.config, files.data_root, files.run_dir)), *given]
    try:
        parsed = parser.parse_args(given)
        if parsed.get("posts") is None:
            raise InputError(
                "no source of posts: name one (--posts Table --posts.files.train posts.csv --posts.image_root images), "
                "or a YAML file that does (--config data/twitter15.yaml --data_root FOLDER)"
            )
        return parsed, parser.instantiate_classes(parsed).posts
    except (ArgumentError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(explain_config_error(error, given, parser)) from error


def _source(names: Sequence[str], data_root: str | None, run_dir: str | None) -> Any:
    """The source that YAML files name, later ones over earlier ones."""
    # Through YAML's safe loader: OmegaConf's own takes keys that stand twice, and writes aliases of aliases out.
    given = [read_yaml(find_config(name)) for name in names]
    try:
        merged = OmegaConf.merge(*map(OmegaConf.create, given))
        roots = {"data_root": data_root, "run_dir": run_dir}
        merged = OmegaConf.merge(merged, {name: value for name, value in roots.items() if value is not None})
        chosen = OmegaConf.select(merged, "data.init_args.posts")
        if chosen is None:
            raise InputError(f"--config {names[-1]}: it names no source of posts (data.init_args.posts)")
        if not OmegaConf.is_dict(chosen):
            raise InputError(
                f"--config {names[-1]}: data.init_args.posts is {str(chosen)[:80]!r}; it must be a class: "
                "{class_path: ..., init_args: {...}}"
            )
        return OmegaConf.to_container(chosen, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        wanted = "; give --data_root or --run_dir" if "data_root" in str(error) or "run_dir" in str(error) else ""
        reason = (
            "it refers to itself, or is nested beyond reason"
            if isinstance(error, RecursionError)
            else str(error).splitlines()[0]
        )
        raise InputError(f"--config {names[-1]}: {reason}{wanted}") from error


def _convert(argv: Sequence[str], reader: Reader, target: Target) -> None:
    """Converts with a bar, says how it went, and leaves a manifest, as every step of a chain does."""
    from data_modules.conversion import convert, no_folder

    try:
        _check_room(target, reader)
    except OSError as error:
        raise no_folder(target.out, error) from error
    plan = _plan(reader, target)
    begun = datetime.now(UTC)
    inputs = input_digests(target.out, reader.files())
    # A split deals its posts out before the conversion looks at them, so it must know which pictures are broken.
    log = RowLog(target.on_bad_row, decode=target.on_bad_row == "skip" and isinstance(reader, GroupedSplit))
    workers = target.workers or min(8, os.cpu_count() or 1)
    out = Console()
    started = time.perf_counter()

    def declare(description: Description) -> None:
        _write_results(target, description, log)
        made = [path for path in (target.out / name for name in MADE) if path.is_file()]
        outputs = output_digests(target.out, made)
        write_manifest(target.out, make_manifest(argv, inputs=inputs, outputs=outputs, seed=None, started=begun))

    columns = (
        SpinnerColumn(),
        TextColumn("converting"),
        MofNCompleteColumn(),
        TextColumn("posts"),
        TimeElapsedColumn(),
    )
    try:
        with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
            bar = progress.add_task("posts", total=None)
            description = convert(
                reader,
                plan,
                log,
                workers,
                lambda posts: progress.advance(bar, posts),
                replaces=True,
                declare=declare,
            )
    except InputError:
        # The list of an older data set stays with it.
        _list_left_out(out, log, plan.building if (plan.out / DESCRIPTION).exists() else plan.out)
        raise
    _tell(out, target, description, log, time.perf_counter() - started)


def _write_results(target: Target, description: Description, log: RowLog) -> None:
    """The files beside the data set that say how it was made."""
    posts = {split: sum(shard.rows for shard in shards) for split, shards in description.splits.items()}
    metrics = {"kind": "data", "title": "data", "posts": posts, "left_out": log.left_out()}
    write_atomic(target.out / METRICS_NAME, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    if log.bad:
        log.write(target.out / BAD_ROWS)
    else:
        (target.out / BAD_ROWS).unlink(missing_ok=True)


def _plan(reader: Reader, target: Target) -> Plan:
    from data_modules.conversion import Plan

    root = target.image_root or reader.image_root
    if not target.embed_images and root is None:
        raise InputError(
            f"{type(reader).__name__}: its pictures have no folder of their own; give --image_root, or --embed_images"
        )
    own = reader.labels if set(reader.labels) != set(DEFAULT_LABELS) else DEFAULT_LABELS  # codes may order them anew
    labels = tuple(target.labels or own)
    if missing := set(reader.labels) - set(labels):
        raise InputError(f"--labels: {', '.join(sorted(missing))} of the source is missing; name every label")
    plan = Plan(Path(target.out), None if target.embed_images else root, target.model, labels, target.image_size)
    return plan if target.model is None else replace(plan, fingerprint=_fingerprint(plan))


def _fingerprint(plan: Plan) -> str:
    """The name of the tokens that the plan's model makes."""
    from data_modules.conversion import load_encoder
    from data_modules.encoded import encoder_key

    try:
        return encoder_key(load_encoder(plan))
    except InputError:
        raise
    except (OSError, ValueError) as error:  # what transformers raises, in several lines
        reason = str(error).strip().split("\n", 1)[0].rstrip(".")
        raise InputError(
            f"--model {plan.model}: it cannot be loaded ({reason}); give a folder with a model, a finished stage, or "
            "the name of a vision-language model on the hub"
        ) from error


def _check_room(target: Target, reader: Reader) -> None:
    """Refuses to write over anything but a data set that is to be replaced, and over the source above all."""
    out = Path(target.out)
    real = Path(os.path.realpath(out))
    for path in reader.files():
        found = Path(os.path.realpath(path))
        if found.is_relative_to(real) or (found.name == DESCRIPTION and real.is_relative_to(found.parent)):
            raise InputError(
                f"--out {one_line(out)}: {one_line(path)}, which is read, lies in the same folder; name another folder"
            )
    unfinished = (out / BUILDING).is_dir()
    if (out / DESCRIPTION).is_file():
        # Between the description and the manifest a conversion may have been killed: it goes on.
        if not target.fresh and not (unfinished and not (out / MANIFEST_NAME).is_file()):
            raise InputError(f"--out {one_line(out)}: it holds a converted data set; give --fresh to replace it")
        return
    foreign = [path.name for path in out.iterdir() if path.name not in CHAIN_FILES] if out.is_dir() else []
    if foreign and not unfinished:
        raise InputError(
            f"--out {one_line(out)}: it holds {min(foreign)!r}, which no conversion made; name another folder"
        )


def _list_left_out(out: Console, log: RowLog, folder: Path) -> None:
    """Lists the wrong rows that a conversion left out although it came to nothing."""
    if log.bad:
        log.write(folder / BAD_ROWS)
        _say_left_out(out, log, folder)


def _say_left_out(out: Console, log: RowLog, folder: Path) -> None:
    say(out, f"left out: {len(log.bad):,} wrong rows ({summarise(log.bad)}), listed in {folder / BAD_ROWS}")


def _tell(out: Console, target: Target, description: Description, log: RowLog, seconds: float) -> None:
    posts = {split: sum(shard.rows for shard in shards) for split, shards in description.splits.items()}
    total = sum(posts.values())
    counts = ", ".join(f"{split} {count:,}" for split, count in posts.items())
    rate = f"{seconds:.1f} s, {total / seconds:,.0f} posts/s"
    say(out, f"{target.out}: {total:,} posts ({counts}) in {rate}")
    for reason, count in log.dropped.items():
        say(out, f"dropped by the source's rule: {count:,} ({reason})")
    if log.bad:
        _say_left_out(out, log, Path(target.out))
    use = f"posts: {{class_path: Converted, init_args: {{folder: {target.out}}}}}"
    say(out, f"use it with   {use}")
