"""One writer at a time."""

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from splip.errors import UserError


class BeingWritten(UserError):
    """Another process writes to the gallery; the message names it."""


class WriterLock:
    """The right to write a gallery, held until released or until the process ends, however it ends.

    Raises:
        BeingWritten: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "writer.lock"
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            try:
                holder = json.loads(os.pread(self._handle, 4096, 0))
                who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
            except (ValueError, KeyError, TypeError):
                who = "another process"
            os.close(self._handle)
            raise BeingWritten(f"{folder}: is being written by {who}; wait for it, or stop it and try again") from None
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with contextlib.suppress(OSError):  # on a full disk there must be a way to remove
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(note).encode(), 0)

    def release(self) -> None:
        os.close(self._handle)
