"""A pace stretches what is left of a schedule, and is the same however often it is asked."""

import pytest

from autoseg.documents.plan import Training
from autoseg.learn.pace import Pace, paced_rate
from autoseg.learn.schedules import SCHEDULES, warmed

RECIPE = Training(
    steps=100, batch_size=2, lr=0.5, schedule="cosine", warmup_share=0.1, supervision=(1.0,)
)


def test_without_decisions_the_schedule_is_the_plans() -> None:
    rate = paced_rate(RECIPE, Pace(RECIPE.steps))
    schedule = warmed(SCHEDULES["cosine"], 10)
    expected = [0.5 * schedule(s, 100) for s in range(100)]
    assert [rate(s) for s in range(100)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("total", [37, 60, 150, 1000])
def test_a_decision_changes_only_what_is_ahead_and_ends_at_zero(total: int) -> None:
    pace = Pace(RECIPE.steps)
    before = [paced_rate(RECIPE, pace)(s) for s in range(30)]
    pace.decide(30, total)
    rate = paced_rate(RECIPE, pace)
    assert [rate(s) for s in range(30)] == before
    assert rate(30) == pytest.approx(before[-1], rel=0.05)
    assert rate(total) == pytest.approx(0.0, abs=1e-12)
    ahead = [rate(s) for s in range(30, total)]
    assert ahead == sorted(ahead, reverse=True)
    assert pace.total == total


def test_decisions_follow_each_other() -> None:
    pace = Pace(100)
    pace.decide(0, 200)
    assert [pace.at(s) for s in (0, 100, 200)] == [0, 50, 100]
    pace.decide(100, 150)
    assert [pace.at(s) for s in (50, 100, 125, 150)] == [25, 50, 75, 100]
    with pytest.raises(ValueError, match="cannot end"):
        pace.decide(120, 120)
