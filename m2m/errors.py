"""The exceptions that are meant for people."""


class UserError(Exception):
    """One line for the person at the terminal: what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with code 2. File names in it may hold bytes that are no
    text: they are shown as escapes, so that every stream and file takes the line.
    """

    def __str__(self) -> str:
        return super().__str__().encode(errors="backslashreplace").decode()


class OutsideError(UserError):
    """A server that this process needs does not answer: the same command may succeed later."""
