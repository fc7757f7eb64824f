"""Where a model comes from: a folder, a finished stage, a checkpoint or the hub, and what it goes onto."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from mulcot.checkpoints import read_checkpoint
from mulcot.models.folders import ADAPTER, check_adapter_folder
from mulcot.ranges import Count, ShareBelowOne, Side
from mulcot.types import InputError, MissingInputError

MODEL_FOLDER: Final = "model"
MAKERS: Final = (
    "`mulcot fit --config assistant.yaml` (an assistant), `mulcot fit --config student.yaml` (a student) or "
    "`mulcot tiny-models` (the embedded pair) makes one"
)


@dataclass
class Lora:
    """A low-rank adapter on the language model's linear layers."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    r: Count = 16
    """Rank of the update."""
    alpha: Count = 32
    """The update is scaled by alpha / r."""
    dropout: ShareBelowOne = 0.05
    """Dropout before the adapter."""
    targets: Annotated[list[str], Field(min_length=1)] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Names of the linear layers that are adapted."""
    vision: bool = False
    """Adapts the layers of these names in the vision tower as well."""


class _Origin(BaseModel):
    """What a stage's checkpoint says, under our own key, of the model that it belongs to."""

    pretrained: str
    lora: Lora | None
    freeze_vision: bool
    labels: tuple[str, ...]
    image_size: tuple[Side, Side] | None
    pad_end: bool = False


_ORIGIN: Final = tuple(name for name, field in _Origin.model_fields.items() if field.is_required())


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from."""

    name: str
    """A folder, as an absolute path, or a name on the hub. The processor is always this one's."""
    checkpoint: Path | None = None
    """A Lightning checkpoint of a stage, whose weights go onto those of `base`."""
    base: ModelSource | None = None
    """What the checkpoint was trained from; there is one for every checkpoint."""
    lora: Lora | None = None
    """The adapter that the stage put on."""
    freeze_vision: bool = False
    """Whether the stage kept the vision tower, which the checkpoint then does not hold."""
    labels: tuple[str, ...] | None = None
    """The label set of the checkpoint; None where a folder says it."""
    image_size: tuple[int, int] | None = None
    """The picture size of the checkpoint; None where pictures keep their shape, or a folder says it."""
    pad_end: bool = False
    """Whether the pad token ends a response of the checkpoint's model."""

    @property
    def on_hub(self) -> bool:
        """Whether `name` is a name on the hub."""
        return not Path(self.name).is_absolute()

    @property
    def adapted(self) -> bool:
        """Whether there is an adapter on the model already."""
        if self.base is not None:
            return self.lora is not None or self.base.adapted
        return (Path(self.name) / ADAPTER).is_file()


def find_model(given: str) -> ModelSource:
    """Takes a finished stage of a run, a `model/` folder, a Lightning `.ckpt`, or a name on the hub.

    Two parts are a name on the hub, unless the first is a folder here: then they are a path.

    Raises:
        MissingInputError: `given` is a path and nothing usable is there, or what a checkpoint was trained from is gone.
        InputError: the checkpoint is damaged, or no stage wrote it.
    """
    path = Path(given)
    if path.suffix == ".ckpt":
        if not path.is_file():
            raise MissingInputError(f"{path} is missing: give a checkpoint that `mulcot fit` wrote")
        return _source_of(path.resolve())
    if (path / "config.json").is_file() or (path / ADAPTER).is_file():
        return ModelSource(str(path.resolve()))  # absolute: an adapter names its base by it, wherever it is loaded
    if (path / MODEL_FOLDER).is_dir():
        if not (path / "manifest.json").is_file():
            raise MissingInputError(
                f"{path} is not finished (it has no manifest.json): run its `mulcot fit` to the end"
            )
        return ModelSource(str((path / MODEL_FOLDER).resolve()))
    if path.exists() or given.startswith((".", "/", "~")) or len(path.parts) != 2 or path.parent.is_dir():
        raise MissingInputError(f"{path} holds no model: {MAKERS}")
    return ModelSource(given)


def base_of(source: ModelSource) -> ModelSource | None:
    """What a checkpoint or an adapter goes onto; None for a model that stands for itself.

    Raises:
        MissingInputError: it is gone.
    """
    if source.base is not None or not source.adapted:
        return source.base
    with as_base_of(Path(source.name)):
        return find_model(adapter_base(Path(source.name)))


def bases(source: ModelSource) -> Iterator[ModelSource]:
    """A model and what it goes onto, one after the other, down to one that stands for itself.

    Raises:
        MissingInputError: one is gone.
        InputError: one is its own base.
    """
    seen: set[tuple[str, Path | None]] = set()
    below: ModelSource | None = source
    while below is not None:
        if (below.name, below.checkpoint) in seen:
            raise InputError(f"{below.checkpoint or below.name}: it is its own base; name the model that it belongs to")
        seen.add((below.name, below.checkpoint))
        yield below
        below = base_of(below)


def adapter_base(folder: Path) -> str:
    """The folder or name on the hub of the model that an adapter goes onto.

    Raises:
        InputError: the adapter's folder is none that may be loaded.
    """
    return str(check_adapter_folder(folder)["base_model_name_or_path"])


_owners: ContextVar[tuple[Path, ...]] = ContextVar("owners", default=())


@contextmanager
def as_base_of(owner: Path) -> Iterator[None]:
    """Says whose base it is that is missing; what is its own base, or that of its base, has none."""
    if owner in _owners.get():
        raise InputError(f"{owner}: it is its own base; name the model that it belongs to")
    token = _owners.set((*_owners.get(), owner))
    try:
        yield
    except MissingInputError as error:
        raise MissingInputError(f"{owner}: its base {error}") from error
    finally:
        _owners.reset(token)


def _rank_in(state: Any) -> int:
    """The rank of the adapter in a checkpoint's weights, 0 where there is none."""
    named = state.items() if isinstance(state, dict) else ()
    return max((len(value) for name, value in named if "lora_A" in name and isinstance(value, Tensor)), default=0)


def _source_of(path: Path) -> ModelSource:
    """The model that a checkpoint was trained from, by our own key in it, not by Lightning's hyper-parameters."""
    checkpoint = read_checkpoint(path, mmap=True)
    origin = checkpoint.get("mulcot")
    origin = origin if isinstance(origin, dict) else {}
    lacking = [key for key in _ORIGIN if key not in origin]
    if lacking:
        raise InputError(
            f"{path} was not written by mulcot, or by an earlier one: it does not say {', '.join(lacking)} of its "
            f"model; give a checkpoint that `mulcot fit` wrote"
        )
    try:
        said = _Origin.model_validate(origin)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: the checkpoint is damaged: {name}: {first['msg']}; take another one") from error
    if said.lora is not None and said.lora.r > _rank_in(checkpoint.get("state_dict")):
        raise InputError(f"{path}: the checkpoint is damaged: no adapter in it has the rank {said.lora.r} of its lora")
    with as_base_of(path):
        base = find_model(said.pretrained)
    return ModelSource(
        base.name,
        path,
        base,
        lora=said.lora,
        freeze_vision=said.freeze_vision,
        labels=said.labels,
        image_size=said.image_size,
        pad_end=said.pad_end,
    )
