"""What the published training code computes otherwise than the paper's formula says, each quirk its own switch.

The quirks are for comparisons with the paper's numbers; none of them is on unless asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mulcot.losses import Dense, View
from mulcot.rows import RowBatch
from mulcot.types import InputError


@dataclass
class PublishedQuirks:
    """The quirks of the published student's step; `published: true` switches all of them on."""

    kl_everywhere: bool = False
    """KL over every position whose label is not token 0: prompt, picture and padding among them, and unshifted."""
    no_temperature_scale: bool = False
    """No factor T²: at T=2 the soft gradient is a quarter of what the weight says."""
    kl_in_bf16: bool = False
    """The KL in bfloat16, whatever the precision of the run."""
    batch_mean: bool = False
    """Each micro-batch's own mean, and micro-batches summed, instead of the mean over the step's response tokens."""
    assistant_dropout: bool = False
    """The assistant stays in training mode: its adapter's dropout perturbs every soft label."""
    vision_lora: bool = False
    """The adapter also on the layers of the vision tower that have the same names: its MLPs."""
    resized_heads: bool = False
    """The student's embeddings and head get as many rows as the assistant's: further random rows in its softmax."""
    pad_end: bool = False
    """The pad token ends a target instead of the chat template's end of turn."""

    @classmethod
    def of(cls, given: bool | PublishedQuirks) -> PublishedQuirks:
        """All of them, none, or the given ones."""
        if isinstance(given, PublishedQuirks):
            return given
        return cls(**{field.name: given for field in fields(cls)})

    def check(self, online: bool, has_lora: bool) -> None:
        """Refuses quirks that this run cannot show.

        Args:
            online: whether the assistant runs beside the student.
            has_lora: whether the student trains an adapter.
        """
        for name in ("kl_everywhere", "kl_in_bf16", "assistant_dropout", "resized_heads", "pad_end"):
            if getattr(self, name) and not online:
                raise InputError(
                    f"model.init_args.published.{name} needs the assistant beside the student, a soft-label cache "
                    "does not hold what it takes: set model.init_args.online_assistant=true, or switch it off"
                )
        if self.vision_lora and not has_lora:
            raise InputError(
                "model.init_args.published.vision_lora is about an adapter and there is none: give "
                "model.init_args.lora, or switch it off"
            )


def positions_everywhere(rows: RowBatch) -> Tensor:
    """Where the published KL looks: indices into `B * L` of every position whose label is not token 0.

    A label is the token of its own position for response tokens and the ignore index elsewhere, so a response token
    with id 0 alone is left out.
    """
    labels = torch.full((rows.inputs["input_ids"].numel(),), -100, device=rows.positions.device)
    labels[rows.positions + 1] = rows.targets
    return (labels != 0).nonzero().squeeze(-1)


def bf16_kl(logits: Tensor, view: View, temperature: float) -> Tensor:
    """Forward KL of each token with every number in bfloat16, as `torch.nn.functional.kl_div` gives it, without T².

    Args:
        logits: the student's, `[tokens, vocab]`.
        view: the assistant's logits.
        temperature: T.

    Raises:
        InputError: the view holds no whole distribution.
    """
    if not isinstance(view, Dense):
        raise InputError(
            "model.init_args.published.kl_in_bf16 takes the assistant's whole distribution: set "
            "model.init_args.online_assistant=true, or switch it off"
        )
    rows = view.rows
    log_q = (logits[:, :rows].bfloat16() / temperature).log_softmax(dim=-1)
    p = (view.logits[:, :rows].bfloat16() / temperature).softmax(dim=-1)
    return torch.nn.functional.kl_div(log_q, p, reduction="none").sum(dim=-1).float()
