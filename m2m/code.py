"""Which code a result comes from: what a module imports, and what that imports, down to the last."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from m2m.files import listing_digest

LEFT_OUT = ("code", "engines", "errors", "params", "progress", "runtime", "settings", "store", "tracking")
"""What changes no byte of a result: what is told of it, where it lies, and how parameters are checked, whose values
count for themselves. Stores hand out what has the right hash."""


def code_of(module: str) -> dict[str, Path]:
    """The files of a module and of all that it imports of its own package, by module name, sorted.

    Imports within functions count, those for type checkers alone do not. With a module come the packages that it lies
    in, which Python imports first; but for the outermost, whose `__init__` only offers names.

    >>> code_of("m2m.stages.train")
    """
    import grimp

    root = module.partition(".")[0]
    graph = grimp.build_graph(root, cache_dir=None, exclude_type_checking_imports=True)
    for name in LEFT_OUT:
        graph.remove_module(f"{root}.{name}")  # with what lies in it
    for name in graph.modules - {root}:
        graph.remove_import(importer=name, imported=root)
        if (package := name.rpartition(".")[0]) != root:
            graph.add_import(importer=name, imported=package)
    return {name: _file(name) for name in sorted({module, *graph.find_upstream_modules(module)})}


@cache
def code_digest(module: str) -> str:
    """SHA-256 of the code that a module runs, in hexadecimal: what was made by other code has another one.

    It is found once a process, whose code stays what it was when it was imported.
    """
    return listing_digest(code_of(module).items())


def _file(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)
