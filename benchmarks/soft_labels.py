"""What a soft-label cache costs: bytes, reading, building; and with a real language model, what it leaves out.

    python -m benchmarks.soft_labels                     # a minute; V=151,936, rationales of 256 tokens
    python -m benchmarks.soft_labels --gguf SmolLM2-135M-Instruct.Q4_1.gguf --texts twitter15/val.json

Times are of the processor, so that a loaded machine does not lengthen them. The first tables are made of random logits;
the lines of the second command score real rationales (the field `cot` of the posts in `--texts`) with a language model
that transformers can load from one file, and say for each form what a build says: the probability kept, and the errors
of loss and gradient against the whole distribution.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from mulcot.rows import RowBatch, TextRow
from mulcot.soft_labels import SoftLabelCache, SoftLabelForm, prompt_digest
from mulcot.soft_labels.shards import check_hash
from mulcot.types import Post
from stages.soft_label_build import LOGITS_BYTES, SoftLabelBuild, build_line

VOCAB, HIDDEN = 151_936, 256
MIB = 2**20
FORMS = [SoftLabelForm.top_k(64, 2.0), SoftLabelForm.sampled(64, 2.0), SoftLabelForm.sampled(16, 2.0)]


class Picture:
    """The picture of a post that has none."""

    def read_bytes(self) -> bytes:
        """Nothing."""
        return b""


class Scorer(nn.Module):
    """A model as far as the build sees one: hidden states that are handed through, and a head.

    Args:
        weight: the head's, `[vocab, hidden]`.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.head.weight = nn.Parameter(weight, requires_grad=False)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(final_logit_softcapping=None))
        self.model = lambda hidden, use_cache: SimpleNamespace(last_hidden_state=hidden)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head


def batch_of(hidden: list[torch.Tensor], ids: list[list[int]], first: int) -> RowBatch:
    """Rows with these hidden states `[tokens, hidden]` and response tokens."""
    posts = [Post(f"post-{first + number:05d}", "", Picture()) for number in range(len(ids))]
    rows = tuple(TextRow(post, "reasoning", "", (), tuple(each)) for post, each in zip(posts, ids, strict=True))
    joined = torch.cat(hidden)
    positions = torch.arange(len(joined))
    return RowBatch(
        rows, {"hidden": joined.unsqueeze(0)}, positions, torch.tensor([token for each in ids for token in each])
    )


def random_batches(rows: int) -> tuple[Scorer, list[RowBatch]]:
    """Rationales of 256 tokens and classifications of 5, at Qwen's vocabulary, with logits of standard deviation 3."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator) * (3 / HIDDEN**0.5)
    batches = []
    for number in range(rows):
        hidden = [torch.randn(tokens, HIDDEN, generator=generator) for tokens in (256, 5)]
        batches.append(batch_of(hidden, [[number] * len(each) for each in hidden], 2 * number))
    return Scorer(weight), batches


def build(folder: Path, form: SoftLabelForm, model: Any, batches: list[RowBatch], rows: int) -> SoftLabelCache:
    """A finished cache."""
    made = SoftLabelBuild(folder, {}, form, rows, rank=0)
    for batch in batches:
        made.add(model, batch)
    made.writer.close()
    return SoftLabelCache(folder)


def reading(console: Console, rows: int) -> None:
    """The table of bytes and of reading."""
    model, batches = random_batches(rows)
    table = Table("form", "bytes/token", "build, ms/token", "open, ms", "µs/row of 256", "µs/row of 5", "µs/token")
    for form in FORMS:
        with TemporaryDirectory() as folder:
            began = time.process_time()
            build(Path(folder), form, model, batches, VOCAB)
            built = time.process_time() - began
            began = time.process_time()
            cache = SoftLabelCache(Path(folder))
            opened = time.process_time() - began
            wanted = [row for batch in batches for row in batch.rows] * 20
            random.Random(0).shuffle(wanted)
            spent: dict[int, list[float]] = {256: [], 5: []}
            for row in wanted:
                digest = prompt_digest(row)
                began = time.process_time()
                cache.get(row.post.id, row.task, row.response_ids, digest)
                spent[len(row.response_ids)].append((time.process_time() - began) * 1e6)
            long, short = (mean(spent[length]) for length in (256, 5))
            table.add_row(
                f"{form.kind} {form.k or form.draws}", f"{cache.bytes_per_token:.1f}",
                f"{built / cache.tokens * 1e3:.1f}", f"{opened * 1e3:.0f}", f"{long:.0f}", f"{short:.0f}",
                f"{long / 256:.2f}",
            )  # fmt: skip
    console.print(table)


def hashing(console: Console) -> None:
    """What opening costs for each 100 MB of a cache."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        path.write_bytes(random.Random(0).randbytes(100_000_000))
        began = time.process_time()
        try:
            check_hash(path, "")
        except ValueError:
            console.print(f"hashing 100 MB when a cache is opened: {(time.process_time() - began) * 1e3:.0f} ms")


def memory(console: Console) -> None:
    """The table of a build's peak memory for one batch of 1,024 tokens."""
    table = Table("logits at once", "peak extra MiB", "seconds", title="one batch of 1,024 tokens, top_k 64")
    for name, budget in (("all", 2**40), (f"{LOGITS_BYTES // MIB} MiB", LOGITS_BYTES)):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.soft_labels", "--peak", str(budget)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        table.add_row(name, *done.stdout.split())
    console.print(table)


def peak(budget: int) -> None:
    """Prints peak memory beyond the model, and seconds, of one batch in this process."""
    model, _ = random_batches(0)
    batch = batch_of([torch.randn(256, HIDDEN) for _ in range(4)], [[number] * 256 for number in range(4)], 0)
    with TemporaryDirectory() as folder:
        made = SoftLabelBuild(Path(folder), {}, FORMS[0], VOCAB, rank=0, logits_bytes=budget)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        made.add(model, batch)
        seconds = time.process_time() - began
    print(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f} {seconds:.1f}")


def real(console: Console, gguf: Path, texts: Path, posts: int) -> None:
    """The line of each form with a real language model."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    batches = []
    for number, post in enumerate(json.loads(texts.read_text(encoding="utf-8"))[:posts]):
        prompt = tokenizer(f"What is the sentiment of this post, and why? {post['text']}\n")["input_ids"]
        ids = tokenizer(post["cot"])["input_ids"]
        with torch.no_grad():
            hidden = model.model(torch.tensor([prompt + ids])).last_hidden_state[0, len(prompt) - 1 : -1]
        batches.append(batch_of([hidden], [ids], number))
    console.print(f"{gguf.name}, {posts} rationales of {texts}")
    scorer = Scorer(model.get_output_embeddings().weight.detach())
    for temperature in (1.0, 2.0, 4.0):
        for form in (SoftLabelForm.top_k(64, temperature), SoftLabelForm.sampled(64, temperature)):
            with TemporaryDirectory() as folder:
                cache = build(Path(folder), form, scorer, batches, scorer.head.out_features)
                console.print(f"{form.kind} 64: {build_line(cache)}", soft_wrap=True, highlight=False)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20, help="Posts of the random cache.")
    parser.add_argument("--gguf", type=Path, help="A language model in one file.")
    parser.add_argument("--texts", type=Path, help="Posts with rationales: a JSON list with `text` and `cot`.")
    parser.add_argument("--posts", type=int, default=100, help="How many of them.")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    console = Console()
    if given.peak:
        peak(given.peak)
    elif given.gguf:
        real(console, given.gguf, given.texts, given.posts)
    else:
        reading(console, given.rows)
        hashing(console)
        memory(console)


if __name__ == "__main__":
    main()
