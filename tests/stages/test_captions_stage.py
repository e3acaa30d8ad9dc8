import logging
from collections import Counter
from math import ceil, floor
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from m2m.data.captions import CaptionRow, read_captions, read_origin, read_parts
from m2m.errors import UserError
from m2m.manifest import Split
from m2m.params import Cc12mCaptions, WorldCaptions
from m2m.stages import captions
from m2m.world.grammar import CONSTRUCTION, KINDS, RENDERED, captions_naming, parse


def world(**changes: Any) -> WorldCaptions:
    fields = {"source": "world", "seed": 0, "train": 256, "views": 0, "steps": 0, "validation": 48, "test": 192}
    return WorldCaptions.model_validate({**fields, "more": (), **changes})


def cc12m(path: Path, **changes: Any) -> Cc12mCaptions:
    fields = {"source": "cc12m", "seed": 0, "path": str(path), "format": "tsv", "train": 6}
    return Cc12mCaptions.model_validate(
        {**fields, "validation": 1, "test": 2, "more": (), "max_bad_fraction": 0.2, "blocklist": None, **changes}
    )


def written(params: WorldCaptions | Cc12mCaptions, folder: Path) -> list[CaptionRow]:
    captions.run(params, out=folder / "captions.parquet")
    return list(read_captions(folder / "captions.parquet"))


def test_no_split_names_a_combination_of_another(tmp_path: Path) -> None:
    rows = written(world(views=48, steps=32), tmp_path)
    assert Counter(row.split for row in rows) == {"train": 256, "validation": 48, "test": 192}
    assert [row.split for row in rows] == sorted((row.split for row in rows), key=get_args(Split).index)
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        caption = parse(row.text)
        assert caption.open or caption.split == row.split, row


def test_each_kind_of_picture_caption_is_as_common_and_comes_in_no_order(tmp_path: Path) -> None:
    rows = written(world(train=256, views=25, steps=20, validation=49, test=192), tmp_path)
    for split, share in (("train", 211 / 7), ("validation", 7), ("test", 192 / 7)):
        parsed = [parse(row.text) for row in rows if row.split == split]
        pictures = [caption for caption in parsed if caption.style not in (RENDERED, CONSTRUCTION)]
        kinds = Counter(caption.named for caption in pictures)
        assert kinds.keys() == {*KINDS}
        assert {kinds[named] for named in KINDS} <= {floor(share), ceil(share)}
        # What is left over makes full ones first: of them there is the most to test.
        assert kinds[KINDS[-1]] == max(kinds.values())
        kind_by_kind = sorted(pictures, key=lambda caption: KINDS.index(caption.named), reverse=True)
        assert pictures != kind_by_kind
        if split != "validation":  # of few, half may lack one by chance
            assert {caption.named for caption in pictures[: len(pictures) // 2]} == {*KINDS}


def test_training_captions_are_of_all_kinds_in_no_order(tmp_path: Path) -> None:
    rows = written(world(views=48, steps=32), tmp_path)
    styles = {split: [parse(row.text).style for row in rows if row.split == split] for split in get_args(Split)}
    for part in (styles["train"], styles["train"][:64]):  # a shard or two have them all
        assert {RENDERED, CONSTRUCTION} < set(part)
    assert (styles["train"].count(RENDERED), styles["train"].count(CONSTRUCTION)) == (48, 32)
    assert not {RENDERED, CONSTRUCTION} & {*styles["validation"], *styles["test"]}


def test_more_of_a_kind_than_there_are_captions_is_refused() -> None:
    with pytest.raises(ValidationError, match="views \\+ steps are 257; expected at most train, 256"):
        world(views=200, steps=57)


@pytest.mark.parametrize("counts", [(1000, 100, 100), (10, 10, 10)])
def test_captions_spread_evenly_over_combinations_and_wordings(counts: tuple[int, int, int], tmp_path: Path) -> None:
    rows = written(world(**dict(zip(get_args(Split), counts, strict=True))), tmp_path)
    for split, count in zip(get_args(Split), counts, strict=True):
        for place, named in enumerate(reversed(KINDS)):
            combinations = captions_naming(named, split)
            wordings: dict[Any, Counter[str]] = {combination: Counter() for combination in combinations}
            for row in rows:
                if row.split == split and parse(row.text).named == named:
                    wordings[parse(row.text)][row.text] += 1
            least = (count // 7 + (place < count % 7)) // len(combinations)
            assert {texts.total() for texts in wordings.values()} <= {least, least + 1}
            for combination, texts in wordings.items():
                assert max(texts.values(), default=0) <= -(-texts.total() // combination.templates)


def test_the_seed_decides(tmp_path: Path) -> None:
    first = written(world(), tmp_path)
    content = (tmp_path / "captions.parquet").read_bytes()
    assert written(world(), tmp_path) == first
    assert (tmp_path / "captions.parquet").read_bytes() == content
    assert [row.text for row in written(world(seed=1), tmp_path)] != [row.text for row in first]


def test_it_says_where_captions_come_from_and_of_what_kinds_they_are(tmp_path: Path) -> None:
    written(world(views=48, steps=32), tmp_path)
    source = read_origin(tmp_path / "captions.parquet")
    assert source.name == "the embedded world"
    for words in (
        "as many captions of pictures of each kind",
        "noun, colour, style, noun and colour, noun and style, colour and style, noun and colour and style",
        "Of the 256 for training 48 tell of rendered objects and 32 of steps of procedures",
    ):
        assert words in source.mix
    written(world(views=3), tmp_path)
    assert "3 tell of rendered objects and 0 of steps" in read_origin(tmp_path / "captions.parquet").mix


def test_cc12m_gives_its_captions_and_names_its_bad_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"https://example.org/{n}.jpg\t<PERSON> number {n}" for n in range(9)]
    (tmp_path / "cc12m.tsv").write_text("\n".join([*lines[:4], "no tab", *lines[4:]]) + "\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        left_out = captions.run(cc12m(tmp_path / "cc12m.tsv"), out=tmp_path / "captions.parquet")
    rows = list(read_captions(tmp_path / "captions.parquet"))
    assert [row.text for row in rows] == [f"<PERSON> number {n}" for n in range(9)]
    assert left_out == 1
    assert [row.split for row in rows].count("train") == 6
    assert "left out 1 bad lines: line 5: 1 columns instead of 2" in caplog.text
    source = read_origin(tmp_path / "captions.parquet")
    assert (source.name, source.mix) == ("Conceptual 12M", "")


def test_captions_that_a_list_blocks_are_told_apart_from_bad_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["weed", "stone", "Weed", "rose", "oak"]
    lines = [f"https://example.org/{n}.jpg\ta {word}" for n, word in enumerate(words * 4)]
    (tmp_path / "cc12m.tsv").write_text("\n".join([*lines, "no tab"]) + "\n")
    (tmp_path / "list.txt").write_text("weed\n")
    out = tmp_path / "captions.parquet"
    listed = cc12m(tmp_path / "cc12m.tsv", blocklist=str(tmp_path / "list.txt"), train=1, validation=1, test=1)
    with caplog.at_level(logging.WARNING):
        assert captions.run(listed, out=out) == 9
    assert "left out 1 bad lines: line 21: 1 columns instead of 2" in caplog.text
    assert f"left out 8 captions for {tmp_path / 'list.txt'}" in caplog.text
    assert {row.text for row in read_captions(out)} == {"a stone", "a rose", "a oak"}
    assert read_origin(out).mix.startswith("without 8 of 21 that hold an entry of a list of words (SHA-256 `")


@pytest.mark.parametrize("content", [b"", b"no tab\n", b"\xff\xfe\n", b"u\tone\n"])
def test_a_bad_source_leaves_everything_as_it_was(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "cc12m.tsv").write_bytes(content)
    out = tmp_path / "captions.parquet"
    out.write_bytes(b"what was there")
    with pytest.raises(UserError, match=r"captions\.path") as caught:
        captions.run(cc12m(tmp_path / "cc12m.tsv"), out=out)
    assert "\n" not in str(caught.value)
    assert out.read_bytes() == b"what was there"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_world_that_grows_keeps_its_captions_and_names_no_combination_of_another_split(tmp_path: Path) -> None:
    before, after = written(world(), tmp_path), written(world(more=(70, 14)), tmp_path)
    assert after[: len(before)] == before
    assert read_parts(tmp_path / "captions.parquet") == (256, 70, 14)
    added = after[len(before) :]
    assert [row.id for row in added] == [f"world-train-{number:06}" for number in range(256, 340)]
    assert len({row.text for row in added}) > 60
    parsed = [parse(row.text) for row in added]
    assert all(caption.open or caption.split == "train" for caption in parsed)
    assert Counter(caption.named for caption in parsed[:70]) == dict.fromkeys(KINDS, 10)
    assert written(world(more=(70,)), tmp_path) == after[:-14]
