"""Hostile tokenizers, image processors, chat templates and numbers of a model: each is refused in one line, by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

Change = Callable[[Path], Any]
PAD = "<|image_pad|>"


def changed(name: str, *keys: str, **values: Any) -> Change:
    """Changes an object of a JSON file, or one that is nested in it."""

    def change(folder: Path) -> None:
        whole = json.loads((folder / name).read_text())
        inner = whole
        for key in keys:
            inner = inner[key]
        inner.update(values)
        (folder / name).write_text(json.dumps(whole))

    return change


def tokenizer(**values: Any) -> Change:
    return changed("tokenizer_config.json", **values)


def pictures(**values: Any) -> Change:
    return changed("processor_config.json", "image_processor", **values)


def template(old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / "chat_template.jinja"
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new))

    return change


def added(content: str, in_template: str = "") -> Change:
    """A token behind the end of the vocabulary, for which the model has no row."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        whole = json.loads(path.read_text())
        token = {"id": len(whole["model"]["vocab"]), "content": content, "special": True, "normalized": False}
        whole["added_tokens"].append(token | {"single_word": False, "lstrip": False, "rstrip": False})
        path.write_text(json.dumps(whole))
        template("<|im_start|>assistant", f"<|im_start|>assistant{in_template}")(folder)

    return change


def before_every_text(token: str, number: int) -> Change:
    """A post-processor that adds a token."""
    sequences = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    rule = {"type": "TemplateProcessing", "single": [first, sequences[0]], "pair": sequences}
    of_rule = {token: {"id": token, "ids": [number], "tokens": [token]}}
    return changed("tokenizer.json", post_processor=rule | {"special_tokens": of_rule})


def sparse(name: str) -> Change:
    """A file with a hole of a terabyte, which takes no room on the disk."""
    return lambda folder: os.truncate(folder / name, 1 << 40)


def spoilt(value: float) -> Change:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in weights if name.endswith("norm.weight") and "visual" not in name)
        weights[name][:] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


TEXT = "{{ part.text }}"
SETTINGS = ("config", "processor_config", "tokenizer", "tokenizer_config", "generation_config")
HOSTILE: dict[str, tuple[Change, str]] = {
    **{
        f"file: a hole of a terabyte in {name}": (sparse(name), f"{name}: it has more than 256 MiB")
        for name in ("chat_template.jinja", *(f"{name}.json" for name in SETTINGS))
    },
    "token: a blank beyond the model": (added(" "), "so that it cannot write ' '"),
    "token: one of the template beyond the model": (added("zzz", in_template="zzz"), "cannot write 'zzz'"),
    "token: a picture's before every text": (before_every_text(PAD, 6), "its processor cannot encode a picture"),
    "token: a huge one before every text": (before_every_text("x", 99_999), "token 99999, and the last one is 1"),
    "token: texts are cut": (
        changed("tokenizer.json", truncation={
            "direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}),
        "its processor cannot encode a picture"),
    "token: special ones are split": (tokenizer(split_special_tokens=True), "its processor cannot encode a picture"),
    "token: a picture's has another number": (
        changed("tokenizer.json", "model", "vocab", **{PAD: 300}), "image_token_id is 6 in its config"),
    "token: a picture's has another number in the config": (
        changed("config.json", image_token_id=300), "image_token_id is 300 in its config"),
    "token: a picture's ends a response": (tokenizer(eos_token=PAD), "'<|image_pad|>', which stands for a picture"),
    "token: a picture's fills rows up": (tokenizer(pad_token=PAD), "'<|image_pad|>', which stands for a picture"),
    "token: a picture's is the unknown": (tokenizer(unk_token=PAD), "'<|image_pad|>', which stands for a picture"),
    "token: none ends a response": (tokenizer(eos_token=None), "its tokenizer names no eos_token"),
    "token: a picture's is a word": (tokenizer(image_token="good"), "its processor cannot encode a picture"),
    "picture: at least 10**12 pixels": (
        pictures(size={"shortest_edge": 10**12, "longest_edge": 10**12}), "size.shortest_edge is 10000"),
    "picture: at least 10**9 pixels": (pictures(min_pixels=10**9, max_pixels=10**9), "size.shortest_edge is 1000"),
    "picture: of negative size": (pictures(size={"shortest_edge": -5, "longest_edge": -3}), "size.longest_edge is -3"),
    "picture: of a size in words": (pictures(size={"shortest_edge": 1, "longest_edge": "b"}), "longest_edge is 'b'"),
    "picture: of no size": (
        pictures(size={"shortest_edge": 0.5, "longest_edge": 9}), "size.shortest_edge is 0.5"),
    "picture: other sides": (
        pictures(size={"height": 10**6, "width": 10**6}), "size.height is 1000000"),
    "picture: patches of 0": (pictures(patch_size=0), "patch_size is 0"),
    "picture: patches of 10**9": (pictures(patch_size=10**9), "patch_size is 1000000000"),
    "picture: patches of another size": (pictures(patch_size=1), "patch_size is 1 in its processor and 14 in"),
    "picture: none merged": (pictures(merge_size=0), "merge_size is 0"),
    "picture: others merged": (pictures(merge_size=1), "merge_size is 1 in its processor and 2 in"),
    "picture: a billion frames": (pictures(temporal_patch_size=10**9), "temporal_patch_size is 1000000000"),
    "picture: not resized": (pictures(do_resize=False), "its processor cannot encode a picture"),
    "picture: an unknown filter": (pictures(resample=99), "its processor cannot encode a picture"),
    "picture: a million channels": (pictures(image_mean=[1.0] * 10**6), "image_mean is 1,000,000, and at most"),
    "picture: a hundred channels": (pictures(image_mean=[1.0] * 100), "image_mean has 100 numbers"),
    "picture: divided by 0": (pictures(image_std=[0, 0, 0]), "image_std"),
    "picture: divided by NaN": (pictures(image_std=[float("nan")] * 3), "NaN is no number"),
    "picture: divided by infinity": (pictures(image_std=[10**400] * 3), "image_std"),
    "picture: infinitely bright": (pictures(rescale_factor=1e300), "rescale_factor is [1e+300]"),
    "picture: of another model's processor": (
        pictures(image_processor_type="CLIPImageProcessor"), "its processor cannot encode a picture"),
    "picture: on a device that is not there": (pictures(device="cuda:9"), "its processor cannot encode a picture"),
    "template: divides by 0": (template(TEXT, "{{ 1/0 }}"), "its chat template cannot be used (division by zero"),
    "template: a long loop": (
        template(TEXT, "{% for x in range(10**6) %}{% endfor %}"), "its chat template cannot be used (Range too big"),
    "template: writes 10 MB": (template(TEXT, TEXT + "{{ 'a' * 10**7 }}"), "its chat template writes 20,0"),
    "template: without the text": (template(TEXT, "?"), "its chat template does not write a post's text once"),
    "template: with the text twice": (template(TEXT, TEXT * 2), "does not write a post's text once"),
    "template: with the text changed": (
        template(TEXT, "{{ part.text | replace('\ue000', '') }}"), "does not write a post's text once"),
    "template: with a text that is none": (template(TEXT, TEXT + "\ue00099\ue001"), "a post's text once"),
    "template: with a text that has no number": (
        template(TEXT, TEXT + "\ue000" + "9" * 5_000 + "\ue001"), "a post's text once"),
    "template: without the picture": (template(PAD, ""), "its processor cannot encode a picture"),
    "template: with the picture twice": (template(PAD, PAD * 2), "its processor cannot encode a picture"),
    "template: with a picture behind the text": (
        template(TEXT, f"{TEXT}{{% if loop.index > 1 %}}{PAD}{{% endif %}}"),
        "its chat template puts a picture behind the post's text"),
    "weights: NaN": (spoilt(float("nan")), "are no finite numbers"),
    "weights: infinite": (spoilt(float("inf")), "are no finite numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_processor_is_refused(name: str, embedded: Path, tmp_path: Path, refused: Any) -> None:
    change, words = HOSTILE[name]
    folder = Path(shutil.copytree(embedded / "models" / "student", tmp_path / "wrong"))
    change(folder)
    picture = min((embedded / "posts" / "posts" / "images").glob("*.png"))
    post = ("--image", picture, "--text", "a good day", "--max_new_tokens", 4)
    assert words in refused("infer", "--model", folder, *post, name=str(folder), limit_mb=200)
