"""Text of posts, models and runs on a terminal: no character of it moves the cursor or sets a title."""


def plain(text: str) -> str:
    r"""The text with U+FFFD for every control character but the end of a line.

    `plain("a\x1b[31mb") == "a\ufffd[31mb"`
    """
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)
