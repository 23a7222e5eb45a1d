"""The queue of analyses as a page shows it."""

from __future__ import annotations

import streamlit as st

from app.charts import plain
from app.jobs import Job, JobQueue

MOST_JOBS = 6
_SYMBOLS = {"queued": "○", "running": "▶", "done": "✓", "failed": "✕", "stopped": "‖"}


def job_list(queue: JobQueue) -> None:
    """What is queued, running and done, by itself up to date; when something ends, the page is read again."""
    ended = {job.number for job in queue.jobs() if not job.is_open}

    @st.fragment(run_every=2 if any(job.is_open for job in queue.jobs()) else None)
    def tick() -> None:
        jobs = queue.jobs()
        if {job.number for job in jobs if not job.is_open} != ended:
            st.rerun()
        for job in jobs[:MOST_JOBS]:
            _job(queue, job)

    tick()


def _job(queue: JobQueue, job: Job) -> None:
    left, right = st.columns([5, 1], vertical_alignment="center")
    with left:
        words = f"{_SYMBOLS[job.state]} {job.title}: {job.state}"
        st.progress(job.share(), text=plain(f"{words}, {job.seconds:.0f} s" if job.started else words))
    with right:
        if job.is_open:
            st.button("Stop", key=f"stop-{job.number}", on_click=queue.stop, args=(job,), width="stretch")
    if job.state in ("failed", "running") and job.output():
        with st.expander("What it says", expanded=job.state == "failed"):
            st.code(job.output(), language=None, wrap_lines=True)
