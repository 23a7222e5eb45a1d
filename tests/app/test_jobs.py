"""Queued commands run one after the other, say what they print, and can be stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import pytest

from app.jobs import Job, JobQueue

PROGRAM = (sys.executable, "-c", "import sys, time; exec(sys.argv[1])")


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    made = JobQueue(PROGRAM)
    yield made
    made.close()


def wait(job: Job, until: Callable[[Job], bool] = lambda job: not job.is_open) -> None:
    end = time.monotonic() + 60
    while not until(job):
        assert time.monotonic() < end, f"{job.state}: {job.output()}"
        time.sleep(0.02)


def test_a_command_runs_and_its_output_is_kept(queue: JobQueue) -> None:
    job = queue.submit("words", ["print('hello'); print('there', file=sys.stderr)"], "run")
    wait(job)
    assert job.state == "done"
    assert set(job.output().split()) == {"hello", "there"}
    assert job.share() == 1.0
    assert job.seconds > 0


def test_a_failure_is_kept_with_its_words(queue: JobQueue) -> None:
    job = queue.submit("fails", ["sys.exit('error: no snapshot')"], "run")
    wait(job)
    assert (job.state, job.output()) == ("failed", "error: no snapshot")


def test_one_at_a_time_and_in_order(queue: JobQueue) -> None:
    first = queue.submit("first", ["time.sleep(0.5)"], "a")
    second = queue.submit("second", ["pass"], "b")
    wait(first, lambda job: job.state == "running")
    assert second.state == "queued"
    wait(second)
    assert first.state == second.state == "done"
    assert [job.title for job in queue.jobs()] == ["second", "first"]


def test_the_same_command_is_queued_once(queue: JobQueue) -> None:
    job = queue.submit("slow", ["time.sleep(0.3)"], "a")
    assert queue.submit("slow again", ["time.sleep(0.3)"], "a") is job
    wait(job)
    assert queue.submit("slow", ["time.sleep(0.3)"], "a") is not job


def test_stopping_ends_the_process(queue: JobQueue) -> None:
    running = queue.submit("long", ["print('up', flush=True); time.sleep(600)"], "a")
    waiting = queue.submit("never", ["print('never')"], "b")
    wait(running, lambda job: job.output() == "up")
    queue.stop(waiting)
    queue.stop(running)
    wait(running, lambda job: job.finished is not None)
    assert (running.state, waiting.state) == ("stopped", "stopped")
    assert running.process is not None
    assert running.process.returncode != 0
    assert waiting.process is None


def test_a_program_that_is_not_there() -> None:
    queue = JobQueue(("/nowhere/landscape",))
    job = queue.submit("x", [], "")
    wait(job)
    assert job.state == "failed"
    assert "No such file" in job.output()
    queue.close()


def test_progress_counts_answers(queue: JobQueue) -> None:
    answers = [2, 8]
    job = queue.submit("counts", ["time.sleep(600)"], "a", lambda: (answers[0], answers[1]))
    wait(job, lambda job: job.state == "running")
    assert job.share() == 0.25
    queue.stop(job)
