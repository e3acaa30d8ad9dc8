import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2m.data import captions as module
from m2m.data.captions import Caption, CaptionSource, captions_digest, read_captions, read_source, write_captions
from m2m.errors import UserError
from tests.mutations import Reader, survives

SOURCE = CaptionSource(name="a source", licence="its terms", mix="of two kinds")
CAPTIONS = [
    Caption("a-1", "a red star, neon", "train"),
    Caption("a-2", '<PERSON> über ☃ — "quoted"', "test"),
    Caption("a-3", "a red star, neon", "train"),
]


def test_it_reads_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 2)
    path = tmp_path / "data" / "captions.parquet"
    write_captions(path, iter(CAPTIONS), SOURCE)
    assert list(read_captions(path)) == CAPTIONS
    assert read_source(path) == SOURCE
    assert pq.read_table(path).column_names == ["id", "caption", "split"]
    assert pq.ParquetFile(path).num_row_groups == 2


def test_the_same_captions_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_captions(tmp_path / name, CAPTIONS, SOURCE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_error_midway_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    write_captions(path, CAPTIONS, SOURCE)
    content = path.read_bytes()

    def failing():
        yield CAPTIONS[0]
        raise UserError("the source broke off")

    with pytest.raises(UserError, match="broke off"):
        write_captions(path, failing(), SOURCE)
    assert path.read_bytes() == content
    assert {file.name for file in tmp_path.iterdir()} == {"captions.parquet", "captions.parquet.sha256"}


def test_the_digest_is_of_the_content() -> None:
    assert captions_digest(CAPTIONS) == "37248ae7d7cb99ad79547310130f6d5074c9b134932654d2b48b413e38c466d4"
    assert captions_digest(reversed(CAPTIONS)) != captions_digest(CAPTIONS)
    assert captions_digest([Caption("a", "b", "train")]) != captions_digest([Caption("a", "b", "test")])


@pytest.mark.parametrize("id_", ["", "a.b", "../a", "a/b", "ä", "a" * 65, "a\n"])
def test_ids_can_name_files(id_: str) -> None:
    with pytest.raises(UserError, match="set id"):
        Caption(id_, "text", "train")


def test_there_are_three_splits() -> None:
    with pytest.raises(UserError, match="set a: split 'valid'; expected one of train, validation, test"):
        Caption("a", "text", "valid")  # type: ignore[arg-type]


def test_what_is_no_caption_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read captions .*missing: No such file"):
        next(read_captions(tmp_path / "missing"))
    (tmp_path / "text").write_text("id,caption,split")
    with pytest.raises(UserError, match=r"cannot read captions .*text: it is no Parquet file"):
        next(read_captions(tmp_path / "text"))
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other\.parquet: no column caption, split"):
        next(read_captions(tmp_path / "other.parquet"))
    pq.write_table(pa.table({"id": ["a"], "caption": ["b"], "split": ["train"]}), tmp_path / "own.parquet")
    with pytest.raises(UserError, match="does not say where its captions come from"):
        read_source(tmp_path / "own.parquet")
    older = pq.read_table(tmp_path / "own.parquet").replace_schema_metadata(
        {"name": "a source", "licence": "its terms"}
    )
    pq.write_table(older, tmp_path / "older.parquet")
    with pytest.raises(
        UserError,
        match="does not say where its captions come from; make it again: dvc repro --force --single-item captions",
    ):
        read_source(tmp_path / "older.parquet")


def test_captions_with_another_bit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    write_captions(path, CAPTIONS, SOURCE)
    good = path.read_bytes()
    for place in range(0, len(good), 5):
        content = bytearray(good)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        for read in (read_source, lambda path: next(read_captions(path))):
            with pytest.raises(UserError, match=r"captions\.parquet: damaged, its SHA-256"):
                read(path)


@pytest.mark.parametrize(
    ("columns", "names", "said"),
    [
        (
            (["a"], ["b"], ["train"], ["c"]),
            ("id", "caption", "split", "caption"),
            "expected one column caption, of str",
        ),
        (([1], ["b"], ["train"]), ("id", "caption", "split"), "expected one column id, of strings"),
        ((["a"], [None], ["train"]), ("id", "caption", "split"), "expected one column caption, of strings"),
        ((["a", "b"], ["b", None], ["train"] * 2), ("id", "caption", "split"), "a row is not filled"),
    ],
)
def test_columns_that_are_not_as_written_are_named(
    columns: tuple[list[object], ...], names: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table([*map(pa.array, columns)], names=[*names]), tmp_path / "a")
    with pytest.raises(UserError, match=said):
        list(read_captions(tmp_path / "a"))


# Damaged files


def reader() -> Reader:
    def read(path: Path) -> None:
        read_source(path)
        for _ in read_captions(path):
            pass

    file = Path(tempfile.mkdtemp()) / "captions.parquet"
    write_captions(file, CAPTIONS, SOURCE)
    content = file.read_bytes()
    shutil.rmtree(file.parent)
    return content, "captions.parquet", read


@pytest.mark.fuzz
def test_damaged_files_are_read_or_named() -> None:
    survives("tests.data.test_captions:reader", 150)
