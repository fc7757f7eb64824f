"""What labelling may cost."""

from __future__ import annotations

import pytest

from mulcot.teachers.base import TeacherPausedError
from mulcot.teachers.limits import Budget, Estimate, Experience, Prices, ask_consent, estimate
from mulcot.types import InputError

PRICES = Prices(prompt=2.0, completion=10.0)


def test_prices_are_for_a_million_tokens() -> None:
    assert PRICES.usd(1_000_000, 0) == 2
    assert PRICES.usd(500, 200) == pytest.approx(0.003)


def test_requests_stop_at_the_limit() -> None:
    budget = Budget(max_requests=2)
    budget.take()
    budget.take()
    with pytest.raises(TeacherPausedError, match=r"2 requests is reached \(2 were sent\): raise model.*max_req"):
        budget.take()
    budget.give_back()
    budget.take()
    assert budget.requests == 2


def test_money_stops_at_the_limit() -> None:
    budget = Budget(max_usd=0.01, prices=PRICES)
    for _ in range(3):
        budget.take()
        budget.spend(1000, 200)
    assert budget.usd == pytest.approx(0.012)
    with pytest.raises(TeacherPausedError, match=r"limit of \$0\.01 is reached \(\$0\.0120 were spent\): raise model"):
        budget.take()
    assert TeacherPausedError.exit_code == 75


def test_limits_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="max_usd: without prices money cannot be counted"):
        Budget(max_usd=1.0)
    with pytest.raises(InputError, match="max_requests: must be 0 or more, is -1"):
        Budget(max_requests=-1)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_shares_add_up(ranks: int) -> None:
    whole = Budget(max_requests=110, max_usd=3.0, prices=PRICES, requests=10, usd=1.0)
    shares = [whole.share(ranks, rank) for rank in range(ranks)]
    assert sum((share.max_requests or 0) - share.requests for share in shares) == 100
    assert sum((share.max_usd or 0) - share.usd for share in shares) == pytest.approx(2.0)


def test_an_estimate_goes_by_experience_where_there_is_some() -> None:
    seen = Experience(questions=10, replies=13, prompt_tokens=13_000, completion_tokens=2_600)
    assert estimate(100, 0, seen, PRICES) == Estimate(100, 130, 130_000, 26_000, pytest.approx(0.52))
    blind = estimate(100, 100 * 4000, Experience(), None)
    assert (blind.questions, blind.requests, blind.prompt_tokens, blind.usd) == (100, 130, 130 * 2000, None)
    assert estimate(0, 0, Experience(), PRICES).usd == 0


EXPECTED = Estimate(5, 7, 7000, 1400, 0.03)


def test_consent_is_asked_on_a_terminal() -> None:
    said: list[str] = []
    for answer in ("y", " YES "):
        ask_consent(EXPECTED, False, terminal=lambda: True, answer=lambda given=answer: given, say=said.append)
    assert "5 questions have no reply yet: about 7 requests" in said[0]
    assert "about $0.03" in said[0]
    for answer in ("", "n", "perhaps"):
        with pytest.raises(InputError, match="nothing was sent"):
            ask_consent(EXPECTED, False, terminal=lambda: True, answer=lambda given=answer: given, say=said.append)


def test_yes_and_nothing_to_ask_for_ask_nobody() -> None:
    def never() -> str:
        raise AssertionError

    said: list[str] = []
    ask_consent(EXPECTED, True, terminal=lambda: True, answer=never, say=said.append)
    assert len(said) == 1
    ask_consent(Estimate(0, 0, 0, 0, 0.0), False, terminal=lambda: True, answer=never, say=said.append)
    assert len(said) == 1


def test_without_a_terminal_consent_must_be_given_beforehand() -> None:
    with pytest.raises(InputError, match=r"5 questions .*no terminal to ask for consent: give --yes") as refused:
        ask_consent(EXPECTED, False, terminal=lambda: False, answer=lambda: "y", say=lambda _: None)
    assert "\n" not in str(refused.value)
