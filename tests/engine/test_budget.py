"""How many prompt tokens a step takes, against machines whose costs are known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cierzo.engine.budget import FEWEST, LONGEST, STALL, StepBudget


def cost(decoding: int, prompt: int, token: float, base: float) -> float:
    return (base if decoding else 0) + token * (decoding + prompt)


@given(st.floats(1e-5, 0.3), st.floats(0, 0.2), st.integers(1, 60))
def test_a_step_with_a_prompt_stays_near_its_share(token: float, base: float, decoding: int) -> None:
    budget = StepBudget(512)
    for _ in range(50):
        budget.observe(decoding, 0, cost(decoding, 0, token, base))
    for _ in range(100):
        prompt = budget.prompt_tokens(decoding) or budget.prompt_tokens(decoding)
        budget.observe(decoding, prompt, cost(decoding, prompt, token, base))
    alone = cost(decoding, 0, token, base)
    most = max(STALL * alone, alone + FEWEST * token)
    assert cost(decoding, prompt, token, base) <= 1.1 * most
    # And it is used, in whole multiples of what kernels compute together, or at least half of it.
    assert prompt > 512 - 8 or cost(decoding, min(prompt + 9, 2 * prompt + 2), token, base) >= 0.9 * STALL * alone


@given(st.floats(1e-4, 0.3), st.floats(0, 0.2), st.integers(1, 60))
def test_under_load_from_the_beginning_it_finds_its_way(token: float, base: float, most: int) -> None:
    """Prompts never stop coming, so there is no step without one to learn from."""
    budget = StepBudget(512)
    for n in range(300):
        decoding = min(n // 4, most)
        prompt = budget.prompt_tokens(decoding)
        budget.observe(decoding, prompt, cost(decoding, prompt, token, base))
    prompt = max(budget.prompt_tokens(most) for _ in range(2))
    assert prompt >= min(512, FEWEST, most)
    assert cost(most, prompt, token, base) <= max(4 * cost(most, 0, token, base), cost(most, FEWEST, token, base) * 1.1)


def test_alone_a_prompt_takes_what_newcomers_can_wait_for() -> None:
    fast, slow = StepBudget(512), StepBudget(512)
    for _ in range(20):
        fast.observe(0, 512, 1.0)
        slow.observe(0, 16, 16 * 0.2)
    assert fast.prompt_tokens(0) == 512
    assert slow.prompt_tokens(0) == 8 <= LONGEST / 0.2


def test_one_disturbed_step_does_not_decide() -> None:
    budget = StepBudget(512)
    for _ in range(20):
        budget.observe(4, 0, 0.1)
        budget.observe(0, 100, 1.0)
    before = budget.prompt_tokens(4)
    budget.observe(4, before, 60.0)
    assert budget.prompt_tokens(4) >= before / 2


def test_steps_are_whole_multiples_of_what_kernels_compute_together() -> None:
    budget = StepBudget(512)
    for _ in range(20):
        budget.observe(0, 100, 0.1)
    for decoding, seconds, expected in [(8, 0.009, 8), (8, 0.017, 16), (8, 0.005, 4), (5, 0.005, 3), (13, 0.012, 11)]:
        for _ in range(50):
            budget.observe(decoding, 0, seconds)
        assert budget.prompt_tokens(decoding) == expected


@pytest.mark.parametrize("first", [1.0, 3.0])
def test_when_prompts_never_stop_a_wrong_first_guess_is_mended(first: float) -> None:
    budget = StepBudget(512)
    budget.observe(0, 64, 64 * 0.005)
    for step in range(400):
        prompt = budget.prompt_tokens(16)
        seconds = 0.05 + prompt * 0.005
        budget.observe(16, prompt, seconds * (first if step == 0 else 1))
    prompt = max(budget.prompt_tokens(16) for _ in range(2))
    assert 0.05 + prompt * 0.005 <= 1.15 * STALL * 0.05
