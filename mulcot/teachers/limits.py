"""What labelling may cost: prices, the limits of a label store, and the estimate that is agreed to before the start."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from mulcot.teachers.base import Teacher, TeacherPausedError
from mulcot.types import InputError

CHARACTERS_PER_TOKEN: Final = 4
PICTURE_TOKENS: Final = 1000
REPLY_TOKENS: Final = 300
EXPLAINED_SHARE: Final = 0.3
"""What an estimate goes by while the store has no replies to go by."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What a teacher's tokens cost, in US dollars for a million."""

    prompt: float
    """A million tokens read."""
    completion: float
    """A million tokens written."""

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The price of so many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@runtime_checkable
class Paid(Protocol):
    """A teacher that says whether its requests cost money."""

    @property
    def costs(self) -> bool:
        """Whether they do; then an estimate is shown and consent asked."""
        ...


@runtime_checkable
class Priced(Protocol):
    """A teacher that knows its prices."""

    @property
    def prices(self) -> Prices | None:
        """They, or None where nobody gave any."""
        ...


@runtime_checkable
class Closable(Protocol):
    """A teacher that holds connections, threads or memory."""

    async def close(self) -> None:
        """Gives them back; called once, in the loop that asked, when nothing is under way."""
        ...


@runtime_checkable
class Stoppable(Protocol):
    """A teacher that sends a request more than once, or keeps it waiting before it is sent."""

    def stop(self) -> None:
        """Sends nothing any more; replies under way still come. May be called from any thread, and more than once.

        What waits to be sent raises `TeacherStoppedError`, what waits to be sent again `TeacherUnavailableError`.
        """
        ...


def costs(teacher: Teacher) -> bool:
    """Whether a teacher's requests cost money."""
    return isinstance(teacher, Paid) and teacher.costs


def prices_of(teacher: Teacher, given: Prices | None) -> Prices | None:
    """The prices that count: those that were given, else the teacher's own."""
    return given or (teacher.prices if isinstance(teacher, Priced) else None)


@dataclass(slots=True)
class Budget:
    """The limits of a label store over all its runs, and what of them is used up.

    A request counts when it is sent, its tokens when they are known: `max_requests` is never exceeded, `max_usd` by no
    more than what is under way.

    Raises:
        InputError: a limit is below 0, or `max_usd` is given without prices.
    """

    max_requests: int | None = None
    """Requests, each sending of an attempt by the stage; None for no limit."""
    max_usd: float | None = None
    """US dollars; None for no limit."""
    prices: Prices | None = None
    """What tokens cost; None where it is not known."""
    requests: int = 0
    """Requests so far."""
    usd: float = 0.0
    """Money so far; 0 without prices."""

    def __post_init__(self) -> None:
        for name, limit in (("max_requests", self.max_requests), ("max_usd", self.max_usd)):
            if limit is not None and limit < 0:
                raise InputError(f"model.init_args.{name}: must be 0 or more, is {limit}")
        if self.max_usd is not None and self.prices is None:
            raise InputError(
                "model.init_args.max_usd: without prices money cannot be counted; give model.init_args.prices, US "
                "dollars for a million tokens: {prompt: 0.15, completion: 0.6}"
            )

    def take(self) -> None:
        """Counts a request that is about to be sent.

        Raises:
            TeacherPausedError: a limit is reached.
        """
        if self.max_requests is not None and self.requests >= self.max_requests:
            raise TeacherPausedError(
                f"the limit of {self.max_requests:,} requests is reached ({self.requests:,} were sent): raise "
                "model.init_args.max_requests and give the same command again; it goes on from what is stored"
            )
        if self.max_usd is not None and self.usd >= self.max_usd:
            raise TeacherPausedError(
                f"the limit of ${self.max_usd:,.2f} is reached (${self.usd:,.4f} were spent): raise "
                "model.init_args.max_usd and give the same command again; it goes on from what is stored"
            )
        self.requests += 1

    def give_back(self) -> None:
        """Uncounts a request that was not sent after all."""
        self.requests -= 1

    def spend(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Counts the tokens of a reply."""
        if self.prices is not None:
            self.usd += self.prices.usd(prompt_tokens, completion_tokens)

    def share(self, ranks: int, rank: int) -> Budget:
        """What one of several processes may use of the rest; the shares add up to it."""
        shared = Budget(self.max_requests, self.max_usd, self.prices, self.requests, self.usd)
        if self.max_requests is not None:
            rest = max(0, self.max_requests - self.requests)
            shared.max_requests = self.requests + rest // ranks + (rank < rest % ranks)
        if self.max_usd is not None:
            shared.max_usd = self.usd + max(0.0, self.max_usd - self.usd) / ranks
        return shared


@dataclass(frozen=True, slots=True)
class Estimate:
    """What asking for the rest will take, about."""

    questions: int
    """Posts (and samples) that the store has no first reply for."""
    requests: int
    """With explanations and re-asks."""
    prompt_tokens: int
    """Tokens read."""
    completion_tokens: int
    """Tokens written."""
    usd: float | None
    """Money; None where prices are not known."""

    def __str__(self) -> str:
        money = "for a price that nobody gave" if self.usd is None else f"about ${self.usd:,.2f}"
        return (
            f"{self.questions:,} questions have no reply yet: about {self.requests:,} requests, "
            f"{self.prompt_tokens:,} tokens read and {self.completion_tokens:,} written, {money}"
        )


@dataclass(frozen=True, slots=True)
class Experience:
    """What a store has seen so far, for an estimate to go by."""

    questions: int = 0
    """First questions that were answered."""
    replies: int = 0
    """All replies."""
    prompt_tokens: int = 0
    """Tokens of all replies that say how many they read."""
    completion_tokens: int = 0
    """Tokens of all replies that say how many they wrote."""


def estimate(questions: int, prompt_characters: int, seen: Experience, prices: Prices | None) -> Estimate:
    """What so many questions will take.

    Args:
        questions: first questions without a reply.
        prompt_characters: the length of their texts together.
        seen: what the store knows; where it knows nothing, rules of thumb stand in.
        prices: what tokens cost.
    """
    if seen.replies and seen.questions and seen.prompt_tokens:
        requests = round(questions * seen.replies / seen.questions)
        read = round(requests * seen.prompt_tokens / seen.replies)
        written = round(requests * seen.completion_tokens / seen.replies)
    else:
        requests = round(questions * (1 + EXPLAINED_SHARE))
        per_question = prompt_characters / max(1, questions) / CHARACTERS_PER_TOKEN + PICTURE_TOKENS
        read, written = round(requests * per_question), requests * REPLY_TOKENS
    return Estimate(questions, requests, read, written, prices.usd(read, written) if prices else None)


def has_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def ask_consent(
    expected: Estimate,
    yes: bool,
    *,
    terminal: Callable[[], bool] = has_terminal,
    answer: Callable[[], str] = input,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> None:
    """Shows what is about to be spent and asks whether to go on.

    Raises:
        InputError: the answer is no, or there is nobody to ask and no `--yes`.
    """
    if expected.questions == 0:
        return
    say(str(expected))
    if yes:
        return
    if not terminal():
        raise InputError(
            f"{expected}; there is no terminal to ask for consent: give --yes (in a chain `set: {{yes: true}}`)"
        )
    say("Send these requests? [y/N] ")
    try:
        given = answer().strip().lower()
    except EOFError:
        given = ""
    if given not in ("y", "yes"):
        raise InputError("nothing was sent: the answer was not yes")
