import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxdl.metrics import Mean
from jaxdl.run.meters import Meters, computed

numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(numbers, st.integers(1, 10**6)), min_size=1, max_size=5))
def test_totals_come_back_from_a_checkpoint_bit_for_bit(pairs):
    totals = {str(i): Mean(total, float(count)) for i, (total, count) in enumerate(pairs)}
    meters = Meters(interval=totals, epoch=totals, evaluated=3, seconds=0.1, stepping=0.7)
    back = Meters.from_json(json.loads(json.dumps(meters.to_json())))
    assert back.to_json() == meters.to_json()
    assert computed(back.epoch) == computed(meters.epoch)


def call(refused):
    one = np.float32(1)
    return {
        "loss": Mean(one / 3, one),
        "refused": Mean(np.float32(refused), np.ones_like(refused, np.float32)),
    }


def test_the_first_refused_step_is_found_in_single_calls_and_in_scanned_ones():
    meters = Meters()
    assert meters.add(4, call([0.0])) is None
    assert meters.add(5, call([1.0])) == 5
    assert meters.add(6, call([0.0, 0.0, 1.0, 1.0])) == 8
    assert (meters.interval["refused"].total, meters.interval["refused"].count) == (3, 6)


def test_time_beside_the_steps_is_not_booked_as_stepping(monkeypatch):
    now = iter([0.0, 2.0, 5.0, 6.0])
    monkeypatch.setattr("jaxdl.run.meters.time.perf_counter", lambda: next(now))
    meters = Meters()
    with meters.running():
        meters.tick()
        meters.tick(stepping=False)
    assert (meters.seconds, meters.stepping) == (6.0, 3.0)
