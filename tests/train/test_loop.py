"""Laws of the loop: it is a plain loop of steps, wherever it is cut, stopped or taken up again."""

import itertools

import jax
import numpy as np
import optax
import pytest

from jaxdl.data import Resident, Streaming
from jaxdl.metrics import to_host
from jaxdl.train import evaluator, fit, make_eval_step, make_train_step, over_batches
from jaxdl.train.sharding import Placement
from tests.train.tiny import assert_close, assert_same, make_loss, make_source, make_state, to_numpy

N, B, UNTIL = 53, 8, 16  # more than two epochs
TX = optax.adam(0.02)
STEP = make_train_step(make_loss(rate=0.3), TX, ema_decay=0.9)
ONE = Placement.over({"data": 1})
EVERY = [5, 7]
STOPS = [5, 7, 10, 14, 15, 16]
CHUNK = 4  # fits once, with a step left over, or not at all, or just


def make_data(way=Resident):
    return way(make_source(N), B, seed=4)


def start():
    return make_state(TX, ema=True)


def loop(state, *, until=UNTIL, chunk=1, way=Resident, every=EVERY, **options):
    """Runs `fit` and copies what it lends: (step, state, [(first step, metrics), ...])."""
    intervals = fit(
        STEP, state, make_data(way), until=until, every=every, chunk=chunk, placement=ONE, **options
    )
    return [(i.step, to_numpy(i.state), jax.device_get(i.metrics)) for i in intervals]


def flatten(found):
    """Lists the metrics of each step, whatever the chunks they came in."""
    by_step = {}
    for _, _, calls in found:
        for first, metrics in calls:
            leaves = {name: np.atleast_1d(mean.total) for name, mean in metrics.items()}
            for i, _ in enumerate(leaves["loss"]):
                assert first + i not in by_step
                by_step[first + i] = {name: leaf[i] for name, leaf in leaves.items()}
    return by_step


@pytest.fixture(scope="module")
def plain():
    """Returns the states and metrics of a Python loop of jitted steps, by steps taken."""
    data, state = make_data(), start()
    step = jax.jit(lambda s, a, b: STEP(s, data.assemble(a, b)))
    states, metrics = {}, {}
    for n in range(UNTIL):
        state, new = step(state, data.arrays, data.batch(n))
        states[n + 1] = to_numpy(state)
        metrics[n] = {name: np.array(mean.total) for name, mean in new.items()}
    return states, metrics


@pytest.fixture(scope="module")
def chunked():
    return loop(start(), chunk=CHUNK)


def test_the_loop_is_a_python_loop_bit_for_bit(plain):
    states, metrics = plain
    found = loop(start())
    assert [step for step, _, _ in found] == STOPS
    for step, state, _ in found:
        assert_same(state, states[step])
    assert_same(flatten(found), metrics)


def test_streamed_batches_train_as_resident_ones_do(plain):
    states, _ = plain
    for step, state, _ in loop(start(), way=Streaming, until=7):
        assert_close(state, states[step])


def test_chunks_stop_where_single_steps_do_and_cover_each_step_once(plain, chunked):
    states, metrics = plain
    assert [step for step, _, _ in chunked] == STOPS
    for step, state, _ in chunked:
        assert_close(state, states[step])
    by_step = flatten(chunked)
    assert list(by_step) == list(range(UNTIL))
    assert_close(by_step, metrics)


def test_a_chunk_is_used_wherever_it_fits(chunked):
    firsts = [first for _, _, calls in chunked for first, _ in calls]
    assert firsts == [0, 4, 5, 6, 7, 8, 9, 10, 14, 15]


def revived(state):
    """Makes a state of its copy, as a checkpoint does."""
    key = jax.random.wrap_key_data(state.key)
    return jax.tree.map(jax.numpy.asarray, state.replace(key=None)).replace(key=key)


@pytest.mark.parametrize("chunk", [1, CHUNK])
@pytest.mark.parametrize("resume_at", [5, 10])
def test_a_resumed_run_is_an_uninterrupted_one_bit_for_bit(chunk, resume_at, chunked):
    whole = chunked if chunk == CHUNK else loop(start())
    at = STOPS.index(resume_at)
    resumed = loop(revived(whole[at][1]), chunk=chunk)
    assert [step for step, _, _ in resumed] == STOPS[at + 1 :]
    for (_, state, metrics), (_, want_state, want_metrics) in zip(
        resumed, whole[at + 1 :], strict=True
    ):
        assert_same(state, want_state)
        assert_same(metrics, want_metrics)


@pytest.mark.parametrize("chunk", [1, CHUNK])
def test_a_run_that_was_told_to_stop_is_taken_up_again_bit_for_bit(chunk):
    """Chunks start at stops: a run broken off within an interval must not shift them."""
    whole = loop(start(), chunk=chunk, every=[10])
    calls = itertools.count(1)
    broken = loop(start(), chunk=chunk, every=[10], stop=lambda: next(calls) == 2)
    assert [step for step, _, _ in broken] == [2 * chunk]
    resumed = loop(revived(broken[-1][1]), chunk=chunk, every=[10])
    assert [step for step, _, _ in resumed] == [10, UNTIL]
    assert_same(resumed[-1][1], whole[-1][1])
    assert list(flatten(broken + resumed)) == list(range(UNTIL))


def test_a_stop_at_an_edge_yields_once():
    calls = itertools.count(1)
    found = loop(start(), every=[3], stop=lambda: next(calls) == 3)
    assert [step for step, _, _ in found] == [3]


def test_a_finished_run_yields_nothing():
    assert loop(start().replace(step=jax.numpy.int32(UNTIL))) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"every": [5, 0]}, r"every .*\[5, 0\]"),
        ({"every": [-5]}, r"every .*\[-5\]"),
        ({"chunk": 0}, "chunk .* 0"),
    ],
    ids=str,
)
def test_numbers_of_steps_that_are_none_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        loop(start(), **options)


def test_a_run_may_have_no_stop_but_its_end():
    assert [step for step, _, _ in loop(start(), until=2, every=[])] == [2]


def test_a_run_over_one_pass_ends_with_it():
    data = Resident(make_source(N), B, seed=None)
    options = {"every": [UNTIL], "placement": ONE}
    (end,) = fit(STEP, start(), data, until=len(data), **options)
    assert end.step == len(data) == 7
    with pytest.raises(ValueError, match="data has no seed, and ends after 7 batches: until=8"):
        next(fit(STEP, start(), data, until=len(data) + 1, **options))


def test_each_program_is_told_of_once_before_it_runs():
    told = []
    loop(start(), chunk=CHUNK, until=5, on_compile=told.append)
    assert len(told) == 2  # the chunk, and the single step that fills up
    assert all(program.seconds > 0 and program.bytes > 0 for program in told)


def test_the_feed_is_closed_when_the_loop_is_left():
    class Watched(Resident):
        def batches(self, start=0):
            self.feeding = super().batches(start)  # held, or dropping it would close it too
            return self.feeding

    data = make_data(Watched)
    intervals = fit(STEP, start(), data, until=UNTIL, every=[1], placement=ONE)
    next(intervals)
    assert data.feeding.gi_frame is not None
    intervals.close()
    assert data.feeding.gi_frame is None


@pytest.fixture(scope="module")
def scored():
    """Returns the mean loss and accuracy over all N examples, in one batch."""
    batch = {name: jax.numpy.asarray(a) for name, a in make_source(N).arrays.items()}
    return to_host(jax.jit(make_eval_step(make_loss()))(start(), batch)[1])


@pytest.mark.parametrize(("b", "devices"), [(8, 1), (16, 1), (64, 2), (8, 8), (16, 8), (64, 8)])
@pytest.mark.parametrize("way", [Resident, Streaming])
def test_every_example_counts_once_at_any_batch_size_and_device_count(way, b, devices, scored):
    data, placement = way(make_source(N), b, seed=None), Placement.over({"data": devices})
    state = placement.replicate(start())
    evaluate = make_eval_step(make_loss())
    batches = over_batches(lambda s, b: evaluate(s, b)[1], data, placement=placement)
    totals = [to_host(metrics) for metrics in batches(state)]
    assert len(totals) == -(-N // b)
    for name, want in scored.items():
        assert sum(t[name].count for t in totals) == N
        assert sum(t[name].total for t in totals) == pytest.approx(want.total, rel=1e-5)


def test_an_evaluation_gives_the_means_of_all_examples_again_and_again(scored):
    evaluate = evaluator(
        make_eval_step(make_loss()), Resident(make_source(N), B, seed=None), placement=ONE
    )
    state = ONE.replicate(start())
    means = evaluate(state)
    assert means == pytest.approx({name: mean.compute() for name, mean in scored.items()}, rel=1e-5)
    assert evaluate(state) == means


@pytest.mark.parametrize("make", [evaluator, over_batches])
@pytest.mark.parametrize("way", [Resident, Streaming])
def test_no_pass_is_made_over_data_without_end(make, way):
    """Its last batch goes on with the next epoch, whose examples would count twice."""
    with pytest.raises(ValueError, match=r"data has the seed 4, .*seed=None"):
        make(make_eval_step(make_loss()), make_data(way), placement=ONE)


def test_an_evaluation_that_was_told_to_stop_gives_nothing():
    data = Resident(make_source(N), B, seed=None)
    evaluate = evaluator(make_eval_step(make_loss()), data, placement=ONE)
    calls = itertools.count(1)
    assert evaluate(ONE.replicate(start()), stop=lambda: next(calls) == 2) is None
    assert next(calls) == 3
