import runpy
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2m.errors import UserError
from m2m.foundation import fit as module
from m2m.foundation.fit import EMA_DECAY, WARMUP, fit
from m2m.params import Fit
from m2m.store import LocalStore
from m2m.training.checkpoints import Checkpoints

PROGRAM = Path(__file__).with_name("fit_until_killed.py")
FEW = Fit(images=40, batch_size=4, learning_rate=0.01)


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(PROGRAM))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_fit_killed_twice_ends_as_an_uninterrupted_one_to_the_bit(program: dict[str, Any], tmp_path: Path) -> None:
    whole = program["train"](tmp_path / "whole")
    for moment, kept in (("saving 5", 16), ("step 9", 36)):
        ended = subprocess.run(
            [sys.executable, PROGRAM, tmp_path / "broken", moment], check=False, capture_output=True, text=True
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        work = tmp_path / "broken"
        latest = Checkpoints(LocalStore(work), "fit", "network", work).latest()
        assert latest is not None
        assert int(latest.name.partition(".")[0]) == kept
    broken = program["train"](tmp_path / "broken").state_dict()
    assert all(torch.equal(value, broken[name]) for name, value in whole.state_dict().items())
    finished = ["network.safetensors", "network.safetensors.sha256"]
    assert names(tmp_path / "broken") == names(tmp_path / "whole") == finished


def test_what_is_kept_and_damaged_is_made_again(
    program: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = program["train"](tmp_path)
    finished = tmp_path / "network.safetensors"
    content = bytearray(finished.read_bytes())
    content[-2] ^= 1
    finished.write_bytes(content)
    capsys.readouterr()
    again = program["train"](tmp_path)
    assert "step 12/12" in capsys.readouterr().out
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_checkpoint_that_is_damaged_is_not_gone_on_from(
    program: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    whole = program["train"](tmp_path / "whole")
    monkeypatch.setattr("os.kill", stop)
    with pytest.raises(KeyboardInterrupt):
        program["train"](tmp_path / "broken", killed="step 9")
    (state,) = (tmp_path / "broken").glob("checkpoints/fit/network/*")
    content = bytearray(state.read_bytes())
    content[-2] ^= 1
    state.write_bytes(content)
    again = program["train"](tmp_path / "broken").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.state_dict().items())


def test_a_finished_fit_returns_at_once_with_the_same_weights(
    program: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = program["train"](tmp_path)
    assert "network: step 12/12, loss " in capsys.readouterr().out
    second = program["train"](tmp_path)
    assert capsys.readouterr().out == ""
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    for network in (first, second):
        assert not network.training
        assert not any(value.requires_grad for value in network.parameters())


def test_the_weights_left_are_the_average_over_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    step = module.TrainState.step

    def watched(state: module.TrainState) -> None:
        step(state)
        seen.append((state.network.weight.detach().clone(), state.ema.tensors["weight"].clone()))

    monkeypatch.setattr(module.TrainState, "step", watched)
    network = nn.Linear(2, 1, bias=False)
    average = network.weight.detach().clone()
    target = torch.tensor([[1.0, -1.0]])
    fit(
        "line",
        network,
        lambda batch, draws: (network.weight - target - torch.rand(1, generator=draws)).square().sum() * len(batch),
        fit=FEW,
        pictures=3,
        seed=0,
        work=tmp_path,
    )
    assert len(seen) == 10
    for number, (weight, found) in enumerate(seen):
        decay = min(EMA_DECAY, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weight
        torch.testing.assert_close(found, average)
    assert torch.equal(network.weight, seen[-1][1])
    assert not torch.equal(network.weight, seen[-1][0])


def test_batches_and_draws_depend_on_seed_name_and_step(tmp_path: Path) -> None:
    def seen(name: str, seed: int, folder: str) -> list[tuple[Any, ...]]:
        batches: list[tuple[Any, ...]] = []
        network = nn.Linear(1, 1)

        def loss(batch: Tensor, draws: torch.Generator) -> Tensor:
            batches.append((*batch.tolist(), torch.rand(1, generator=draws).item()))
            return network.weight.square().sum()

        fit(name, network, loss, fit=FEW, pictures=1000, seed=seed, work=tmp_path / folder)
        return batches

    first = seen("a", 0, "1")
    assert first == seen("a", 0, "2")
    assert len(set(first)) == len(first) == 10
    assert not set(first) & set(seen("b", 0, "3"))
    assert not set(first) & set(seen("a", 1, "4"))


def test_a_loss_that_is_not_finite_stops_the_fit(tmp_path: Path) -> None:
    network = nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"broken: the loss or its gradient is not finite after 4 images"):
        fit("broken", network, lambda *_: network.weight.sum() * torch.nan, fit=FEW, pictures=1, seed=0, work=tmp_path)
    assert not tmp_path.joinpath("broken.safetensors").exists()


def rates_of(work: Path, monkeypatch: pytest.MonkeyPatch, *, steps: int, peak: float) -> list[float]:
    """The rate of each step, as AdamW is told it; of a network that costs nothing."""
    rates: list[float] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda optimizer: rates.append(optimizer.param_groups[0]["lr"]))
    network, sizes = nn.Linear(1, 1), Fit(images=steps, batch_size=1, learning_rate=peak)
    fit("rates", network, lambda *_: network.weight.sum(), fit=sizes, pictures=1, seed=0, work=work)
    return rates


def test_the_learning_rate_rises_once_and_falls_to_a_fiftieth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = rates_of(tmp_path, monkeypatch, steps=1000, peak=0.5)
    top = round(1000 * WARMUP) - 1
    assert rates[top] == pytest.approx(0.5) == max(rates)
    assert rates[top // 2] == pytest.approx(0.5 * (top // 2 + 1) / (top + 1))
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a > b for a, b in pairwise(rates[top:]))
    assert rates[-1] == pytest.approx(0.01)
    middle = rates[round(1000 * (1 + WARMUP) / 2) - 1]
    assert middle == pytest.approx(0.5 * (0.02 + 0.98 / 2))
