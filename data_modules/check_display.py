"""A check's report as a person reads it on a terminal, at 80 columns or more."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from typing import Final

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from data_modules.check_report import (
    Across,
    CheckReport,
    Groups,
    Lengths,
    Lost,
    Overlap,
    RationaleFiles,
    Replies,
    Section,
    Spread,
    WrongRow,
)

_WARNING: Final = "yellow"
_MOST_LABELS: Final = 12
_MOST_EXAMPLES: Final = 3
_MOST_IDS: Final = 10
_MOST_EQUAL: Final = 4
_LENGTHS: Final = "median (smallest-largest)"
_PROBLEMS: Final = {
    "unreadable files": ("file cannot be read", "files cannot be read"),
    "wrong rows": ("wrong row would be dropped", "wrong rows would be dropped"),
    "rows left out by a rule": ("row is dropped by a rule of the source", "rows are dropped by a rule of the source"),
    "refused replies": ("reply is refused", "replies are refused"),
    "contradicting replies": ("reply contradicts its post's label", "replies contradict their posts' labels"),
    "wrong rationales": ("wrong rationale would be dropped", "wrong rationales would be dropped"),
}

Cell = Callable[[Section], str]


def print_report(report: CheckReport, console: Console, limit: int = 20) -> None:
    """Prints a report: the numbers, then what is left out, wrong, in two splits, and the verdict.

    Text of the data is never taken for markup, and its control characters are spelt out.

    Args:
        report: What `check` found.
        console: Where to.
        limit: The most wrong rows, rationales and refused replies to be listed each.
    """
    console.print(_numbers(report.sections))
    console.print(f"  Lengths and sizes: {_LENGTHS}", style="dim")
    for part in chain(
        _unreadable(report),
        _counted("Left out by a rule of the source", {part.name: part.dropped for part in report.sections}),
        _counted("What the source counts", {part.name: part.counts for part in report.sections}),
        _wrong_rows("Wrong rows", list(chain(*(part.wrong_rows for part in report.sections))), limit),
        _equal(report.sections, limit),
        _across(report.across) if report.across else (),
        _replies(report.replies, limit) if report.replies else (),
        _rationales(report.rationales, limit) if report.rationales else (),
    ):
        console.print(part)
    console.print(_verdict(report))


def visible(text: str) -> str:
    """Text of the data as it can be shown: on one line, with what does not print spelt out as in Python."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _numbers(sections: Sequence[Section]) -> Table:
    """One column a split, one row a number."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for section in sections:
        table.add_column(Text(section.name), justify="right", overflow="fold")
    blocks = {"posts": _post_rows(sections), "texts": _text_rows(), "pictures": _picture_rows(sections)}
    for kind, block in (blocks | {"warnings": _warning_rows()}).items():
        for name, cell in block:
            cells = [cell(section) for section in sections]
            if any(cells):
                warns = kind == "warnings" and not {"0", "not compared"}.issuperset(cells)
                table.add_row(Text(name), *map(Text, cells), style=_WARNING if warns else "")
        table.add_section()
    return table


def _post_rows(sections: Sequence[Section]) -> Iterator[tuple[str, Cell]]:
    totals: dict[str, int] = defaultdict(int)
    for section in sections:
        for label, number in section.labels.items():
            totals[label] += number
    frequent = sorted(totals, key=lambda label: -totals[label])[:_MOST_LABELS]
    yield "posts", lambda section: f"{section.posts:,}"
    for label in totals:
        if label in frequent:
            yield f"  {visible(label)}", lambda section, label=label: _share(section.labels.get(label, 0), section)  # type: ignore[misc]
    rest = [label for label in totals if label not in frequent]
    if rest:
        name = f"  {_count(len(rest), 'other label')}"
        yield name, lambda section: _share(sum(section.labels.get(label, 0) for label in rest), section)
    if any(section.without_label for section in sections):
        yield "  without label", lambda section: _share(section.without_label, section)
    if any(section.aspects for section in sections):
        yield "  with an aspect", lambda section: _share(section.settings.get("masc", 0), section)
        yield "different aspects", lambda section: f"{section.aspects:,}"


def _text_rows() -> Iterator[tuple[str, Cell]]:
    yield "text, characters", lambda section: _spread(section.text.characters if section.text else None)
    yield "  95% at most", lambda section: f"{section.text.characters.p95:,.0f}" if section.text else ""
    yield "text, words", lambda section: _spread(section.text.words if section.text else None)
    yield "aspect, characters", lambda section: _spread(section.aspect.characters if section.aspect else None)
    yield "aspect, words", lambda section: _spread(section.aspect.words if section.aspect else None)


def _picture_rows(sections: Sequence[Section]) -> Iterator[tuple[str, Cell]]:
    yield "pictures", lambda section: f"{section.pictures.distinct:,}"
    yield "  of several posts", lambda section: f"{section.pictures.shared:,}"
    for name in dict.fromkeys(chain(*(section.pictures.formats for section in sections))):
        yield f"  {name}", lambda section, name=name: f"{section.pictures.formats.get(name, 0):,}"  # type: ignore[misc]
    yield "  width, pixels", lambda section: _spread(section.pictures.width)
    yield "  height, pixels", lambda section: _spread(section.pictures.height)
    yield "  width / height", _shapes
    yield "  size together", lambda section: decimal(section.pictures.bytes)


def _warning_rows() -> Iterator[tuple[str, Cell]]:
    yield "missing pictures", lambda section: _lost(section.lost_pictures.missing)
    yield "unreadable pictures", lambda section: _lost(section.lost_pictures.unreadable)
    yield "pictures outside of the root", lambda section: _lost(section.lost_pictures.outside)
    yield "copies of pictures", lambda section: _groups(section.pictures.duplicates)
    yield "equal posts", lambda section: _groups(section.duplicates)
    yield "label conflicts", _conflicts


def _share(number: int, section: Section) -> str:
    return f"{number:,} ({number / section.posts:.0%})" if number else "0"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.median:,.0f} ({spread.min:,}-{spread.max:,})" if spread.min < spread.max else f"{spread.max:,}"


def _shapes(section: Section) -> str:
    narrowest, widest = section.pictures.narrowest, section.pictures.widest
    return "" if narrowest is None or widest is None else f"{narrowest:.2f}-{widest:.2f}"


def _groups(groups: Groups | None) -> str:
    if groups is None:
        return "not compared"
    return f"{groups.groups:,} ({groups.posts:,} posts)" if groups.groups else "0"


def _lost(lost: Lost) -> str:
    return f"{lost.pictures:,} ({lost.posts:,} posts)" if lost.posts else "0"


def _conflicts(section: Section) -> str:
    posts = sum(map(len, section.conflicts))
    return f"{len(section.conflicts):,} ({posts:,} posts)" if section.conflicts else "0"


def _unreadable(report: CheckReport) -> Iterator[Text | Padding]:
    messages = [(section.name, section.error) for section in report.sections if section.error is not None]
    messages += [("rationales", error) for error in (report.rationales.errors if report.rationales else ())]
    if messages:
        yield _heading("Files that cannot be read", "red")
        for name, message in messages:
            yield _line(f"{name}: {message}")


def _counted(title: str, by_section: Mapping[str, Mapping[str, int]]) -> Iterator[Text | Padding]:
    """Counts with names of their own, one column a split."""
    names = dict.fromkeys(chain(*by_section.values()))
    if names:
        table = _plain_table("", *by_section)
        for name in names:
            table.add_row(Text(visible(name)), *(Text(f"{given.get(name, 0):,}") for given in by_section.values()))
        yield _heading(title)
        yield _indented(table, 1)


def _wrong_rows(title: str, rows: Sequence[WrongRow], limit: int) -> Iterator[Text | Padding]:
    """The first wrong rows, file by file, and what would be right below those that want the same."""
    if not rows:
        return
    yield _heading(f"{title}: {len(rows):,}", "red")
    fields = Counter(row.field or "the row itself" for row in rows)
    yield _line("by field: " + ", ".join(f"{name} {number:,}" for name, number in fields.most_common()))
    for file, in_file in groupby(rows[:limit], key=lambda row: row.file):
        yield _line(f"{file}:")
        for remedy, wrong in groupby(in_file, key=lambda row: row.remedy):
            cells = ((f"{row.unit} {row.number}", row.field or "-", row.problem) for row in wrong)
            yield _indented(_grid(cells), 4)
            yield _line(f"-> {remedy}", "dim", 4)
    yield from _more(len(rows) - limit)


def _equal(sections: Sequence[Section], limit: int) -> Iterator[Text | Padding]:
    """Which posts and pictures are equal; nothing drops them, but someone should have a look."""
    for section in sections:
        conflicts = [[f"{post_id} ({label})" for post_id, label in group.items()] for group in section.conflicts]
        yield from _listed(f"Label conflicts in {section.name}", conflicts, len(conflicts), limit)
        copies = section.duplicates
        yield from _listed(f"Equal posts in {section.name}", copies.examples, copies.groups, limit)
        if (same := section.pictures.duplicates) is not None:
            names = [[os.path.basename(name) for name in group] for group in same.examples]
            yield from _listed(f"Copies of pictures in {section.name}", names, same.groups, limit)


def _listed(title: str, groups: Sequence[Sequence[str]], number: int, limit: int) -> Iterator[Text | Padding]:
    if groups:
        yield _heading(f"{title}: {number:,}", _WARNING)
        shown = groups[: min(limit, _MOST_EXAMPLES)]
        more = f"; and {number - len(shown):,} more" if number > len(shown) else ""
        yield _line("; ".join(map(_chain, shown)) + more)


def _chain(group: Sequence[str]) -> str:
    more = [f"{len(group) - _MOST_EQUAL:,} more"] if len(group) > _MOST_EQUAL else []
    return " = ".join([*group[:_MOST_EQUAL], *more])


def _across(across: Across) -> Iterator[Text | Padding]:
    """What stands in several splits, and which posts tell of it."""
    kinds = {
        "ids": across.ids,
        "pictures": across.pictures,
        "equal texts": across.texts,
        "near-copies of texts": across.near_copies,
    }
    found = {name: overlap for name, overlap in kinds.items() if overlap is not None}
    others = list(next(iter(found.values())).posts)
    table = _plain_table("", "in several splits", *(f"{name} in train" for name in others))
    for name, overlap in found.items():
        cells = [overlap.number, *(overlap.posts[other] for other in others)]
        table.add_row(Text(name), *(Text(f"{cell:,}") for cell in cells), style=_WARNING if overlap.number else "")
    yield _heading("Across splits")
    yield _indented(table, 1)
    if others:
        yield _line("on the right: posts with one in train; near-copies include equal texts", "dim")
    for name, overlap in found.items():
        if overlap.number:
            yield _line(f"{name}, for example: {_examples(overlap)}")


def _examples(overlap: Overlap) -> str:
    return "; ".join(
        " = ".join(f"{post_id} ({split})" for split, post_id in places.items())
        for places in overlap.examples[:_MOST_EXAMPLES]
    )


def _replies(replies: Replies, limit: int) -> Iterator[Text | Padding]:
    yield _heading("Replies that come with the posts")
    left = f"; {_count(replies.without_post, 'reply', 'replies')} to posts left out" if replies.without_post else ""
    yield _line(f"{_count(replies.given, 'reply', 'replies')}, {replies.parsed:,} with all five fields{left}")
    yield from _field_lengths(replies.fields)
    if replies.refused:
        yield _line(f"Refused: {len(replies.refused):,}", "red")
        yield _indented(_grid(islice(replies.refused.items(), limit)), 4)
        yield from _more(len(replies.refused) - limit)
    if replies.contradicting:
        yield _line(f"Contradicting the label: {len(replies.contradicting):,}", "red")
        yield _indented(_contradictions(replies.contradicting, limit), 3)


def _contradictions(contradicting: Mapping[str, Mapping[str, str]], limit: int) -> Table:
    """Which label was taken for which, and in which posts."""
    ids: dict[tuple[str, str], list[str]] = defaultdict(list)
    for post_id, pair in contradicting.items():
        ids[pair["label"], pair["prediction"]].append(post_id)
    table = Table(box=None, padding=(0, 1))
    for name in ("label", "Prediction", "posts", "ids"):
        table.add_column(name, justify="right" if name == "posts" else "left", header_style="dim", overflow="fold")
    for (label, prediction), given in sorted(ids.items(), key=lambda item: -len(item[1]))[:limit]:
        listed = ", ".join(given[:_MOST_IDS]) + (", ..." if len(given) > _MOST_IDS else "")
        table.add_row(*(Text(visible(text)) for text in (label, prediction, f"{len(given):,}", listed)))
    return table


def _rationales(files: RationaleFiles, limit: int) -> Iterator[Text | Padding]:
    yield _heading("Rationale files")
    sources = ", ".join(f"{number:,} {name}" for name, number in files.sources.items())
    yield _line(f"{_count(files.records, 'rationale')}{': ' * bool(sources)}{sources}")
    posts = ", ".join(f"{number:,} of {name}" for name, number in files.posts.items())
    yield _line(f"posts with a rationale: {posts}; rationales of each: {_spread(files.per_post) or '0'}")
    yield from _field_lengths(files.fields)
    yield from _wrong_rows("Wrong rationales", files.wrong_rows, limit)


def _field_lengths(fields: Mapping[str, Lengths]) -> Iterator[Padding]:
    if fields:
        table = _plain_table("", "characters", "words")
        for name, lengths in fields.items():
            table.add_row(Text(name), Text(_spread(lengths.characters)), Text(_spread(lengths.words)))
        yield _indented(table, 3)


def _verdict(report: CheckReport) -> Text:
    posts = _count(report.posts, "post")
    if not report.problems:
        return Text(f"\n{posts}, nothing would be dropped", style="bold green")
    named = (_count(number, *_PROBLEMS[kind]) for kind, number in report.problem_counts.items() if number)
    return Text(f"\n{posts} can be used; {', '.join(named)}", style="bold red")


def _plain_table(*columns: str) -> Table:
    """A table without lines whose first column holds names and the others numbers."""
    table = Table(box=None, padding=(0, 1))
    for number, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if number else "left", header_style="dim", overflow="fold")
    return table


def _grid(rows: Iterable[Iterable[str]]) -> Table:
    """Texts of the data in columns, without a header."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for cells in rows:
        table.add_row(*(Text(visible(cell), overflow="fold") for cell in cells))
    return table


def _indented(table: Table, columns: int) -> Padding:
    return Padding(table, (0, 0, 0, columns), expand=False)


def _heading(text: str, colour: str = "") -> Text:
    return Text(f"\n{visible(text)}", style=f"bold {colour}".strip())


def _line(text: str, style: str = "", indent: int = 2) -> Padding:
    return Padding(Text(visible(text), style=style, overflow="fold"), (0, 0, 0, indent), expand=False)


def _more(number: int) -> Iterator[Padding]:
    if number > 0:
        yield _line(f"and {number:,} more; --json lists all", "dim")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
