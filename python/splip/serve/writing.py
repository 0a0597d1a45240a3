"""The gallery open for writing, for as long as a request takes; what a full disk looks like."""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from splip.errors import Unavailable, UserError
from splip.gallery.lock import BeingWritten
from splip.serve.batching import DAMAGED
from splip.serve.metrics import log
from splip.serve.middleware import RETRY, Refusal

if TYPE_CHECKING:
    from splip.gallery.gallery import Gallery

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ALMOST = 1 << 16  # free bytes; SQLite's words for a full disk are often others


def disk_is_full(error: BaseException, folder: Path | None = None) -> bool:
    """Whether a full disk is behind an error; ``folder``: of the gallery."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return True
        if isinstance(cause, (sqlite3.Error, UserError)) and "disk is full" in str(cause):
            return True
        if isinstance(cause, sqlite3.OperationalError) and folder is not None:
            with contextlib.suppress(OSError):
                facts = os.statvfs(folder)
                if facts.f_bavail * facts.f_frsize < ALMOST:
                    return True
        cause = cause.__cause__ or cause.__context__  # also what "from None" hides from people
    return False


def damaged(error: Exception) -> Unavailable:
    """What an answer says of an error of the gallery's files; the log says where they are, and nobody else."""
    log.error("%s", error)
    return Unavailable(DAMAGED)


@contextlib.contextmanager
def writing(opened: "Callable[[], Gallery] | None", folder: Path | None) -> "Iterator[Gallery]":
    """A gallery that is closed when the work is done: others may write to it between requests.

    Args:
        opened: opens it.
        folder: of the gallery; the log names it, and answers do not.

    Raises:
        Refusal: another process is writing.
        Unavailable: its files are damaged.
    """
    assert opened is not None
    try:
        gallery = opened()
    except BeingWritten as error:
        log.info("%s", error)
        raise Refusal(409, "locked", "another process is writing to the gallery", RETRY) from None
    except UserError as error:
        if disk_is_full(error, folder):
            raise
        raise damaged(error) from error
    with contextlib.closing(gallery):
        yield gallery
