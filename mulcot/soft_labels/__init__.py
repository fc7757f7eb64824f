"""The soft-label cache: the assistant's view of every response token, written once, read by every epoch.

A finished cache is a folder:

    soft_labels.json               form, fingerprint, verification, shards with their hashes; written last
    shard-r000-00000.safetensors   the views of about `shard_tokens` tokens
    shard-r000-00000.json          whose tokens they are, in order; written after the shard, so its presence commits it

A response is found by post, task, a digest of its token ids, since a post may have several rationales, and a digest of
the prompt that it answers.
"""

from mulcot.soft_labels.forms import (
    CachedView,
    SoftLabelDescription,
    SoftLabelForm,
    SoftLabelKind,
    prompt_digest,
    response_digest,
)
from mulcot.soft_labels.reader import SoftLabelCache
from mulcot.soft_labels.shards import FORMAT, MANIFEST
from mulcot.soft_labels.writer import Check, SoftLabelWriter

__all__ = [
    "FORMAT",
    "MANIFEST",
    "CachedView",
    "Check",
    "SoftLabelCache",
    "SoftLabelDescription",
    "SoftLabelForm",
    "SoftLabelKind",
    "SoftLabelWriter",
    "prompt_digest",
    "response_digest",
]
