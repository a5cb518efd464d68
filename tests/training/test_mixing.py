"""What SFT learns from: shares and repeats by source, and the best data last."""

from __future__ import annotations

import pytest

from posttrain.config import Anneal, Source
from posttrain.training.mixing import annealed, guaranteed, mixed, passes


def rows(name: str, count: int) -> list[dict[str, object]]:
    return [{"prompt_id": f"{name}-{at}", "sample_index": 0} for at in range(count)]


def test_each_source_gives_its_share_and_comes_as_often_as_said() -> None:
    sources = {"fresh": rows("fresh", 1000), "earlier": rows("earlier", 1000)}
    mix = mixed(sources, {"fresh": Source(repeats=2), "earlier": Source(share=0.25)}, seed=0)
    ids = [str(row["prompt_id"]) for row in mix]
    assert all(ids.count(f"fresh-{at}") == 2 for at in range(0, 1000, 97))
    earlier = [name for name in ids if name.startswith("earlier")]
    assert len(earlier) == pytest.approx(250, abs=50)  # 3.6 standard deviations
    assert len(set(earlier)) == len(earlier)


def test_a_source_of_share_0_is_left_out_and_one_of_share_1_is_whole() -> None:
    sources = {"fresh": rows("fresh", 50), "earlier": rows("earlier", 50)}
    assert mixed(sources, {"fresh": Source(), "earlier": Source(share=0.0)}, 0) == sources["fresh"]


def test_whether_a_row_is_drawn_does_not_depend_on_the_others() -> None:
    half = {"fresh": Source(share=0.5)}
    few, many = (mixed({"fresh": rows("fresh", count)}, half, 0) for count in (100, 200))
    assert few == many[: len(few)]
    assert many != mixed({"fresh": rows("fresh", 200)}, half, 1)[: len(many)]


@pytest.mark.parametrize(("share", "others"), [(0.2, 100), (0.5, 33), (0.9, 10)])
def test_real_data_is_its_share_of_an_epoch_however_much_else_there_is(share: float, others: int) -> None:
    for given in (1000, 7):
        real = guaranteed(rows("real", given), share, others, 0)
        assert len(real) / (len(real) + others) == pytest.approx(share, abs=1 / others)
        assert len(real) / (len(real) + others) >= share
        times = [sum(row["prompt_id"] == f"real-{at}" for row in real) for at in range(given)]
        assert max(times) - min(times) <= 1
    assert guaranteed(rows("real", 1000), share, others, 0) != guaranteed(rows("real", 1000), share, others, 1)


def test_the_last_steps_learn_from_the_best_rows_alone() -> None:
    scores = [float(at) for at in range(100)]
    order = annealed(scores, [10] * 100, Anneal(steps=0.25, best=0.1), epochs=2, batch=10, seed=0)
    assert len(order) == 200
    first, last = order[:150], order[150:]
    assert set(last) == set(range(90, 100))
    assert all(last.count(at) == 5 for at in range(90, 100))
    assert sorted(first[:100]) == list(range(100))  # a whole epoch of all rows before


def test_the_end_is_where_max_steps_ends() -> None:
    """Fails when only the epochs are looked at: then training ends before the best rows, or begins anew after them."""
    for steps in (3, 40):
        epochs = passes({"max_steps": steps, "num_train_epochs": 3.0}, rows=100, batch=10)
        scores = [float(at) for at in range(100)]
        order = annealed(scores, [10] * 100, Anneal(steps=0.34, best=0.1), epochs, batch=10, seed=0)
        assert len(order) == steps * 10
        assert set(order[-10:]) <= set(range(90, 100))
    assert passes({"max_steps": -1, "num_train_epochs": 3.0}, rows=100, batch=10) == 3.0


def test_rows_of_like_length_stand_together() -> None:
    lengths = [at % 50 for at in range(400)]
    order = annealed([0.0] * 400, lengths, Anneal(), epochs=1, batch=20, seed=0)
    spreads = [max(got) - min(got) for at in range(0, 320, 20) for got in [[lengths[i] for i in order[at : at + 20]]]]
    assert sorted(spreads)[len(spreads) // 2] < 25  # a random batch of 20 spans about 45
