"""Vision-language models: loading, adapters, saving, and the embedded tiny pair (in `mulcot.models.tiny`)."""

from mulcot.models.finite import not_finite, refuse_diverged, trained_state
from mulcot.models.forward import (
    SHARED_MODELS,
    Layers,
    Passes,
    hidden_layers,
    hidden_states,
    picture_features,
    row_form,
    run_body,
    shared_refusal,
    takes_features,
    tree_positions,
)
from mulcot.models.layers import checkpoint_activations, compile_layers
from mulcot.models.loading import DType, holds_all, load_model, load_processor, load_trained, text_config, weights_of
from mulcot.models.origins import check_fits, model_origin
from mulcot.models.parts import (
    base_model,
    head,
    head_parts,
    head_rows,
    logits,
    merge_adapter,
    merged_if_exact,
    trained_parameters,
    turned_head,
)
from mulcot.models.quantisation import Quantise
from mulcot.models.saving import RowSettings, read_settings, save_model
from mulcot.models.sharding import gathered, is_sharded, shard
from mulcot.models.sources import MODEL_FOLDER, Lora, ModelSource, base_of, bases, find_model
from mulcot.models.spread import spread_like, whole, whole_on_first
from mulcot.models.vocabulary import check_head_rows, entry_rows, shared_rows, vocabulary_difference

__all__ = [
    "MODEL_FOLDER",
    "SHARED_MODELS",
    "DType",
    "Layers",
    "Lora",
    "ModelSource",
    "Passes",
    "Quantise",
    "RowSettings",
    "base_model",
    "base_of",
    "bases",
    "check_fits",
    "check_head_rows",
    "checkpoint_activations",
    "compile_layers",
    "entry_rows",
    "find_model",
    "gathered",
    "head",
    "head_parts",
    "head_rows",
    "hidden_layers",
    "hidden_states",
    "holds_all",
    "is_sharded",
    "load_model",
    "load_processor",
    "load_trained",
    "logits",
    "merge_adapter",
    "merged_if_exact",
    "model_origin",
    "not_finite",
    "picture_features",
    "read_settings",
    "refuse_diverged",
    "row_form",
    "run_body",
    "save_model",
    "shard",
    "shared_refusal",
    "shared_rows",
    "spread_like",
    "takes_features",
    "text_config",
    "trained_parameters",
    "trained_state",
    "tree_positions",
    "turned_head",
    "vocabulary_difference",
    "weights_of",
    "whole",
    "whole_on_first",
]
