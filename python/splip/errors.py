"""The errors that a user can cause and mend: one line, exit code 2, no traceback."""

import reprlib


class UserError(Exception):
    """Bad input; the message names the file, flag or shape."""


class UnreadablePicture(UserError):
    """A picture that cannot be decoded; long jobs list it and go on."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"cannot read picture {path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type, tuple[object, str]]:
        return type(self), (self.path, self.reason)  # travels between processes


class Unavailable(UserError):
    """A server that answers depend on failed or cannot be reached; it may come back."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def short(value: object) -> str:
    """A value from a file as a message shows it: the start of what is long, few of many, whatever it holds."""
    return _SHORT.repr(value)


def one_line(text: str) -> str:
    """A message as it is printed: control characters of names and values escaped, and no longer than a screen."""
    text = text if len(text) <= 1000 else text[:1000] + "..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
