"""The soft-label cache: what is read is what was written, whatever happened in between."""

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mulcot.losses import TopK, forward_kl
from mulcot.soft_labels import MANIFEST, SoftLabelCache, SoftLabelForm, SoftLabelWriter
from mulcot.types import TASKS, InputError, MissingInputError, Task

FINGERPRINT = {"assistant": "a1", "template": "t1"}
VOCAB, K = 50, 8
TOP_K = SoftLabelForm.top_k(K, 2.0)
Response = tuple[str, Task, list[int], TopK]


def make_logits(seed: int, tokens: int, vocab: int = VOCAB, scale: float = 3.0) -> Tensor:
    return torch.randn(tokens, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def make_responses(posts: int, tokens: int = 7, k: int = K) -> list[Response]:
    """Two responses a post and task: the same post id and task, other token ids."""
    return [
        (f"post-{post}", task, list(range(variant, variant + tokens)), view)
        for post in range(posts)
        for number, task in enumerate(TASKS)
        for variant in range(2)
        for view in [TopK.from_logits(make_logits(4 * post + 2 * number + variant, tokens), k, 2.0)]
    ]


def make_writer(folder: Path, shard_tokens: int = 20, rank: int = 0) -> SoftLabelWriter:
    return SoftLabelWriter(folder, FINGERPRINT, TOP_K, shard_tokens, vocab_rows=VOCAB, rank=rank)


def write(folder: Path, responses: list[Response]) -> SoftLabelCache:
    writer = make_writer(folder)
    for response in responses:
        writer.add(*response)
    writer.close()
    return SoftLabelCache(folder, FINGERPRINT)


def same(a: TopK, b: TopK) -> bool:
    names = ("ids", "log_probs", "log_tail", "log_z")
    return a.temperature == b.temperature and all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


def test_reads_what_was_written_and_keeps_rationales_of_a_post_apart(tmp_path: Path) -> None:
    responses = make_responses(5)
    cache = write(tmp_path, responses)
    assert len(cache) == len(responses) == 20
    assert (cache.k, cache.temperature, cache.vocab_rows, cache.tokens) == (K, 2.0, VOCAB, 140)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for post_id, task, ids, view in responses:
        got = cache.get(post_id, task, ids)
        assert got.ids.dtype == torch.int64
        assert got.log_probs.dtype == torch.float32
        assert torch.equal(got.ids, view.ids)
        torch.testing.assert_close(got.log_probs, view.log_probs, atol=1e-6, rtol=2**-11)
        torch.testing.assert_close(got.log_tail, view.log_tail, atol=1e-6, rtol=2**-11)
        torch.testing.assert_close(got.log_z, view.log_z, atol=2e-3, rtol=0)


def test_an_abandoned_build_resumes_to_the_same_content(tmp_path: Path) -> None:
    responses = make_responses(5)
    whole = write(tmp_path / "whole", responses)
    abandoned = make_writer(tmp_path / "resumed")
    for response in responses[:11]:
        abandoned.add(*response)
    del abandoned  # killed: what waits for its shard is lost, what is committed stays
    with pytest.raises(MissingInputError):
        SoftLabelCache(tmp_path / "resumed")
    second = make_writer(tmp_path / "resumed")
    missing = [response for response in responses if not second.has(*response[:3])]
    assert 9 < len(missing) < 20
    for response in missing:
        second.add(*response)
    second.close()
    resumed = SoftLabelCache(tmp_path / "resumed", FINGERPRINT)
    assert (len(resumed), resumed.tokens) == (len(whole), whole.tokens)
    for post_id, task, ids, _ in responses:
        assert same(resumed.get(post_id, task, ids), whole.get(post_id, task, ids))


def test_a_shard_without_index_counts_as_unwritten(tmp_path: Path) -> None:
    responses = make_responses(3)
    write(tmp_path, responses)
    (tmp_path / "shard-r000-00001.json").unlink()
    (tmp_path / MANIFEST).unlink()
    cache = write(tmp_path, responses)
    assert (len(cache), cache.tokens) == (12, 84)


def test_a_known_response_is_passed_over(tmp_path: Path) -> None:
    responses = make_responses(2)
    assert write(tmp_path, responses + responses).tokens == 56
    assert write(tmp_path, responses).tokens == 56


def test_ranks_share_a_folder_and_rank_zero_closes(tmp_path: Path) -> None:
    responses = make_responses(4)
    writers = [make_writer(tmp_path, rank=rank) for rank in range(2)]
    for number, response in enumerate(responses):
        writers[number % 2].add(*response)
    writers[1].close()
    assert not (tmp_path / MANIFEST).exists()
    writers[0].close()
    cache = SoftLabelCache(tmp_path)
    for post_id, task, ids, view in responses:
        assert torch.equal(cache.get(post_id, task, ids).ids, view.ids)


def test_a_stale_cache_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, make_responses(1))
    with pytest.raises(InputError, match="stale: assistant is 'a1' in the cache and 'a2' here; make") as caught:
        SoftLabelCache(tmp_path, {"assistant": "a2", "template": "t1"})
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"image is None in the cache and 'i' here, template is 't1' .* and 't2' here"):
        SoftLabelCache(tmp_path, {"assistant": "a1", "template": "t2", "image": "i"})
    with pytest.raises(
        InputError, match=r"begun with other settings: fingerprint\.template is 't1'.*, k is 8.* 9 here"
    ):
        SoftLabelWriter(tmp_path, {"assistant": "a1", "template": "t2"}, SoftLabelForm.top_k(9, 2.0), vocab_rows=VOCAB)


def test_a_prompt_that_changed_makes_its_soft_labels_stale(tmp_path: Path) -> None:
    """The post's id and its response are the same, its text or picture is another."""
    (post_id, task, ids, view), *_ = make_responses(1)
    writer = make_writer(tmp_path)
    writer.add(post_id, task, ids, view, "prompt-1")
    writer.close()
    assert writer.has(post_id, task, ids, "prompt-1")
    assert not writer.has(post_id, task, ids, "prompt-2")
    cache = SoftLabelCache(tmp_path)
    assert same(cache.get(post_id, task, ids, "prompt-1"), next(iter(cache.items()))[1])
    with pytest.raises(InputError, match=r"post 'post-0', task reasoning.*another text, aspect or picture .* stale"):
        cache.get(post_id, task, ids, "prompt-2")


@pytest.mark.parametrize("changed", ["kind", "temperature", "draws", "seed", "vocab_rows", "made_with.dtype"])
def test_a_build_is_not_gone_on_with_under_other_settings(tmp_path: Path, changed: str) -> None:
    form, rows, made_with = SoftLabelForm.sampled(4, 2.0), VOCAB, {"dtype": "float32"}
    writer = SoftLabelWriter(tmp_path, FINGERPRINT, form, vocab_rows=rows, made_with=made_with)
    writer.add("p", "reasoning", [1, 2], form.view(make_logits(0, 2), torch.Generator()))
    writer.flush()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    if changed == "vocab_rows":
        rows = VOCAB - 1
    elif changed == "made_with.dtype":
        made_with = {"dtype": "bfloat16"}
    elif changed == "kind":
        form = SoftLabelForm.top_k(4, 2.0)
    else:
        form = replace(form, **{changed: 7})
    with pytest.raises(InputError, match=rf"{changed} is .* in the cache and .* here.*--fresh"):
        SoftLabelWriter(tmp_path, FINGERPRINT, form, vocab_rows=rows, made_with=made_with)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_cache_of_an_earlier_version_is_neither_read_nor_gone_on_with(tmp_path: Path) -> None:
    """Format 1 as it was: settings without a format, a list of four for each response."""
    write(tmp_path, make_responses(1))
    path = tmp_path / "shard-r000-00000.json"
    index = json.loads(path.read_text())
    index["settings"] = {"k": K, "temperature": 2.0, "vocab_rows": VOCAB, "fingerprint": FINGERPRINT}
    index["entries"] = [[*entry[:3], entry[4]] for entry in index["entries"]]
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"with other settings: .*format is None in the cache and 2 here.*--fresh"):
        make_writer(tmp_path)


def test_a_missing_cache_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"mulcot predict --config soft_labels\.yaml"):
        SoftLabelCache(tmp_path / "nowhere")


def test_a_missing_response_is_named(tmp_path: Path) -> None:
    cache = write(tmp_path, make_responses(1))
    with pytest.raises(InputError, match="'post-9', task reasoning"):
        cache.get("post-9", "reasoning", [1, 2])
    with pytest.raises(InputError, match="'post-0', task reasoning"):
        cache.get("post-0", "reasoning", [5, 5, 5, 5, 5, 5, 5])


def truncate(data: bytes) -> bytes:
    return data[:-10]


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("damage", [truncate, flip])
@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_damaged_shard_is_named_and_can_be_made_again(
    tmp_path: Path, damage: Callable[[bytes], bytes], suffix: str
) -> None:
    responses = make_responses(5)
    write(tmp_path, responses)
    path = tmp_path / f"shard-r000-00001.{suffix}"
    path.write_bytes(damage(path.read_bytes()))

    def read_all() -> int:
        cache = SoftLabelCache(tmp_path, FINGERPRINT)
        return sum(len(cache.get(*response[:3])) for response in responses)

    with pytest.raises(InputError, match=r"shard-r000-00001\..* is damaged.*delete it with its \.json"):
        read_all()
    for each in tmp_path.glob("shard-r000-00001.*"):
        each.unlink()
    with pytest.raises(InputError, match="shard-r000-00001"):
        read_all()
    write(tmp_path, responses)
    assert read_all() == 140


def test_a_truncated_shard_is_met_when_the_cache_is_opened_or_the_build_resumed(tmp_path: Path) -> None:
    write(tmp_path, make_responses(3))
    path = tmp_path / "shard-r000-00000.safetensors"
    path.write_bytes(truncate(path.read_bytes()))
    for reopen in (SoftLabelCache, make_writer):
        with pytest.raises(InputError, match=r"shard-r000-00000\.safetensors: the shard is damaged"):
            reopen(tmp_path)


def test_damaged_or_foreign_manifests_are_refused(tmp_path: Path) -> None:
    write(tmp_path, make_responses(1))
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["shards"][0]["name"] = "../elsewhere"
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"'\.\./elsewhere' is not the name of a shard"):
        SoftLabelCache(tmp_path)
    for number, whose in ((1, "an earlier"), (3, "another")):
        (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "format": number}))
        with pytest.raises(InputError, match=f"format {number} is not known.*: {whose} version.*make it anew with"):
            SoftLabelCache(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(InputError, match=r"soft_labels\.json: the file is damaged"):
        SoftLabelCache(tmp_path)


def test_a_cache_that_is_in_use_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    responses = make_responses(2)
    cache = write(tmp_path, responses)
    first = cache.get(*responses[0][:3])
    there = pickle.loads(pickle.dumps(cache))
    assert same(there.get(*responses[0][:3]), first)


def test_what_a_cache_says_of_itself_is_read_from_its_manifest_alone(tmp_path: Path) -> None:
    write(tmp_path, make_responses(1))
    for path in tmp_path.glob("shard-*"):
        path.unlink()
    about = SoftLabelCache.describe(tmp_path)
    assert (about.kind, about.k, about.temperature, about.vocab_rows) == ("top_k", K, 2.0, VOCAB)
    assert (about.fingerprint, about.tokens, about.form) == (FINGERPRINT, 28, TOP_K)
    with pytest.raises(MissingInputError, match="no finished soft-label cache"):
        SoftLabelCache.describe(tmp_path / "nowhere")


def test_views_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    view = TopK.from_logits(make_logits(0, 3), K, 2.0)
    bad = TopK(view.ids, view.log_probs * math.nan, view.log_tail, view.log_z, 2.0)
    wide = TopK.from_logits(make_logits(0, 3, vocab=VOCAB * 4), K, 2.0)
    for ids, given, message in [
        ([1, 2], view, r"\('top_k', 3, 8, 2\.0\), expected \('top_k', 2, 8, 2\.0\)"),
        ([1, 2, 3], TopK.from_logits(make_logits(0, 3), K, 1.0), r"\('top_k', 3, 8, 1\.0\)"),
        ([1, 2, 3], bad, "NaN"),
        ([1, 2, 3], wide, "50 vocabulary rows"),
        ([], view[:0], "no token"),
    ]:
        with pytest.raises(InputError, match=f"post 'p', task reasoning: .*{message}"):
            writer.add("p", "reasoning", ids, given)
        assert not writer.has("p", "reasoning", ids)


def test_a_token_takes_less_than_400_bytes(tmp_path: Path) -> None:
    """With Qwen's vocabulary and the lengths of Twitter-2015: 256 tokens of reasoning, 5 of classification."""
    vocab, k = 151_936, 64
    writer = SoftLabelWriter(tmp_path, FINGERPRINT, SoftLabelForm.top_k(k, 2.0), 4_000, vocab_rows=vocab)
    one = TopK.from_logits(make_logits(0, 1, vocab=vocab), k, 2.0)
    for post in range(40):
        for task, tokens in zip(TASKS, (256, 5), strict=True):
            writer.add(f"twitter2015-train-{post:05d}", task, [post] * tokens, TopK.cat([one] * tokens))
    writer.close()
    cache = SoftLabelCache(tmp_path)
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert cache.bytes_per_token == on_disk / (40 * 261)
    assert 390 < cache.bytes_per_token < 400
    assert torch.equal(cache.get("twitter2015-train-00039", "classification", [39] * 5)[4:].ids, one.ids)


def stored(folder: Path, view: TopK, vocab: int) -> tuple[TopK, float]:
    writer = SoftLabelWriter(folder, {}, SoftLabelForm.top_k(view.k, view.temperature), vocab_rows=vocab)
    ids = list(range(len(view)))
    writer.add("p", "reasoning", ids, view)
    writer.close()
    cache = SoftLabelCache(folder)
    return cache.get("p", "reasoning", ids), cache.rounding_error


def relative_error(found: Tensor, right: Tensor) -> float:
    return float((found - right).abs().mean() / right.mean())


@pytest.mark.parametrize(("scale", "share"), [(1.0, 0.087), (3.0, 0.357), (10.0, 0.982)])
def test_rounding_costs_less_than_one_percent_of_the_kl(
    tmp_path: Path, scale: float, share: float, record_property: Callable[[str, object], None]
) -> None:
    """From nearly flat to nearly certain assistants, a student near them, T=2: the cache against the dense KL.

    Errors are per token, so that signs do not cancel. `share` is what 64 ids and a tail see of the dense KL, measured:
    nearly all of it where the assistant is sure, little where it is nearly uniform, as no language model is.
    """
    vocab, tokens, temperature = 2_000, 100, 2.0
    assistant = make_logits(0, tokens, vocab, scale)
    student = assistant + make_logits(1, tokens, vocab, 0.3 * scale**0.5)
    p = (assistant.double() / temperature).softmax(-1)
    dense = (p * (p.log() - (student.double() / temperature).log_softmax(-1))).sum(-1)

    everything, moved = stored(tmp_path / "all", TopK.from_logits(assistant, vocab, temperature), vocab)
    error = relative_error(forward_kl(student, everything, temperature), dense)
    kept = TopK.from_logits(assistant, 64, temperature)
    exact_64 = forward_kl(student, kept, temperature)
    cached_64 = forward_kl(student, stored(tmp_path / "64", kept, vocab)[0], temperature)
    error_64 = relative_error(cached_64, exact_64)
    seen = float(exact_64.sum() / dense.sum())
    for name, value in {
        "KL": float(dense.mean()),
        "relative error, k=V": error,
        "relative error, k=64, of rounding": error_64,
        "share of the KL that k=64 sees": seen,
        "probability moved by rounding": moved,
    }.items():
        record_property(name, value)
        print(f"scale {scale:g}: {name} {value:.2e}")
    assert error < 0.01
    assert error_64 < 0.01
    assert 0 < moved < 0.0005
    assert seen == pytest.approx(share, rel=0.05)


def test_a_small_tail_survives_the_rounding_of_large_probabilities(tmp_path: Path) -> None:
    """Rounding moves about 1e-3 of the mass of these even probabilities, ten times the tail at T=2."""
    logits = torch.full((1, VOCAB), -18.0)
    logits[0, :K] = torch.linspace(0, 0.7, K)
    exact = TopK.from_logits(logits.double(), K, 2.0)
    view, _ = stored(tmp_path, exact, VOCAB)
    _, log_tail = view.at(2.0)
    tail = (logits.double() / 2).softmax(-1)[0, K:].sum()
    assert 1e-4 < tail < 1e-3
    assert log_tail.exp().item() == pytest.approx(float(tail), rel=5e-3)


@pytest.mark.parametrize("k", [3, VOCAB])
def test_extreme_log_probabilities_are_clipped_not_lost(tmp_path: Path, k: int) -> None:
    logits = torch.full((2, VOCAB), -1e6)
    logits[:, 7] = 0.0
    view, _ = stored(tmp_path, TopK.from_logits(logits, k, 2.0), VOCAB)
    assert view.log_probs.isfinite().all()
    assert (view.log_tail == -math.inf).all() == (k == VOCAB)
    student = make_logits(0, 2).requires_grad_()
    loss = forward_kl(student, view, 2.0)
    golden = -(student.detach() / 2).log_softmax(-1)[:, 7]
    torch.testing.assert_close(loss.detach(), golden, atol=1e-5, rtol=1e-5)
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
