"""Captions come back as they were written, from our own files and from others; what is bad is named by its line."""

import hashlib
import os
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2m.data import captions
from m2m.data.captions import CaptionRow, read_captions, read_origin, survey_captions, write_captions
from m2m.errors import UserError
from m2m.manifest import Origin, Split
from m2m.params import Cc12mCaptions
from tests.memory import peak_bytes
from tests.mutations import Reader, survives

ORIGIN = Origin(name="a source", licence="its terms", mix="of two kinds")
CAPTIONS = [
    CaptionRow("a-1", "a red star, neon", "train"),
    CaptionRow("a-2", '<PERSON> über ☃ — "quoted"', "test"),
    CaptionRow("a-3", "a red star, neon", "train"),
]


def test_it_reads_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "ROWS", 2)
    path = tmp_path / "data" / "captions.parquet"
    write_captions(path, iter(CAPTIONS), ORIGIN)
    assert list(read_captions(path)) == CAPTIONS
    assert list(read_captions(path, "train")) == [CAPTIONS[0], CAPTIONS[2]]
    assert survey_captions(path)[0] == 3
    assert read_origin(path) == ORIGIN
    assert pq.read_table(path).column_names == ["id", "caption", "split"]
    assert pq.ParquetFile(path).num_row_groups == 2


def test_the_same_captions_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_captions(tmp_path / name, CAPTIONS, ORIGIN)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_error_midway_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    write_captions(path, CAPTIONS, ORIGIN)
    content = path.read_bytes()

    def failing():
        yield CAPTIONS[0]
        raise UserError("the source broke off")

    with pytest.raises(UserError, match="broke off"):
        write_captions(path, failing(), ORIGIN)
    assert path.read_bytes() == content
    assert {file.name for file in tmp_path.iterdir()} == {"captions.parquet", "captions.parquet.sha256"}


def test_the_digest_is_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "captions.parquet"

    def digest(*captions: CaptionRow) -> str:
        write_captions(path, captions, ORIGIN)
        return survey_captions(path)[1]

    whole = digest(*CAPTIONS)
    assert whole == "c0185cafe9191a1abca56bba676f0266d216302d8d51d3193330a4c5fcdf4042"
    monkeypatch.setattr(captions, "ROWS", 2)
    assert digest(*CAPTIONS) == whole, "however the file is cut"
    pq.write_table(
        pq.read_table(path).cast(pa.schema([(name, pa.large_string()) for name in ("id", "caption", "split")])), path
    )
    path.with_name(f"{path.name}.sha256").unlink()
    assert survey_captions(path) == (3, whole), "however texts are stored"
    different = [
        (CaptionRow("a", "b", "train"),),
        (CaptionRow("a", "b", "test"),),
        (CaptionRow("ab", "c", "train"),),
        (CaptionRow("a", "bc", "train"),),
        (CaptionRow("a", "bc", "train"), CaptionRow("d", "e", "train")),
        (CaptionRow("a", "b", "train"), CaptionRow("d", "ce", "train")),
        (*CAPTIONS[1:], CAPTIONS[0]),
    ]
    assert len({whole, *(digest(*rows) for rows in different)}) == len(different) + 1


@pytest.mark.parametrize("id_", ["", "a.b", "../a", "a/b", "ä", "a" * 65, "a\n"])
def test_ids_can_name_files(id_: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"captions.parquet: id {id_!r}; expected 1 to 64 letters")):
        write_captions(tmp_path / "captions.parquet", [CaptionRow(id_, "text", "train")], ORIGIN)
    assert list(tmp_path.iterdir()) == []


def test_there_are_three_splits(tmp_path: Path) -> None:
    rows = [CaptionRow("a", "text", cast(Split, "valid"))]
    with pytest.raises(UserError, match=r"captions.parquet: split 'valid'; expected one of train, validation, test$"):
        write_captions(tmp_path / "captions.parquet", rows, ORIGIN)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_caption_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"captions .*missing cannot be read: No such file.*; make it again"):
        next(read_captions(tmp_path / "missing"))
    (tmp_path / "text").write_text("id,caption,split")
    with pytest.raises(UserError, match=r"captions .*text is no Parquet file.*; make it again"):
        next(read_captions(tmp_path / "text"))
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other\.parquet: not one column caption among \['id', 'text'\]"):
        next(read_captions(tmp_path / "other.parquet"))
    pq.write_table(pa.table({"id": ["a"], "caption": ["b"], "split": ["train"]}), tmp_path / "own.parquet")
    with pytest.raises(UserError, match="does not say where its captions come from"):
        read_origin(tmp_path / "own.parquet")
    older = pq.read_table(tmp_path / "own.parquet").replace_schema_metadata(
        {"name": "a source", "licence": "its terms"}
    )
    pq.write_table(older, tmp_path / "older.parquet")
    with pytest.raises(
        UserError,
        match="does not say where its captions come from; make it again: dvc repro --force --single-item captions",
    ):
        read_origin(tmp_path / "older.parquet")


def test_captions_with_another_bit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    write_captions(path, CAPTIONS, ORIGIN)
    good = path.read_bytes()
    for place in range(0, len(good), 5):
        content = bytearray(good)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        for read in (read_origin, lambda path: next(read_captions(path))):
            with pytest.raises(UserError, match=r"captions\.parquet: damaged, its SHA-256"):
                read(path)


@pytest.mark.parametrize(
    ("columns", "names", "said"),
    [
        (
            (["a"], ["b"], ["train"], ["c"]),
            ("id", "caption", "split", "caption"),
            "not one column caption among",
        ),
        (([1], ["b"], ["train"]), ("id", "caption", "split"), "the column id holds int64, not strings"),
        ((["a"], [None], ["train"]), ("id", "caption", "split"), "the column caption holds null, not strings"),
        ((["a", "b"], ["b", None], ["train"] * 2), ("id", "caption", "split"), "a row is not filled"),
    ],
)
def test_columns_that_are_not_as_written_are_named(
    columns: tuple[list[object], ...], names: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table([*map(pa.array, columns)], names=[*names]), tmp_path / "a")
    for read in (lambda path: list(read_captions(path)), survey_captions):
        with pytest.raises(UserError, match=said):
            read(tmp_path / "a")


def test_a_split_that_is_none_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "caption": ["b"], "split": ["valid"]}), tmp_path / "a")
    with pytest.raises(UserError, match="split 'valid'; expected one of train, validation, test; make it again"):
        survey_captions(tmp_path / "a")
    with pytest.raises(UserError, match="split 'valid'"):
        next(read_captions(tmp_path / "a", "train"))


@pytest.mark.parametrize("id_", ["b/c", "", "a\n", "é", "a" * 65])
def test_an_id_that_names_no_file_is_told_before_any_work(id_: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a", id_], "caption": ["b", "b"], "split": ["train", "test"]}), tmp_path / "a")
    with pytest.raises(UserError, match=re.escape(f"a: id {id_!r}; expected 1 to 64 letters")):
        survey_captions(tmp_path / "a")


# Damaged files


def reader() -> Reader:
    def read(path: Path) -> None:
        read_origin(path)
        survey_captions(path)
        for _ in read_captions(path):
            pass

    file = Path(tempfile.mkdtemp()) / "captions.parquet"
    write_captions(file, CAPTIONS, ORIGIN)
    content = file.read_bytes()
    shutil.rmtree(file.parent)
    return content, "captions.parquet", read


@pytest.mark.fuzz
def test_damaged_files_are_read_or_named() -> None:
    survives("tests.data.test_captions:reader", 150)


TEXTS = ["a very <PERSON> day", "the cat's “mat”", "naïve  café", "a, b; c"] + [
    f"picture number {n}" for n in range(96)
]


def params(path: Path, **changes: Any) -> Cc12mCaptions:
    fields = {"source": "cc12m", "seed": 0, "path": str(path), "format": "tsv", "train": 60}
    return Cc12mCaptions.model_validate(
        {**fields, "validation": 10, "test": 20, "more": (), "max_bad_fraction": 0.0, "blocklist": None, **changes}
    )


def tsv(path: Path, texts: list[str], end: str = "\n") -> Path:
    path.write_bytes("".join(f"https://example.org/{n}.jpg\t{text}{end}" for n, text in enumerate(texts)).encode())
    return path


def parquet(path: Path, texts: list[str | None], kind: pa.DataType | None = None) -> Path:
    table = pa.table(
        {
            "url": [f"https://example.org/{n}.jpg" for n in range(len(texts))],
            "caption": pa.array(texts, kind or pa.string()),
        }
    )
    pq.write_table(table, path, row_group_size=16)
    return path


def select(params: Cc12mCaptions) -> list[CaptionRow]:
    return list(captions.selected_captions(params, captions.select_lines(params)))


def test_captions_come_as_they_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    chosen = select(params(tsv(tmp_path / "cc12m.tsv", TEXTS), train=70))
    assert len(chosen) == 100
    assert [caption.text for caption in chosen] == TEXTS
    assert [caption.id for caption in chosen][:2] == ["cc12m-000000001", "cc12m-000000002"]


def test_splits_have_the_sizes_asked_for_and_hang_on_the_seed_alone(tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", TEXTS)
    chosen = select(params(path))
    assert Counter(caption.split for caption in chosen) == {"train": 60, "validation": 10, "test": 20}
    assert select(params(path)) == chosen
    assert select(params(path, seed=1)) != chosen
    # more training captions do not change which ones are for the other splits
    others = [caption for caption in chosen if caption.split != "train"]
    assert [caption for caption in select(params(path, train=70)) if caption.split != "train"] == others
    # nor do more for validation change the test
    test = [caption for caption in chosen if caption.split == "test"]
    assert [caption for caption in select(params(path, validation=20)) if caption.split == "test"] == test


def test_more_captions_stand_behind_those_that_were_there(tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", TEXTS)
    before, after = select(params(path, train=40)), select(params(path, train=40, more=(20, 7)))
    assert after[: len(before)] == before
    assert [row.split for row in after[len(before) :]] == ["train"] * 27
    assert select(params(path, train=40, more=(20,))) == after[:-7]
    assert {row.id for row in after} >= {row.id for row in select(params(path, train=60))}
    assert len({row.id for row in after}) == 97
    with pytest.raises(UserError, match=r"100 usable captions; .*captions\.test \+ captions\.more ask for 101"):
        select(params(path, train=40, more=(31,)))


def test_a_file_says_how_many_captions_came_at_a_time(tmp_path: Path) -> None:
    captions.write_captions(tmp_path / "grown", CAPTIONS, ORIGIN, parts=[1, 1])
    assert captions.read_parts(tmp_path / "grown") == (1, 1)
    assert captions.read_origin(tmp_path / "grown") == ORIGIN
    captions.write_captions(tmp_path / "whole", CAPTIONS, ORIGIN)
    assert captions.read_parts(tmp_path / "whole") == ()
    assert captions.survey_captions(tmp_path / "grown") == captions.survey_captions(tmp_path / "whole")


def test_every_line_has_the_same_chance(tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", TEXTS)
    choices = np.stack([captions.select_lines(params(path, seed=seed)).choice for seed in range(200)])
    for choice, share in ((1, 0.6), (2, 0.1), (3, 0.2)):
        counts = (choices == choice).sum(axis=0)
        assert abs(counts - 200 * share).max() < 5 * (200 * share * (1 - share)) ** 0.5


def test_no_split_has_a_caption_of_another_word_for_word(tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", [f"caption {n % 25}" for n in range(100)])
    chosen = select(params(path, train=20, validation=5, test=10))
    texts = {split: {caption.text for caption in chosen if caption.split == split} for split in get_args(Split)}
    assert len(set.union(*texts.values())) == sum(map(len, texts.values()))
    assert len(chosen) == 35


def test_parquet_gives_the_same_as_tsv(tmp_path: Path) -> None:
    expected = select(params(tsv(tmp_path / "cc12m.tsv", TEXTS)))
    for kind in (pa.string(), pa.large_string()):
        assert select(params(parquet(tmp_path / "cc12m.parquet", TEXTS, kind), format="parquet")) == expected


def test_windows_line_ends_are_no_part_of_a_caption(tmp_path: Path) -> None:
    assert select(params(tsv(tmp_path / "a", TEXTS, "\r\n"))) == select(params(tsv(tmp_path / "b", TEXTS)))


def test_bad_lines_are_counted_and_the_first_named(tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", TEXTS)
    long = b"u\t" + b"x" * captions.LONGEST_LINE
    bad = [b"no tab", b"u\ta\tb", b"u\t\xff\xfe", b"u\t  ", b"", long, b"u\t" + b"y" * 10 * captions.LONGEST_LINE]
    path.write_bytes(b"\n".join([*bad, path.read_bytes()]))
    selection = captions.select_lines(params(path, train=70, max_bad_fraction=0.07))
    assert selection.bad == 7
    assert selection.examples == (
        "line 1: 1 columns instead of 2",
        "line 2: 3 columns instead of 2",
        "line 3: not UTF-8",
        "line 4: no caption",
        "line 5: 1 columns instead of 2",
    )
    chosen = list(captions.selected_captions(params(path, train=70), selection))
    assert [caption.text for caption in chosen] == TEXTS
    assert chosen[0].id == "cc12m-000000008"


def test_too_many_bad_lines_are_an_error(tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", [*TEXTS[:99], ""])
    assert captions.select_lines(params(path, max_bad_fraction=0.01)).bad == 1
    with pytest.raises(
        UserError, match=r"1 of 100 lines are bad, .*max_bad_fraction 0.009 .*UTF-8 \(line 100: no caption\)"
    ):
        captions.select_lines(params(path, max_bad_fraction=0.009))


def test_captions_with_a_listed_word_are_left_out_and_are_no_bad_lines(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("number 9\nnumber 11\n")
    path = tsv(tmp_path / "cc12m.tsv", [*TEXTS[:50], "", *TEXTS[50:]])
    listed = params(path, blocklist=str(tmp_path / "list.txt"), train=68, max_bad_fraction=0.01)
    selection = captions.select_lines(listed)
    assert (selection.bad, selection.blocked, selection.examples) == (1, 2, ("line 51: no caption",))
    sha256 = hashlib.sha256((tmp_path / "list.txt").read_bytes()).hexdigest()
    assert selection.mix == f"without 2 of 101 that hold an entry of a list of words (SHA-256 `{sha256}`)"
    chosen = list(captions.selected_captions(listed, selection))
    assert [one.text for one in chosen] == [text for text in TEXTS if not text.endswith((" 9", " 11"))]
    with pytest.raises(
        UserError, match=r"98 usable captions, without 2 for captions\.blocklist; captions\.train .* ask for 99"
    ):
        captions.select_lines(listed.model_copy(update={"train": 69}))


def test_a_list_that_nothing_is_on_changes_nothing(tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", TEXTS)
    (tmp_path / "list.txt").write_text("nothing\n")
    listed = params(path, blocklist=str(tmp_path / "list.txt"))
    assert select(listed) == select(params(path))
    assert "without 0 of 100" in captions.select_lines(listed).mix


def test_a_list_that_is_missing_is_named_before_the_captions_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"captions\.blocklist: cannot read .*list\.txt: No such file"):
        captions.select_lines(params(tmp_path / "missing.tsv", blocklist=str(tmp_path / "list.txt")))


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    texts = pa.array([b"good", None, b" ", b"\xff\xfe", b"also good", b"as good"], pa.binary())
    table = pa.table({"caption": pa.Array.from_buffers(pa.string(), len(texts), texts.buffers())})
    pq.write_table(table, tmp_path / "captions.parquet")
    selection = captions.select_lines(
        params(tmp_path / "captions.parquet", format="parquet", train=1, validation=1, test=1, max_bad_fraction=0.6)
    )
    assert selection.examples == ("line 2: no caption", "line 3: no caption", "line 4: not UTF-8")
    assert np.flatnonzero(selection.choice).tolist() == [0, 4, 5]


def test_too_few_captions_are_an_error(tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", TEXTS)
    said = r"has 100 usable captions; captions.train \+ captions.validation \+ captions.test ask for 101"
    for changes in ({"train": 71}, {"train": 1, "validation": 80}, {"train": 1, "test": 90}):
        with pytest.raises(UserError, match=said):
            captions.select_lines(params(path, **changes))
    with pytest.raises(UserError, match="has 100 usable captions"):
        captions.select_lines(params(path, train=1, test=101))


@pytest.mark.parametrize("format_", ["tsv", "parquet"])
def test_a_missing_file_is_named(format_: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"captions\.path: .*nothing.*: No such file"):
        captions.select_lines(params(tmp_path / "nothing", format=format_))
    with pytest.raises(UserError, match=r"captions\.path: .*(cannot read|cannot be read)"):
        captions.select_lines(params(tmp_path, format=format_))


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="empty is empty; expected lines of an address, a tab and a caption, in UTF-8"):
        captions.select_lines(params(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"empty is no Parquet file.*; captions\.format is parquet"):
        captions.select_lines(params(tmp_path / "empty", format="parquet"))
    with pytest.raises(UserError, match="is empty; expected a Parquet file with a column caption"):
        captions.select_lines(params(parquet(tmp_path / "rows", []), format="parquet"))


def test_the_wrong_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a Parquet file, captions\.format is tsv"):
        captions.select_lines(params(parquet(tmp_path / "a", TEXTS)))
    with pytest.raises(UserError, match=r"is no Parquet file.*; captions\.format is parquet"):
        captions.select_lines(params(tsv(tmp_path / "b", TEXTS), format="parquet"))
    (tmp_path / "c").write_text("\n".join(TEXTS), encoding="utf-16")
    with pytest.raises(UserError, match=r"101 of 101 lines are bad|expected lines of an address"):
        captions.select_lines(params(tmp_path / "c"))
    pq.write_table(pa.table({"url": ["a"], "TEXT": ["b"]}), tmp_path / "d")
    with pytest.raises(UserError, match=r"d: not one column caption among \['url', 'TEXT'\]; captions\.format is"):
        captions.select_lines(params(tmp_path / "d", format="parquet"))
    pq.write_table(pa.table({"caption": [1]}), tmp_path / "e")
    with pytest.raises(UserError, match="the column caption holds int64, not strings"):
        captions.select_lines(params(tmp_path / "e", format="parquet"))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "captions.parquet", TEXTS)
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"captions\.path: .*captions\.parquet"):
        captions.select_lines(params(path, format="parquet"))


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", TEXTS)
    selection = captions.select_lines(params(path))
    tsv(path, ["" for _ in TEXTS])
    with pytest.raises(UserError, match="changed while it was read"):
        list(captions.selected_captions(params(path), selection))


@pytest.mark.slow
def test_memory_does_not_hold_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cc12m.tsv"
    lines = 8_000
    with path.open("wb") as file:
        for n in range(lines):
            file.write(f"u\t{n} ".encode() + b"word " * 200 + b"\n")
    all_of_it = params(path, train=lines - 30)
    chosen: list[int] = []

    def select(_: int) -> None:
        chosen.append(sum(1 for _ in captions.selected_captions(all_of_it, captions.select_lines(all_of_it))))

    peak = peak_bytes(select)
    assert {*chosen} == {lines}
    assert peak < 0.2 * path.stat().st_size


@pytest.mark.parametrize("header", ["url\tcaption", "\ufeffimage_url\tTEXT", "Bild\tBeschreibung"])
def test_a_line_that_names_the_columns_is_no_caption(header: str, tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", TEXTS)
    path.write_bytes(f"{header}\n".encode() + path.read_bytes())
    with pytest.raises(UserError, match=r"1 of 101 lines are bad.*\(line 1: a header, no caption\)"):
        captions.select_lines(params(path))
    chosen = select(params(path, train=70, max_bad_fraction=0.02))
    assert [caption.text for caption in chosen] == TEXTS
    assert chosen[0].id == "cc12m-000000002"


def test_columns_in_the_other_order_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cc3m.tsv"
    lines = [f"{text}\thttps://example.org/{n}.jpg" for n, text in enumerate(TEXTS)]
    path.write_text("\n".join(lines))
    said = (
        r"100 of 100 lines are bad.*expected lines of an address, a tab.*line 1: an address where the caption should be"
    )
    with pytest.raises(UserError, match=said):
        captions.select_lines(params(path, max_bad_fraction=0.5))
    addresses = parquet(tmp_path / "addresses", [f"HTTP://example.org/{n}" for n in range(100)])
    with pytest.raises(UserError, match="line 1: an address where the caption should be"):
        captions.select_lines(params(addresses, format="parquet"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_named(encoding: str, tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", TEXTS)
    path.write_text(path.read_text(), encoding=encoding)
    marked = r"is UTF-16 text, captions\.format is tsv; expected .* in UTF-8"
    with pytest.raises(
        UserError, match=r"lines are bad.*in UTF-8" if encoding[-2] + encoding[-1] in ("le", "be") else marked
    ):
        captions.select_lines(params(path, max_bad_fraction=0.5))


def test_captions_that_nobody_can_read_are_none(tmp_path: Path) -> None:
    unseen = ["\u200b", "\u2060\ufeff \u00ad", "\u3164", "\u0301", "\u202e\u202c", "\x01\x02", "\ufe0f", "\u2800"]
    selection = captions.select_lines(params(tsv(tmp_path / "a", [*unseen, "a\0b", *TEXTS]), max_bad_fraction=0.1))
    assert selection.bad == 9
    assert selection.examples[0] == "line 1: no caption"
    seen = ["…", "1", "\U0001f642", "猫", "e\u0301", "a\u200bb"]
    chosen = select(params(tsv(tmp_path / "b", seen), train=4, validation=1, test=1))
    assert [caption.text for caption in chosen] == seen


def test_strings_of_every_kind_are_text(tmp_path: Path) -> None:
    expected = select(params(tsv(tmp_path / "cc12m.tsv", TEXTS)))
    for kind in (
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ):
        assert select(params(parquet(tmp_path / "cc12m.parquet", TEXTS, kind), format="parquet")) == expected, kind


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["caption", "caption"]), tmp_path / "a")
    with pytest.raises(UserError, match=r"a: not one column caption among \['caption', 'caption'\]"):
        captions.select_lines(params(tmp_path / "a", format="parquet"))


def test_a_damaged_page_is_named_in_one_line(tmp_path: Path) -> None:
    for codec in ("snappy", "zstd", "gzip", "none"):
        pq.write_table(pa.table({"caption": TEXTS}), tmp_path / codec, compression=codec, use_dictionary=False)
        content = bytearray((tmp_path / codec).read_bytes())
        content[30:300] = b"\xff" * 270
        (tmp_path / codec).write_bytes(content)
        with pytest.raises(UserError, match=r"captions\.path: ") as error:
            captions.select_lines(params(tmp_path / codec, format="parquet"))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("format_", ["tsv", "parquet"])
def test_a_fifo_is_not_waited_for(format_: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match=r"captions\.path: .*fifo.*: not a regular file"):
        captions.select_lines(params(tmp_path / "fifo", format=format_))


# Damaged files


def read(path: Path, format_: str) -> None:
    asked = params(path, format=format_, train=3, validation=1, test=1, max_bad_fraction=0.9)
    for _ in captions.selected_captions(asked, captions.select_lines(asked)):
        pass


def tsv_reader() -> Reader:
    good = "".join(f"https://example.org/{n}.jpg\t{text}\n" for n, text in enumerate(TEXTS[:12]))
    return good.encode(), "cc12m.tsv", lambda path: read(path, "tsv")


def parquet_reader() -> Reader:
    file = pa.BufferOutputStream()
    pq.write_table(pa.table({"url": TEXTS[:12], "caption": TEXTS[:12]}), file, row_group_size=6)
    return file.getvalue().to_pybytes(), "cc12m.parquet", lambda path: read(path, "parquet")


@pytest.mark.fuzz
@pytest.mark.parametrize("name", ["tsv_reader", "parquet_reader"])
def test_damaged_sources_are_read_or_named(name: str) -> None:
    survives(f"tests.data.test_captions:{name}", 150)
