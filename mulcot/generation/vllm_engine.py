"""Sampled replies from vLLM, an engine for a GPU that is installed by itself (`pip install 'mulcot[vllm]'`).

It reads the model's folder (an adapter's beside its base), is given prompts as token ids with the picture's placeholder
once, and expands it by itself. A sample is a function of its request's seed, but not the one that transformers draws.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from mulcot.models import DType, ModelSource, base_of, find_model
from mulcot.models.folders import check_model_folder
from mulcot.rows import RowEncoder, TextRow
from mulcot.types import InputError

_AT_ONCE: Final = 256
"""Prompts that are handed over together, as many pictures as are open at a time."""


class VllmEngine:
    """A model in vLLM.

    Args:
        pretrained: see `mulcot.models.find_model`; no checkpoint.
        encoder: the model's.
        max_new_tokens: where a reply is cut off at the latest.
        temperature: of the sampling.
        dtype: of the weights.
        trust_remote_code: runs code that comes with the model.

    Raises:
        InputError: vLLM is not installed, or cannot read the model or its pictures as they are to be.
    """

    def __init__(
        self,
        pretrained: str,
        encoder: RowEncoder,
        max_new_tokens: int,
        temperature: float,
        dtype: DType = "bfloat16",
        trust_remote_code: bool = False,
    ) -> None:
        try:
            self._vllm: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise InputError(
                "model.init_args.engine=vllm: vLLM is not installed here: pip install 'mulcot[vllm]' where a GPU is, "
                "or engine=transformers"
            ) from error
        source = find_model(pretrained)
        if source.checkpoint is not None:
            raise InputError(
                f"{pretrained}: vLLM reads no checkpoint: write it as a folder first (`mulcot export --model "
                "CHECKPOINT --out FOLDER`) and give that"
            )
        _check_pictures(encoder)
        self._encoder = encoder
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        base = base_of(source)
        options: dict[str, Any] = {} if base is None else {"enable_lora": True, "max_lora_rank": _rank(source)}
        self._adapter = None if base is None else _adapter(source)
        whole = source if base is None else base
        if not whole.on_hub:
            check_model_folder(Path(whole.name))
        self._model = self._vllm.LLM(
            model=whole.name,
            load_format="safetensors",  # left to itself it takes pickles
            tokenizer=source.name,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            limit_mm_per_prompt={"image": 1},
            **options,
        )

    def write(self, rows: Sequence[TextRow], seeds: Sequence[int]) -> list[str]:
        """Samples a reply to every prompt.

        Args:
            rows: the prompts.
            seeds: one for each.

        Returns:
            The replies without end of turn, in the prompts' order.
        """
        replies: list[str] = []
        for first in range(0, len(rows), _AT_ONCE):
            asked = rows[first : first + _AT_ONCE]
            prompts = [self._prompt(row) for row in asked]
            sampling = [self._sampling(seed) for seed in seeds[first : first + _AT_ONCE]]
            found = self._model.generate(prompts, sampling, use_tqdm=False, lora_request=self._adapter)
            replies += [self._encoder.decode(list(each.outputs[0].token_ids)) for each in found]
        return replies

    def _prompt(self, row: TextRow) -> dict[str, Any]:
        head = self._encoder.tokenizer(row.head)["input_ids"]
        return {
            "prompt_token_ids": [*head, *row.tail_ids],
            "multi_modal_data": {"image": self._encoder.picture(row.post)},
        }

    def _sampling(self, seed: int) -> Any:
        return self._vllm.SamplingParams(
            temperature=self._temperature,
            seed=seed,
            max_tokens=self._max_new_tokens,
            stop_token_ids=sorted({self._encoder.end_of_turn[-1], self._encoder.pad_id}),
            skip_special_tokens=False,
        )


def _check_pictures(encoder: RowEncoder) -> None:
    """Refuses a size of pictures that the processor in the model's folder, which vLLM uses, would change."""
    size = getattr(encoder.processor.image_processor, "size", None) or {}
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    if encoder.image_size is None or not least or not most:
        return
    pixels = encoder.image_size[0] * encoder.image_size[1]
    if not least <= pixels <= most:
        raise InputError(
            f"model.init_args.image_size is {list(encoder.image_size)}: vLLM would bring it to the {least} to {most} "
            "pixels of the model's own processor; give a size within them, or engine=transformers"
        )


def _rank(source: ModelSource) -> int:
    """The rank of an adapter's matrices."""
    return int(json.loads((Path(source.name) / "adapter_config.json").read_text(encoding="utf-8"))["r"])


def _adapter(source: ModelSource) -> Any:
    request: Any = importlib.import_module("vllm.lora.request")
    return request.LoRARequest("mulcot", 1, source.name)
