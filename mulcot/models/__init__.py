"""Vision-language models: loading, adapters, saving, and the embedded tiny pair (in `mulcot.models.tiny`)."""

from mulcot.models.loading import (
    MODEL_FOLDER,
    DType,
    Lora,
    ModelSource,
    base_model,
    base_of,
    find_model,
    head,
    head_rows,
    hidden_states,
    load_model,
    load_processor,
    load_trained,
    merge_adapter,
    trained_state,
)
from mulcot.models.saving import read_settings, save_model

__all__ = [
    "MODEL_FOLDER",
    "DType",
    "Lora",
    "ModelSource",
    "base_model",
    "base_of",
    "find_model",
    "head",
    "head_rows",
    "hidden_states",
    "load_model",
    "load_processor",
    "load_trained",
    "merge_adapter",
    "read_settings",
    "save_model",
    "trained_state",
]
