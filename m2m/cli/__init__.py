"""The command line: reads parameters and environment, calls one stage or tool, says in one line what is wrong.

Whatever computes is imported by the command that needs it, so that ``m2m --help`` and shell completion answer at once.
"""

from m2m.cli import stages, tools
from m2m.cli.program import app, main

__all__ = ["app", "main", "stages", "tools"]
