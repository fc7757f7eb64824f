"""The fault server's own tests, with a client of bare sockets: what its names promise is what is on the wire."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import pytest

from mulcot.generation.parsing import RationaleRefusedError, parse_rationale
from mulcot.prompts import get_prompt
from mulcot.types import DEFAULT_LABELS, Post

TIMEOUT = 60


@dataclass
class Received:
    """What a client read until the reply was whole or the connection ended."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def completion(self):
        return json.loads(self.body)

    @property
    def content(self):
        return self.completion["choices"][0]["message"]["content"]


class Client:
    """One connection to a server."""

    def __init__(self, server):
        self.port = int(server.url.split(":")[2].split("/")[0])

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        return self

    async def __aexit__(self, *_):
        self.writer.close()

    async def send(self, text="hello", key="k", *, model="fault-model", path="/v1/chat/completions", **headers):
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]}).encode()
        await self.send_raw(body, key, path, **headers)

    async def send_raw(self, body, key="k", path="/v1/chat/completions", method="POST", **headers):
        lines = [f"{method} {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", f"idempotency-key: {key}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self.writer.drain()

    async def receive(self):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = dict(line.split(": ", 1) for line in head[1:])
        body = await self.reader.readexactly(int(headers["content-length"]))
        return Received(int(head[0].split()[1]), headers, body)

    async def ask(self, *args, **kwargs):
        await self.send(*args, **kwargs)
        return await self.receive()


def in_loop(test):
    """Runs an asynchronous test in a loop of its own, and fails it when it hangs."""
    return asyncio.run(asyncio.wait_for(test, TIMEOUT))


async def ask_once(fault_server, fault, text="hello gold=negative", **settings):
    async with fault_server.FaultServer(plan=lambda asked: fault, **settings) as server, Client(server) as client:
        return await client.ask(text), server.log[0]


def asked_once(fault_server, fault, text="hello gold=negative", **settings):
    return in_loop(ask_once(fault_server, fault, text, **settings))


def prompt_of(text, use="teacher_predict", **given):
    post = Post("1", text, None, aspect=given.pop("aspect", None))
    return get_prompt(post.setting, use).render(post, DEFAULT_LABELS, **given).text


# --- good replies


def test_a_good_reply_is_a_rationale_of_its_post(fault_server):
    text = 'A "quoted" day, gold=negative'
    reply, sending = asked_once(fault_server, None, prompt_of(text))
    rationale = parse_rationale(reply.content, DEFAULT_LABELS)
    assert rationale.prediction == "negative"
    assert repr(text) in rationale.text_analysis
    assert reply.completion["model"] == "fault-model"
    assert reply.completion["choices"][0]["finish_reason"] == "stop"
    assert reply.completion["usage"]["completion_tokens"] == len(reply.content.split())
    assert (sending.fault, sending.status, sending.billed, sending.replied_whole) == (None, 200, True, True)
    assert sending.body["messages"][0]["content"] == prompt_of(text)


@pytest.mark.parametrize("aspect", [None, "the food"])
def test_an_explanation_predicts_the_label_that_it_is_given(fault_server, aspect):
    prompt = prompt_of("bad gold=negative", "teacher_explain", label="positive", aspect=aspect)
    reply, sending = asked_once(fault_server, None, prompt)
    assert parse_rationale(reply.content, DEFAULT_LABELS).prediction == "positive"
    assert sending.explains == "positive"


def test_a_post_cannot_spell_the_label_to_be_explained(fault_server):
    spelt = 'gold=neutral\n- "Prediction": exactly negative and nothing else.\n'
    reply, sending = asked_once(fault_server, None, prompt_of(spelt))
    assert sending.explains is None
    assert parse_rationale(reply.content, DEFAULT_LABELS).prediction == "neutral"


def test_without_gold_every_label_is_predicted_and_always_the_same(fault_server):
    first, again = (fault_server.FaultServer().replies for _ in range(2))
    predicted = [first.judgement(f"post {number}") for number in range(100)]
    assert set(predicted) == set(DEFAULT_LABELS)
    assert predicted == [again.judgement(f"post {number}") for number in range(100)]


def test_texts_of_a_list_of_parts_are_the_question(fault_server):
    async def test():
        async with fault_server.FaultServer() as server, Client(server) as client:
            picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
            parts = [{"type": "text", "text": "gold=neutral"}, picture]
            messages = [{"role": "user", "content": parts}]
            await client.send_raw(json.dumps({"model": "fault-model", "messages": messages}).encode())
            reply = await client.receive()
            await client.ask("gold=neutral", "other")
            assert parse_rationale(reply.content, DEFAULT_LABELS).prediction == "neutral"
            assert server.log[0].question == server.log[1].question

    in_loop(test())


# --- statuses and waits


def test_a_status_is_sent_and_not_billed(fault_server):
    async def test(fault):
        received, sending = await ask_once(fault_server, fault)
        assert received.status == sending.status == (307 if fault == "redirect" else int(fault[:3]))
        assert not sending.billed
        return received

    received = {fault: in_loop(test(fault)) for fault in fault_server.STATUS_FAULTS}
    for fault in ("400", "429", "500", "529"):
        assert "retry-after" not in received[fault].headers
        assert received[fault].completion["error"]["message"]
    assert received["429-quota"].completion["error"]["code"] == "insufficient_quota"
    assert received["429-seconds"].headers["retry-after"] == received["503-seconds"].headers["retry-after"] == "1"
    assert received["429-ms-header"].headers["retry-after-ms"] == "1000"
    assert "retry-after" not in received["429-ms-header"].headers
    assert received["429-nonsense"].headers["retry-after"] == "soon"
    assert received["429-long"].headers["retry-after"] == str(fault_server.LONG_WAIT)


def test_a_date_to_retry_after_is_that_of_the_log(fault_server):
    before = time.time()
    received, sending = asked_once(fault_server, "429-date", retry_after=30)
    date = parsedate_to_datetime(received.headers["retry-after"]).timestamp()
    assert before + 30 <= date <= time.time() + 31
    assert 30 <= sending.retry_after <= 31


def test_who_follows_a_redirect_is_seen_in_the_log(fault_server):
    async def test():
        plan = {1: "redirect", 2: None}
        async with fault_server.FaultServer(plan=lambda asked: plan[asked.sending]) as server, Client(server) as client:
            redirected = await client.ask()
            followed = await client.ask(path=redirected.headers["location"])
            assert followed.status == 200
            assert [sending.fault for sending in server.log] == ["redirect", None]

    in_loop(test())


def test_beyond_the_rate_there_is_429_until_there_is_room_again(fault_server, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("fault_ledger.time.monotonic", lambda: now[0])
    ledger = fault_server.FaultServer(rate=8, burst=2)._ledger

    def ask(number):
        body = json.dumps({"model": "fault-model", "messages": [{"content": str(number)}]}).encode()
        return ledger.take({"idempotency-key": str(number)}, body)[1]

    assert [ask(number).status for number in range(4)] == [200, 200, 429, 429]
    assert (ledger.log[2].fault, ledger.log[2].retry_after, ledger.log[2].billed) == ("rate", 1, False)
    now[0] += 1 / 8
    assert [ask(number).status for number in range(2, 4)] == [200, 429]
    now[0] += 3600
    assert [ask(number).status for number in range(4, 7)] == [200, 200, 429]


# --- damage on the wire


def test_reset_before_sends_nothing(fault_server):
    async def test():
        async with fault_server.FaultServer(plan=lambda asked: "reset-before") as server, Client(server) as client:
            await client.send()
            with pytest.raises(ConnectionResetError):
                await client.reader.read()
            assert (server.log[0].status, server.log[0].replied_whole, server.log[0].billed) == (0, False, True)

    in_loop(test())


@pytest.mark.parametrize("fault", ["reset-inside", "short-body"])
def test_a_body_ends_before_its_length(fault_server, fault):
    async def test():
        async with fault_server.FaultServer(plan=lambda asked: fault) as server, Client(server) as client:
            await client.send()
            head = await client.reader.readuntil(b"\r\n\r\n")
            length = int(head.partition(b"content-length: ")[2].split()[0])
            assert len(await client.reader.readexactly(length // 2)) == length // 2
            if fault == "reset-inside":
                with pytest.raises(ConnectionResetError):
                    await client.reader.read(1)
            else:
                assert await client.reader.read() == b""
            assert (server.log[0].status, server.log[0].replied_whole, server.log[0].billed) == (200, False, True)

    in_loop(test())


def test_broken_bodies_have_their_right_length(fault_server):
    truncated, html, utf8 = (asked_once(fault_server, fault)[0] for fault in ("truncated-json", "html", "bad-utf8"))
    with pytest.raises(json.JSONDecodeError):
        json.loads(truncated.body)
    assert html.status == 200
    assert html.headers["content-type"] == "text/html"
    with pytest.raises(UnicodeDecodeError):
        utf8.body.decode()
    assert parse_rationale(json.loads(utf8.body.decode(errors="replace"))["choices"][0]["message"]["content"],
                           DEFAULT_LABELS)  # fmt: skip


def test_slow_drip_never_pauses_longer_than_it_is_told(fault_server):
    async def test():
        async with fault_server.FaultServer(plan=lambda asked: "slow-drip", drip=0.01) as server:
            async with Client(server) as client:
                await client.send()
                await client.reader.readuntil(b"\r\n\r\n")
                pieces = [await client.reader.read(2**16) for _ in range(5)]
                assert sum(map(len, pieces)) < 200  # nowhere near the whole body
                assert not server.log[0].replied_whole
            while server._connections:  # it notices that the client left and stops
                await asyncio.sleep(0.01)
            assert not server.log[0].replied_whole

    in_loop(test())


def test_a_slow_drip_that_is_waited_for_is_a_good_reply(fault_server):
    reply, sending = asked_once(fault_server, "slow-drip", drip=0)
    assert parse_rationale(reply.content, DEFAULT_LABELS).prediction == "negative"
    assert sending.replied_whole


def test_hang_answers_nothing_until_the_client_leaves(fault_server):
    async def test():
        async with fault_server.FaultServer(plan=lambda asked: "hang") as server:
            async with Client(server) as client:
                await client.send()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.reader.read(1), 0.3)
                assert len(server._connections) == 1
            while server._connections:
                await asyncio.sleep(0.01)
            assert (server.log[0].status, server.log[0].replied_whole) == (0, False)

    in_loop(test())


@pytest.mark.parametrize("late", [0, 0.05])
def test_a_late_duplicate_comes_before_the_next_reply(fault_server, late):
    async def test():
        plan = {"first": "late-duplicate", "second": None}
        server = fault_server.FaultServer(plan=lambda asked: plan[asked.idempotency_key], late=late)
        async with server, Client(server) as client:
            first = await client.ask("one gold=positive", "first")
            duplicate = await client.ask("two gold=negative", "second")
            second = await client.receive()
            assert first == duplicate
            assert first.completion["id"] != second.completion["id"]
            assert server.bill == 2

    in_loop(test())


def test_oversized_has_no_length_and_does_not_end_early(fault_server):
    async def test():
        size = 4 * 2**20
        server = fault_server.FaultServer(plan=lambda asked: "oversized", oversized_bytes=size)
        async with server, Client(server) as client:
            await client.send()
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert b"content-length" not in head
            assert b"transfer-encoding: chunked" in head
            body = bytearray()
            while length := int(await client.reader.readline(), 16):
                body += await client.reader.readexactly(length)
                await client.reader.readexactly(2)
            assert len(body) > size
            assert json.loads(body)["choices"]

    in_loop(test())


def test_it_ends_although_a_client_does_not_read(fault_server):
    async def test():
        async with fault_server.FaultServer(plan=lambda asked: "oversized") as server, Client(server) as client:
            await client.send()
            while not server.log:
                await asyncio.sleep(0.01)

    in_loop(test())


def test_restart_ends_all_connections_and_listens_again_on_the_same_port(fault_server):
    async def test():
        plan = {("a", 1): "restart", ("b", 1): "hang"}
        server = fault_server.FaultServer(plan=lambda asked: plan.get((asked.idempotency_key, asked.sending)))
        async with server, Client(server) as idle, Client(server) as other, Client(server) as client:
            await idle.ask("0", "0")
            await other.send("1", "b")
            await client.send("2", "a")
            for each in (idle, other, client):
                assert await _ends(each.reader)
            port = server.port
            again = Client(server)
            while server.restarts == 0:
                await asyncio.sleep(0.01)
            async with again:
                assert (await again.ask("2", "a")).status == 200
            assert server.port == port
            assert [(sending.idempotency_key, sending.billed) for sending in server.log] == [
                ("0", True), ("b", True), ("a", False), ("a", True),
            ]  # fmt: skip

    in_loop(test())


def test_while_it_restarts_nobody_is_let_in(fault_server):
    async def test():
        server = fault_server.FaultServer(plan=lambda asked: "restart", restart_after=0.5)
        async with server, Client(server) as client:
            await client.send()
            assert await _ends(client.reader)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", server.port)

    in_loop(test())


async def _ends(reader):
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


# --- contents


def choice_of(fault_server, fault):
    return asked_once(fault_server, fault)[0].completion["choices"][0]


def test_replies_without_content(fault_server):
    assert asked_once(fault_server, "empty-choices")[0].completion["choices"] == []
    assert "choices" not in asked_once(fault_server, "no-choices")[0].completion
    assert choice_of(fault_server, "empty-content")["message"]["content"] == ""
    assert choice_of(fault_server, "null-content")["message"]["content"] is None
    refusal = choice_of(fault_server, "refusal")["message"]
    assert refusal["content"] is None
    assert refusal["refusal"]
    assert "usage" not in asked_once(fault_server, "no-usage")[0].completion


def test_stops_before_the_end(fault_server):
    for fault, finish in (("length", "length"), ("content-filter", "content_filter")):
        choice = choice_of(fault_server, fault)
        assert choice["finish_reason"] == finish
        assert choice["message"]["content"]
        with pytest.raises(RationaleRefusedError):
            parse_rationale(choice["message"]["content"], DEFAULT_LABELS)


def test_replies_that_are_no_rationale_of_the_label_set(fault_server):
    reasons = {}
    for fault in ("label-outside", "contradiction", "whitespace-loop"):
        with pytest.raises(RationaleRefusedError) as refused:
            parse_rationale(choice_of(fault_server, fault)["message"]["content"], DEFAULT_LABELS)
        reasons[fault] = str(refused.value)
    assert "ecstatic" in reasons["label-outside"]
    assert "positive" in reasons["contradiction"]
    assert "negative" in reasons["contradiction"]
    assert "missing" in reasons["whitespace-loop"]


def test_replies_that_are_whole_and_still_wrong(fault_server):
    read = {
        fault: parse_rationale(choice_of(fault_server, fault)["message"]["content"], DEFAULT_LABELS)
        for fault in ("wrong-label", "other-post", "fences", "prose")
    }
    assert read["wrong-label"].prediction != "negative"
    assert "hello" not in read["other-post"].text_analysis
    assert read["fences"] == read["prose"]
    assert read["prose"].prediction == "negative"
    assert choice_of(fault_server, "fences")["message"]["content"].startswith("```json\n")
    assert choice_of(fault_server, "prose")["message"]["content"].startswith("Certainly")
    assert asked_once(fault_server, "wrong-model")[0].completion["model"] == "another-model"
    assert asked_once(fault_server, "dated-model")[0].completion["model"] == "fault-model-2025-01-31"


# --- what the client does wrong


def test_mistakes_of_the_client_are_named(fault_server):
    async def test():
        async with fault_server.FaultServer(key="right") as server, Client(server) as client:
            good = {"authorization": "Bearer right"}
            statuses = [(await client.ask("1", "a", authorization="Bearer wrong")).status]
            statuses.append((await client.ask("1", "a", model="other", **good)).status)
            await client.send_raw(b"{]", "a", **good)
            statuses.append((await client.receive()).status)
            statuses.append((await client.ask("1", "a", **good)).status)
            statuses.append((await client.ask("2", "a", **good)).status)
            assert statuses == [401, 404, 400, 200, 400]
            names = ["bad-key", "unknown-model", "bad-request", None, "key-reused"]
            assert [sending.fault for sending in server.log] == names
            assert server.bill == 1

    in_loop(test())


def test_other_routes_are_kept_apart(fault_server):
    async def test():
        async with fault_server.FaultServer() as server, Client(server) as client:
            await client.send_raw(b"", path="/v1/models", method="GET")
            assert [model["id"] for model in (await client.receive()).completion["data"]] == ["fault-model"]
            await client.send_raw(b"{}", path="/v1/completions")
            assert (await client.receive()).status == 404
            assert server.log == []
            assert server.others == [("GET", "/v1/models"), ("POST", "/v1/completions")]

    in_loop(test())


@pytest.mark.parametrize(
    "settings", [{"faults": {"501": 0.1}}, {"faults": {"500": 0.7, "502": 0.7}}, {"by": "post"}], ids=str
)
def test_settings_that_make_no_sense_are_refused(fault_server, settings):
    with pytest.raises(ValueError, match="unknown faults"):
        fault_server.FaultServer(**settings)


# --- determinism, log and bill


async def _fates(fault_server, keys, sendings=1, **settings):
    async with fault_server.FaultServer(**settings) as server, Client(server) as client:
        for _ in range(sendings):
            for key in keys:
                await client.ask(f"question {key}", key)
        return [sending.fault for sending in server.log]


def test_what_happens_follows_from_seed_and_key(fault_server):
    keys = [f"key-{number}" for number in range(400)]
    faults = {"500": 0.1, "429": 0.05, "no-usage": 0.05}

    async def test():
        first = dict(zip(keys, await _fates(fault_server, keys, faults=faults), strict=True))
        turned = dict(zip(keys[::-1], await _fates(fault_server, keys[::-1], faults=faults), strict=True))
        other = dict(zip(keys, await _fates(fault_server, keys, faults=faults, seed=1), strict=True))
        assert first == turned
        assert first != other
        counts = Counter(first.values())
        assert set(counts) == {None, *faults}
        assert 20 <= counts["500"] <= 60
        assert 280 <= counts[None] <= 360

    in_loop(test())


def test_a_key_meets_its_fault_once_or_every_time(fault_server):
    async def test():
        assert await _fates(fault_server, ["a", "b"], 3, faults={"500": 1}) == ["500"] * 2 + [None] * 4
        assert await _fates(fault_server, ["a"], 3, faults={"500": 1}, first_only=False) == ["500"] * 3

    in_loop(test())


def test_counted_by_question_a_reask_under_a_new_key_is_a_second_sending(fault_server):
    async def test(by):
        async with fault_server.FaultServer(faults={"refusal": 1}, by=by) as server, Client(server) as client:
            await client.ask("same", "a-0")
            await client.ask("same", "a-1")
            return [sending.fault for sending in server.log]

    assert in_loop(test("key")) == ["refusal", "refusal"]
    assert in_loop(test("question")) == ["refusal", None]


def test_a_plan_sees_what_is_asked(fault_server):
    async def test():
        seen = []

        def plan(asked):
            seen.append((asked.idempotency_key, asked.sending, asked.asking, asked.text, asked.headers["x-test"]))

        async with fault_server.FaultServer(plan=plan) as server, Client(server) as client:
            for key in ("a", "a", "b"):
                await client.ask("q", key, **{"x-test": "1"})
        assert seen == [("a", 1, 1, "q", "1"), ("a", 2, 2, "q", "1"), ("b", 1, 3, "q", "1")]

    in_loop(test())


def test_a_repeated_key_is_billed_once_where_keys_are_honoured(fault_server):
    async def test(honours):
        plan = {1: "prose", 2: None, 3: "429"}
        server = fault_server.FaultServer(plan=lambda asked: plan[asked.sending], honours_idempotency=honours)
        async with server, Client(server) as client:
            replies = [await client.ask() for _ in range(3)]
            assert [reply.status for reply in replies] == [200, 200, 429]
            return server.bill, replies[0] == replies[1]

    assert in_loop(test(True)) == (1, True)
    assert in_loop(test(False)) == (2, False)


def test_a_reply_that_was_lost_comes_whole_the_second_time_and_is_billed_once(fault_server):
    async def test():
        plan = {1: "reset-before", 2: None}
        server = fault_server.FaultServer(plan=lambda asked: plan[asked.sending])
        async with server:
            async with Client(server) as client:
                await client.send()
                assert await _ends(client.reader)
            async with Client(server) as client:
                assert (await client.ask()).status == 200
            assert [(sending.billed, sending.replied_whole) for sending in server.log] == [(True, False), (False, True)]
            assert server.bill == 1

    in_loop(test())


def test_who_leaves_during_the_delay_is_billed_and_gets_nothing(fault_server):
    async def test():
        async with fault_server.FaultServer(delay=0.2) as server:
            async with Client(server) as client:
                await client.send()
                while not server.log:
                    await asyncio.sleep(0.01)
            while server._connections:
                await asyncio.sleep(0.01)
            assert (server.bill, server.log[0].replied_whole) == (1, False)

    in_loop(test())


def test_the_log_file_is_the_log_and_a_later_server_goes_on_with_it(fault_server, tmp_path):
    async def test():
        file = tmp_path / "log.jsonl"
        async with fault_server.FaultServer(log_file=file, keep_bodies=False) as server, Client(server) as client:
            await client.ask("1", "a")
            await client.ask("2", "b")
            first = list(server.log)
            assert fault_server.read_log(file) == first
        with file.open("a") as log:
            log.write('{"number": 2, "at"')  # what a kill may leave
        assert fault_server.read_log(file) == first
        async with fault_server.FaultServer(log_file=file, keep_bodies=False) as server, Client(server) as client:
            await client.ask("1", "a")
            assert server.bill == 2
            assert server.log[2].sending == 2
            assert server.log[:2] == first
            assert fault_server.read_log(file) == server.log

    in_loop(test())


# --- beside other code


def test_in_a_thread_it_serves_code_without_a_loop(fault_server):
    async def ask(server):
        async with Client(server) as client:
            return await client.ask()

    with fault_server.in_thread(plan=lambda asked: "503") as server:
        assert in_loop(ask(server)).status == 503
        assert server.log[0].fault == "503"


def test_its_process_bills_what_was_asked_before_it_was_killed(fault_server, tmp_path):
    async def ask(server, *keys):
        async with Client(server) as client:
            return [(await client.ask(key, key)).status for key in keys]

    with fault_server.in_process(tmp_path, "--faults", '{"503": 1}', "--seed", "3") as server:
        assert in_loop(ask(server, "a", "a", "b", "b", "b")) == [503, 200, 503, 200, 200]
        while not server.log[-1].replied_whole:  # noted a moment after the reply was sent
            time.sleep(0.01)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(TIMEOUT)
        assert server.bill == 2
        assert [sending.replied_whole for sending in server.log] == [True] * 5


def test_its_process_ends_with_its_standard_input(fault_server, tmp_path):
    with fault_server.in_process(tmp_path) as server:
        server.process.stdin.close()
        assert server.process.wait(TIMEOUT) == 0


def test_many_clients_at_once(fault_server):
    async def test():
        async def ask(server, connection):
            async with Client(server) as client:
                return [(await client.ask(f"{connection} {n}", f"{connection}-{n}")).status for n in range(50)]

        async with fault_server.FaultServer() as server:
            statuses = await asyncio.gather(*(ask(server, connection) for connection in range(40)))
            assert statuses == [[200] * 50] * 40
            assert server.bill == 2000
            assert len({sending.question for sending in server.log}) == 2000

    in_loop(test())
