"""The assistant's soft labels of everything that the student will learn, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from mulcot.manifests import digest
from mulcot.models import ModelSource, base_model, base_of, find_model, head, hidden_states
from mulcot.rows import MicroBatch, RowEncoder, TextRow
from mulcot.soft_labels import Check, SoftLabelCache, SoftLabelForm, SoftLabelWriter, prompt_digest, response_digest
from mulcot.types import InputError

LOGITS_BYTES: Final = 2**26
"""What the logits of one chunk of tokens take at most, in fp32; making views of them takes about four times that."""
CHECKED_EVERY: Final = 64
"""One token of so many is checked, and at least one of a response."""


def soft_label_fingerprint(assistant: str, encoder: RowEncoder) -> dict[str, str]:
    """What soft labels depend on beside prompts and response tokens, which are part of an entry's own key."""
    return {"assistant": _digest_of(find_model(assistant))} | encoder.fingerprint()


def _digest_of(source: ModelSource) -> str:
    """A digest of a model's weights: an adapter's with those of what it goes onto, a hub's model by its name."""
    weights = source.checkpoint or Path(source.name)
    own = digest(weights) if weights.exists() else source.name
    base = base_of(source)
    return own if base is None else hashlib.sha256(f"{own} on {_digest_of(base)}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Response:
    """A response of a batch."""

    row: TextRow
    prompt: str
    span: range
    """Its tokens among those of the batch."""
    is_known: bool
    """Whether the cache has it."""


class SoftLabelBuild:
    """Writes the assistant's view of every response token it is given.

    A few tokens of each response, chosen by the response alone, are checked against the assistant's whole distribution.

    Args:
        folder: where the cache goes.
        fingerprint: see `soft_label_fingerprint`.
        form: what is kept of each token.
        rows: rows of the assistant's head that soft labels are taken from.
        rank: which process this is.
        made_with: see `SoftLabelWriter`.
        logits_bytes: see `LOGITS_BYTES`.

    Raises:
        InputError: the form has more ids a token than there are rows, or the folder holds another build.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: dict[str, str],
        form: SoftLabelForm,
        rows: int,
        rank: int,
        made_with: Mapping[str, str] | None = None,
        logits_bytes: int = LOGITS_BYTES,
    ) -> None:
        if form.k is not None and form.k > rows:
            raise InputError(
                f"model.init_args.soft_label_k is {form.k} and the assistant has {rows} ids; give {rows} or less"
            )
        self.form = form
        self.rows = rows
        self.skipped = 0
        # A response is cut by this number alone: random numbers are drawn cut by cut, whatever batch it is in.
        self.chunk = max(1, logits_bytes // (4 * rows))
        self.writer = SoftLabelWriter(folder, fingerprint, form, vocab_rows=rows, rank=rank, made_with=made_with)

    @torch.no_grad()
    def add(self, model: nn.Module, batch: MicroBatch) -> None:
        """Scores the responses of a batch that an earlier, interrupted build has not scored.

        Raises:
            InputError: the assistant's logits are not numbers; the message names post and task.
        """
        seen: dict[int, Tensor] = {}  # tasks may share their inputs
        for rows in batch.tasks.values():
            responses = self._responses(rows.rows)
            known = sum(response.is_known for response in responses)
            self.skipped += known
            if known == len(responses):
                continue
            if id(rows.inputs) not in seen:
                seen[id(rows.inputs)] = hidden_states(model, rows.inputs).flatten(0, 1)
            self._score_all(model, seen[id(rows.inputs)][rows.positions], responses)

    def _score_all(self, model: nn.Module, hidden: Tensor, responses: Sequence[_Response]) -> None:
        """Scores what is not known of the responses of one task, from the hidden states of all their tokens."""
        # Groups do not depend on what is known: an interrupted build goes on to the very same numbers.
        for group in self._packed(responses):
            if not all(response.is_known for response in group):
                self._score(model, hidden, group)

    def _responses(self, rows: Sequence[TextRow]) -> list[_Response]:
        """The responses of a batch; one that it has twice is known the second time."""
        responses, start, seen = [], 0, set()
        for row in rows:
            stop, prompt = start + len(row.response_ids), prompt_digest(row)
            key = (row.post.id, row.response_ids, prompt)
            is_known = key in seen or self.writer.has(row.post.id, row.task, row.response_ids, prompt)
            responses.append(_Response(row, prompt, range(start, stop), is_known))
            seen.add(key)
            start = stop
        return responses

    def _packed(self, responses: Sequence[_Response]) -> Iterator[list[_Response]]:
        """Groups of neighbouring responses with at most `chunk` tokens, and longer ones alone."""
        group: list[_Response] = []
        for response in responses:
            if group and response.span.stop - group[0].span.start > self.chunk:
                yield group
                group = []
            group.append(response)
        if group:
            yield group

    def _score(self, model: nn.Module, hidden: Tensor, group: Sequence[_Response]) -> None:
        """Writes the views of a group of responses, one projection for as many tokens as the budget allows."""
        first, stop = group[0].span.start, group[-1].span.stop
        if len(group) == 1:
            starts = range(first, stop, self.chunk)
            logits = (self._logits(model, hidden[start : min(start + self.chunk, stop)]) for start in starts)
            self._write(group[0], logits)
            return
        parts = self._logits(model, hidden[first:stop]).split([len(response.span) for response in group])
        for response, part in zip(group, parts, strict=True):
            if not response.is_known:
                self._write(response, [part])

    def _logits(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """The assistant's logits `[tokens, rows]`."""
        logits = head(model)(hidden)[:, : self.rows]
        cap = getattr(base_model(model).config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * (logits / cap).tanh()

    def _write(self, response: _Response, pieces: Iterable[Tensor]) -> None:
        """Makes the view of one response from its logits, piece by piece, and hands it to the writer."""
        row = response.row
        name = response_digest(row.response_ids)
        chosen = _checked(name, len(row.response_ids))
        views, kept, start, generator = [], [], 0, None
        for logits in pieces:
            if not bool(logits.isfinite().all()):
                raise InputError(
                    f"post {row.post.id!r}, task {row.task}: the assistant's logits are not all numbers (NaN or "
                    "infinity); its weights are broken, or its precision is too low (model.init_args.dtype)"
                )
            generator = generator or self.form.generator(row.post.id, row.task, name, logits.device)
            views.append(self.form.view(logits, generator).to("cpu"))
            kept.append(logits[[position - start for position in chosen if start <= position < start + len(logits)]])
            start += len(logits)
        view: Any = type(views[0])
        check = Check(chosen, torch.cat(kept))
        self.writer.add(row.post.id, row.task, row.response_ids, view.cat(views), response.prompt, check)


def _checked(name: str, tokens: int) -> list[int]:
    """The tokens of a response that are checked, in order: one of each `CHECKED_EVERY`, chosen by its digest."""
    chosen = []
    for start in range(0, tokens, CHECKED_EVERY):
        draw = int.from_bytes(hashlib.sha256(f"{name}/{start}".encode()).digest()[:7])
        chosen.append(start + draw % min(CHECKED_EVERY, tokens - start))
    return chosen


def build_line(cache: SoftLabelCache) -> str:
    """What a finished cache costs and what it leaves out, in one line for a person."""
    found = cache.verification
    line = f"soft labels: {cache.tokens:,} tokens, {cache.bytes_per_token:.0f} bytes a token; T={cache.temperature:g}: "
    line += f"{cache.kept_mass:.2%} of the probability kept"
    if cache.kind == "top_k":
        line += f", {cache.rounding_error:.3%} moved by rounding"
    if not found["tokens"]:
        return line
    near, uniform = found["near"], found["uniform"]
    line += f"; against the whole distribution, on {found['tokens']:,} tokens and a near (uniform) student: KL "
    line += f"{near['loss_error']:+.1%} ({uniform['loss_error']:+.1%})"
    gradient = f"{near['gradient_error']:.1%} ({uniform['gradient_error']:.1%}) of its norm"
    if cache.kind == "top_k":
        return f"{line}, gradient off by {gradient}"
    error = f"{near['loss_standard_error']:.1%} ({uniform['loss_standard_error']:.1%})"
    return f"{line} with a standard error of {error}, a token's gradient scattered by {gradient}"
