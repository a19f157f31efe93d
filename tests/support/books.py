"""What must be true of the engine's blocks between two steps."""

from collections import Counter

from cierzo.engine import Engine


def check_books(engine: Engine) -> None:
    """Every block is free, or held by exactly the sequences that list it; names lead to blocks and back."""
    sequences = [*engine.scheduler.running, *engine.scheduler.waiting]
    for group, pool in enumerate(engine.pools):
        lists = [sequence.blocks[group] for sequence in sequences]
        held = Counter(block for one in lists for block in one.blocks)
        assert [pool._references[block] for block in range(pool.size)] == [held[block] for block in range(pool.size)]
        free = [*pool._blank, *pool._kept]
        assert len(set(free)) == len(free) == pool.free
        assert set(free) == {block for block in range(pool.size) if not held[block]}
        assert {name: block for block, name in pool._names.items()} == pool._named
        assert set(pool._kept) <= set(pool._names)
        assert not set(pool._blank) & set(pool._names)
        for sequence, one in zip(sequences, lists, strict=True):
            assert len(set(one.blocks)) == len(one.blocks)
            # What is computed and can be seen again is held.
            assert one.end * engine.block_size >= sequence.computed
            assert not sequence.computed or one.first <= one.oldest(sequence.computed)
    for sequence in engine.scheduler.waiting:
        assert sequence.computed == 0
        assert not any(blocks.blocks for blocks in sequence.blocks)


def all_free(engine: Engine) -> bool:
    return all(pool.free == pool.size for pool in engine.pools)
