"""The order of images and their flips: functions of (seed, images seen)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmooth.data import ImageDataset, epoch_order, indices_at, order
from dsmooth.data.order import ImagesOnDevice, flips
from dsmooth.philox import Stream, image_words
from tests.helpers.data_makers import refuses

sizes, seeds = st.integers(1, 300), st.integers(0, 2**64 - 1)


@pytest.mark.quick
@given(n=sizes, epoch=st.integers(0, 2**40), seed=seeds)
@settings(deadline=None)
def test_an_epoch_is_the_permutation_that_sorts_its_keys(n: int, epoch: int, seed: int) -> None:
    found = epoch_order(n, epoch, seed)
    words = image_words(1, n, seed=seed, first_index=epoch, stream=Stream.ORDER)[0].tolist()
    assert found.dtype == torch.int64
    assert found.tolist() == sorted(range(n), key=lambda i: (words[i][0], words[i][1], i))


def test_equal_keys_keep_the_order_of_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def same_words(n_images: int, n_counters: int, **_: object) -> torch.Tensor:
        return torch.full((n_images, n_counters, 4), 7)

    monkeypatch.setattr(order, "image_words", same_words)
    assert epoch_order(1000, 0, 987_654_321).tolist() == list(range(1000))


def test_order_and_flips_stay_as_they_were_released() -> None:
    assert epoch_order(10, 0, 0).tolist() == [2, 6, 8, 4, 7, 0, 9, 5, 1, 3]
    assert flips(0, 12, seed=0).int().tolist() == [0, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 0]


@given(n=st.integers(1, 40), seen=st.integers(0, 99), batch=st.integers(1, 99), seed=seeds)
@settings(deadline=None, max_examples=40)
def test_the_stream_is_the_epochs_one_after_another(n, seen, batch, seed) -> None:
    epochs = range((seen + batch) // n + 1)
    stream = torch.cat([epoch_order(n, epoch, seed) for epoch in epochs])
    assert torch.equal(indices_at(n, seen, batch, seed), stream[seen : seen + batch])


@pytest.mark.parametrize("get", [lambda: epoch_order(9, 3, 5), lambda: indices_at(9, 27, 9, 5)])
def test_what_is_handed_out_can_be_changed(get) -> None:
    before = get().tolist()
    get().zero_()
    assert get().tolist() == before


def test_order_refuses_what_is_out_of_range() -> None:
    for arguments, message in (
        ((0, 0, 1, 0), "`n` must lie in 1 .. 4294967295, got 0"),
        ((5, -1, 1, 0), "`images_seen` must be at least 0, got -1"),
        ((5, 0, 0, 0), "`batch_size` must be at least 1, got 0"),
        ((5, 0, 1, -1), "`seed` must lie in .*, got -1"),
        ((5, 0, 1, 2**64), "`seed` must lie in .*, got 18446744073709551616"),
    ):
        refuses(message, indices_at, *arguments)
    refuses("`epoch` must be at least 0, got -1", epoch_order, 5, -1, 0)


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("n", "batch"), [(10, 4), (3, 8), (8, 8), (1, 5), (7, 1)])
def test_a_device_knows_the_same_order(n: int, batch: int, name: str) -> None:
    """From any position, over several epochs."""
    images, labels = torch.arange(n * 16).byte().view(n, 1, 4, 4), torch.arange(n)
    dataset = ImageDataset(images, labels, "made", "train", "made for a test")
    device = torch.device(name)
    on_device = ImagesOnDevice(dataset, labels, batch, 5, device)
    for first in (0, 3, 1000):
        for position in range(first, first + 3 * max(n, batch), batch):
            on_device.prepare(position)
            expected = indices_at(n, position, batch, 5)
            found = on_device.part(0, batch)
            assert torch.equal(found[0].cpu(), images[expected])
            assert torch.equal(found[1].cpu(), expected)
            half = on_device.part(batch // 2, batch - batch // 2)
            assert torch.equal(half[1].cpu(), expected[batch // 2 :])


@pytest.mark.quick
def test_flips_are_fair_coins_of_the_seed_and_the_position() -> None:
    n = 100_000
    coins = flips(0, n, seed=3)
    assert coins.dtype == torch.bool
    assert coins.shape == (n,)
    others = (coins.roll(1), flips(0, n, seed=4), flips(2**32, n, seed=3))
    for bits in (coins, *(coins ^ other for other in others)):  # fair, independent
        assert abs(int(bits.sum()) - n / 2) < 5 * (n / 4) ** 0.5
    position = torch.tensor(70)
    batches = [flips(first, 7, seed=3) for first in range(0, 70, 7)]
    assert torch.equal(torch.cat([*batches, flips(position, 30, seed=3)]), coins[:100])
    assert flips(0, 0, seed=3).shape == (0,)
    for arguments in ({"first": -1, "seed": 0}, {"first": 0, "seed": -1}):
        refuses(r"must lie in 0 \.\.", flips, count=1, **arguments)
