import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2m.data import cc12m
from m2m.data.captions import Caption
from m2m.errors import UserError
from m2m.manifest import Split
from m2m.params import Cc12mCaptions

TEXTS = ["a very <PERSON> day", "the cat's “mat”", "naïve  café", "a, b; c"] + [
    f"picture number {n}" for n in range(96)
]


def params(path: Path, **changes: Any) -> Cc12mCaptions:
    fields = {"source": "cc12m", "seed": 0, "path": str(path), "format": "tsv", "train": 60}
    return Cc12mCaptions.model_validate({**fields, "validation": 10, "test": 20, "max_bad_fraction": 0.0, **changes})


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


def select(params: Cc12mCaptions) -> list[Caption]:
    return list(cc12m.selected_captions(params, cc12m.select_lines(params)))


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


def test_every_line_has_the_same_chance(tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", TEXTS)
    choices = np.stack([cc12m.select_lines(params(path, seed=seed)).choice for seed in range(200)])
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
    long = b"u\t" + b"x" * cc12m.LONGEST_LINE
    bad = [b"no tab", b"u\ta\tb", b"u\t\xff\xfe", b"u\t  ", b"", long, b"u\t" + b"y" * 10 * cc12m.LONGEST_LINE]
    path.write_bytes(b"\n".join([*bad, path.read_bytes()]))
    selection = cc12m.select_lines(params(path, train=70, max_bad_fraction=0.07))
    assert selection.bad == 7
    assert selection.examples == (
        "line 1: 1 columns instead of 2",
        "line 2: 3 columns instead of 2",
        "line 3: not UTF-8",
        "line 4: no caption",
        "line 5: 1 columns instead of 2",
    )
    chosen = list(cc12m.selected_captions(params(path, train=70), selection))
    assert [caption.text for caption in chosen] == TEXTS
    assert chosen[0].id == "cc12m-000000008"


def test_too_many_bad_lines_are_an_error(tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", [*TEXTS[:99], ""])
    assert cc12m.select_lines(params(path, max_bad_fraction=0.01)).bad == 1
    with pytest.raises(
        UserError, match=r"1 of 100 lines are bad, .*max_bad_fraction 0.009 .*UTF-8 \(line 100: no caption\)"
    ):
        cc12m.select_lines(params(path, max_bad_fraction=0.009))


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    texts = pa.array([b"good", None, b" ", b"\xff\xfe", b"also good", b"as good"], pa.binary())
    table = pa.table({"caption": pa.Array.from_buffers(pa.string(), len(texts), texts.buffers())})
    pq.write_table(table, tmp_path / "captions.parquet")
    selection = cc12m.select_lines(
        params(tmp_path / "captions.parquet", format="parquet", train=1, validation=1, test=1, max_bad_fraction=0.6)
    )
    assert selection.examples == ("line 2: no caption", "line 3: no caption", "line 4: not UTF-8")
    assert np.flatnonzero(selection.choice).tolist() == [0, 4, 5]


def test_too_few_captions_are_an_error(tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", TEXTS)
    said = r"has 100 usable captions; captions.train \+ captions.validation \+ captions.test ask for 101"
    for changes in ({"train": 71}, {"train": 1, "validation": 80}, {"train": 1, "test": 90}):
        with pytest.raises(UserError, match=said):
            cc12m.select_lines(params(path, **changes))
    with pytest.raises(UserError, match="has 100 usable captions"):
        cc12m.select_lines(params(path, train=1, test=101))


@pytest.mark.parametrize("format_", ["tsv", "parquet"])
def test_a_missing_file_is_named(format_: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"captions.path: cannot read .*nothing: No such file"):
        cc12m.select_lines(params(tmp_path / "nothing", format=format_))
    with pytest.raises(UserError, match=r"captions\.path: cannot read"):
        cc12m.select_lines(params(tmp_path, format=format_))


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="empty is empty; expected lines of an address, a tab and a caption, in UTF-8"):
        cc12m.select_lines(params(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"empty is no Parquet file, captions\.format is parquet"):
        cc12m.select_lines(params(tmp_path / "empty", format="parquet"))
    with pytest.raises(UserError, match="is empty; expected a Parquet file with a column caption"):
        cc12m.select_lines(params(parquet(tmp_path / "rows", []), format="parquet"))


def test_the_wrong_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a Parquet file, captions\.format is tsv"):
        cc12m.select_lines(params(parquet(tmp_path / "a", TEXTS)))
    with pytest.raises(UserError, match=r"is no Parquet file, captions\.format is parquet"):
        cc12m.select_lines(params(tsv(tmp_path / "b", TEXTS), format="parquet"))
    (tmp_path / "c").write_text("\n".join(TEXTS), encoding="utf-16")
    with pytest.raises(UserError, match=r"101 of 101 lines are bad|expected lines of an address"):
        cc12m.select_lines(params(tmp_path / "c"))
    pq.write_table(pa.table({"url": ["a"], "TEXT": ["b"]}), tmp_path / "d")
    with pytest.raises(UserError, match="has no column caption; it has url, TEXT"):
        cc12m.select_lines(params(tmp_path / "d", format="parquet"))
    pq.write_table(pa.table({"caption": [1]}), tmp_path / "e")
    with pytest.raises(UserError, match="the column caption holds int64; expected string"):
        cc12m.select_lines(params(tmp_path / "e", format="parquet"))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "captions.parquet", TEXTS)
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"captions\.path: .*captions\.parquet"):
        cc12m.select_lines(params(path, format="parquet"))


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tsv(tmp_path / "cc12m.tsv", TEXTS)
    selection = cc12m.select_lines(params(path))
    tsv(path, ["" for _ in TEXTS])
    with pytest.raises(UserError, match="changed while it was read"):
        list(cc12m.selected_captions(params(path), selection))


def test_memory_does_not_hold_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cc12m.tsv"
    lines = 20_000
    with path.open("wb") as file:
        for n in range(lines):
            file.write(f"u\t{n} ".encode() + b"word " * 200 + b"\n")
    tracemalloc.start()
    try:
        all_of_it = params(path, train=lines - 30)
        chosen = sum(1 for _ in cc12m.selected_captions(all_of_it, cc12m.select_lines(all_of_it)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert chosen == lines
    assert peak < 0.2 * path.stat().st_size
