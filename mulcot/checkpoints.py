"""Checkpoints that a crash cannot tear and that cannot run code: Lightning's plugin for writing and reading them."""

import contextlib
import errno
import os
import pickle
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from mulcot.checkpoint_archive import archive_problem
from mulcot.types import InputError, MissingInputError

_DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)
"""What `torch.load` raises for bytes that are not a checkpoint, depending on where they are wrong."""


class DurableCheckpointIO(CheckpointIO):
    """Writes a checkpoint whole or not at all, and reads none that would run code.

    Lightning 2.6.6 writes to TMPDIR and moves the file from there, which is not atomic when TMPDIR is another file
    system. Here the temporary file lies beside the final one, is forced to disk and renamed over it, and the folder is
    forced to disk after that. Give it to the Trainer: `plugins=[DurableCheckpointIO()]`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint so that `path` holds the old one or the new one at any moment.

        Args:
            checkpoint: Tensors, numbers, strings and containers of these.
            path: A local file; its folder is created.
            storage_options: Not supported, as in Lightning's own plugin.

        Raises:
            TypeError: `storage_options` are given, or the checkpoint holds an object that could not be loaded again
                without running code. An earlier checkpoint of this name is still there then.
            InputError: The path is not local.
            OSError: It could not be written, for example because the disk is full; the earlier one is still there.
        """
        if storage_options is not None:
            raise TypeError("DurableCheckpointIO takes no storage_options; it writes local files")
        target = _local(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{_escaped(target.name)}.*.tmp"):  # of a save that was killed
            left.unlink(missing_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            _write(checkpoint, temporary, target)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint without ever running code that it might hold.

        Args:
            path: A local file.
            map_location: Where its tensors go, as in `torch.load`; the CPU by default.
            weights_only: Not regarded: it is True whatever the caller asks for.

        Raises:
            MissingInputError: There is no such file.
            InputError: The file is damaged, or loading it would need to run code; the message names it.
        """
        return _load(_local(path), map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint, a file or the folder of a sharded one; one that is not there is no error."""
        target = _local(path)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            with contextlib.suppress(FileNotFoundError):
                target.unlink()


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint on the CPU, without ever running code that it might hold.

    Args:
        path: A local file.
        mmap: Maps its tensors into memory instead of reading them, for who wants a small part of it.

    Raises:
        MissingInputError: There is no such file.
        InputError: The file is damaged, or loading it would need to run code; the message names it.
    """
    return _load(_local(path), "cpu", mmap)


def _load(source: Path, map_location: Any, mmap: bool = False) -> dict[str, Any]:
    try:
        problem = archive_problem(source)
        if problem:
            raise InputError(f"{source}: {problem}; take another checkpoint, or fit with --fresh")
        checkpoint = torch.load(source, map_location=map_location, weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise MissingInputError(f"{source}: there is no such checkpoint; `mulcot fit` writes it") from error
    except InputError:
        raise
    except (*_DAMAGE, MemoryError, OSError) as error:
        # torch seeks to before the start of some torn files, which is EINVAL; other OSErrors are the disk's own.
        if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise
        raise InputError(f"{source}: {_refusal(error)}; take another checkpoint, or fit with --fresh") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{source}: not a checkpoint but a {type(checkpoint).__name__}; give one of `mulcot fit`")
    return checkpoint


def _write(checkpoint: dict[str, Any], temporary: Path, target: Path) -> None:
    # os.open rather than mkstemp: the file gets the permissions that the umask gives, not 0600.
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(handle, "wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    # Told now, when nothing is lost yet, instead of at the resume. It reads the pickle's opcodes, no tensor.
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(temporary)
    if unsafe:
        raise TypeError(
            f"{target}: the checkpoint would hold {', '.join(sorted(unsafe))}, which cannot be loaded safely"
        )
    if problem := archive_problem(temporary):
        raise TypeError(f"{target}: the checkpoint could not be loaded again: {problem}")


def _refusal(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
        return "refused, because loading it would run code that it names"
    return "the checkpoint is damaged or is none"


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise InputError(f"{path}: checkpoints are written to and read from local folders; give a local path")
    return Path(path)


def _escaped(name: str) -> str:
    """A file name as a glob pattern for itself: Lightning's names may hold brackets."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
