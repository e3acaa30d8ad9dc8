"""What README and docs say: its length, its links, its commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
import yaml

from m2m.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "ablations" / "README.md"]
ELSEWHERE = {
    "ci": "CI runs it by itself",
    "docker": "needs Docker",
    "gpu": "needs GPUs, or data of hundreds of gigabytes",
    "index": "makes another environment, of a gigabyte, from a package index",
}
"""What a block that does not run here says after ``sh``."""


class Block(NamedTuple):
    page: Path
    where: str
    commands: str


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for where, commands in re.findall(r"^```sh *(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            yield Block(page, where, commands)


def commands(name: str) -> Iterator[list[str]]:
    """The arguments of each call of a program: in the blocks, and in code within the text."""
    for page in PAGES:
        text = page.read_text()
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
        shown = "\n".join([block.commands for block in blocks() if block.page == page] + inline)
        for line in shown.splitlines():
            for part in re.split(r"; |&& ", line):
                words = shlex.split(part, comments=True) if part.startswith(f"{name} ") else []
                if words and "…" not in part:
                    yield words[1:]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_project_are_there(page: Path) -> None:
    named = re.findall(r"`((?:m2m|tests|flows|infra|benchmarks|profiles|ablations)/[\w/.-]+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_commands_have_the_options_that_are_shown() -> None:
    program = typer.main.get_command(app)
    shown = list(commands("m2m"))
    assert len(shown) > 5
    for words in shown:
        if words[0].startswith("--"):
            continue
        command = program.get_command(typer.Context(program), words[0])  # type: ignore[attr-defined]
        assert command is not None, words
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known | {"--help"}, words


def test_make_has_the_targets_that_are_shown() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {words[0] for words in commands("make")} <= targets


def test_parameters_that_are_shown_exist() -> None:
    shown = [word for words in commands("dvc") for word in words if "=" in word and not word.startswith("-")]
    assert shown
    for key, _ in (word.split("=") for word in shown):
        value = yaml.safe_load((ROOT / "profiles" / "embedded.yaml").read_text())
        for part in key.split("."):
            value = value[part]


def test_blocks_say_why_they_do_not_run_here() -> None:
    assert {block.where for block in blocks()} <= {"", *ELSEWHERE}


MADE = pytest.mark.skipif(
    not (ROOT / "models" / "m2m-dino-vpg").exists(), reason="needs what the pipeline makes: CI runs it behind that"
)


@pytest.fixture(scope="module")
def meshes() -> None:
    """What the commands take to be there."""
    import trimesh

    for name in ("chair.glb", "table.obj"):
        trimesh.creation.box().export(ROOT / name)


def run(*command: str) -> None:
    """In this checkout, whose pipeline has run; `.ci/run` does so in a clean clone."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"{command[-1]}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"


@pytest.mark.slow
@MADE
@pytest.mark.usefixtures("meshes")
@pytest.mark.parametrize(
    "block",
    [block for block in blocks() if block.where not in ELSEWHERE],
    ids=lambda block: f"{block.page.stem}: {block.commands.splitlines()[0].partition('  ')[0]}",
)
def test_every_command_runs_as_it_stands(block: Block) -> None:
    """One after the other."""
    run("bash", "-euo", "pipefail", "-c", block.commands)


@pytest.mark.slow
@MADE
def test_the_python_that_is_shown_runs() -> None:
    """In one process, which imports once."""
    shown = [code for page in PAGES for code in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)]
    assert len(shown) > 1
    run(sys.executable, "-c", "\n".join(shown))
