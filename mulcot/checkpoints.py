"""Checkpoints that a crash cannot tear and that cannot run code: Lightning's plugin for writing and reading them."""

import contextlib
import errno
import os
import pickle
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, cast

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from mulcot.checkpoint_archive import archive_problem
from mulcot.checkpoint_digests import (
    HashedFile,
    Identity,
    forget_digests,
    identity,
    is_as_written,
    note_digests,
    read_digests,
)
from mulcot.types import InputError, MissingInputError

LAST: Final = "last.ckpt"
PREVIOUS: Final = "previous.ckpt"
"""What `last.ckpt` was before: kept until the next save, so that damage to one file loses little."""
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system answers where a disk, a share of it, or a file is full."""
_DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)
"""What `torch.load` raises for bytes that are not a checkpoint, depending on where they are wrong."""
_REMEDY: Final = "take another checkpoint, or fit with --fresh"


class DurableCheckpointIO(CheckpointIO):
    """Writes a checkpoint whole or not at all, and reads none that would run code.

    Lightning 2.6.6 writes to TMPDIR and moves the file from there, which is not atomic when TMPDIR is another file
    system. Here the temporary file lies beside the final one, is forced to disk and renamed over it, and the folder is
    forced to disk after that. Give it to the Trainer: `plugins=[DurableCheckpointIO()]`.
    """

    def __init__(self) -> None:
        self._written: dict[Identity, str] = {}  # the digests of files that this object wrote

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint so that `path` holds the old one or the new one at any moment.

        Args:
            checkpoint: Tensors, numbers, strings and containers of these.
            path: A local file; its folder is created.
            storage_options: Not supported, as in Lightning's own plugin.

        Raises:
            TypeError: `storage_options` are given, or the checkpoint holds an object that could not be loaded again
                without running code. An earlier checkpoint of this name is still there then.
            InputError: The path is not local, or there is no room for it; the message says how much it needs and how
                much is free. The earlier one is still there.
            OSError: It could not be written for another reason; the earlier one is still there.
        """
        if storage_options is not None:
            raise TypeError("DurableCheckpointIO takes no storage_options; it writes local files")
        target = _local(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{_escaped(target.name)}.*.tmp"):  # of a save that was killed
            left.unlink(missing_ok=True)
        temporary = _temporary(target)
        try:
            digest = _write(checkpoint, temporary, target)
            self._note(target, digest)
            if target.name == LAST and target.is_file():
                _keep(target)
            os.replace(temporary, target)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise InputError(_no_room(target, checkpoint, error)) from error
            raise
        self._written[identity(target)] = digest
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
            forget_digests(target.parent, target.name)

    def _note(self, target: Path, digest: str) -> None:
        """Makes a new content known before it gets its name, and the last checkpoint's as the previous one's."""
        places = [target, target.with_name(PREVIOUS)] if target.name == LAST else [target]
        known = [(path.name, self._written.get(identity(path))) for path in places if path.is_file()]
        present = {name: found for name, found in known if found is not None}
        added = {target.name: [digest]}
        if target.name == LAST:
            added[PREVIOUS] = [present[LAST]] if LAST in present else read_digests(target.parent).get(LAST, [])
        note_digests(target.parent, added, present)


def check_given(given: str | None) -> None:
    """Refuses a `--ckpt_path` that cannot name a checkpoint; what lies there is looked at when it is read.

    Args:
        given: the option; None where it was left out.

    Raises:
        InputError: it is empty, or the address of another machine.
    """
    if given is None:
        return
    if not given.strip():
        raise InputError(
            "--ckpt_path is empty: give a checkpoint of `mulcot fit`, such as runs/demo/student/checkpoints/last.ckpt, "
            "or leave the option out"
        )
    _local(given)


def newest_good(paths: Iterable[Path]) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that can be gone on from.

    Args:
        paths: Checkpoints, those that are not there among them; the newest first.

    Returns:
        The checkpoint, None when there is no good one; and what is wrong with each newer one, naming it.
    """
    refusals = []
    for path in paths:
        try:
            read_checkpoint(path, mmap=True)
        except MissingInputError:
            continue
        except InputError as error:
            refusals.append(str(error))
        else:
            return path, refusals
    return None, refusals


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
            raise InputError(f"{source}: {problem}; {_REMEDY}")
        checkpoint = torch.load(source, map_location=map_location, weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise MissingInputError(f"{source}: there is no such checkpoint; `mulcot fit` writes it") from error
    except InputError:
        raise
    except (*_DAMAGE, MemoryError, OSError) as error:
        # torch seeks to before the start of some torn files, which is EINVAL; other OSErrors are the disk's own.
        if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise
        raise InputError(f"{source}: {_refusal(error)}; {_REMEDY}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{source}: not a checkpoint but a {type(checkpoint).__name__}; give one of `mulcot fit`")
    if not is_as_written(source):  # told last, for what else is wrong says more
        raise InputError(f"{source}: the checkpoint is damaged: its content is not what was written; {_REMEDY}")
    return checkpoint


def _write(checkpoint: dict[str, Any], temporary: Path, target: Path) -> str:
    """Writes a file that is not there yet; the SHA-256 of its content."""
    # os.open rather than mkstemp: the file gets the permissions that the umask gives, not 0600.
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(handle, "wb") as file:
        hashed = HashedFile(file)
        try:
            torch.save(checkpoint, cast(Any, hashed))
            hashed.flush()
            os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            # torch closes its archive after a failed write, which fails too, with a RuntimeError.
            raise (hashed.error or error) from error
    # Told now, when nothing is lost yet, instead of at the resume. It reads the pickle's opcodes, no tensor.
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(temporary)
    if unsafe:
        raise TypeError(
            f"{target}: the checkpoint would hold {', '.join(sorted(unsafe))}, which cannot be loaded safely"
        )
    if problem := archive_problem(temporary):
        raise TypeError(f"{target}: the checkpoint could not be loaded again: {problem}")
    return hashed.digest


def _keep(last: Path) -> None:
    """Gives the last checkpoint the name of the previous one too: it keeps its own until the new one takes it."""
    second = _temporary(last.with_name(PREVIOUS))
    try:
        os.link(last, second)
    except OSError:  # a file system without second names
        os.replace(last, last.with_name(PREVIOUS))
    else:
        os.replace(second, last.with_name(PREVIOUS))


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def _no_room(target: Path, checkpoint: dict[str, Any], error: OSError) -> str:
    needed, free = _tensor_bytes(checkpoint), shutil.disk_usage(target.parent).free
    kept = f"; {target.name} is as it was" if target.is_file() else ""
    return (
        f"{target}: no room to save the checkpoint ({error.strerror}): it needs {needed:,} bytes beside the earlier "
        f"one, and {free:,} are free{kept}. Make room; the same command, without "
        "--fresh or --ckpt_path, goes on from there"
    )


def _tensor_bytes(value: Any) -> int:
    """What the tensors in some containers come to, which is nearly all of a checkpoint."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_tensor_bytes, value.values()))
    return sum(map(_tensor_bytes, value)) if isinstance(value, list | tuple) else 0


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
