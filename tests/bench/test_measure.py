import time

import pytest

from recsys_opt.bench.measure import FEWEST_ROUNDS, Task, Turns, WallClock, quantile, take_turns


class Script:
    """A clock that is told how long each candidate's calls take, and notes who had a turn."""

    def __init__(self, seconds):
        self.seconds, self.turns = seconds, []

    def times_s(self, task, calls):
        name = task.run()
        self.turns.append((name, calls))
        return [self.seconds[name]] * calls


def tasks(*names):
    return {name: Task(lambda name=name: name) for name in names}


def test_blocks_are_as_long_as_told_and_everybody_meets_the_baseline():
    clock = Script({"fast": 1e-3, "slow": 0.9, "instant": 1e-9})
    turns = take_turns(tasks("fast", "slow", "instant"), rounds=12, block_s=0.02, most_calls=50, clock=clock)
    assert [len(times) for times in turns["fast"].rounds.values()] == [20] * 12
    assert [len(times) for times in turns["instant"].rounds.values()] == [50] * 12
    assert len(turns["slow"].rounds) == FEWEST_ROUNDS
    assert {len(times) for times in turns["slow"].rounds.values()} == {1}
    assert turns["slow"].ratios(turns["fast"]) == pytest.approx([900.0] * FEWEST_ROUNDS)


def test_every_block_is_warmed_up():
    clock = Script({"a": 0.01, "b": 0.01})
    take_turns(tasks("a", "b"), rounds=2, block_s=0.05, clock=clock)
    after_start = clock.turns[4:]
    assert after_start == [("a", 2), ("a", 5), ("b", 2), ("b", 5), ("b", 2), ("b", 5), ("a", 2), ("a", 5)]


def test_ratios_are_of_rounds_that_both_took_part_in():
    own = Turns({0: [2.0, 4.0, 2.0], 2: [9.0]})
    assert own.ratios(Turns({0: [1.0, 1.0], 1: [5.0], 2: [3.0]})) == [2.0, 3.0]
    timing = own.timing()
    assert (timing.median_s, timing.repeats) == (3.0, 4)
    assert timing.p20_s == quantile([2, 2, 4, 9], 0.2)


def test_preparation_is_not_timed():
    calls = []
    times = WallClock().times_s(Task(lambda: calls.append("run"), lambda: time.sleep(0.3)), 2)
    assert calls == ["run", "run"]
    assert max(times) < 0.3
