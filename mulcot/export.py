"""`mulcot export`: a trained model as one ordinary Hugging Face folder, an adapter merged into its base."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser
from rich.console import Console

from mulcot.manifests import (
    CHAIN_FILES,
    MANIFEST_NAME,
    input_digests,
    make_manifest,
    output_digests,
    read_manifest,
    write_manifest,
)
from mulcot.types import InputError


def export(model: str, out: Path, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
    """Writes a model folder that plain transformers loads, with any adapter merged into its base.

    Args:
        model: a finished stage, a model folder with or without adapter, or a checkpoint.
        out: the folder to write, new or made by an earlier export.
        dtype: of the written weights.
    """
    # Imported here: loading torch and transformers takes seconds, which `--help` should not cost.
    from mulcot.models import find_model, load_model, load_processor, merge_adapter, read_settings, save_model

    _refuse_foreign(out)
    settings = read_settings(find_model(model))
    processor = load_processor(model)
    merged = merge_adapter(load_model(model, dtype=dtype))
    _make_room(out)  # now that nothing given can be wrong
    building = out / "building"
    save_model(merged, processor, settings, building)
    for path in building.iterdir():
        path.rename(out / path.name)
    building.rmdir()
    Console().print(f"{out}: written, loads with AutoModelForImageTextToText.from_pretrained", highlight=False)


def _refuse_foreign(out: Path) -> None:
    """Refuses what is no folder, or holds anything that no export made."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: name a folder")
    present = _present(out)
    if present and read_manifest(out) is None:
        raise InputError(f"--out {out} holds {present[0].name}, which no export made: name another folder")


def _make_room(out: Path) -> None:
    """Empties a folder that an earlier export made; its manifest goes last."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(_present(out), key=lambda path: path.name == MANIFEST_NAME):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _present(out: Path) -> list[Path]:
    return [path for path in out.iterdir() if path.name not in CHAIN_FILES] if out.is_dir() else []


def main_export(argv: Sequence[str]) -> int:
    """`mulcot export`."""
    parser = ArgumentParser(prog="mulcot export", description="Merges an adapter into its base and writes the model.")
    parser.add_function_arguments(export)
    started = datetime.now(UTC)
    given = parser.parse_args(list(argv))
    source = Path(given.model)
    inputs = input_digests(given.out, [source] if source.exists() else [])
    export(**given.as_dict())
    made = [path for path in given.out.iterdir() if path.name not in CHAIN_FILES]
    outputs = output_digests(given.out, sorted(made))
    manifest = make_manifest(["export", *argv], inputs=inputs, outputs=outputs, seed=None, started=started)
    write_manifest(given.out, manifest)
    return 0
