"""The paged cache: whatever the window, the blocks, the chunks and the company, the same as computing from nothing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cierzo.engine import Engine, SamplingParams
from cierzo.engine.blocks import BlockList, BlockPool, blocks_bound
from cierzo.ops import Window
from support.models import queue, recomputed_logits, tiny_config, tiny_engine

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Engine, int]:
    """An engine over a random model, and its largest window."""
    sizes = st.none() | st.integers(1, 9)
    layers = draw(st.integers(1, 4))
    interleaved = draw(st.booleans())
    windows = tuple(draw(sizes) for _ in range(layers)) if interleaved else (draw(sizes),) * layers
    dilations = (
        tuple(draw(st.integers(1, 3)) for _ in range(layers)) if interleaved else (draw(st.integers(1, 3)),) * layers
    )
    n_kv_heads = draw(st.sampled_from([1, 2, 4]))
    config = tiny_config(
        n_layers=layers,
        sliding_window=windows,
        window_dilation=dilations,
        n_kv_heads=n_kv_heads,
        max_seq_len=400,
        rope_theta=50.0,
    )
    engine = tiny_engine(
        config,
        block_size=draw(st.integers(1, 7)),
        chunk_size=draw(st.integers(1, 30)),
        cache_tokens=draw(st.sampled_from([400, 1200])),
    )
    reach = max((w.reach for w in config.windows if w), default=8)
    return engine, reach


@settings(max_examples=120, deadline=None)
@given(layouts(), st.data())
def test_cached_chunked_batched_equals_recomputed(layout: tuple[Engine, int], data: st.DataObject) -> None:
    engine, reach = layout
    prompts = data.draw(
        st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=min(5 * reach, 120)), min_size=1, max_size=4)
    )
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=0)
    sequences = [queue(engine, prompt, params) for prompt in prompts]
    while any(s.finish_reason is None for s in sequences):
        engine.step()
        for sequence in engine.scheduler.running:
            for blocks, window in zip(sequence.blocks, engine.windows, strict=True):
                longest = sequence.n_prompt + sequence.max_answer
                bound = blocks_bound(window, longest, engine.scheduler.chunk_size, engine.block_size)
                assert len(blocks.blocks) <= bound
    for prompt, sequence in zip(prompts, sequences, strict=True):
        scores = recomputed_logits(engine.model, sequence.ids).log_softmax(-1)
        for delta, row in zip(sequence.deltas, scores[len(prompt) - 1 :], strict=False):
            # Not argmax: two scores may be equal to the last bit of the arithmetic.
            assert abs(delta.logprobs[0].logprob - row.max().item()) < 1e-4
            assert abs(row[delta.token_ids[0]].item() - row.max().item()) < 1e-4
    assert [pool.free for pool in engine.pools] == [pool.size for pool in engine.pools]


@settings(max_examples=60, deadline=None)
@given(layouts(), st.data())
def test_scores_in_chunks_equal_scores_at_once(layout: tuple[Engine, int], data: st.DataObject) -> None:
    engine, reach = layout
    prompt = data.draw(st.lists(st.integers(0, 255), min_size=2, max_size=min(5 * reach, 120)))
    sequence = queue(engine, prompt, SamplingParams(), task="score")
    while sequence.finish_reason is None:
        engine.step()
    whole = recomputed_logits(engine.model, prompt).log_softmax(-1)
    expected = whole[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])]
    torch.testing.assert_close(torch.tensor([p.logprob for p in sequence.prompt_logprobs]), expected, atol=1e-4, rtol=0)
    assert len(sequence.prompt_logprobs) == len(prompt) - 1


def test_a_windowed_sequence_stays_within_its_bound_for_ten_windows_and_more() -> None:
    config = tiny_config(sliding_window=32, max_seq_len=64)
    engine = tiny_engine(config, max_seq_len=None, cache_tokens=64, block_size=4, chunk_size=8)
    sequence = queue(engine, [1] * 100, SamplingParams(temperature=0, max_tokens=320, ignore_eos=True))
    most = 0
    while sequence.finish_reason is None:
        engine.step()
        most = max(most, len(sequence.blocks[0].blocks))
    assert len(sequence.ids) == 420 > 10 * 32
    assert most <= blocks_bound(Window(32), 420, 8, 4) == 11
    assert engine.pools[0].free == engine.pools[0].size


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32))
def test_the_bound_holds_for_any_chunks(size: int, dilation: int, chunk: int, block_size: int, seed: int) -> None:
    window = Window(size, dilation)
    bound = blocks_bound(window, 10 * window.reach + 50, chunk, block_size)
    pool = BlockPool(bound)  # taking one more than the bound would fail
    blocks = BlockList(pool, window, block_size)
    steps = torch.Generator().manual_seed(seed)
    at = 0
    while at < 10 * window.reach + 50:
        at = min(at + int(torch.randint(1, chunk + 1, (), generator=steps)), 10 * window.reach + 50)
        blocks.cover(at)
        blocks.forget(at)
    blocks.release()
    assert pool.free == pool.size


def test_interleaved_layers_give_back_only_what_their_own_window_has_passed() -> None:
    config = tiny_config(n_layers=3, sliding_window=(None, 8, 8), max_seq_len=200)
    engine = tiny_engine(config, block_size=4, chunk_size=16)
    sequence = queue(engine, [7] * 120, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    while sequence.computed < 120:
        engine.step()
    full, windowed = sequence.blocks
    assert (full.first, len(full.blocks)) == (0, 30)
    assert windowed.first == (120 - 7) // 4
    assert len(windowed.blocks) <= blocks_bound(Window(8), 122, 16, 4)


def test_shared_blocks_are_freed_by_their_last_owner() -> None:
    pool = BlockPool(2)
    block = pool.take()
    pool.share(block)
    pool.give_back(block)
    assert pool.free == 1
    pool.give_back(block)
    assert pool.free == 2
