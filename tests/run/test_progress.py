import logging

import pytest

from jaxdl.run import progress
from jaxdl.run.log import headline
from jaxdl.run.progress import Progress, begin, clock, end_line, phase, say, spoken_log


def test_a_phase_is_named_before_it_is_over_and_its_line_is_completed(capsys):
    with phase("data") as note:
        assert capsys.readouterr().out == "data      "
        note.text = "7 images"
    assert capsys.readouterr().out == "7 images (0.0 s)\n"


def test_what_is_said_within_a_phase_does_not_run_into_its_line(capsys):
    with phase("report") as note:
        say("a table")
        note.text = "folder"
    assert capsys.readouterr().out == "report    \na table\nreport    folder (0.0 s)\n"


def test_a_phase_that_fails_says_so(capsys):
    with pytest.raises(ValueError), phase("data"):
        raise ValueError
    assert capsys.readouterr().out == "data      failed\n"


def test_a_line_that_is_begun_is_ended_once(capsys):
    begin("compile")
    say("compile   anew (2.0 s)")
    begin("compile")
    end_line()
    end_line()
    assert capsys.readouterr().out == "compile   anew (2.0 s)\ncompile   \n"


def test_what_the_modules_log_is_said_once_like_everything_else(capsys, monkeypatch):
    # Some library has set up logging of its own.
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler()])
    with spoken_log(), phase("data") as note:
        logging.getLogger("jaxdl.data.tfds").warning("decoding %d images", 7)
        note.text = "mnist"
    out, err = capsys.readouterr()
    assert out == "data      \ndecoding 7 images\ndata      mnist (0.0 s)\n"
    assert err == ""


def test_lines_of_progress_fit_a_terminal_and_end_with_the_time_left(capsys):
    bar = Progress(0, 100_000)
    bar.show(99_000, "loss 0.01234  accuracy 0.9912  12,345 examples/s", left=3725.0)
    bar.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert (
        line == "step 99000/100000  loss 0.01234  accuracy 0.9912  12,345 examples/s  1:02:05 left"
    )
    assert len(line) <= 84


def test_a_terminal_gets_a_bar_that_goes_away(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    bar = Progress(0, 10)
    bar.show(5, "loss 1", left=1.0)
    bar.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "5/10  loss 1  0:01 left" in err
    assert err.endswith("\r")


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0:00"), (59.6, "1:00"), (3725.0, "1:02:05")])
def test_times_are_told_in_minutes_or_hours(seconds, text):
    assert clock(seconds) == text


def test_the_loss_comes_first_and_refused_steps_only_where_there_are_some():
    from jaxdl.metrics import Mean

    totals = {"accuracy": Mean(1.0, 2.0), "grad_norm": Mean(1.0, 1.0), "loss": Mean(2.0, 8.0)}
    assert headline({**totals, "refused": Mean(0.0, 4.0)}) == "loss 0.25  accuracy 0.5"
    assert headline({**totals, "refused": Mean(1.0, 4.0)}).endswith("  refused 1 of 4 steps")
