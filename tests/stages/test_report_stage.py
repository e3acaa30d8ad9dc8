"""The report stage: one page from the files of the stages before it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m2m.contact_sheet import animation, draw_gallery, to_png
from m2m.errors import UserError
from m2m.manifest import Manifest, ShardEntry
from m2m.params import ReportParams, Task, Variant
from m2m.stages import report

PARAMS = ReportParams(title="Pictures & more")
METRICS = ("fid", "kid", "inception_score", "clip_text_image", "clip_image_image", "diversity")
CLAIM = (
    "What is kept, what is free",
    "Do drawn images help?",
    "Does it see more than names?",
    "Does the place matter?",
)
ALWAYS = (
    "Quality, as the paper measures it",
    "Position by position",
    "Sampling efficiency",
    "Training",
    "What it was made from",
)

VOID = {"meta", "img", "line", "polyline", "circle", "br"}


def _scores(prefix: str, names: tuple[str, ...], value: float) -> dict[str, float]:
    return {
        f"{prefix}{name}/{part}": number
        for name in names
        for part, number in (
            ("mean", value),
            ("std", 0.25),
            ("position/01", value - 0.25),
            ("position/02", value + 0.25),
        )
    }


def _numbers(network: str, *, agreement: bool) -> dict[str, float | int | str]:
    names = METRICS
    numbers: dict[str, float | int | str] = {
        **_scores("", names, 0.5),
        **_scores("baseline/mis/", names, 0.75),
        **_scores("baseline/copy/", names, 0.7),
        **_scores("baseline/stable_diffusion/", names, 0.3),
        **_scores("baseline/shuffled/", ("fid",), 41.5),
        "relative/diversity": 0.876,
        **{"sets": 192, "images": 1920, "seed": 0, "given": 1, "manifest": "ab" * 32},
        **{"network/inception": network, "network/clip": "clip@123"},
    }
    if agreement:
        for prefix, given in product(("", "baseline/mis/", "baseline/ideal/"), (1, 4)):
            for name in ("pattern_score", "kept", "free", "fresh"):
                ends = {"": 0.8, "/low": 0.712, "/high": 0.871}
                numbers |= {f"{prefix}{name}/given={given}{end}": value for end, value in ends.items()}
                numbers |= {f"{prefix}{name}/position/{place:02}/given={given}": 0.75 for place in (1, 2)}
        for key in ("independent/kept", "name_then_draw/kept", "painted/kept"):
            numbers |= {f"difference/{key}/given=4{end}": value for end, value in ends.items()}
        numbers |= {f"places/a/{place}": 0.25 for place in range(1, 5)} | {"places/a/sets": 24}
        numbers |= {"kept/noun/given=1": 0.75, "probe/AB/at=2/a/content": 0.375}
    return numbers


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    entry = ShardEntry(
        key=f"shards/{'a' * 64}.tar", sha256="a" * 64, size=1, first_set="a", last_set="b", count=192, split="test"
    )
    made_by = {"stage": "generate", "parameters": {"solver": "ddim"}}
    path = tmp_path / "mis.json"
    Manifest(schema_version=1, kind="mis", made_by=made_by, images_per_set=11, redrawn=2, shards=(entry,)).write(path)
    return path


@pytest.fixture
def make_item(tmp_path: Path) -> Callable[..., report.Evaluated]:
    def make(variant: Variant, network: str = "world-classifier@1", agreement: bool = True) -> report.Evaluated:
        folder = tmp_path / variant
        folder.mkdir()
        (folder / "numbers.json").write_text(json.dumps(_numbers(network, agreement=agreement)))
        (folder / "curve.csv").write_text("images_seen,loss,held_out_loss\n240,0.5,0.6\n480,0.25,0.3\n")
        random = np.random.default_rng(0)
        for given in (1, 4):
            rows = [
                (pictures[:given], pictures[given:])
                for pictures in np.broadcast_to(random.integers(0, 256, (6, 5, 1, 1, 3), np.uint8), (6, 5, 64, 64, 3))
            ]
            captions = [f"set {row} <b>" for row in range(6)]
            (folder / f"given-{given}.png").write_bytes(to_png(draw_gallery(rows), captions))
        if agreement:
            figure = to_png(draw_gallery(rows), ["content consistency"] * 3 + ["style consistency"] * 3)
            (folder / "consistency.png").write_bytes(figure)
        return report.Evaluated(
            task="mis", variant=variant, metrics=folder / "numbers.json", plots=folder, curve=folder / "curve.csv"
        )

    return make


@pytest.fixture
def sampling(tmp_path: Path) -> Path:
    numbers: dict[str, float | int | str] = {"images": 4, "repeats": 3, "solver": "ddim", "num_inference_steps": 50}
    numbers |= {"spread": 0.08, "device": "a <fast> machine", "pixels": 64}
    numbers |= {f"{part}_seconds/stable-diffusion": 0.0125 for part in ("reading", "decoding")}
    numbers |= {"seconds/stable-diffusion": 0.25, "gflop/stable-diffusion": 0.232}
    for case in (f"{variant}/given={given}" for variant in ("self", "dino") for given in (1, 8)):
        numbers |= {f"{part}/{case}": 0.375 for part in ("seconds", "reading_seconds", "ratio", "gflop", "gflop_ratio")}
        numbers |= {f"window/{case}": min(int(case[-1]), 5)}
    (tmp_path / "sampling.json").write_text(json.dumps(numbers))
    return tmp_path / "sampling.json"


class Balance(HTMLParser):
    """Fails where an element is closed that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.places: set[str] = set()
        self.leads_to: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        addresses = [value or "" for name, value in attrs if name in ("src", "href")]
        self.addresses += [address for address in addresses if not address.startswith("#")]
        self.leads_to |= {address[1:] for address in addresses if address.startswith("#")}
        self.places |= {value or "" for name, value in attrs if name == "id"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_other_file(
    make_item: Callable[..., report.Evaluated], sampling: Path, manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "reports" / "index.html"
    report.run(PARAMS, items=[make_item("self"), make_item("dino")], sampling=sampling, manifest=manifest, out=out)
    page = out.read_text()
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert balance.places == balance.leads_to, "its contents lead to each heading"
    assert len(balance.places) == page.count("<h2") == len(CLAIM + ALWAYS) + 1
    assert len(balance.addresses) == 6
    assert all(address.startswith("data:image/webp;base64,") for address in balance.addresses)
    assert not re.search(r"https?://|url\(|@import", page)
    assert "<h1>Pictures &amp; more</h1>" in page
    assert "set 0 &lt;b&gt;" in page
    assert page.count("set 5") == 2  # with one given; galleries with more are cut to their first rows


def test_the_page_shows_the_numbers_beside_the_papers(
    make_item: Callable[..., report.Evaluated], sampling: Path, manifest: Path, tmp_path: Path
) -> None:
    report.run(
        PARAMS,
        items=[make_item("self"), make_item("dino")],
        sampling=sampling,
        manifest=manifest,
        out=tmp_path / "index.html",
    )
    page = (tmp_path / "index.html").read_text()
    for text in (
        "0.50 ± 0.25",
        "41.50 ± 0.25",
        "[71.2, 87.1]",
        "An ideal reader",
        f"SHA-256 {Manifest.read(manifest).digest}",
    ):
        assert text in page
    assert "of the distances within held-out sets" not in page  # wrong shapes would pass for variety
    for text in ("9.56 ± 1.21", "28.07 ± 0.58", "22.71 ± 0.52", "77.41 ± 0.03", "They cannot be compared"):
        assert text in page
    assert page.count("<svg") == 2 + 6 + 2 + 2
    assert "IS ↑" not in page


def test_the_page_opens_with_the_claim_and_its_consistency(
    make_item: Callable[..., report.Evaluated], sampling: Path, manifest: Path, tmp_path: Path
) -> None:
    items, out = [make_item("self"), make_item("dino")], tmp_path / "index.html"
    report.run(PARAMS, items=items, sampling=sampling, manifest=manifest, out=out)
    headings = re.findall(r"<h2 id=\S+>(.*)</h2>", out.read_text())
    assert headings == [*CLAIM[:1], "Preceding images → generated images", *CLAIM[1:], *ALWAYS]
    for text in ("80.0 [71.2, 87.1]", "Kept: noun, %", "80.0 [+71.2, +87.1]", "M2M-DINO, content of A", "BA, %"):
        assert text in out.read_text()
    assert out.read_text().count("<li>style consistency</li>") == 2 * 3


def test_the_page_shows_what_sampling_costs(
    make_item: Callable[..., report.Evaluated], sampling: Path, manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "index.html"
    report.run(PARAMS, items=[make_item("self")], sampling=sampling, manifest=manifest, out=out)
    page = out.read_text()
    for text in (
        "M2M-Self, 8 given",
        "Stable Diffusion, a caption",
        "50 DDIM steps",
        "up to 8 %",
        "a &lt;fast&gt; machine",
    ):
        assert text in page
    assert "Of more than 5 given images these models look at the newest 5" in page
    assert page.index(">Sampling efficiency</h2>") < page.index(">Training</h2>")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "the sampling stage must run first"),
        ("{", "not JSON"),
        ("{}", "not what the sampling stage writes; make it again: dvc repro --force --single-item sampling"),
    ],
)
def test_what_sampling_left_must_be_whole(
    make_item: Callable[..., report.Evaluated],
    sampling: Path,
    manifest: Path,
    tmp_path: Path,
    content: str | None,
    words: str,
) -> None:
    sampling.unlink()
    if content is not None:
        sampling.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        report.run(PARAMS, items=[make_item("self")], sampling=sampling, manifest=manifest, out=tmp_path / "out.html")
    assert "sampling.json" in str(caught.value)
    assert not (tmp_path / "out.html").exists()


@pytest.fixture
def make_task_item(tmp_path: Path) -> Callable[..., report.Evaluated]:
    def make(task: Task, variant: Variant, *, scratch: bool = False) -> report.Evaluated:
        folder = tmp_path / f"{variant}-{task}"
        folder.mkdir()
        about = {"sets": 32, "images": 99, "seed": 0, "manifest": "cd" * 32}
        networks = {"network/inception": "world-classifier@1", "network/clip": "clip@123"}
        lots = ("", "baseline/untuned/", "baseline/nearest/", "baseline/true/", "baseline/repeated/")
        names = ("psnr/given=1", "ssim/given=1", "step_order", "fid")
        scores = {f"{lot}{name}/{part}": 0.375 for lot in lots for name in names for part in ("mean", "std")}
        scores |= {f"{lot}psnr/given=1/angle/000-030": 17.25 for lot in lots}
        for name in ("numbers.json", *(["scratch.json"] if scratch else [])):
            (folder / name).write_text(json.dumps({**about, **networks, **scores}))
        pictures = np.zeros((2, 4, 64, 64, 3), np.uint8)
        gallery = draw_gallery((one[:1], one[1:]) for one in pictures)
        (folder / "given-1.png").write_bytes(to_png(gallery, [f"{task} one", f"{task} two"]))
        if task == "nvs":
            (folder / "turntable.gif").write_bytes(animation([Image.fromarray(one) for one in pictures[0]]))
        return report.Evaluated(
            task=task,
            variant=variant,
            metrics=folder / "numbers.json",
            plots=folder,
            beside={"the same steps from Stable Diffusion": folder / "scratch.json"},
        )

    return make


def test_the_tasks_are_part_of_the_page_which_still_needs_no_other_file(
    make_item: Callable[..., report.Evaluated],
    make_task_item: Callable[..., report.Evaluated],
    sampling: Path,
    manifest: Path,
    tmp_path: Path,
) -> None:
    task_items = [
        make_task_item("nvs", "self", scratch=True),
        make_task_item("nvs", "dino"),
        make_task_item("vpg", "self"),
    ]
    items = [make_item("self"), make_item("dino")]
    report.run(PARAMS, items=[*items, *task_items], sampling=sampling, manifest=manifest, out=tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    kinds = [address.partition(";")[0] for address in balance.addresses]
    assert sorted(kinds) == ["data:image/gif"] * 2 + ["data:image/webp"] * 9
    assert not re.search(r"https?://|url\(|@import", page)
    for text in (
        "Novel views of an object",
        "The next steps of a procedure",
        "nvs one",
        "vpg two",
        "under 30°",
        "17.25",
    ):
        assert text in page
    assert page.count("the same steps from Stable Diffusion") == 1
    nvs, vpg, training = (
        page.index(f">{title}</h2>")
        for title in ("Novel views of an object", "The next steps of a procedure", "Training")
    )
    assert nvs < vpg < training


def test_until_all_is_there_the_page_says_what_is_to_come(
    make_item: Callable[..., report.Evaluated],
    make_task_item: Callable[..., report.Evaluated],
    sampling: Path,
    manifest: Path,
    tmp_path: Path,
) -> None:
    items, out = [make_item("self"), make_item("dino"), make_task_item("nvs", "self")], tmp_path / "so-far.html"
    old = items[2].metrics.read_text()
    items[2].metrics.write_text("what an older run left")
    stages = [item.stage for item in items]
    assert stages == ["evaluate@self", "evaluate@dino", "evaluate@self-nvs"]
    inputs: Any = {"items": items, "sampling": sampling, "manifest": manifest, "out": out}
    with pytest.raises(UserError, match="no evaluation is there yet; dvc repro makes them"):
        report.run(PARAMS, **inputs, to_come=stages)
    with pytest.raises(UserError, match="not JSON"):
        report.run(PARAMS, **inputs)
    titles = ["M2M-Self, image sets", "M2M-DINO, image sets", "M2M-Self, novel views of an object"]
    for awaited in ([1, 2], [0, 2], [0, 1], [0]):
        if 2 not in awaited:
            items[2].metrics.write_text(old)
        report.run(PARAMS, **inputs, to_come=[*map(stages.__getitem__, awaited), "sampling", "train@self"])
        page, balance = out.read_text(), Balance()
        balance.feed(page)
        assert (balance.open, balance.places) == ([], balance.leads_to)
        assert f"Still to come: {'; '.join([*map(titles.__getitem__, awaited), 'sampling efficiency'])}." in page
        assert (">Quality, as the paper measures it</h2>" in page) == (awaited != [0, 1])
        assert (">Novel views of an object</h2>" in page) == (2 not in awaited)
        assert ">Sampling efficiency</h2>" not in page
    report.run(PARAMS, **inputs)
    assert "Still to come" not in out.read_text()


def test_models_made_otherwise_stand_beside_where_the_same_networks_judge(
    make_item: Callable[..., report.Evaluated], sampling: Path, manifest: Path, tmp_path: Path
) -> None:
    out, released = tmp_path / "index.html", tmp_path / "released.json"

    def page(item: report.Evaluated) -> str:
        item = replace(item, beside={"released": released, "never made": tmp_path / "nowhere.json"})
        report.run(PARAMS, items=[item], sampling=sampling, manifest=manifest, out=out)
        return out.read_text()

    own, published = make_item("self"), make_item("dino", network="inception-v3-compat@1", agreement=False)
    assert "released" not in page(own)
    released.write_text(own.metrics.read_text())
    assert "M2M-Self, released" in page(own)
    assert "released" not in page(published)
    assert "What is kept, what is free" not in page(published)
    released.write_text("{}")
    with pytest.raises(UserError, match=r"released\.json: not what the evaluate stage writes; restore it from git"):
        page(own)


def test_numbers_of_a_task_that_are_missing_are_one_clear_line(
    make_item: Callable[..., report.Evaluated],
    make_task_item: Callable[..., report.Evaluated],
    sampling: Path,
    manifest: Path,
    tmp_path: Path,
) -> None:
    items, out = [make_item("self")], tmp_path / "index.html"
    item = make_task_item("vpg", "self")
    item.metrics.write_text("{}")
    with pytest.raises(UserError, match=r"numbers\.json: not what the evaluate stage writes"):
        report.run(PARAMS, items=[*items, item], sampling=sampling, manifest=manifest, out=out)
    item.metrics.unlink()
    with pytest.raises(UserError, match="the evaluate stage must run first"):
        report.run(PARAMS, items=[*items, item], sampling=sampling, manifest=manifest, out=out)
    assert not out.exists()


def test_without_attributes_there_is_no_agreement(
    make_item: Callable[..., report.Evaluated], sampling: Path, manifest: Path, tmp_path: Path
) -> None:
    item = make_item("self", network="inception-v3-compat@1", agreement=False)
    report.run(PARAMS, items=[item], sampling=sampling, manifest=manifest, out=tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    assert re.findall(r"<h2 id=\S+>(.*)</h2>", page) == ["Preceding images → generated images", *ALWAYS]
    assert "attern score" not in page
    assert "consistency" not in page
    assert "They cannot be compared" not in page
    assert "with the same kind of networks" in page
    assert page.count("<svg") == 5 + 2 + 2


def test_the_same_inputs_give_the_same_bytes(
    make_item: Callable[..., report.Evaluated], sampling: Path, manifest: Path, tmp_path: Path
) -> None:
    items = [make_item("self"), make_item("dino")]
    for name in ("a.html", "b.html"):
        report.run(PARAMS, items=items, sampling=sampling, manifest=manifest, out=tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize(
    ("field", "name", "content", "words"),
    [
        ("metrics", "none.json", None, "the evaluate stage must run first"),
        ("metrics", "bad.json", "{", "not JSON"),
        ("metrics", "other.json", "[1]", "not what the evaluate stage writes"),
        ("curve", "none.csv", None, "the train stage must run first"),
        ("curve", "bad.csv", "images_seen,loss\n1,2\n", "not a curve that the train stage wrote"),
        ("curve", "empty.csv", "images_seen,loss,held_out_loss\n", "a curve without points"),
        ("plots", "none", None, "no galleries in it"),
        ("plots", "bad/given-1.png", "no picture", "not a gallery that the evaluate stage wrote"),
    ],
)
def test_a_bad_input_is_one_clear_line(
    make_item: Callable[..., report.Evaluated],
    sampling: Path,
    manifest: Path,
    tmp_path: Path,
    field: str,
    name: str,
    content: str | None,
    words: str,
) -> None:
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    item = replace(make_item("self"), **{field: path.parent if path.suffix == ".png" else path})
    with pytest.raises(UserError, match=words) as caught:
        report.run(PARAMS, items=[item], sampling=sampling, manifest=manifest, out=tmp_path / "index.html")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "index.html").exists()
