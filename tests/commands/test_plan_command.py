"""``m2m plan``: arithmetic that one can follow by hand, and where each number is from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from m2m.cli import app
from m2m.commands.plan import PART, Plan, Prices, run, to_json, to_text
from m2m.engines.simulation import Failures
from m2m.foundation.sizes import PARAMETERS, state
from m2m.params import Params
from m2m.params_file import load_params

ROOT = Path(__file__).parents[2]
RATES = {"generate": 2.0, "train@self": 10.0, "train@dino": 5.0}


@pytest.fixture(scope="module")
def params() -> Params:
    """10 sets for training, 2 for validation, 3 for the test, of 4 images, 4 a shard; training on sets of 4 images."""
    smoke = load_params(ROOT / "profiles" / "smoke.yaml")
    common, variants = smoke.train.common, smoke.train.variant
    return smoke.model_copy(
        update={
            "captions": smoke.captions.model_copy(update={"train": 10, "validation": 2, "test": 3}),
            "generate": smoke.generate.model_copy(update={"images_per_set": 4, "sets_per_shard": 4}),
            "train": smoke.train.model_copy(
                update={
                    "common": common.model_copy(update={"set_size": 4}),
                    "variant": variants.model_copy(
                        update={
                            "self_": variants.self_.model_copy(update={"images": 40}),
                            "dino": variants.dino.model_copy(update={"images": 8}),
                        }
                    ),
                }
            ),
        }
    )


def planned(params: Params, results: Path = Path("nowhere"), **changes: Any) -> Plan:
    values = {"pixels": 64, "gpus": 2, "given": RATES, "prices": Prices(), **changes}
    return run(params, results=results, **values)


@pytest.mark.parametrize(("profile", "side"), [("embedded", 64), ("paper", 512)])
def test_pictures_are_as_large_as_the_profile_draws_them(profile: str, side: int) -> None:
    of_profile = load_params(ROOT / "profiles" / f"{profile}.yaml")
    assert planned(of_profile, pixels=None).bytes_per_image.value == (1.625 if profile == "paper" else 1.75) * side**2


def test_gpus_that_cannot_share_a_step_are_told(params: Params) -> None:
    sets = params.train.variant.of("self").sets_per_step
    text = to_text(planned(params, gpus=7))
    assert f"but {sets} sets a step cannot be divided over 7 GPUs times gradient_accumulation, 1" in text
    assert "cannot be divided" not in to_text(planned(params, gpus=1))


def test_gpu_hours(params: Params) -> None:
    plan = planned(params)
    assert {one.stage: one.images for one in plan.work} == {
        "generate": 15 * 4,
        "train@self": 40 + 10 * 3,  # ten sets, of which three images each are read by the U-Net itself
        "train@dino": 8,
    }
    assert [one.gpu_hours * 3600 for one in plan.work] == pytest.approx([30, 7, 1.6])
    assert [one.hours * 3600 for one in plan.work] == pytest.approx([15, 3.5, 0.8])
    assert plan.gpu_hours * 3600 == pytest.approx(38.6)


def test_the_store(params: Params) -> None:
    plan = planned(params, bytes_per_image=1000.0)
    assert plan.store_bytes == 60_000
    assert plan.shards == 3 + 1 + 1  # 4 + 4 + 2 sets, 2 for validation, and 3 for the test
    assert plan.writes == 5
    lanes = params.train.variant.self_.sets_per_step
    assert plan.reads == 3 * 5 + (3 + lanes) + 2  # M2M-Self sees ten sets, of three shards; M2M-DINO two sets
    assert planned(params).bytes_per_image.value == 1.75 * 64 * 64


def test_a_dataset_that_grew(params: Params) -> None:
    captions = params.captions.model_copy(update={"more": (5,)})
    generate = params.generate.model_copy(update={"more_images": (2,)})
    plan = planned(params.model_copy(update={"captions": captions, "generate": generate}), bytes_per_image=1000.0)
    assert plan.store_bytes == 20 * 6 * 1000
    assert plan.shards == 2 * (3 + 2 + 1 + 1)  # the five sets that came later are 4 + 1
    lanes = params.train.variant.self_.sets_per_step
    assert plan.reads == 3 * 14 + 2 * (3 + lanes) + 2 * 2


def test_large_shards_go_in_parts(params: Params) -> None:
    plan = planned(params, bytes_per_image=PART / 8)  # 16, 16, 8, 8 and 12 images: 2, 2, 1, 1 and 2 parts
    assert plan.writes == 4 + 4 + 1 + 1 + 4


def test_the_cost(params: Params) -> None:
    prices = Prices(gpu_hour=3600.0, gigabyte_month=1e9, thousand_writes=1000.0, thousand_reads=2000.0)
    plan = planned(params, bytes_per_image=1000.0, prices=prices)
    assert plan.cost == pytest.approx({"gpus": 38.6, "store a month": 60_000, "requests": 5 + 2 * 24})


def test_memory_is_the_state_and_what_was_measured_by_row(params: Params, tmp_path: Path) -> None:
    assert [one.memory for one in planned(params).work] == [None] * 3, "nothing was measured"
    alone = state(PARAMETERS["self"])
    peaks = {"ours": alone + 30, "other": alone + 60}  # of 30 rows: 1 GiB each computed again, 2 kept
    row = {"name": "checkpointing/64px/self/memory", "on": "a card", **peaks}
    (tmp_path / "gpu.json").write_text(json.dumps([row]))
    sets = params.train.variant.self_.sets_per_step
    for gpus in (1, sets):
        # A set is 4 images, of which M2M-Self's U-Net reads three as well.
        of_self, of_dino = (planned(params, tmp_path, gpus=gpus).work[place] for place in (1, 2))
        parts = params.train.common.gradient_accumulation
        rows = 7 * max(sets // gpus // parts, 1)
        of_state = state(PARAMETERS["self"], gpus=gpus)
        assert of_self.memory
        assert of_self.memory_otherwise
        assert of_dino.memory
        assert of_self.memory.value == pytest.approx(of_state + 2 * rows, rel=0.01)
        assert of_self.memory_otherwise.value == pytest.approx(of_state + rows, rel=0.01)
        assert of_dino.memory.value < of_self.memory.value
        assert "activations kept" in of_self.memory.source
        assert "activations computed again" in of_self.memory_otherwise.source
        assert of_self.network is None, "the embedded world's networks are another size"
    assert "GiB a GPU (estimated" in to_text(planned(params, tmp_path))


def test_measured_rates_are_read_with_their_source(params: Params, tmp_path: Path) -> None:
    row = {"name": "generation/64px", "ours": 4.0, "on": "a card"}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    plan = planned(params, tmp_path, given={name: rate for name, rate in RATES.items() if name != "generate"})
    rate = plan.work[0].images_per_second
    assert rate.value == 4.0
    assert rate.source == f"{tmp_path / 'a.json'}: generation/64px, a card"
    assert plan.work[1].images_per_second.source == "given"


def test_what_was_not_measured_is_estimated_by_what_was_counted(tmp_path: Path) -> None:
    paper = load_params(ROOT / "profiles" / "paper.yaml")
    rows = [
        {"name": "step/512px/dino/given=1", "ours": 1700.0, "other": 1600.0, "on": ""},
        {"name": "training/512px/self", "ours": 80.0, "other": 1.0, "on": "NVIDIA H200"},
        {"name": "training/512px/self/rate", "ours": 240.0, "other": 1.0, "on": "NVIDIA H200"},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))

    def rates(card: str | None) -> list[float]:
        plan = planned(paper, tmp_path, pixels=None, given={"train@dino": 5.0}, card=card)
        assert "estimated" in plan.work[0].images_per_second.source
        return [one.images_per_second.value for one in plan.work]

    generated = 25 * 1.6  # TFLOP an image
    assert rates(None) == pytest.approx([0.15 * 989 / generated, 80, 5], rel=1e-2)
    assert rates("H200") == rates(None)
    assert rates("A100") == pytest.approx([0.15 * 312 / generated, 0.25 * 312 / 3, 5], rel=1e-2)


@pytest.mark.parametrize("profile", ["embedded", "full", "gpu", "paper", "smoke"])
def test_every_profile_can_be_planned_as_the_project_comes(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, ["plan", profile, "--gpus", "64"])
    assert result.exit_code == 0, result.stderr
    assert "with 64 GPUs" in result.stdout


@pytest.fixture
def m2m(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["plan", *arguments])

    return call


def rates() -> list[str]:
    return [word for name, rate in RATES.items() for word in ("--rate", f"{name}={rate}")]


def test_the_paper_s_scale_as_text_and_for_programs(m2m: Any) -> None:
    text = m2m("paper", "--gpus", "64", "--gpu-hour", "2", *rates()).stdout
    assert "generate: 300,302,500 images at 2/s a GPU (given)" in text
    assert "train@self: 153,000,000 images at 10/s a GPU (given)" in text
    assert "train@dino: 54,000,000 images at 5/s a GPU (given)" in text
    assert "187,690 shards" in text
    assert "(assumed, 1.5 a pixel of PNG, and latents in float16)" in text
    assert "at the given prices: gpus" in text
    assert "    867.2M parameters: 840.4M kept of Stable Diffusion's, 26.8M new; 25.6M of its own dropped\n" in text
    assert "    19.4 GiB of state on each GPU, 13.0 if 64 GPUs shared Adam's moments, which they do not\n" in text
    plan = json.loads(m2m("paper", "--json", *rates()).stdout)
    assert plan["work"][0]["images"] == 300_302_500
    assert plan["work"][2]["network"]["counted"]["parameters"] == PARAMETERS["dino"]
    assert plan["work"][0]["images_per_second"] == {"value": 2.0, "source": "given"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["unknown"], "m2m: no profile 'unknown' in profiles/; there are embedded, full, gpu, paper, smoke"),
        (["paper"], "m2m: nobody measured generation/512px in benchmarks/results; run make bench on the GPU, or give "),
        (["paper", "--card", "H300"], "m2m: --card H300: expected one of H200, H100, A100, L40S; for another one"),
        (["paper", "--rate", "train@self=fast"], "m2m: --rate train@self=fast: expected STAGE=N"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments: list[str], text: str, m2m: Any) -> None:
    result = m2m(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(text)
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_damaged_results_are_named(m2m: Any, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    for damaged in ("[{", '[{"name": "generation/512px", "on": ""}]'):
        (tmp_path / "results" / "a.json").write_text(damaged)
        result = m2m("paper", "--results", "results")
        assert result.exit_code == 2
        assert "m2m: results/a.json: not what make bench writes" in result.stderr


def test_a_plan_is_run_through_with_failures(params: Params) -> None:
    plan = planned(params, prices=Prices(gpu_hour=2.0), failures=Failures(node_hours=1e9))
    assert [one.stage for one in plan.simulated] == ["generate", "train@self", "train@dino"]
    for one, work in zip(plan.simulated, plan.work, strict=True):
        assert (one.planned_hours, one.failures, one.again) == (work.hours, 0, 0)
    # Shards of 4, 4, 2, 2 and 3 sets, two images a second: two GPUs take 8, then 4 seconds, and one of them 6 more.
    assert plan.simulated[0].hours * 3600 == pytest.approx(18)
    text = to_text(plan)
    assert "if each node of 8 GPUs fails every 1e+09 hours, on average, and works again after 10 minutes:" in text
    assert "for GPUs, 0 more requests at most" in text
    often = planned(params, failures=Failures(node_hours=0.01, gpus_per_node=1, back_minutes=0))
    assert often.simulated[0].again > 0
    assert "shards made again" in to_text(often)
    assert json.loads(to_json(often))["simulated"][0]["again"] == often.simulated[0].again
    assert planned(params).simulated == ()


@pytest.mark.parametrize("profile", ["embedded", "paper"])
def test_a_plan_waits_for_no_library_that_computes(profile: str) -> None:
    program = f"import json, sys; from m2m.cli import app; app(['plan', {profile!r}], standalone_mode=False)"
    command = [sys.executable, "-c", f"{program}; print(json.dumps([*sys.modules]))"]
    *told, modules = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[-1].endswith("that read")
    assert not {"torch", "diffusers", "transformers"} & {*json.loads(modules)}


def test_a_network_that_nobody_counted_is_built(tmp_path: Path) -> None:
    paper = load_params(ROOT / "profiles" / "paper.yaml")
    common = paper.train.common.model_copy(update={"max_context": 16})
    longer = planned(paper.model_copy(update={"train": paper.train.model_copy(update={"common": common})}), tmp_path)
    network = longer.work[1].network
    assert network
    slots = 8 * (5 * 320 + 5 * 640 + 6 * 1280)
    assert network.counted.parameters == PARAMETERS["self"] + slots
