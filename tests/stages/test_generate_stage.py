import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2m.commands import verify
from m2m.data.captions import CaptionRow, write_captions
from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet, read_shard
from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.errors import UserError
from m2m.files import folder_digest
from m2m.manifest import Manifest, Origin, Split
from m2m.models.classifier import Readings, WorldClassifier
from m2m.params import GenerateParams
from m2m.runtime import Runtime
from m2m.seeds import image_seed
from m2m.stages import generate
from m2m.store import LocalStore, Store, open_store
from m2m.workers import ALONE, Workers
from m2m.world.grammar import ALL_STYLES, COLOUR_NAMES, NOUNS, SHAPES, STYLES, parse, split_of
from tests.safety import with_safety_checker

ROWS = [
    *(CaptionRow(f"test-{n}", f"b {n}", "test") for n in range(2)),
    *(CaptionRow(f"train-{n}", f"a {n}", "train") for n in range(5)),
    CaptionRow("validation-0", "c", "validation"),
]
"""In another order than the manifest's."""
ORIGIN = Origin(name="a test", licence="none", mix="as many of each kind")
FIELDS = {
    "seed": 3,
    "images_per_set": 3,
    "more_images": (),
    "extends": None,
    "solver": "unipc",
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "sets_per_shard": 2,
    "batch_size": 4,
    "precision": "float32",
    "latents": "float32",
    "max_redraws": 2,
    "safety_checker": False,
    "max_bad_fraction": 0.0,
}


class Workplace:
    """Where one dataset is made."""

    def __init__(
        self, folder: Path, stable_diffusion: Path, captions: list[CaptionRow] = ROWS, store: Store | None = None
    ) -> None:
        self.manifest = folder / "data" / "mis.json"
        self.captions = folder / "captions.parquet"
        self.work = folder / "work"
        self.stable_diffusion = stable_diffusion
        self.inception = folder / "inception"
        self.inception.mkdir(parents=True, exist_ok=True)
        # A class network that knows nothing of the world.
        (self.inception / "config.json").write_text('{"architecture": "inception-v3-compat"}')
        self.store = store or LocalStore(folder / "store")
        write_captions(self.captions, captions, ORIGIN)

    def run(self, *, workers: Workers = ALONE, **changes: Any) -> Manifest:
        return generate.run(
            GenerateParams.model_validate({**FIELDS, **changes}),
            captions=self.captions,
            stable_diffusion=self.stable_diffusion,
            inception=self.inception,
            manifest=self.manifest,
            runtime=Runtime(store=self.store, work=self.work, workers=workers),
        )

    def sets(self) -> dict[str, ImageSet]:
        manifest = Manifest.read(self.manifest)
        return {one.id: one for split in get_args(Split) for one in ImageSets(self.store, manifest, split)}


@pytest.fixture(scope="module")
def made(tiny_stable_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A dataset that was made without incident."""
    place = Workplace(tmp_path_factory.mktemp("made"), tiny_stable_diffusion)
    place.run()
    return place


@pytest.fixture
def place(tiny_stable_diffusion: Path, tmp_path: Path) -> Workplace:
    """A place where nothing has been made."""
    return Workplace(tmp_path, tiny_stable_diffusion)


def drawings(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor, Tensor], None] | None = None) -> list[Tensor]:
    """The noise of every batch that is drawn from now on; `change` may alter its latents."""
    batches: list[Tensor] = []
    denoise = StableDiffusion.denoise

    def watched(self: StableDiffusion, noise: Tensor, embeddings: Tensor) -> Tensor:
        batches.append(noise)
        latents = denoise(self, noise, embeddings).clone()
        if change:
            change(noise, latents)
        return latents

    monkeypatch.setattr(StableDiffusion, "denoise", watched)
    return batches


def noise_of(set_id: str, index: int, attempt: int = 0) -> Tensor:
    return torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(image_seed(3, set_id, index, attempt)))


def test_each_caption_has_its_set(made: Workplace) -> None:
    manifest = Manifest.read(made.manifest)
    assert manifest.sets == {"train": 5, "validation": 1, "test": 2}
    assert [(shard.first_set, shard.last_set, shard.count, shard.split) for shard in manifest.shards] == [
        ("train-0", "train-1", 2, "train"),
        ("train-2", "train-3", 2, "train"),
        ("train-4", "train-4", 1, "train"),
        ("validation-0", "validation-0", 1, "validation"),
        ("test-0", "test-1", 2, "test"),
    ]
    sets = made.sets()
    assert {one.id: one.caption for one in sets.values()} == {row.id: row.text for row in ROWS}
    for one in sets.values():
        assert one.images.shape == (3, 64, 64, 3)
        assert one.latents is not None
        assert one.latents.shape == (3, 4, 8, 8)
        assert one.extras == {"seeds": [image_seed(3, one.id, index) for index in range(3)]}
        assert one.generator == folder_digest(made.stable_diffusion)
    pictures = np.concatenate([one.images for one in sets.values()])
    assert len(np.unique(pictures.reshape(len(pictures), -1), axis=0)) == 24
    assert ", 24 images, " in verify.run(made.manifest, store=made.store)


def test_an_image_can_be_drawn_again_from_what_the_set_says(made: Workplace) -> None:
    model = StableDiffusion(
        made.stable_diffusion, solver="unipc", num_inference_steps=2, guidance_scale=3.0, device="cpu"
    )
    one = made.sets()["train-3"]
    noise = torch.stack([model.noise(seed) for seed in one.extras["seeds"]])
    latents = model.denoise(noise, model.embed([one.caption] * 3))
    torch.testing.assert_close(torch.from_numpy(one.latents), latents, atol=1e-4, rtol=1e-4)
    decoded = model.decode(torch.from_numpy(one.latents)).numpy().astype(int)
    assert abs(decoded - one.images).max() <= 1


def test_the_manifest_says_what_made_it_and_nothing_of_when_and_where(made: Workplace) -> None:
    made_by = Manifest.read(made.manifest).made_by
    assert made_by["parameters"] == {key: value for key, value in FIELDS.items() if key not in generate.GROWTH}
    assert made_by["stable_diffusion"] == {"licence": "not stated", "sha256": folder_digest(made.stable_diffusion)}
    assert made_by["captions"].pop("sha256")
    assert made_by["captions"] == {"name": "a test", "licence": "none", "mix": "as many of each kind"}
    assert set(made_by) == {"stage", "parameters", "captions", "stable_diffusion"}


def test_the_card_names_numbers_and_terms(made: Workplace) -> None:
    card = made.manifest.with_suffix(".md").read_text()
    for text in (
        "3 images of 64 x 64 pixels",
        "| train | 5 | 15 | 3 |",
        "| test | 2 | 6 | 1 |",
        "| `solver` | unipc |",
    ):
        assert text in card
    assert "- Captions: a test: as many of each kind; SHA-256" in card
    assert "Licence of the captions: none." in card
    assert "Licence of the weights that drew the images: not stated." in card
    assert "No safety checker looked at the images." in card
    assert "in two splits" not in card, "open captions may be"
    assert str(made.manifest.parent) not in card


def test_another_run_makes_the_same_bytes(made: Workplace, place: Workplace) -> None:
    place.run()
    assert place.manifest.read_bytes() == made.manifest.read_bytes()
    assert place.manifest.with_suffix(".md").read_bytes() == made.manifest.with_suffix(".md").read_bytes()


def test_any_number_of_workers_makes_the_same_bytes(tiny_stable_diffusion: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each worker has
    try:
        manifests = []
        for workers in (ALONE, Workers(2), Workers(3)):
            place = Workplace(tmp_path / str(workers.count), tiny_stable_diffusion)
            place.run(workers=workers)
            manifests.append(place.manifest.read_bytes())
    finally:
        torch.set_num_threads(threads)
    assert manifests[0] == manifests[1] == manifests[2]


def test_s3_holds_the_same_bytes(made: Workplace, s3_server: Any, tmp_path: Path) -> None:
    store = open_store(f"{s3_server.uri}/mis", cache=tmp_path / "cache")
    place = Workplace(tmp_path, made.stable_diffusion, store=store)
    place.run()
    assert place.manifest.read_bytes() == made.manifest.read_bytes()
    assert sorted(key.split("/")[1] for key in s3_server.keys())  # noqa: SIM118  # it is no dict == ["records"] * 5 + ["shards"] * 5
    assert verify.run(place.manifest, store=store).startswith("5 shards, ")


def test_batches_have_one_shape_and_each_image_its_own_noise(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = drawings(monkeypatch)
    place.run()
    assert {batch.shape for batch in batches} == {(4, 4, 8, 8)}
    assert len(batches) == 2 + 2 + 1 + 1 + 2
    expected = [noise_of(set_id, index) for set_id in ("train-2", "train-3") for index in range(3)]
    drawn = torch.cat(batches[2:4])
    assert torch.equal(drawn[:6], torch.stack(expected))
    assert torch.equal(drawn[6:], drawn[4:5].expand(2, -1, -1, -1))


def test_a_shard_does_not_hang_on_the_others(made: Workplace, tmp_path: Path) -> None:
    place = Workplace(tmp_path, made.stable_diffusion, ROWS[4:6])
    place.run()
    assert Manifest.read(place.manifest).shards == (Manifest.read(made.manifest).shards[1],)


def test_captions_are_embedded_once(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[str] = []
    embed = StableDiffusion.embed
    monkeypatch.setattr(
        StableDiffusion, "embed", lambda self, captions: embedded.extend(captions) or embed(self, captions)
    )
    place.run()
    assert embedded == ["", "a 0", "a 1", "a 2", "a 3", "a 4", "", "c", "", "b 0", "b 1"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_image_is_drawn_again_with_other_noise_and_counted(
    value: float, made: Workplace, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = torch.stack([noise_of("train-1", 0), noise_of("train-1", 0, 1), noise_of("test-0", 2)])

    def spoil(noise: Tensor, latents: Tensor) -> None:
        for row, start in enumerate(noise):
            if (spoiled == start).flatten(1).all(dim=1).any():
                latents[row, 0, 0, 0] = value

    batches = drawings(monkeypatch, spoil)
    manifest = place.run()
    assert manifest.redrawn == 3
    assert "drawn again with new noise: 3 times" in place.manifest.with_suffix(".md").read_text()
    assert {batch.shape for batch in batches} == {(4, 4, 8, 8)}
    sets, expected = place.sets(), made.sets()
    attempts = {("train-1", 0): 2, ("test-0", 2): 1}
    for one in sets.values():
        assert np.isfinite(one.latents).all()
        for index in range(3):
            attempt = attempts.get((one.id, index), 0)
            assert one.extras["seeds"][index] == image_seed(3, one.id, index, attempt)
            same = np.array_equal(one.images[index], expected[one.id].images[index])
            assert same == (attempt == 0)


def test_an_image_of_one_colour_is_bad(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, first = StableDiffusion.decode, []

    def flat(self: StableDiffusion, latents: Tensor) -> Tensor:
        pictures = decode(self, latents).clone()
        if not first:
            first.append(True)
            pictures[2] = 128
        return pictures

    monkeypatch.setattr(StableDiffusion, "decode", flat)
    assert place.run().redrawn == 1
    assert place.sets()["train-0"].extras["seeds"][2] == image_seed(3, "train-0", 2, 1)


def test_an_image_that_stays_bad_ends_the_run_and_is_named(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = torch.stack([noise_of("train-0", 1, attempt) for attempt in range(3)])

    def spoil(noise: Tensor, latents: Tensor) -> None:
        for row, start in enumerate(noise):
            if (spoiled == start).flatten(1).all(dim=1).any():
                latents[row] = float("nan")

    batches = drawings(monkeypatch, spoil)
    with pytest.raises(UserError, match=r"set train-0: image 1 is not finite, .* in all 3 attempts"):
        place.run()
    assert not place.manifest.exists()
    assert len(batches) == 2 + 1 + 1


# What a class network of the world reads as held out


WORDS = [
    CaptionRow("open-0", "something in flat style", "train"),
    CaptionRow("full-0", "a yellow star, flat", "train"),
    CaptionRow("full-1", "a green circle, flat", "train"),
    CaptionRow("held-0", "a red circle, flat", "test"),
    CaptionRow("held-1", "a yellow circle, flat", "validation"),
    CaptionRow("open-1", "a circle", "test"),
    CaptionRow("other-0", "a photo of Zermatt", "train"),
]
"""Of training: full ones and open ones, the open ones of the test, too. Then held-out ones, and another world's."""
KNOWN: dict[str, tuple[str, ...]] = {"noun": NOUNS, "colour": COLOUR_NAMES, "style": ALL_STYLES}
TRAINED, HELD_OUT, VALIDATION = ("circle", "green", "flat"), ("circle", "red", "flat"), ("circle", "yellow", "flat")


class Reader:
    """Stands in for the class network: reads a held-out triple from chosen pictures, which it knows by their noises."""

    classes = KNOWN

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *chosen: Tensor, triple: tuple[str, ...] = HELD_OUT) -> None:
        self.chosen, self.triple, self.all, self.seen = [*chosen], triple, False, 0
        self.batch: Tensor | None = None
        denoise = StableDiffusion.denoise

        def watched(model: StableDiffusion, noise: Tensor, embeddings: Tensor) -> Tensor:
            self.batch = noise
            return denoise(model, noise, embeddings)

        monkeypatch.setattr(StableDiffusion, "denoise", watched)
        monkeypatch.setattr(generate, "load_class_network", lambda *_: (self, "reader"))

    def to(self, _: str) -> Self:
        return self

    def __call__(self, pictures: Tensor) -> Readings:
        assert self.batch is not None
        assert pictures.dtype == torch.uint8
        assert pictures.shape[1:] == (3, 64, 64)
        self.seen += len(pictures)
        logits = {head: torch.zeros(len(pictures), len(names)) for head, names in KNOWN.items()}
        for row, noise in enumerate(self.batch):
            held_out = self.all or any(torch.equal(noise, one) for one in self.chosen)
            for head, word in zip(KNOWN, self.triple if held_out else TRAINED, strict=True):
                logits[head][row, KNOWN[head].index(word)] = 1
        return Readings(features=torch.zeros(0), logits=logits, geometry=torch.zeros(0))


@pytest.fixture
def worded(tiny_stable_diffusion: Path, tmp_path: Path) -> Workplace:
    return Workplace(tmp_path, tiny_stable_diffusion, WORDS)


def test_each_split_s_words_are_what_they_are_taken_for() -> None:
    assert [split_of(*triple) for triple in (TRAINED, HELD_OUT, VALIDATION)] == ["train", "test", "validation"]
    assert [parse(row.text).split for row in WORDS[:-1]] == ["train", "train", "train", "test", "validation", "train"]


@pytest.mark.slow
@pytest.mark.parametrize("triple", [HELD_OUT, VALIDATION])
def test_what_is_read_as_held_out_is_drawn_again_with_other_noise_and_counted(
    triple: tuple[str, ...], worded: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = {("open-0", 1): 2, ("full-0", 0): 1, ("open-1", 2): 1}
    chosen = [noise_of(*image, attempt) for image, count in attempts.items() for attempt in range(count)]
    # Neither of a caption that asks for it, nor of words that nobody knows, is anything refused.
    spared = [noise_of(set_id, 1) for set_id in ("held-0", "held-1", "other-0")]
    Reader(monkeypatch, *chosen, *spared, triple=triple)
    assert worded.run().redrawn == 4
    assert "drawn again with new noise: 4 times" in worded.manifest.with_suffix(".md").read_text()
    sets = worded.sets()
    for one in sets.values():
        for index in range(3):
            attempt = attempts.get((one.id, index), 0)
            assert one.extras["seeds"][index] == image_seed(3, one.id, index, attempt)
    model = StableDiffusion(
        worded.stable_diffusion, solver="unipc", num_inference_steps=2, guidance_scale=3.0, device="cpu"
    )
    one = sets["open-0"]
    latents = model.denoise(
        torch.stack([noise_of("open-0", index, attempts.get(("open-0", index), 0)) for index in range(3)]),
        model.embed([one.caption] * 3),
    )
    torch.testing.assert_close(torch.from_numpy(one.latents), latents, atol=1e-4, rtol=1e-4)


def test_a_network_that_reads_everything_as_held_out_spares_what_asks_for_it_and_other_worlds(
    worded: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(monkeypatch)
    reader.all = True
    write_captions(worded.captions, [row for row in WORDS if row.id.startswith(("held", "other"))], ORIGIN)
    assert worded.run().redrawn == 0
    assert reader.seen > 0
    assert set(worded.sets()) == {"held-0", "held-1", "other-0"}


@pytest.mark.parametrize(
    "triple", [("cube", "orange", "flat"), ("circle", "red", "rendered"), ("house", "red", "neon")]
)
def test_what_is_no_picture_of_a_shape_is_in_no_split(
    triple: tuple[str, ...], worded: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(monkeypatch, triple=triple)
    reader.all = True
    assert worded.run().redrawn == 0


def test_an_image_that_stays_in_a_held_out_combination_ends_the_run_and_is_named(
    worded: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    Reader(monkeypatch, *(noise_of("full-1", 2, attempt) for attempt in range(3)))
    with pytest.raises(
        UserError, match=r"set full-1: image 2 is .* in a held-out combination in all 3 attempts"
    ) as caught:
        worded.run()
    assert "generate.guidance_scale" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not worded.manifest.exists()


def test_a_reader_s_weights_are_named_and_make_other_shards(worded: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    WorldClassifier(KNOWN, widths=(8, 8)).save_pretrained(worded.inception)
    batches = drawings(monkeypatch)
    # It may read as held out whatever it likes: of random weights nothing is known.
    monkeypatch.setattr(generate, "read_as_held_out", lambda _, pictures: np.zeros(len(pictures), np.bool_))
    first = worded.run()
    assert first.made_by["inception"] == {"sha256": folder_digest(worded.inception)}
    count = len(batches)
    worded.run()
    assert len(batches) == count
    WorldClassifier(KNOWN, widths=(8, 8)).save_pretrained(worded.inception)
    assert worded.run().made_by["inception"] != first.made_by["inception"]
    assert len(batches) == 2 * count


def test_the_readings_are_those_of_the_loaded_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    WorldClassifier(KNOWN).save_pretrained(tmp_path)
    network = WorldClassifier.from_pretrained(tmp_path)
    pictures = torch.randint(256, (40, 64, 64, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.no_grad():
        network.heads["noun"].weight.mul_(50)  # so that it reads various things
        network.heads["style"].weight.mul_(50)
        network.heads["colour"].weight.mul_(50)
        readings = network(pictures.permute(0, 3, 1, 2))
    triples = list(zip(*(readings.names(KNOWN, head) for head in KNOWN), strict=True))
    of_shapes = [noun in SHAPES and style in STYLES for noun, _, style in triples]
    expected = [known and split_of(*triple) != "train" for known, triple in zip(of_shapes, triples, strict=True)]
    assert generate.read_as_held_out(network, pictures).tolist() == expected


def test_a_class_network_of_no_world_says_nothing(worded: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "read_as_held_out", None)
    manifest = worded.run()
    assert manifest.redrawn == 0
    assert "inception" not in manifest.made_by


# What Stable Diffusion's safety checker rejects


def drawn(place: Workplace, set_id: str, index: int, attempt: int) -> NDArray[np.uint8]:
    """A picture, drawn as the stage draws it at some attempt: (1, H, W, 3)."""
    model = StableDiffusion(
        place.stable_diffusion, solver="unipc", num_inference_steps=2, guidance_scale=3.0, device="cpu"
    )
    caption = next(row.text for row in ROWS if row.id == set_id)
    noise = model.noise(image_seed(3, set_id, index, attempt))[None]
    return model.decode(model.denoise(noise, model.embed([caption]))).numpy()


class Guarded:
    """What a safety checker is told to reject: some images at their first attempts, no others."""

    def __init__(self, made: Workplace, attempts: dict[tuple[str, int], int], folder: Path) -> None:
        """`attempts`: of an image, how many are rejected."""
        later = [(*image, attempt) for image, count in attempts.items() for attempt in range(1, min(count, 2) + 1)]
        pictures = {image: drawn(made, *image) for image in later}
        pictures |= {
            (one.id, index, 0): one.images[index : index + 1] for one in made.sets().values() for index in range(3)
        }
        rejected = {(*image, attempt) for image, count in attempts.items() for attempt in range(count)}
        self.stable_diffusion = with_safety_checker(
            made.stable_diffusion,
            folder,
            rejected=np.concatenate([pictures[image] for image in rejected]),
            accepted=np.concatenate([picture for image, picture in pictures.items() if image not in rejected]),
        )


@pytest.fixture(scope="module")
def guarded(made: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    folder = tmp_path_factory.mktemp("guarded") / "stable-diffusion"
    return Guarded(made, {("train-1", 0): 2, ("test-0", 2): 1}, folder)


@pytest.fixture(scope="module")
def hopeless(made: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    """One image of one set is rejected whenever it is drawn, another one once."""
    folder = tmp_path_factory.mktemp("hopeless") / "stable-diffusion"
    return Guarded(made, {("train-1", 2): 3, ("train-2", 1): 1}, folder)


def test_what_the_safety_checker_rejects_is_drawn_again_and_counted_apart(
    guarded: Guarded, made: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Workplace(tmp_path, guarded.stable_diffusion)

    def spoil(noise: Tensor, latents: Tensor) -> None:
        for row, start in enumerate(noise):
            if torch.equal(start, noise_of("validation-0", 1)):
                latents[row] = float("nan")

    batches = drawings(monkeypatch, spoil)
    manifest = place.run(safety_checker=True)
    assert {batch.shape for batch in batches} == {(4, 4, 8, 8)}
    assert (manifest.redrawn, manifest.made_by["rejected"]) == (4, 3)
    checker = guarded.stable_diffusion / "safety_checker"
    assert manifest.made_by["safety_checker"] == {"licence": "CreativeML Open RAIL-M", "sha256": folder_digest(checker)}
    assert "left_out" not in manifest.made_by
    card = place.manifest.with_suffix(".md").read_text()
    for text in (
        "drawn again with new noise: 4 times",
        "Images that it rejected: 3. Sets left out because it rejected an image of theirs at every attempt: 0.",
        "Licence of the safety checker's weights, which are not part of this: CreativeML Open RAIL-M.",
    ):
        assert text in card
    attempts = {("train-1", 0): 2, ("test-0", 2): 1, ("validation-0", 1): 1}
    expected = made.sets()
    for one in place.sets().values():
        for index in range(3):
            attempt = attempts.get((one.id, index), 0)
            assert one.extras["seeds"][index] == image_seed(3, one.id, index, attempt)
            assert np.array_equal(one.images[index], expected[one.id].images[index]) == (attempt == 0)
    assert "black" not in caplog.text, "of what diffusers does with such pictures nobody needs to know"


def test_a_safety_checker_that_is_not_asked_changes_nothing(guarded: Guarded, made: Workplace, tmp_path: Path) -> None:
    place = Workplace(tmp_path, guarded.stable_diffusion)
    manifest = place.run()
    assert manifest.redrawn == 0
    assert "safety_checker" not in manifest.made_by
    expected = made.sets()
    assert all(np.array_equal(one.images, expected[one.id].images) for one in place.sets().values())


@pytest.mark.parametrize("at", [3, 5])  # the shard with the rejected images, after its upload and before its record
def test_how_many_were_rejected_survives_an_interrupted_run(at: int, guarded: Guarded, tmp_path: Path) -> None:
    whole = Workplace(tmp_path / "whole", guarded.stable_diffusion)
    whole.run(safety_checker=True)
    store = tmp_path / "store"
    one = Workplace(tmp_path / "one", guarded.stable_diffusion, store=Interrupting(store, at=at, after=False))
    with pytest.raises(KeyboardInterrupt):
        one.run(safety_checker=True)
    other_machine = Workplace(tmp_path / "another", guarded.stable_diffusion, store=LocalStore(store))
    other_machine.run(safety_checker=True)
    assert other_machine.manifest.read_bytes() == whole.manifest.read_bytes()
    assert Manifest.read(whole.manifest).made_by["rejected"] == 3


def test_a_set_with_an_image_that_is_always_rejected_ends_the_run_and_is_named(
    hopeless: Guarded, tmp_path: Path
) -> None:
    place = Workplace(tmp_path, hopeless.stable_diffusion)
    with pytest.raises(UserError, match=r"more than generate\.max_bad_fraction 0 allows of 8: set train-1: ") as caught:
        place.run(safety_checker=True)
    assert "image 2 is rejected by the safety checker in all 3 attempts" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not place.manifest.exists()


def test_so_many_sets_may_be_rejected_and_the_same_ones_are_left_out_everywhere(
    hopeless: Guarded,
    made: Workplace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Workplace(tmp_path / "one", hopeless.stable_diffusion)
    with pytest.raises(UserError):
        place.run(safety_checker=True)
    batches = drawings(monkeypatch)
    manifest = place.run(safety_checker=True, max_bad_fraction=0.125)
    assert len(batches) < 10, "what was drawn for another share is drawn"
    assert manifest.sets == {"train": 4, "validation": 1, "test": 2}
    assert (manifest.redrawn, manifest.made_by["rejected"], manifest.made_by["left_out"]) == (3, 4, 1)
    assert "left out 1 of 8 sets: set train-1: image 2 is rejected" in caplog.text
    card = place.manifest.with_suffix(".md").read_text()
    assert (
        "Images that it rejected: 4. Sets left out because it rejected an image of theirs at every attempt: 1." in card
    )
    assert place.sets().keys() == made.sets().keys() - {"train-1"}
    assert verify.run(place.manifest, store=place.store).startswith("5 shards, 7 sets, 21 images, ")
    content, count = place.manifest.read_bytes(), len(batches)
    place.run(safety_checker=True, max_bad_fraction=0.125)
    assert len(batches) == count
    assert place.manifest.read_bytes() == content


def test_a_safety_checker_that_is_asked_for_must_be_there_and_whole(guarded: Guarded, tmp_path: Path) -> None:
    folder = shutil.copytree(guarded.stable_diffusion, tmp_path / "stable-diffusion")
    place, checker = Workplace(tmp_path, folder), folder / "safety_checker"

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as caught:
            place.run(safety_checker=True)
        assert "\n" not in str(caught.value)
        assert not place.manifest.exists()

    (checker / "preprocessor_config.json").unlink()
    refused("safety_checker: incomplete or damaged")
    shutil.rmtree(checker)
    refused(r"safety_checker: no such folder, but generate\.safety_checker is true; .* or set it to false")


# A dataset that grows

LATER = [CaptionRow(f"train-{n}", f"a {n}", "train") for n in range(5, 8)]


def grown(place: Workplace, tmp_path: Path) -> Workplace:
    """A copy of a place, in which three captions for training came later."""
    shutil.copytree(place.manifest.parent.parent, tmp_path / "grown")
    other = Workplace(tmp_path / "grown", place.stable_diffusion)
    write_captions(other.captions, [*ROWS, *LATER], ORIGIN, parts=[5, 3])
    return other


def test_more_captions_come_in_shards_of_their_own(
    made: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, place = Manifest.read(made.manifest), grown(made, tmp_path)
    batches = drawings(monkeypatch)
    after = place.run()
    assert len(batches) == 2 + 1, "nothing else is drawn"
    assert after.sets == {"train": 8, "validation": 1, "test": 2}
    assert after.split("train")[:3] == before.split("train"), "the short shard, too"
    assert [shard.first_set for shard in after.split("train")[3:]] == ["train-5", "train-7"]
    assert after.split("test") == before.split("test")
    assert after.made_by["grew"] == {"captions": [5, 3], "more_images": []}
    assert "captions for training came 5, then 3 at a time" in place.manifest.with_suffix(".md").read_text()
    anew = Workplace(tmp_path / "anew", made.stable_diffusion)
    write_captions(anew.captions, [*ROWS, *LATER], ORIGIN, parts=[5, 3])
    anew.run()
    assert anew.manifest.read_bytes() == place.manifest.read_bytes()


def test_images_are_added_to_sets_in_shards_of_their_own(
    made: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, place = Manifest.read(made.manifest), grown(made, tmp_path)
    batches = drawings(monkeypatch)
    after = place.run(more_images=(2, 1))
    assert len(batches) == (2 + 1) + 7 * 2, "of each block two shards, of a batch each"
    assert after.images_per_set == 6
    assert after.sets == {"train": 8, "validation": 1, "test": 2}
    first, *more = after.shards[:3]
    assert first == before.shards[0]
    assert [(one.first_set, one.last_set, one.count, one.first_image) for one in more] == [
        ("train-0", "train-1", 2, 3),
        ("train-0", "train-1", 2, 5),
    ]
    assert {one.key for one in before.shards} < {one.key for one in after.shards}
    assert Manifest.read(place.manifest) == after
    old, sets = made.sets(), place.sets()
    for one in sets.values():
        assert one.images.shape == (6, 64, 64, 3)
        assert one.latents is not None
        assert one.latents.shape == (6, 4, 8, 8)
        assert one.extras["seeds"] == [image_seed(3, one.id, index) for index in range(6)]
        if one.id in old:
            assert np.array_equal(one.images[:3], old[one.id].images)
    stored = ImageSets(place.store, after, "train").stored(3)
    assert np.array_equal(stored.pictures([4, 1]), sets["train-3"].images[[4, 1]])
    *_, added = read_shard(place.store.get(after.shards[-1].key, after.shards[-1].sha256, after.shards[-1].size))
    assert (added.id, added.first_image, added.count) == ("test-1", 5, 1)
    assert verify.run(place.manifest, store=place.store).startswith("21 shards, 11 sets, 66 images, ")
    content, count = place.manifest.read_bytes(), len(batches)
    place.run(more_images=(2, 1))
    assert place.manifest.read_bytes() == content
    assert len(batches) == count


def test_what_was_drawn_by_other_code_stays_where_the_dataset_is_extended(
    made: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, batches = grown(made, tmp_path), drawings(monkeypatch)
    monkeypatch.setattr(generate, "code_digest", lambda *_: "of other code")
    as_it_was = shutil.copy(place.manifest, tmp_path / "before.json")
    shutil.copy(f"{place.manifest}.sha256", f"{as_it_was}.sha256")
    after, before = place.run(extends=str(as_it_was), more_images=(1,)), Manifest.read(made.manifest)
    assert len(batches) == (2 + 1) + 7
    assert after.made_by["extends"] == before.digest
    assert {one.key for one in before.shards} < {one.key for one in after.shards}
    # And once more: what was added stays as well, and may not be changed.
    further = Path(shutil.copy(place.manifest, tmp_path / "further.json"))
    shutil.copy(f"{place.manifest}.sha256", f"{further}.sha256")
    monkeypatch.setattr(generate, "code_digest", lambda *_: "of still other code")
    assert place.run(extends=str(further), more_images=(1,)).shards == after.shards
    for changed in ((), (2,), (2, 1)):
        with pytest.raises(UserError, match=r"more_images came \[1\] at a time, and are .* add a number behind them"):
            place.run(extends=str(further), more_images=changed)
    write_captions(place.captions, [*ROWS, *LATER[:2]], ORIGIN, parts=[5, 2])
    with pytest.raises(UserError, match=r"captions came \[5, 3\] at a time, and are \[5, 2\] now"):
        place.run(extends=str(further), more_images=(1,))
    assert len(batches) == (2 + 1) + 7


def test_what_does_not_go_on_from_a_dataset_is_refused_before_anything_is_drawn(
    made: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, batches, before = grown(made, tmp_path), drawings(monkeypatch), str(made.manifest)

    def refused(words: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=words) as caught:
            place.run(extends=before, **changes)
        assert "\n" not in str(caught.value)
        assert not batches

    refused("cannot be extended: generate.seed was 3 there, and is 4 now", seed=4)
    refused("generate.images_per_set was 3 there", images_per_set=4)
    write_captions(place.captions, [row for row in ROWS if row.id != "test-1"], ORIGIN, parts=[5])
    refused("captions.parquet does not begin with its 8 captions; leave captions as they were, but for more")
    write_captions(place.captions, [*ROWS[:2], CaptionRow("train-0", "another", "train"), *ROWS[3:]], ORIGIN)
    refused("captions.parquet does not begin with its 8 captions")
    write_captions(place.captions, [*ROWS, *LATER], ORIGIN)  # as if all had come at once
    refused("1 of its shards are not asked for, the first of the sets train-4 to train-4; leave captions")
    write_captions(place.captions, ROWS, ORIGIN)
    lost = Manifest.read(made.manifest).shards[0].key
    (tmp_path / "grown/store" / lost).unlink()
    refused(f"lacks {lost}, which .*mis.json names; bring it back")


def test_a_set_that_lacks_an_image_that_was_to_be_added_is_left_out(made: Workplace, tmp_path: Path) -> None:
    place = Workplace(tmp_path / "one", made.stable_diffusion)
    place.run(more_images=(1,))
    added = {one.id: one.images[3:] for one in place.sets().values()}
    others = [drawn(made, "train-1", 3, attempt) for attempt in (1, 2)]
    checked = with_safety_checker(
        made.stable_diffusion,
        tmp_path / "checked",
        rejected=np.concatenate([added.pop("train-1"), *others]),
        accepted=np.concatenate([*added.values(), *(one.images for one in made.sets().values())]),
    )
    place = Workplace(tmp_path / "two", checked)
    place.run(safety_checker=True)
    first = Manifest.read(place.manifest).shards[0]
    after = place.run(safety_checker=True, max_bad_fraction=0.125, more_images=(1,))
    assert after.sets == {"train": 4, "validation": 1, "test": 2}
    assert after.shards[0] == first
    assert [one.count for one in after.shards[:2]] == [2, 1]
    assert place.sets().keys() == made.sets().keys() - {"train-1"}
    assert verify.run(place.manifest, store=place.store).startswith("10 shards, 7 sets, ")
    # The block keeps what it has when further images come, also where other code draws them.
    shutil.copytree(place.manifest.parent, tmp_path / "before")
    further = place.run(
        safety_checker=True, max_bad_fraction=0.125, more_images=(1, 1), extends=str(tmp_path / "before/mis.json")
    )
    assert [one.count for one in further.shards[:3]] == [2, 1, 1]
    assert [one for one in further.shards if one.first_image < 4] == list(after.shards)
    assert further.made_by["left_out"] == 1, "though two shards lack it"
    assert all(one.count == 5 for one in place.sets().values())


def spoil_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def other_weights(folder: Path) -> None:
    shutil.copy(folder / "config.json", folder / "kept")
    WorldClassifier({"noun": ("star",)}, widths=(8, 16)).save_pretrained(folder)
    shutil.move(folder / "kept", folder / "config.json")


@pytest.mark.parametrize(
    "damage",
    [
        shutil.rmtree,
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text('{"architecture": '),
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_text("{}"),
        lambda folder: (folder / "config.json").write_text('{"architecture": "world-classifier"}'),
        lambda folder: (folder / "config.json").write_text(
            '{"architecture": "world-classifier", "classes": [], "widths": [8, 8]}'
        ),
        lambda folder: (folder / "model.safetensors").unlink(),
        spoil_weights,
        other_weights,
    ],
)
def test_a_damaged_class_network_is_one_line(damage: Callable[[Path], Any], worded: Workplace) -> None:
    WorldClassifier(KNOWN, widths=(8, 8)).save_pretrained(worded.inception)
    damage(worded.inception)
    with pytest.raises(UserError, match="inception: incomplete or damaged") as caught:
        worded.run()
    assert "make it again: dvc repro --force --single-item foundation" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not worded.manifest.exists()
    assert not worded.work.exists()


class Interrupting(LocalStore):
    """A store at whose n-th upload the power fails, before or after it."""

    def __init__(self, folder: Path, *, at: int, after: bool) -> None:
        super().__init__(folder)
        self.left, self.after = at, after

    def put(self, key: str, path: Path, sha256: str) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise KeyboardInterrupt
        super().put(key, path, sha256)
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 4])  # a shard, its record, the next shard ...
def test_an_interrupted_run_goes_on_after_its_last_shard(
    at: int, after: bool, made: Workplace, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place.manifest.parent.parent / "store"
    place.store = Interrupting(folder, at=at, after=after)
    with pytest.raises(KeyboardInterrupt):
        place.run()
    assert not place.manifest.exists()
    batches = drawings(monkeypatch)
    place.store = LocalStore(folder)
    place.run()
    missing = [2, 2, 1, 1, 2][at // 2 if after else (at - 1) // 2 :]
    assert len(batches) in (sum(missing), sum(missing) - missing[1]), "only the next shard may have been kept"
    assert place.manifest.read_bytes() == made.manifest.read_bytes()
    assert len(list(folder.rglob("*.tar"))) == 5
    assert not [path for path in place.work.rglob("*") if path.is_file()]


class WaitingForTheNext(LocalStore):
    """A store so slow that the first shard is still on its way when the second one is drawn."""

    def __init__(self, folder: Path, drawings: list[Tensor]) -> None:
        super().__init__(folder)
        self.drawings = drawings
        self.waited = False

    def put(self, key: str, path: Path, sha256: str) -> None:
        if not self.waited:
            self.waited = True
            deadline = time.monotonic() + 60
            while len(self.drawings) < 4:  # batches: two shards
                assert time.monotonic() < deadline, "nothing was drawn while a shard was stored"
                time.sleep(0.01)
        super().put(key, path, sha256)


def test_the_next_shard_is_drawn_while_one_is_stored(
    made: Workplace, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.store = WaitingForTheNext(place.manifest.parent.parent / "store", drawings(monkeypatch))
    place.run()
    assert place.manifest.read_bytes() == made.manifest.read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on(made: Workplace, place: Workplace) -> None:
    script = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_generate_stage as t
class Killing(t.LocalStore):
    def put(self, key, path, sha256):
        super().put(key, path, sha256)
        if len(list(Path(sys.argv[3], "store").rglob("*.tar"))) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
t.torch.set_num_threads(int(sys.argv[4]))
t.Workplace(Path(sys.argv[3]), Path(sys.argv[2]), store=Killing(Path(sys.argv[3], "store"))).run()
"""
    folder = place.manifest.parent.parent
    paths = [str(Path(__file__).parent), str(place.stable_diffusion), str(folder), str(torch.get_num_threads())]
    killed = subprocess.run([sys.executable, "-c", script, *paths], check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not place.manifest.exists()
    place.run()
    assert place.manifest.read_bytes() == made.manifest.read_bytes()
    assert not [path for path in place.work.rglob("*") if path.is_file()]


def test_what_is_finished_needs_no_networks(
    made: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = made.manifest.read_bytes()
    monkeypatch.setattr(generate, "StableDiffusion", None)
    made.run()
    assert made.manifest.read_bytes() == content
    assert capsys.readouterr().err.splitlines()[-1] == "generate: 24/24 images"


def test_a_shard_that_the_store_lost_is_drawn_again(
    made: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made.manifest.parent.parent
    shutil.copytree(folder, tmp_path / "copy")
    place = Workplace(tmp_path / "copy", made.stable_diffusion)
    lost, forgotten = Manifest.read(made.manifest).shards[:2]
    (tmp_path / "copy/store" / lost.key).unlink()
    (record,) = (tmp_path / "copy/store/records/generate").glob(f"*{forgotten.sha256}*")
    record.unlink()
    batches = drawings(monkeypatch)
    place.run()
    assert len(batches) == 4
    assert place.manifest.read_bytes() == made.manifest.read_bytes()
    verify.run(place.manifest, store=place.store)


@pytest.mark.slow
def test_other_parameters_captions_weights_or_code_make_other_shards(
    made: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made.manifest.parent.parent, tmp_path / "copy")
    shutil.copytree(made.stable_diffusion, tmp_path / "stable-diffusion")
    place = Workplace(tmp_path / "copy", tmp_path / "stable-diffusion")
    batches = drawings(monkeypatch)
    place.run()
    assert len(batches) == 0
    place.run(seed=4)
    assert len(batches) == 8
    write_captions(place.captions, [*ROWS[:4], CaptionRow("train-2", "another", "train"), *ROWS[5:]], ORIGIN)
    place.run()
    assert len(batches) == 8 + 2
    (tmp_path / "stable-diffusion" / "README.md").write_text("---\nlicense: openrail++\n---\n")
    manifest = place.run()
    assert len(batches) == 8 + 2 + 8
    assert manifest.made_by["stable_diffusion"]["licence"] == "CreativeML Open RAIL++-M"
    monkeypatch.setattr(generate, "code_digest", lambda *_: "of other code")
    assert place.run() == manifest
    assert len(batches) == 8 + 2 + 8 + 8


def test_bad_input_is_named_before_anything_is_written(place: Workplace, tmp_path: Path) -> None:
    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as caught:
            place.run()
        assert "\n" not in str(caught.value)
        assert not place.manifest.exists()
        assert not place.work.exists()

    folder, place.stable_diffusion = place.stable_diffusion, tmp_path / "nothing"
    refused("nothing: no such folder")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "a.txt").touch()
    refused("nothing: no Stable Diffusion folder")
    place.stable_diffusion = folder
    write_captions(place.captions, [], ORIGIN)
    refused("holds no captions")
    place.captions.unlink()
    refused("captions .* cannot be read")
    (tmp_path / "file").touch()
    place.store = LocalStore(tmp_path / "file")
    refused("its folder is a file")
