"""The exceptions that are meant for people."""


class UserError(Exception):
    """One line for the person at the terminal: what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with code 2.
    """


class OutsideError(UserError):
    """A server that this process needs does not answer: the same command may succeed later."""
