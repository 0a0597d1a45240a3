"""The errors that a user can cause and mend: one line, exit code 2, no traceback."""

import reprlib
from dataclasses import dataclass


def shown(value: object) -> str:
    """On one line, whatever a file's name holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


class UserError(Exception):
    """Bad input; the message names the file, flag or shape."""


class UnreadablePicture(UserError):
    """A picture that cannot be decoded; long jobs list it and go on."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"cannot read picture {shown(path)}: {reason}")
        self.path, self.reason = path, reason

    @property
    def skipped(self) -> "Skipped":
        """What a list of such pictures keeps."""
        return Skipped(self.path, self.reason)

    def __reduce__(self) -> tuple[type, tuple[object, str]]:
        return type(self), (self.path, self.reason)  # travels between processes


@dataclass(frozen=True)
class Skipped:
    """A picture or folder that was left out, and why.

    Lists keep these and not the errors: the traceback of an error holds the file's bytes and what was decoded of it.
    """

    path: object
    reason: str

    def __str__(self) -> str:
        return f"cannot read {shown(self.path)}: {self.reason}"


class GalleryError(UserError):
    """Wrong are a gallery's own files, or where they lie, and not what was asked of it."""


class Unavailable(UserError):
    """A server that answers depend on failed or cannot be reached; it may come back."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def short(value: object) -> str:
    """A value from a file as a message shows it: the start of what is long, few of many, whatever it holds."""
    return _SHORT.repr(value)


def one_line(text: str) -> str:
    """A message as it is printed: control characters of names and values escaped, and no longer than a screen."""
    return shown(text if len(text) <= 1000 else text[:1000] + "...")
