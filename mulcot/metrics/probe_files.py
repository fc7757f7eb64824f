"""The file `probes.json`: how far a model's answers and rationales depend on what they are about.

A share or a mean over no posts at all is None.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mulcot.files import write_atomic
from mulcot.regular_files import MAX_JSON, read_regular
from mulcot.types import InputError, MissingInputError

PROBES: Final = "probes.json"
"""The file's name in a stage's folder."""
Share = Annotated[float, Field(ge=0, le=1)]
Signed = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class RationaleChanges(_Part):
    """What became of the rationales under one perturbation."""

    parse_rate: Share
    """Replies that are a rationale, over all posts."""
    parse_rate_before: Share
    """The same without the perturbation."""
    pairs: Count
    """Posts with a rationale before and after; what follows is over these."""
    distance: dict[str, Share | None]
    """Mean of 1 - ROUGE-L between the rationale before and after, by field (`Text_analysis`, ...) and of the `whole`
    (the four fields joined)."""
    predictions_changed: Share | None
    """Rationales whose Prediction is another one than before."""


class Changes(_Part):
    """What became of the answers under one perturbation."""

    posts: Count
    """Posts that were asked about again."""
    golds: Count
    """Those with a gold label."""
    accuracy: Share | None
    """Answers that are the gold label of the unaltered post, over posts with a gold label."""
    accuracy_before: Share | None
    """The same without the perturbation, over the same posts."""
    labels_changed: Share | None
    """Posts with another answer than before."""
    total_variation: Share | None
    """Mean total variation between the label probabilities before and after: ½ Σ abs(p - q)."""
    probability_change: Signed | None
    """Mean change of the probability of the label that was answered before."""
    rationales: RationaleChanges | None = None
    """None where the model writes none."""


class AspectSwaps(_Part):
    """What became of answers when a post was asked about another aspect of its own, whose gold label is known."""

    posts: Count
    """Such posts."""
    follows: Share | None
    """Answers that are the other aspect's gold label."""
    differing: Count
    """Posts whose two aspects have different gold labels; what follows is over these."""
    differing_follows: Share | None
    """Answers that are the other aspect's gold label."""
    differing_stays: Share | None
    """Answers that are still the first aspect's gold label."""


class Marked(_Part):
    """The posts of one mark."""

    posts: Count
    """All of them."""
    golds: Count
    """Those with a gold label."""
    accuracy: Share | None
    """Of the answers to the whole posts."""


class Conflict(_Part):
    """A mark of conflict by the model itself: its answer without the picture is not its answer without the text."""

    yes: Marked
    """The two answers differ."""
    no: Marked
    """They are equal."""


class Agreement(_Part):
    """How well what rationales say of pictures fits these, by an image-text model."""

    posts: Count
    """Posts with a rationale and another post to swap pictures with."""
    own: Signed | None
    """Mean cosine between Image_analysis and the post's own picture."""
    shuffled: Signed | None
    """Mean cosine between Image_analysis and another post's picture."""
    wins: Share | None
    """How often the own picture fits better than the other one, a tie as half; 0.5 is chance."""
    interval: tuple[Share, Share] | None
    """95% of `wins` by bootstrap over posts."""


class Grounding(_Part):
    """Whether rationales speak of the picture that they are given with."""

    clip_model: str
    """The image-text model."""
    clip_pretrained: str
    """Its weights."""
    shuffles: Count
    """How many other pictures each rationale was compared with."""
    student: Agreement
    """What the model wrote."""
    reference: Agreement
    """What the references say of the same posts, where there are any."""


class Unavailable(_Part):
    """A part that was not measured."""

    unavailable: str
    """Why."""


class Probes(_Part):
    """What was measured, as it stands in the file."""

    seed: int
    """Decides which posts are asked about and what is swapped with what."""
    posts: Count
    """Posts that were drawn from the test split."""
    faithfulness: dict[str, Changes]
    """By perturbation: `image_removed`, `image_swapped`, `text_removed`, `text_swapped`, and where posts have aspects
    `aspect_removed`, `aspect_swapped`."""
    other_aspects: AspectSwaps | None
    """None where no post has another aspect of its own with a gold label."""
    conflict: Conflict | Unavailable
    """By the model's own mark."""
    grounding: Grounding | Unavailable
    """By an image-text model."""

    def to_json(self) -> str:
        """The text of the file."""
        return self.model_dump_json(indent=2) + "\n"


def write_probes(path: Path, probes: Probes) -> None:
    """Writes the file, whole or not at all."""
    write_atomic(path, probes.to_json())


def read_probes(path: Path) -> Probes:
    """What was measured of a stage.

    Raises:
        MissingInputError: there is no such file.
        InputError: it is not what `write_probes` writes; the message names the field.
    """
    try:
        text = read_regular(path, MAX_JSON).decode("utf-8")
    except FileNotFoundError as error:
        raise MissingInputError(
            f"{path}: there is no such file; `mulcot test` with --config experiment/probes.yaml writes it"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: it cannot be read ({reason}); run `mulcot test` with the probes again") from error
    try:
        return Probes.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(
            f"{path}: {name}: {' '.join(first['msg'].split())}; run `mulcot test` with the probes again"
        ) from error
