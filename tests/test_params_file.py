"""Whatever is wrong with a parameter file is one line with file, line and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m2m.errors import UserError
from m2m.params_file import load_params
from tests.mutations import Reader, survives

GOOD = (Path(__file__).parents[1] / "profiles" / "embedded.yaml").read_text()
PAPER = (Path(__file__).parents[1] / "profiles" / "paper.yaml").read_text()


def complaint(text: str | bytes, tmp_path: Path) -> str:
    """What the loader says of a file, without the folder."""
    file = tmp_path / "params.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as refusal:
        load_params(file)
    return str(refusal.value).replace(f"{tmp_path}/", "")


def line_of(text: str, words: str) -> int:
    return text[: text.index(words)].count("\n") + 1


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("    set_size: 9", "    set_syze: 9", "train.common.set_syze: unknown key; did you mean 'set_size'?"),
        (
            "  sets_per_shard: 32",
            "  colour: red",
            "generate.colour: unknown key; expected seed, solver, num_inference_steps",
        ),
        ("    weight_decay: 0.01\n", "", "train.common.weight_decay: missing; every key must be there"),
        ("  test: 49", "  test: 49\n  test: 99", "captions.test: given twice (first on line"),
        (
            "  test: 49",
            "  test: 0",
            "captions.test: is 0, should be greater than or equal to 1 (image sets for testing)",
        ),
        (
            "  validation: 14",
            "  validation: 0",
            "captions.validation: is 0, should be greater than or equal to 1 (image sets for validation)",
        ),
        ("  steps: 6\n", "  steps: 500\n", "captions: views + steps are 512; expected at most train, 144"),
        ("  validation: 14\n", "", "captions.validation: missing; every key must be there"),
        ("  validation: 8\n", "", "views.validation: missing; every key must be there"),
        ("  test: 49", "  test: many", "captions.test: is 'many', should be a valid integer"),
        ("  test: 49", "  test: '49'", "captions.test: is '49', should be a valid integer"),
        ("  test: 49", "  test: true", "captions.test: is true, should be a valid integer"),
        ("  test: 49", "  test: 1.5", "captions.test: is 1.5, should be a valid integer"),
        ("  test: 49", "  test:", "captions.test: is empty, should be a valid integer"),
        ("  test: 49", "  test: [1]", "captions.test: is a list, should be a valid integer"),
        ("  test: 49", "  test: " + "9" * 5000, "captions.test: a number of 5000 digits"),
        ("given: [1, 2, 4]", "given: [1, 0]", "evaluate.mis.given.1: is 0, should be greater than or equal to 1"),
        ("given: [1, 2, 4]", "given: 2", "evaluate.mis.given: is 2, should be a list"),
        ("decay: 0.99\n", "decay: .nan\n", "train.common.ema.decay: is nan, should be"),
        (
            "source: world\n  seed: 0\n  train",
            "source: web\n  seed: 0\n  train",
            "captions.source: is 'web', should be",
        ),
        ("source: world\n  seed: 0\n  train", "seed: 0\n  train", "captions.source: missing"),
        ("    self:\n", "    self: 3\n    sulf:\n", "train.variant.sulf: unknown key; did you mean 'self'?"),
        ("    decay: 0.99", "    decay 0.99", "train.common.ema: is 'decay 0.99', should be a block of keys"),
        (
            "title: ",
            "title: !!python/object:os.system ",
            "report.title: tag 'tag:yaml.org,2002:python/object:os.system'",
        ),
        ("title: ", "title: !colour ", "report.title: tag '!colour' not understood; leave it out"),
        ("report:\n", "report: &it\n  it: *it\n", "report.it: refers to itself"),
        ("report:\n", "? [1, 2]\n: 3\nreport:\n", "a key that is no plain word"),
        ("report:\n", "report: [\n", "not valid YAML: "),
        ("  test: 49", "\ttest: 192", "not valid YAML: "),
        ("report:\n", "--- \nreport:\n", "not valid YAML: "),
        ("title: ", "title: \x07", "not valid YAML: "),
    ],
)
def test_the_line_names_file_line_and_key(old: str, new: str, expected: str, tmp_path: Path) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    said = complaint(text, tmp_path)
    place, _, rest = said.partition(": ")
    assert re.fullmatch(r"params\.yaml:\d+", place)
    assert rest.startswith(expected)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("    set_size: 9", "    set_syze: 9", "    set_syze"),
        ("  test: 49", "  test: 0", "  test: 0"),
        ("given: [1, 2, 4]\n    gen", "given: [1,\n      0]\n    gen", "      0]"),
        ("    weight_decay: 0.01\n", "", "  common:"),  # what is missing belongs into the block above
        ("  test: 49", "  test: 49\n  test: 99", "  test: 99"),
    ],
)
def test_the_line_is_the_right_one(old: str, new: str, line: str, tmp_path: Path) -> None:
    text = GOOD.replace(old, new, 1)
    assert complaint(text, tmp_path).startswith(f"params.yaml:{line_of(text, line)}: ")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  validation_share: 0.01\n", "", "views.validation_share: missing; every key must be there"),
        (
            "  validation_share: 0.01",
            "  validation_share: 1.5",
            "views.validation_share: is 1.5, should be less than or equal to 1 (share of the sets at path",
        ),
        (
            "  test_share: 0.02",
            "  test_share: 0.99",
            "procedures: validation_share + test_share are 1; expected less than 1: the rest is trained on",
        ),
        ("  validation: 2000\n", "", "captions.validation: missing; every key must be there"),
    ],
)
def test_the_shares_of_folders_are_checked(old: str, new: str, expected: str, tmp_path: Path) -> None:
    text = PAPER.replace(old, new, 1)
    assert text != PAPER
    assert complaint(text, tmp_path).partition(": ")[2].startswith(expected)


def test_the_hub_s_pins_are_checked(tmp_path: Path) -> None:
    said = complaint(PAPER.replace("4e63672c03103b6c636b8fb4119ba982469b2955", "main"), tmp_path)
    assert "foundation.stable_diffusion.revision: is 'main', should match pattern" in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "params.yaml:1: empty; expected a complete parameter file"),
        ("just words", "params.yaml:1: is 'just words', should be"),
        ("[" * 5000, "params.yaml:1: nested too deeply"),
        (b"\xff\xfe\x00", "params.yaml: not UTF-8 text (byte 0)"),
    ],
)
def test_what_is_no_parameter_file(content: str | bytes, expected: str, tmp_path: Path) -> None:
    assert complaint(content, tmp_path).startswith(expected)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml: cannot be read: No such file"):
        load_params(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_params(tmp_path)


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    """YAML 1.2: PyYAML alone would take 3e-4 for a string, 010 for eight and yes for true."""
    file = tmp_path / "params.yaml"
    file.write_text(
        re.sub(r"learning_rate: \S+", "learning_rate: 3e-4", GOOD)
        .replace("  test: 49", "  test: 010")
        .replace("title: Many-to-many image generation", "title: yes")
    )
    params = load_params(file)
    assert params.train.variant.of("self").learning_rate == 3e-4
    assert params.captions.test == 10
    assert params.report.title == "yes"


def test_each_variant_has_its_own(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(re.sub(r"    dino:\n      images: \d+", "    dino:\n      images: 7", GOOD))
    variants = load_params(file).train.variant
    assert variants.of("dino").images == 7
    assert variants.of("self").images > 7


LINES = GOOD.splitlines(keepends=True)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    number=st.integers(0, len(LINES) - 1),
    change=st.sampled_from(["drop", "twice", "replace", "insert", "cut"]),
    text=st.text(max_size=12),
)
@example(number=4, change="replace", text="\ud800".encode("utf-8", "replace").decode())
@example(number=4, change="insert", text="&a [*a]")
@example(number=4, change="insert", text="<<: *x")
@example(number=10, change="replace", text="%YAML 3.0")
def test_a_changed_file_is_still_good_or_gives_one_line(
    number: int, change: str, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = list(LINES)
    line = lines[number]
    indent = line[: len(line) - len(line.lstrip())]
    match change:
        case "drop":
            del lines[number]
        case "twice":
            lines.insert(number, line)
        case "replace":
            lines[number] = f"{line.partition(':')[0]}: {text}\n"
        case "insert":
            lines.insert(number, f"{indent}{text}\n")
        case "cut":
            lines[number] = line[: len(line) // 2] + "\n"
    file = tmp_path_factory.getbasetemp() / "changed.yaml"
    file.write_bytes("".join(lines).encode("utf-8", "surrogatepass"))
    try:
        load_params(file)
    except UserError as error:
        said = str(error)
        assert "\n" not in said
        assert said.startswith(f"{file}:")
        assert said.isprintable()


def reader() -> Reader:
    """Reads a complete parameter file."""
    return GOOD.encode(), "params.yaml", load_params


@pytest.mark.fuzz
def test_damaged_files_are_read_rightly_or_refused_in_a_line() -> None:
    survives("tests.test_params_file:reader", 50)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('a: "\\U00110000"', "not valid YAML"),
        (f"%YAML {'9' * 5000}.1\n---\na: 1", "not valid YAML"),
        ('a: "\\ud800"', "a: '\\ud800' holds a NUL or half a character"),
        ('"\\ud800": 1', "'\\ud800' holds a NUL or half a character"),
        ('a: "b\\0c"', "a: 'b\\x00c' holds a NUL"),
        ("a\u2028b: 1", "'a\\u2028b': unknown key"),
        (f"a: {'9' * 5000}", "a number of 5000 digits"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "x" * (1 << 20), "more than 1048576 bytes"),
        (
            "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
            "more than 10000 values",
        ),
    ],
)
def test_what_would_fill_memory_or_break_a_line_is_refused(text: str, words: str, tmp_path: Path) -> None:
    said = complaint(text, tmp_path)
    assert words in said
    assert len(said.splitlines()) == 1
    assert said.encode(), "it can be shown"
