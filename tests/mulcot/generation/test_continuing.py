from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from data_modules.collate import QuestionSet
from data_modules.encoded import EncodedPosts
from mulcot.generation import (
    ReplyWriter,
    SeededSampler,
    decode_ids,
    label_probabilities,
    read,
    row_cache,
)
from mulcot.models import SHARED_MODELS, base_model, logits, row_form, turned_head
from mulcot.rows import QuestionBatch, RowCollator, RowEncoder, RowForm
from mulcot.types import DEFAULT_LABELS, TASKS, Post

MOST = 24
PAIRED = RowForm("paired")


class Asked:
    """A model of an architecture, and questions to it."""

    def __init__(self, processor: Any, model: Any, posts: Sequence[Post]) -> None:
        self.model = model
        self.encoder = RowEncoder(processor, DEFAULT_LABELS)
        self.encoded = EncodedPosts.encode(posts, self.encoder, TASKS)

    def batch(self, posts: Sequence[int], form: RowForm | None = None) -> QuestionBatch:
        collator = RowCollator(self.encoder, form=form or row_form(self.model))
        return QuestionSet([posts], self.encoded, collator, TASKS, {})[0]

    def generated(self, post: int, *processors: LogitsProcessor, most: int = MOST) -> list[int]:
        """What transformers' `generate` writes to one prompt alone."""
        inputs = self.batch([post], PAIRED).prompts.inputs
        written = base_model(self.model).generate(
            **inputs,
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=self.encoder.end_of_turn[-1],
            pad_token_id=self.encoder.pad_id,
            logits_processor=LogitsProcessorList(processors),
        )
        return self.encoder.until_end(written[0, inputs["input_ids"].shape[1] :].tolist())


class NoEnd(LogitsProcessor):
    """Keeps a reply from ending."""

    def __init__(self, encoder: RowEncoder) -> None:
        self.ends = [encoder.pad_id, encoder.end_of_turn[-1]]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self.ends] = -torch.inf
        return scores


class EndAt:
    """Ends each reply with so many tokens."""

    def __init__(self, encoder: RowEncoder, lengths: Sequence[int]) -> None:
        self.encoder, self.left = encoder, list(lengths)

    def __call__(self, scores: Tensor, replies: Sequence[int]) -> Tensor:
        scores[:, [self.encoder.pad_id, self.encoder.end_of_turn[-1]]] = -torch.inf
        for row, reply in enumerate(replies):
            self.left[reply] -= 1
            if not self.left[reply]:
                scores[row, self.encoder.end_of_turn[-1]] = torch.inf
        return scores


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> list[Post]:
    """Six posts with prompts of different lengths; the first and the last have one picture."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        pixels = torch.randint(0, 255, (60, 40 + 10 * number, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    texts = [(number, "an owl " * (2 * number + 1)) for number in range(5)] + [(0, "negative")]
    return [Post(str(index), text, folder / f"{image}.png") for index, (image, text) in enumerate(texts)]


@pytest.fixture(scope="module", params=SHARED_MODELS)
def asked(request: pytest.FixtureRequest, architectures: ModuleType, posts: list[Post]) -> Asked:
    return Asked(*architectures.build(request.param), posts)


@pytest.fixture(scope="module")
def qwen(architectures: ModuleType, posts: list[Post]) -> Asked:
    return Asked(*architectures.build("qwen2_5_vl"), posts)


def test_greedy_tokens_are_those_of_generate(asked: Asked) -> None:
    written = decode_ids(asked.model, asked.batch(range(6)).prompts, asked.encoder, MOST)
    assert written == [asked.generated(post) for post in range(6)]
    assert len({tuple(ids) for ids in written}) > 1


def test_rows_that_finish_at_different_times_do_not_disturb_the_others(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_cache, "BLOCK", 3)  # buffers are made anew often
    lengths = [3, 1, 17, 9, 5, 24, 2, 24, 1, 1, 7, 12]
    ending = EndAt(asked.encoder, lengths)
    written = decode_ids(asked.model, asked.batch(range(6)).prompts, asked.encoder, MOST, ending, copies=2)
    alone = [asked.generated(post, NoEnd(asked.encoder)) for post in range(6)]
    end = asked.encoder.end_of_turn[-1]
    assert written == [[*alone[number % 6][: length - 1], end] for number, length in enumerate(lengths)]


def test_a_batch_is_filled_up_with_the_next(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_cache, "BLOCK", 5)
    lengths = [[4, 20], [9, 2], [1, 3]]
    writer = ReplyWriter(asked.model, asked.encoder, MOST)
    batches = [[1, 5], [0, 4], [3, 2]]  # of short and long prompts in turns
    replies = [
        writer.add(asked.batch(batch).prompts, EndAt(asked.encoder, length))
        for batch, length in zip(batches, lengths, strict=True)
    ]
    assert [each.unfinished for each in replies] == [1, 0, 1]  # when the last one has a row, two are being written
    writer.finish()
    end = asked.encoder.end_of_turn[-1]
    for batch, length, each in zip(batches, lengths, replies, strict=True):
        alone = [asked.generated(post, NoEnd(asked.encoder)) for post in batch]
        assert each.ids == [[*ids[: count - 1], end] for ids, count in zip(alone, length, strict=True)]


def test_samples_depend_on_their_seeds_alone(asked: Asked) -> None:
    together = asked.batch(range(6)).prompts
    written = decode_ids(asked.model, together, asked.encoder, MOST, SeededSampler(range(12), 0.7), copies=2)
    assert len({tuple(ids) for ids in written}) >= 10  # two that end at once are the same
    for number, ids in enumerate(written):
        alone = asked.batch([number % 6]).prompts
        assert decode_ids(asked.model, alone, asked.encoder, MOST, SeededSampler([number], 0.7)) == [ids]
    paired = asked.batch(range(6), PAIRED).prompts
    assert decode_ids(asked.model, paired, asked.encoder, MOST, SeededSampler(range(12), 0.7), copies=2) == written


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 9.0},
        {"suppress_tokens": list(range(40, 200))},
        {"min_new_tokens": 10**6},
        {"prompt_lookup_num_tokens": 5},
    ],
)
def test_settings_of_a_model_change_no_reply(asked: Asked, settings: dict[str, Any]) -> None:
    paired = asked.batch(range(3), PAIRED).prompts
    model = base_model(asked.model)
    expected, kept = decode_ids(asked.model, paired, asked.encoder, MOST), model.generation_config
    model.generation_config = GenerationConfig(**settings)
    try:
        assert decode_ids(asked.model, paired, asked.encoder, MOST) == expected
        assert model.generation_config.to_diff_dict().items() >= settings.items()
    finally:
        model.generation_config = kept


def test_label_probabilities_are_those_of_rows_apart(asked: Asked) -> None:
    shared, paired = asked.batch(range(6)), asked.batch(range(6), PAIRED)
    assert shared.prompts.inputs is shared.candidates.inputs
    mine = label_probabilities(asked.model, shared.candidates, 3, read(asked.model, shared.candidates.inputs))
    assert mine.sum(dim=-1).tolist() == pytest.approx([1.0] * 6)
    assert mine.max() - mine.min() > 0.05
    apart = label_probabilities(asked.model, paired.candidates, 3)
    assert float((mine - apart).abs().max()) < 1e-5


def test_rows_have_as_many_tokens_as_apart(asked: Asked) -> None:
    shared, paired = asked.batch(range(6)), asked.batch(range(6), PAIRED)
    expected = asked.encoded.lengths("reasoning").tolist()
    assert shared.prompts.path_lengths() == paired.prompts.path_lengths() == expected


def test_eager_attention_writes_the_same(architectures: ModuleType, posts: list[Post], qwen: Asked) -> None:
    eager = Asked(*architectures.build("qwen2_5_vl"), posts)
    eager.model.set_attn_implementation("eager")
    written = decode_ids(eager.model, eager.batch(range(6)).prompts, eager.encoder, MOST)
    assert written == decode_ids(qwen.model, qwen.batch(range(6)).prompts, qwen.encoder, MOST)


def test_an_adapter_takes_part(architectures: ModuleType, posts: list[Post], qwen: Asked) -> None:
    processor, model = architectures.build("qwen2_5_vl")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        adapted = Asked(processor, get_peft_model(model, settings).eval(), posts)
    written = decode_ids(adapted.model, adapted.batch(range(6)).prompts, adapted.encoder, MOST)
    assert written == [adapted.generated(post) for post in range(6)]
    assert written != decode_ids(qwen.model, qwen.batch(range(6)).prompts, qwen.encoder, MOST)


def test_no_pass_more_than_needed(qwen: Asked) -> None:
    widths: list[tuple[int, int]] = []
    decoder = qwen.model.get_decoder()

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
        widths.append(tuple(given.shape[:2]))

    hook = decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        batch = qwen.batch([0, 1, 2])
        ending = EndAt(qwen.encoder, [1, 4, 2, 3, 1, 1])
        decode_ids(qwen.model, batch.prompts, qwen.encoder, MOST, ending, copies=2)
    finally:
        hook.remove()
    assert widths[0] == (3, batch.prompts.inputs["input_ids"].shape[1])
    # Replies of 1, 4 and 2 tokens; the first one's place goes to one of 3, the third one's to two of 1.
    assert widths[1:] == [(2, 1), (2, 1), (2, 1)]


def test_all_replies_end_where_they_are_when_told_to(qwen: Asked) -> None:
    calls: list[None] = []

    def third() -> bool:
        calls.append(None)
        return len(calls) == 3

    none = NoEnd(qwen.encoder)
    written = decode_ids(
        qwen.model, qwen.batch([0, 1]).prompts, qwen.encoder, MOST, lambda scores, _: none(scores, scores), third
    )
    assert [len(ids) for ids in written] == [3, 3]
    assert len(calls) == 3


def test_a_soft_cap_is_part_of_the_logits(qwen: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    plain = logits(qwen.model, hidden)
    batch = qwen.batch([0])
    before = label_probabilities(qwen.model, batch.candidates, 3)
    monkeypatch.setattr(qwen.model.config.get_text_config(), "final_logit_softcapping", 2.0, raising=False)
    assert torch.allclose(logits(qwen.model, hidden), 2 * torch.tanh(plain / 2))
    assert float((label_probabilities(qwen.model, batch.candidates, 3) - before).abs().max()) > 1e-3


def test_under_autocast_keys_and_values_are_kept_as_attention_takes_them(qwen: Asked) -> None:
    batch = qwen.batch(range(6))
    exact = label_probabilities(qwen.model, batch.candidates, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        reading = read(qwen.model, batch.candidates.inputs)
        rounded = label_probabilities(qwen.model, batch.candidates, 3, reading)
        written = decode_ids(qwen.model, batch.prompts, qwen.encoder, MOST, reading=reading)
        alone = [decode_ids(qwen.model, qwen.batch([post]).prompts, qwen.encoder, MOST)[0] for post in range(6)]
    assert float((rounded - exact).abs().max()) < 0.05
    assert sum(mine[:4] == other[:4] for mine, other in zip(written, alone, strict=True)) >= 4  # up to rounding


def test_a_cache_gives_views_of_what_its_rows_need() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 1, 6, 4, generator=generator) for _ in range(2))
    cache = row_cache.RowCache()
    lines, columns = torch.tensor([0, 1, 0]), torch.tensor([[0, 1, 2, 4, 5], [0, 0, 0, 1, 3], [0, 0, 0, 0, 5]])
    cache.admit([(keys, values)], lines, columns, [5, 2, 1], 3)
    assert cache.keep([1, 2]) == [2, 1]  # the last row stands where the first was
    cache.make_room(0)
    new = torch.randn(2, 1, 1, 4, generator=generator)
    seen_keys, seen_values = cache.cache.update(new, -new, 0)
    assert seen_keys.shape == (2, 1, 3, 4)  # the five columns of the longest row are no longer there
    assert seen_keys[1, 0].equal(torch.stack([keys[1, 0, 1], keys[1, 0, 3], new[1, 0, 0]]))
    assert seen_values[0, 0, 1:].equal(torch.stack([values[0, 0, 5], -new[0, 0, 0]]))
    mask = cache.seen(torch.device("cpu"))
    assert mask is not None
    assert mask.tolist() == [[False, True, True], [True, True, True]]
    cache.advance()
    again, _ = cache.cache.update(new, new, 0)
    assert again.untyped_storage().data_ptr() == seen_keys.untyped_storage().data_ptr()
    assert cache.lengths == [2, 3]


def test_of_what_was_read_nothing_is_kept_when_all_rows_have_begun(qwen: Asked) -> None:
    batch = qwen.batch([0, 1])
    reading = read(qwen.model, batch.prompts.inputs)
    writer = ReplyWriter(qwen.model, qwen.encoder, 3)
    replies: Any = writer.add(batch.prompts, reading=reading)
    assert reading.cache.layers == []
    assert replies.states.kept == []
    writer.finish()
    assert replies.states is None


def test_an_encoder_that_ends_with_padding_ends_replies_with_it(qwen: Asked) -> None:
    pad = qwen.encoder.pad_id
    ending = EndAt(SimpleNamespace(pad_id=qwen.encoder.end_of_turn[-1], end_of_turn=(pad,)), [2])  # type: ignore[arg-type]
    [written] = decode_ids(qwen.model, qwen.batch([0]).prompts, qwen.encoder, MOST, ending)
    assert (len(written), written[-1]) == (2, pad)


def test_a_turned_head_gives_the_same_logits_and_is_left_alone_elsewhere(qwen: Asked) -> None:
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    turned = turned_head(qwen.model)
    assert turned is not None
    assert torch.allclose(logits(qwen.model, hidden, turned), logits(qwen.model, hidden), atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert turned_head(qwen.model) is None
