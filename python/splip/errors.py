"""The errors that a user can cause and mend: one line, exit code 2, no traceback."""


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
