"""Errors that are told in one line, without a traceback."""


class UserError(ValueError):
    """A mistake that the user can mend: what is wrong, and what to do. Exit status 2."""


class RunFailed(RuntimeError):
    """A run that cannot go on through no fault of its command: what happened. Exit status 1."""
