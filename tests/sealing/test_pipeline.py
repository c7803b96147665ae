"""Ordered steps see every segment once and in order; the first error ends the run, and no thread outlives it."""

from __future__ import annotations

import os
import threading
import time

import pytest

from sandbox.sealing import pipeline
from sandbox.sealing.keys import DataKey
from sandbox.sealing.pipeline import Step, run
from sandbox.sealing.stream import Stream

SEGMENTS = 39


@pytest.fixture
def stream():
    return Stream.fresh(DataKey.generate(), b"", 40_000_000)


def sealing_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("sealing-")]


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
def test_ordered_steps_are_in_order_whatever_the_threads_do(stream, monkeypatch, workers):
    monkeypatch.setattr(pipeline, "WORKERS", workers)
    first, second, loose = [], [], []

    def dawdle(batch):
        time.sleep(os.urandom(1)[0] / 100_000)
        loose.append(batch.index)

    run(stream, [Step(lambda batch: first.append(batch.index), ordered=True), Step(dawdle, ordered=False),
                 Step(lambda batch: second.append(batch.index), ordered=True), Step(dawdle, ordered=False)])  # fmt: skip
    assert first == second == list(range(SEGMENTS))
    assert sorted(loose) == sorted(first * 2)
    assert sealing_threads() == []


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("at", [0, 1, 7, SEGMENTS - 1])
def test_an_error_anywhere_ends_the_run_and_every_thread(stream, ordered, at):
    after = []

    def fail(batch):
        if batch.index == at:
            raise OSError(5, "as a disk would")

    with pytest.raises(OSError, match="as a disk would"):
        run(
            stream,
            [Step(lambda batch: None, ordered=True), Step(fail, ordered=ordered), Step(lambda b: after.append(b.index), ordered=True)],
        )
    assert sealing_threads() == []
    assert after == list(range(len(after)))  # what comes behind the failed segment is never reached
    assert at not in after
