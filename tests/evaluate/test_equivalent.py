"""Equivalent model size, by the published rows."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cierzo.evaluate import published
from cierzo.evaluate.equivalent import article_rows, bridged, equivalent, size_of

FAMILY = ((7.0, 40.0), (14.0, 50.0), (56.0, 60.0))


def test_between_points_sizes_are_on_a_straight_line_over_the_logarithm() -> None:
    assert size_of(FAMILY, 40).params_b == pytest.approx(7)
    assert size_of(FAMILY, 45).params_b == pytest.approx(7 * math.sqrt(2))
    assert size_of(FAMILY, 55).params_b == pytest.approx(28)
    assert not size_of(FAMILY, 60).extrapolated


def test_beyond_the_points_it_is_marked() -> None:
    below, above = size_of(FAMILY, 30), size_of(FAMILY, 70)
    assert below.extrapolated
    assert below.params_b == pytest.approx(3.5)
    assert above.extrapolated
    assert above.params_b == pytest.approx(224)
    worth = equivalent(FAMILY, 59.9, 1.0)
    assert not worth.extrapolated
    assert worth.high.extrapolated


def test_a_larger_model_that_scores_less_does_not_count() -> None:
    family = ((7.0, 10.0), (13.0, 30.0), (34.0, 25.0), (70.0, 40.0))
    assert size_of(family, 30).params_b == pytest.approx(13)
    assert size_of(family, 35).params_b == pytest.approx(34 * math.sqrt(70 / 34))


@given(st.floats(0, 100), st.floats(0, 100))
def test_more_is_never_worth_less(one: float, other: float) -> None:
    low, high = sorted((one, other))
    for points in published.llama2_groups().values():
        assert size_of(points, low).params_b <= size_of(points, high).params_b * (1 + 1e-9)


def test_the_article_s_own_rows() -> None:
    """From Table 2's two points about 2.3, 3.0 and 1.8 times; with the four sizes about what the article says."""
    rows = {row.group: row for row in article_rows()}
    two = {group: row.two_points.ratio(7.24) for group, row in rows.items()}
    assert two["mmlu"] == pytest.approx(2.34, abs=0.01)
    assert two["commonsense_reasoning"] == pytest.approx(2.96, abs=0.01)
    assert two["world_knowledge"] == pytest.approx(1.81, abs=0.01)
    assert all(row.two_points.extrapolated for row in rows.values())
    assert rows["mmlu"].direct.ratio(7.24) > 3
    assert rows["commonsense_reasoning"].bridged.ratio(7.24) > 3
    assert rows["world_knowledge"].bridged.ratio(7.24) == pytest.approx(1.9, abs=0.1)
    assert not rows["world_knowledge"].bridged.extrapolated
    assert {group for group, row in rows.items() if row.claim} == {"mmlu", "commonsense_reasoning", "world_knowledge"}


def test_the_bridge_takes_llama_2_to_itself() -> None:
    for model, place in (("Llama 2 7B", 0), ("Llama 2 13B", 1)):
        for group in ("mmlu", "code", "math", "world_knowledge", "commonsense_reasoning"):
            scored = published.article_group(model, group)
            assert scored is not None
            assert bridged(group, *scored)[0] == pytest.approx(published.llama2_groups()[group][place][1])


def test_the_published_tables() -> None:
    assert published.article_scores()["Mistral 7B"]["mmlu"] == 60.1
    assert published.rows("mistral_7b_instruct_table3")["Mistral 7B Instruct"]["mt_bench"] == 6.84
    assert [size for size, _ in published.llama2_groups()["code"]] == [6.74, 13.02, 33.7, 68.98]
    score = published.article_group("Mistral 7B", "code")
    assert score is not None
    assert score[0] == pytest.approx(39.0)
    assert score[1] == pytest.approx(math.sqrt(30.5 * 69.5 / 164 + 47.5 * 52.5 / 500) / 2)
