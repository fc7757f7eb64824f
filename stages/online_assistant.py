"""The assistant beside the student: frozen, without gradient, in eval mode, and never in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mulcot.losses import Aligned, Projected, View
from mulcot.models import DType, Quantise, head_parts, head_rows, load_model, merged_if_exact
from mulcot.rows import Inputs, RowBatch
from mulcot.types import InputError


@dataclass(frozen=True, slots=True)
class Seen:
    """What the assistant sees of a batch's response tokens."""

    view: View | None
    """Its distribution over every next token."""
    layers: tuple[Tensor, ...]
    """Its hidden states `[tokens, hidden]` behind embedding and layers; the last one alone where nobody asked."""


class OnlineAssistant:
    """Holds the assistant's model outside the stage's modules: neither `.train()` nor a checkpoint reaches it.

    Args:
        given: the assistant: a finished stage, a folder, or a checkpoint.
        dtype: of its weights as loaded.
        attention: transformers' attention implementation.
        dropout: keeps it in training mode, as the published code does; right for nothing but a comparison with it.
        trust_remote_code: runs code that comes with the model.
        quantise: see `load_model`.
        compute: see `load_model`.
    """

    def __init__(
        self,
        given: str,
        dtype: DType = "float32",
        attention: str = "sdpa",
        dropout: bool = False,
        trust_remote_code: bool = False,
        quantise: Quantise | None = None,
        compute: DType = "float32",
    ) -> None:
        self.given = given
        self.rows: int | None = None
        """The ids that count: beyond them its head's rows stand for no token, or the student has none. None for all."""
        model = load_model(
            given,
            dtype=dtype,
            attention=attention,
            trust_remote_code=trust_remote_code,
            quantise=quantise,
            compute=compute,
        )
        if not dropout:
            model = merged_if_exact(model)
        self.model: nn.Module = model.requires_grad_(False).train(dropout)

    @property
    def head_rows(self) -> int:
        """Rows of its head."""
        return head_rows(self.model)

    def to(self, device: torch.device) -> None:
        """Moves it beside the student."""
        self.model.to(device)

    def inputs(self, rows: RowBatch) -> Inputs:
        """The student's rows as it reads them."""
        return rows.inputs if rows.assistant is None else rows.assistant.inputs

    @torch.no_grad()
    def see(self, rows: RowBatch, layers: Sequence[Tensor]) -> Seen:
        """What it sees of the response tokens.

        Args:
            rows: the student's rows; where the assistant reads other tokens, its own are with them.
            layers: its hidden states `[B, L, hidden]` for these rows, the last ones last.
        """
        own = rows.assistant
        positions = rows.positions if own is None else own.positions
        mine = tuple(layer.flatten(0, 1)[positions] for layer in layers)
        seen = self._projected(mine[-1])
        return Seen(seen if own is None or own.partner is None else Aligned(seen, own.partner), mine)

    @torch.no_grad()
    def see_positions(self, rows: RowBatch, positions: Tensor, layers: Sequence[Tensor]) -> Projected:
        """What it sees at any positions of the student's own rows.

        Args:
            rows: the student's rows.
            positions: indices into `B * L`.
            layers: see `see`.

        Raises:
            InputError: the assistant reads other tokens than the student.
        """
        if rows.assistant is not None:
            raise InputError(
                "model.init_args.published.kl_everywhere compares every position of a row, and the assistant reads "
                "other tokens than the student: take models of one family with equal processors, or switch it off"
            )
        return self._projected(layers[-1].flatten(0, 1)[positions])

    def _projected(self, hidden: Tensor) -> Projected:
        head = head_parts(self.model)
        return Projected(hidden, head.weight, head.bias, head.softcap, self.rows)
