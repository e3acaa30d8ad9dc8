import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m2m.seeds import derive, generator, image_seed, normal, rounds

PARTS = st.lists(st.integers() | st.text(st.characters(exclude_categories=["Cs"])), max_size=4)


def test_seeds_never_change() -> None:
    assert derive(0) == 7520536977032167579
    assert derive(7, "epoch", 3) == 4968466906179661711
    assert derive(-1, "é") == 1838251995170713299
    assert image_seed(7, "world-train-000001", 3) == 1931524490663398675


@given(st.integers(), PARTS, st.integers(), PARTS)
def test_different_parts_give_different_seeds_of_63_bits(
    seed: int, parts: list[int | str], other_seed: int, other_parts: list[int | str]
) -> None:
    number = derive(seed, *parts)
    assert 0 <= number < 2**63
    assert (number == derive(other_seed, *other_parts)) == ([seed, *parts] == [other_seed, *other_parts])


def test_a_number_is_not_its_digits() -> None:
    assert derive(0, 1) != derive(0, "1")
    assert derive(0, 1, 2) != derive(0, 12)


def test_every_image_and_every_attempt_has_noise_of_its_own() -> None:
    seeds = {image_seed(0, set_id, index, attempt) for set_id in "ab" for index in range(25) for attempt in range(3)}
    assert len(seeds) == 2 * 25 * 3


def test_a_generator_depends_on_its_parts_alone() -> None:
    expected = torch.randn(4, generator=generator(3, "noise", 5))
    torch.manual_seed(1)
    generator(3, "noise", 4)
    assert torch.equal(torch.randn(4, generator=generator(3, "noise", 5)), expected)
    assert not torch.equal(torch.randn(4, generator=generator(4, "noise", 5)), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_noise_is_the_same_whatever_torch_makes_of_numbers_by_default(dtype: torch.dtype) -> None:
    expected = torch.stack([torch.randn(3, 5, generator=generator(7, k)) for k in range(2)])
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            noise = normal((3, 5), generator(7, 0), generator(7, 1))
    finally:
        torch.set_default_dtype(before)
    assert noise.dtype == torch.float32
    assert torch.equal(noise, expected)


def test_rounds_take_every_combination_before_any_comes_again() -> None:
    taken = list(rounds(0, "train", 5, 12))
    for turn in range(2):
        assert sorted(index for at, index in taken if at == turn) == list(range(5))
    assert [index for _, index in taken[:5]] != [index for _, index in taken[5:10]]
    assert taken[:7] == list(rounds(0, "train", 5, 7))
    assert taken != list(rounds(0, "test", 5, 12))
