"""The address and the key of an endpoint, and everything that is wrong with them."""

from __future__ import annotations

import base64
import pickle
from urllib.parse import quote

import pytest

from mulcot.teachers.endpoint_address import ApiKey, check_base_url, read_key
from mulcot.types import InputError

SECRET = "sk-canary+Zq8/9"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1"),
        ("HTTPS://Host.Example:8443/a/b//", "https://host.example:8443/a/b"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.8.9.1/v1", "http://127.8.9.1/v1"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_good_base_url(given: str, kept: str) -> None:
    assert check_base_url(given) == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("api.openai.com/v1", "must begin with https://"),
        ("localhost:8000/v1", "must begin with https://"),
        ("ftp://host/v1", "must begin with https://"),
        ("https:///v1", "must begin with https://"),
        ("", "must begin with https://"),
        ("https://host/v1 ", "without blanks"),
        ("https://host/v1\n", "without blanks"),
        ("https://host/v1/chat/completions", "ends in a route, .*: give https://host/v1$"),
        ("https://host/v1/Chat/Completions/", "ends in a route, .*: give https://host/v1$"),
        ("https://host:8/v1/models", "ends in a route, .*: give https://host:8/v1$"),
        ("http://host/v1", "http://host/v1 is not encrypted"),
        ("http://localhost.example/v1", "is not encrypted"),
        ("http://10.0.0.1/v1", "is not encrypted"),
        ("http://0.0.0.0/v1", "is not encrypted"),
        (f"https://user:{quote(SECRET, safe='')}@host/v1", "holds a user name"),
        (f"https://host/v1?key={SECRET}", "holds a user name, a query"),
        (f"https://host/v1#{SECRET}", "holds a user name, a query or a fragment"),
        (f"https://host:{SECRET}/v1", "is no address"),
        ("https://[::1/v1", "is no address"),
    ],
)
def test_bad_base_url_says_what_would_be_right_and_no_secret(given: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^base_url: .*{message}") as caught:
        check_base_url(given)
    assert "canary" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_key_comes_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", SECRET)
    key = read_key("SOME_KEY")
    assert key.reveal() == SECRET
    assert "canary" not in f"{key!r} {key!s} {vars(type(key))}"
    with pytest.raises(TypeError, match="not written"):
        pickle.dumps(key)
    assert read_key(None).reveal() == ""


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is not set"),
        ("", "is empty"),
        (f"{SECRET}\n", "holds a blank, a line end"),
        (f" {SECRET}", "holds a blank"),
        (f"{SECRET} {SECRET}", "holds a blank"),
        (f"{SECRET}\r", "holds a blank"),
        (f"{SECRET}é", "holds a blank"),
    ],
)
def test_unusable_key_names_the_variable_alone(
    value: str | None, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(InputError, match=f"^api_key_env: the environment variable SOME_KEY {problem}") as caught:
        read_key("SOME_KEY")
    assert "canary" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given", [SECRET, "skcanary0123456789abcdef", "SK-CANARY", "", "A" * 65, "A B", f"KEY\n{SECRET}"]
)
def test_key_in_the_place_of_its_variable_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(InputError, match=r"^api_key_env: must be the name .* not repeated here") as caught:
        read_key(given)
    assert "canary" not in str(caught.value).lower()
    assert "AAA" not in str(caught.value)


def test_redaction_in_every_spelling() -> None:
    spellings = [SECRET, quote(SECRET, safe=""), base64.b64encode(SECRET.encode()).decode()]
    text = ApiKey(SECRET).redact(" | ".join(["before", *spellings, "after"]))
    assert text == "before | [API key] | [API key] | [API key] | after"
    assert ApiKey("").redact("text") == "text"
    assert ApiKey("x").redact("text") == "text", "a placeholder is no secret"
