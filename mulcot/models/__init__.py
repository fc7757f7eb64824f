"""Vision-language models: loading, adapters, saving, and the embedded tiny pair (in `mulcot.models.tiny`)."""

from mulcot.models.loading import (
    MODEL_FOLDER,
    DType,
    Lora,
    ModelSource,
    base_of,
    find_model,
    load_model,
    load_processor,
    load_trained,
    text_config,
)
from mulcot.models.parts import (
    base_model,
    head,
    head_parts,
    head_rows,
    hidden_layers,
    hidden_states,
    merge_adapter,
    trained_state,
)
from mulcot.models.saving import RowSettings, read_settings, save_model
from mulcot.models.vocabulary import check_head_rows, entry_rows, shared_rows, vocabulary_difference

__all__ = [
    "MODEL_FOLDER",
    "DType",
    "Lora",
    "ModelSource",
    "RowSettings",
    "base_model",
    "base_of",
    "check_head_rows",
    "entry_rows",
    "find_model",
    "head",
    "head_parts",
    "head_rows",
    "hidden_layers",
    "hidden_states",
    "load_model",
    "load_processor",
    "load_trained",
    "merge_adapter",
    "read_settings",
    "save_model",
    "shared_rows",
    "text_config",
    "trained_state",
    "vocabulary_difference",
]
