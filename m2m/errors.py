"""The exceptions that are meant for people."""


def made_again(stage: str) -> str:
    """The command that makes a stage's outputs again, for a message: `dvc repro` alone would find nothing changed."""
    return f"dvc repro --force --single-item {stage}"


FOUNDATION_RESTORED = f"restore it from git, or make it again: {made_again('foundation')}"
"""Of the small models that come with the repository."""
MADE_AGAIN = f"make it again: {made_again('STAGE')}, with the stage that made it (generate, views or procedures)"
"""Of what a dataset's stage keeps in the store."""


class UserError(Exception):
    """One line for the person at the terminal: what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with code 2. File names in it may hold bytes that are no
    text: they are shown as escapes, so that every stream and file takes the line.
    """

    def __str__(self) -> str:
        return super().__str__().encode(errors="backslashreplace").decode()


class OutsideError(UserError):
    """A server that this process needs does not answer: the same command may succeed later."""
