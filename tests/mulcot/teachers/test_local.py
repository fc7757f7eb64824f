"""A model in this process as a teacher: equal replies in any batch, post text as plain data, errors in one line."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import Qwen2Config, Qwen2ForCausalLM

from data_modules.readers import Table
from mulcot.cli import main
from mulcot.generation import decode_ids
from mulcot.models import load_model, load_processor
from mulcot.models.tiny import SPECIAL_TOKENS
from mulcot.prompts import get_prompt
from mulcot.rows import RowBatch, RowCollator, RowEncoder
from mulcot.teachers import LocalTeacher, TeacherReply, TeacherRequest, TeacherSilentError
from mulcot.teachers import local_model as local_model_module
from mulcot.types import DEFAULT_LABELS, InputError, MissingInputError, Post

ONE_BATCH = {"batch_wait_ms": 3_600_000.0}
"""Waits until the batch is full, so that the test and not the clock says what is in it."""


def request_of(post: Post, **changes: Any) -> TeacherRequest:
    prompt = get_prompt(post.setting, "teacher_predict").render(post, DEFAULT_LABELS)
    return replace(TeacherRequest(post, prompt, "predict"), **changes)


def ask_all(teacher: LocalTeacher, requests: Sequence[TeacherRequest]) -> list[Any]:
    async def run() -> list[Any]:
        try:
            return await asyncio.gather(*map(teacher.complete, requests), return_exceptions=True)
        finally:
            await teacher.close()

    return asyncio.run(run())


def ask(teacher: LocalTeacher, request: TeacherRequest) -> TeacherReply:
    answer = ask_all(teacher, [request])[0]
    if isinstance(answer, BaseException):
        raise answer
    assert isinstance(answer, TeacherReply)
    return answer


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "mulcot-model"]


@pytest.fixture(scope="module")
def posts(embedded: Path) -> list[Post]:
    folder = embedded / "posts" / "posts"
    return list(Table({"val": folder / "val.jsonl"}, folder / "images").read("val"))


@pytest.fixture(scope="module")
def talkative(embedded: Path, posts: list[Post], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that writes different things about different posts, and ends some of its replies."""
    folder = tmp_path_factory.mktemp("models") / "talkative"
    model: Any = load_model(str(embedded / "models" / "student"))
    processor = load_processor(str(embedded / "models" / "student"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    rows = model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    encoder = RowEncoder(processor, ())
    row = encoder.question(posts[0], request_of(posts[0]).prompt)
    written = decode_ids(model.eval(), RowCollator(encoder).batch([row], side="left"), encoder, 6)[0]
    with torch.no_grad():  # the end of turn takes the place of a token that it writes about the first post
        rows[encoder.end_of_turn[-1]] = 1.5 * rows[written[-1]]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_replies_do_not_depend_on_the_batch(talkative: Path, posts: list[Post]) -> None:
    requests = [request_of(post) for post in posts[:6]]
    together = ask_all(LocalTeacher(str(talkative), max_new_tokens=24, batch_size=6, **ONE_BATCH), requests)
    assert len({reply.text for reply in together}) > 3
    in_pairs = ask_all(LocalTeacher(str(talkative), max_new_tokens=24, batch_size=2, **ONE_BATCH), requests)
    alone = LocalTeacher(str(talkative), max_new_tokens=24, batch_size=1)
    assert together == in_pairs == ask_all(alone, requests)


def test_samples_do_not_depend_on_the_batch_but_on_seed_sample_attempt_and_content(
    embedded: Path, posts: list[Post]
) -> None:
    student = str(embedded / "models" / "student")
    first = request_of(posts[0])
    requests = [
        first,
        replace(first, sample=1),
        replace(first, attempt=1),
        replace(first, post=replace(first.post, id="other"), idempotency_key="other"),
        request_of(posts[1]),
    ]
    settings = {"max_new_tokens": 12, "temperature": 1.0}
    together = ask_all(LocalTeacher(student, batch_size=5, **settings, **ONE_BATCH), requests)
    assert together == ask_all(LocalTeacher(student, batch_size=1, **settings), requests)
    texts = [reply.text for reply in together]
    assert texts[3] == texts[0], "posts of equal content are one question"
    assert len(set(texts)) == 4
    assert ask(LocalTeacher(student, seed=1, **settings), first).text not in texts


def test_tokens_are_counted_and_a_reply_that_was_cut_off_says_so(talkative: Path, posts: list[Post]) -> None:
    encoder = RowEncoder(load_processor(str(talkative)), ())
    requests = [request_of(post) for post in posts]
    replies = ask_all(LocalTeacher(str(talkative), max_new_tokens=24, batch_size=len(posts), **ONE_BATCH), requests)
    assert {reply.finish for reply in replies} == {"stop", "length"}, "the model is to end some of its replies"
    for request, reply in zip(requests, replies, strict=True):
        row = encoder.question(request.post, request.prompt)
        assert reply.prompt_tokens == len(encoder.head(row).per_token["input_ids"]) + row.length
        assert reply.completion_tokens == 24 if reply.finish == "length" else reply.completion_tokens < 24
        assert "<|im_end|>" not in reply.text


def test_what_is_written_is_what_the_model_writes_to_its_chat_template(talkative: Path, posts: list[Post]) -> None:
    processor = load_processor(str(talkative))
    model: Any = load_model(str(talkative)).eval()
    request = request_of(posts[0])
    content = [{"type": "image"}, {"type": "text", "text": request.prompt.text}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.open(posts[0].image).convert("RGB")], return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(written, skip_special_tokens=True)
    assert ask(LocalTeacher(str(talkative), max_new_tokens=12), request).text == expected


@pytest.mark.parametrize("where", ["text", "aspect"])
def test_special_tokens_that_a_post_spells_stay_text(talkative: Path, posts: list[Post], where: str) -> None:
    spelt = "x" + "".join(SPECIAL_TOKENS)
    attacked = replace(posts[0], **{where: spelt})
    tokenizer = load_processor(str(talkative)).tokenizer
    plain = len(tokenizer(json.dumps(spelt), add_special_tokens=False, split_special_tokens=True)["input_ids"])
    before = len(tokenizer(json.dumps(getattr(posts[0], where)), add_special_tokens=False)["input_ids"])
    assert plain > 5 * len(SPECIAL_TOKENS)
    teacher = LocalTeacher(str(talkative), max_new_tokens=2, batch_size=2, **ONE_BATCH)
    # An <|image_pad|> that became a token would besides be an error: there is one picture, not two.
    usual, reply = ask_all(teacher, [request_of(posts[0]), request_of(attacked)])
    assert reply.prompt_tokens - usual.prompt_tokens == plain - before


def test_posts_of_one_id_and_other_pictures_are_not_mixed_up(
    talkative: Path, posts: list[Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[torch.Tensor] = []

    def show(model: Any, prompts: RowBatch, *others: Any) -> list[list[int]]:
        shown.append(prompts.inputs["pixel_values"])
        return [[0]] * len(prompts.rows)

    monkeypatch.setattr(local_model_module, "decode_ids", show)
    twin = next(post for post in posts if post.image.read_bytes() != posts[0].image.read_bytes())
    requests = [request_of(posts[0]), request_of(replace(posts[0], image=twin.image))]
    ask_all(LocalTeacher(str(talkative), batch_size=2, **ONE_BATCH), requests)
    ask_all(LocalTeacher(str(talkative), batch_size=1), requests)
    together, first, second = shown
    assert together.equal(torch.cat([first, second]))
    assert not first.equal(second)


def test_an_unreadable_picture_is_an_error_of_its_own_request(
    talkative: Path, posts: list[Post], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    missing = tmp_path / "missing.png"
    requests = [request_of(posts[0]), *(request_of(replace(posts[1], image=path)) for path in (broken, missing))]
    teacher = LocalTeacher(str(talkative), max_new_tokens=4, batch_size=3, **ONE_BATCH)
    good, *bad = ask_all(teacher, requests)
    assert good == ask(teacher_of(talkative), requests[0])
    assert [type(error) for error in bad] == [InputError] * 2
    assert str(bad[0]).startswith(f"{broken}: it holds no JPEG")
    assert str(bad[1]).startswith(f"{missing}: there is no such picture")
    assert ask_all(LocalTeacher(str(talkative), batch_size=1), requests[1:2])[0].args == bad[0].args


def teacher_of(folder: Path, **settings: Any) -> LocalTeacher:
    return LocalTeacher(str(folder), max_new_tokens=4, batch_wait_ms=0.0, **settings)


def test_at_temperature_0_there_is_nothing_more_to_hear(talkative: Path, posts: list[Post]) -> None:
    for changes in ({"attempt": 1}, {"sample": 1}):
        with pytest.raises(TeacherSilentError, match="same reply"):
            ask(teacher_of(talkative), request_of(posts[0], **changes))


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def test_out_of_memory_says_what_to_lower(talkative: Path, posts: list[Post], monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = raising(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB"))
    for fail in (on_gpu, lambda *args: torch.empty(2**50)):  # the second one asks the allocator of the CPU in earnest
        monkeypatch.setattr(local_model_module, "decode_ids", fail)
        with pytest.raises(
            InputError, match=r"talkative: out of memory .*: lower .*batch_size, max_new_tokens"
        ) as error:
            ask(teacher_of(talkative), request_of(posts[0]))
        assert "\n" not in str(error.value)


def test_a_model_that_does_not_fit_is_an_input_error(
    talkative: Path, posts: list[Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_model_module, "load_model", raising(torch.OutOfMemoryError("20 GiB")))
    with pytest.raises(InputError, match="does not fit into the memory of cpu"):
        ask(teacher_of(talkative), request_of(posts[0]))


def test_other_errors_of_the_model_are_not_dressed_up(
    talkative: Path, posts: list[Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_model_module, "decode_ids", raising(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        ask(teacher_of(talkative), request_of(posts[0]))


def test_the_event_loop_runs_on_while_the_model_writes(
    talkative: Path, posts: list[Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def wait(*args: Any) -> list[list[int]]:
        writing.set()
        assert go_on.wait(60), "the loop stands still"
        return [[0]]

    monkeypatch.setattr(local_model_module, "decode_ids", wait)

    async def run() -> TeacherReply:
        teacher = teacher_of(talkative)
        reply = asyncio.create_task(teacher.complete(request_of(posts[0])))
        while not writing.is_set():
            await asyncio.sleep(0.005)
        go_on.set()
        try:
            return await reply
        finally:
            await teacher.close()

    assert asyncio.run(run()).completion_tokens == 1


def test_close_stops_in_the_middle_of_a_reply(
    talkative: Path, posts: list[Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that never ends a reply: without the stop this test would write ten million tokens."""
    writing = threading.Event()
    decode_ids = local_model_module.decode_ids

    def without_end(model: Any, prompts: Any, encoder: Any, most: int, sampler: Any, give_up: Any) -> Any:
        def begun() -> bool:
            writing.set()
            return give_up()

        encoder.end_of_turn = (len(encoder.tokenizer) + 1,)
        return decode_ids(model, prompts, encoder, 10_000_000, sampler, begun)

    monkeypatch.setattr(local_model_module, "decode_ids", without_end)

    async def run() -> None:
        teacher = teacher_of(talkative)
        reply = asyncio.create_task(teacher.complete(request_of(posts[0])))
        while not writing.is_set():
            await asyncio.sleep(0.005)
        await teacher.close()
        with pytest.raises(asyncio.CancelledError):
            await reply

    asyncio.run(run())


def test_it_answers_again_after_close(talkative: Path, posts: list[Post]) -> None:
    teacher = teacher_of(talkative)
    assert ask(teacher, request_of(posts[0])) == ask(teacher, request_of(posts[0]))


def test_name_and_parameters_follow_the_weights_not_the_place(talkative: Path, tmp_path: Path) -> None:
    moved = tmp_path / "stage" / "model"
    shutil.copytree(talkative, moved)
    before, copied = LocalTeacher(str(talkative)), LocalTeacher(str(moved))
    assert (before.name, copied.name) == ("talkative", "stage")
    assert LocalTeacher(str(moved), name="Big-72B").name == "Big-72B"
    assert before.parameters == copied.parameters
    assert before.parameters == LocalTeacher(str(moved), batch_size=2, device="cpu", attention="eager").parameters
    for changes in ({"max_new_tokens": 5}, {"temperature": 0.5}, {"dtype": "bfloat16"}, {"image_size": (56, 28)}):
        assert LocalTeacher(str(moved), **changes).parameters != before.parameters  # type: ignore[arg-type]
    with (moved / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert LocalTeacher(str(moved)).parameters != before.parameters


def test_pictures_are_shrunk_to_the_budget(talkative: Path, posts: list[Post]) -> None:
    whole, half, wide = (
        ask(teacher_of(talkative, **settings), request_of(posts[0])).prompt_tokens
        for settings in ({}, {"max_pixels": 28 * 28}, {"image_size": (28 * 6, 28)})
    )
    assert whole - half == 3, "56 x 56 pixels are 4 tokens, 28 x 28 are one"
    assert wide - whole == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "teacher.init_args.max_new_tokens: must be 1 or more, is 0"),
        ({"batch_size": 0}, "batch_size: must be 1 or more, is 0"),
        ({"temperature": -0.5}, "temperature: must be 0 or more, is -0.5"),
        ({"temperature": float("nan")}, "temperature: must be 0 or more, is nan"),
        ({"batch_wait_ms": float("inf")}, "batch_wait_ms: must be 0 or more, is inf"),
        ({"max_pixels": 1000, "image_size": (28, 28)}, "give only one"),
        ({"pretrained": "nobody/nothing"}, "nobody/nothing: no model could be loaded"),
    ],
)
def test_wrong_settings(talkative: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        LocalTeacher(**{"pretrained": str(talkative), **settings})
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="holds no model"):
        LocalTeacher(str(tmp_path))


def test_what_is_no_vision_language_model_is_refused(talkative: Path, posts: list[Post], tmp_path: Path) -> None:
    text_only = tmp_path / "text-only"
    tokenizer = load_processor(str(talkative)).tokenizer
    tokenizer.save_pretrained(text_only)
    config = json.loads((text_only / "tokenizer_config.json").read_text())
    del config["processor_class"]  # else it claims to belong to a model with pictures
    (text_only / "tokenizer_config.json").write_text(json.dumps(config))
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1
        )
    ).save_pretrained(text_only)
    mute = tmp_path / "mute"
    shutil.copytree(talkative, mute)
    (mute / "chat_template.jinja").unlink()
    odd = Path(shutil.copytree(talkative, tmp_path / "odd"))
    (odd / "config.json").write_text(json.dumps(json.loads((odd / "config.json").read_text()) | {"image_token_id": 9}))
    refused = {
        text_only: "takes no pictures",
        mute: "its chat template cannot be used",
        odd: "image_token_id is 9 in its config, and its processor's is",
    }
    for folder, message in refused.items():
        with pytest.raises(InputError, match=f"{folder.name}: .*{message}") as error:
            ask(teacher_of(folder), request_of(posts[0]))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["quantum", "cuda:999", "cuda:99"])
def test_a_device_that_is_not_there(talkative: Path, posts: list[Post], device: str) -> None:
    with pytest.raises(InputError, match=device) as error:
        ask(teacher_of(talkative, device=device), request_of(posts[0]))
    assert "\n" not in str(error.value)


def test_importing_the_teachers_imports_no_torch() -> None:
    code = "import sys, mulcot.teachers; print(sorted({'torch', 'transformers', 'openai'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_whole_stage_with_a_model_that_knows_nothing(embedded: Path) -> None:
    teacher = "--model.init_args.teacher.init_args"
    arguments = [
        *("predict", "--config", "teacher.yaml", "--config", "teachers/local.yaml", "--stage", "local"),
        *("--run_dir", str(embedded), "--trainer.enable_progress_bar", "false"),
        *(f"{teacher}.pretrained", str(embedded / "models" / "student"), f"{teacher}.max_new_tokens", "8"),
        *("--model.init_args.max_reasks", "1"),
    ]
    assert main(arguments) == 0
    metrics = json.loads((embedded / "local" / "metrics.json").read_text())["splits"]
    for split, count in (("train", 48), ("val", 12), ("test", 12)):
        assert metrics[split]["posts"] == sum(metrics[split]["failed"].values()) == count
        assert metrics[split]["requests"] == 2 * count
        assert (embedded / "local" / f"rationales-{split}.jsonl").read_text() == ""
        lines = (embedded / "local" / f"rejects-{split}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        rejects = [json.loads(line) for line in lines]
        assert len({reject["post_id"] for reject in rejects}) == count
        assert all(reject["reply"] for reject in rejects), "the raw replies are kept"
