"""A student's rationale beside the reference, as a Markdown table that TensorBoard renders.

Whatever stands in a post or in a reply is data: it can be neither Markdown nor HTML, nor break out of its cell.
"""

from __future__ import annotations

import re
from typing import Final

from mulcot.types import RATIONALE_KEYS, Answer, Post, RationaleRecord

_MAX_CHARACTERS: Final = 1500
_ACTIVE: Final = re.compile(r"[!-/:-@\[-`{-~]")  # all punctuation of ASCII, which is all that Markdown and HTML use
_SOURCES: Final = {
    "teacher-predicted": "the teacher, who found the label itself",
    "teacher-explained": "the teacher, who was told the label",
    "assistant": "the assistant",
}


def escape(text: str) -> str:
    """The text as the inside of a cell of a Markdown table, on one line, cut when it is very long.

    `escape("a|b") == "a&#124;b"`
    """
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS] + " … (cut)"
    text = text.encode("utf-8", "replace").decode("utf-8")  # halves of surrogate pairs fit into no event file
    text = " ".join(text.split())  # line breaks would end the row
    printable = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return _ACTIVE.sub(lambda match: f"&#{ord(match[0])};", printable)


def rationale_table(post: Post, answer: Answer, reference: RationaleRecord | None) -> str:
    """What the student says of a post, beside the post, its gold label and the reference.

    Args:
        post: the post.
        answer: the student's.
        reference: a teacher's rationale; None where there is none.
    """
    about = f" towards **{escape(post.aspect)}**" if post.aspect is not None else ""
    gold = f"**{escape(post.label)}**" if post.label is not None else "not known"
    verdict = "" if post.label is None else (" ✓" if answer.label == post.label else " ✗")
    share = answer.probabilities.get(answer.label)
    lines = [
        f"Post {escape(post.id)}{about}: {escape(post.text)}",
        "",
        f"Gold label: {gold}. Classification: **{escape(answer.label)}**"
        + (f" ({share:.0%})" if share is not None else "")
        + verdict,
        "",
        "| | the student writes | the reference |",
        "|---|---|---|",
    ]
    if (written := answer.rationale) is None:
        whole = "" if reference is None else escape(reference.rationale.to_json())
        lines.append(f"| no rationale: {escape(answer.refusal)} | {escape(answer.reply)} | {whole} |")
    else:
        for key, name in RATIONALE_KEYS.items():
            mine = escape(getattr(written, name))
            if key == "Prediction" and post.label is not None:
                mine += " ✓" if written.prediction == post.label else " ✗"
            theirs = "" if reference is None else escape(getattr(reference.rationale, name))
            lines.append(f"| {key.replace('_', ' ')} | {mine} | {theirs} |")
    lines += ["", f"The reference is by {_SOURCES[reference.source]}." if reference else "There is no reference."]
    return "\n".join(lines)
