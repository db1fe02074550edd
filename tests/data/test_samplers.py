"""The order of rows: repeatable, resumable in mid-epoch, shared out whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from oneshot_lit.data.samplers import ResumableDataLoader, ResumableSampler


def epoch(sampler: ResumableSampler, number: int) -> list[int]:
    sampler.set_epoch(number)
    return list(sampler)


def test_every_epoch_is_another_permutation() -> None:
    sampler = ResumableSampler(50, seed=3)
    orders = [epoch(sampler, e) for e in range(6)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    assert tuple(range(50)) not in {tuple(order) for order in orders}


def test_same_seed_same_order_and_another_seed_another_one() -> None:
    def orders(seed: int) -> list[list[int]]:
        sampler = ResumableSampler(50, seed=seed)
        return [epoch(sampler, e) for e in range(4)]

    assert orders(3) == orders(3)
    # Not one permutation is shared, not even an epoch apart.
    shared = {tuple(o) for o in orders(3)} & {tuple(o) for o in orders(4)}
    assert not shared


def test_order_does_not_touch_the_global_random_state() -> None:
    import torch

    before = torch.get_rng_state()
    epoch(ResumableSampler(50, seed=3), 1)
    assert torch.equal(before, torch.get_rng_state())


def test_without_shuffle_rows_keep_their_order() -> None:
    sampler = ResumableSampler(5, shuffle=False, seed=3)
    assert [epoch(sampler, e) for e in range(2)] == [[0, 1, 2, 3, 4]] * 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 40),
    shuffle=st.booleans(),
    start=st.integers(0, 3),
    skip=st.integers(0, 40),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 2**64 - 1),
)
def test_resuming_continues_the_unbroken_order(size, shuffle, start, skip, world_size, seed):
    for rank in range(world_size):
        place = {"shuffle": shuffle, "seed": seed, "rank": rank, "world_size": world_size}
        whole = ResumableSampler(size, **place)
        unbroken = [epoch(whole, e) for e in range(start, start + 3)]
        resumed = ResumableSampler(size, start_epoch=start, skip=skip, **place)
        again = [epoch(resumed, e) for e in range(start, start + 3)]
        assert again == [unbroken[0][skip:], *unbroken[1:]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.integers(1, 40), world_size=st.integers(1, 7), number=st.integers(0, 3))
def test_shards_cover_every_row_evenly(size: int, world_size: int, number: int) -> None:
    samplers = [
        ResumableSampler(size, seed=1, rank=r, world_size=world_size) for r in range(world_size)
    ]
    shards = [epoch(s, number) for s in samplers]
    assert {len(shard) for shard in shards} == {len(samplers[0])} == {-(-size // world_size)}
    rows = [row for shard in shards for row in shard]
    assert sorted(row for row in rows if row >= 0) == list(range(size))
    # Fillers stand only in the last round.
    assert len(rows) - size < world_size
    assert all(row >= 0 for shard in shards for row in shard[:-1])
    assert all(-size <= row for row in rows)


def test_length_is_the_whole_epoch_also_when_resumed() -> None:
    assert len(ResumableSampler(10, skip=4, start_epoch=0)) == 10


@pytest.mark.parametrize("skip", [0, 3, 10])
def test_loader_resumes_by_its_sampler_and_has_no_state(skip: int) -> None:
    sampler = ResumableSampler(10, seed=1, skip=skip)
    loader = ResumableDataLoader(range(10), batch_size=4, sampler=sampler)
    assert loader.state_dict() == {}
    loader.load_state_dict({"anything": 1})
    seen = [i for batch in loader for i in batch.tolist()]
    plain = DataLoader(range(10), batch_size=4, sampler=ResumableSampler(10, seed=1))
    assert seen == [i for batch in plain for i in batch.tolist()][skip:]
