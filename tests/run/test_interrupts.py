import signal
import subprocess
import sys

from jaxdl.run.interrupts import interrupts


def test_a_signal_is_noted_and_the_handlers_before_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with interrupts() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        assert stop.status == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_signal_does_not_ask():
    code = """
import signal
from jaxdl.run.interrupts import interrupts
with interrupts():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
print("not reached")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")
