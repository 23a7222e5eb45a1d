"""Who may work on a run: one at a time, whatever dies, sleeps or has a wrong clock."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from landscape.errors import StoreError
from landscape.store import LeaseHeldError, LeaseLostError, LeaseWatch, Run, leases
from landscape.store.leases import Lease, claim_lease, latest_claim, machine_identity, process_birth
from tests.store.test_attempts import train

FAR = "another machine"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def claims(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "leases").iterdir())


def pretend_elsewhere(folder: Path, number: int = 1, **changes: object) -> None:
    """Make a lease one of a machine whose processes nobody here can see."""
    path = folder / "leases" / f"{number}.json"
    head, _, line = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps(json.loads(head) | {"machine": FAR, "host": "far"} | changes).encode() + b"\n" + line)


def dead_lease(folder: Path) -> None:
    """A lease whose process was killed."""
    code = (
        "import os, pathlib; from landscape.store.leases import claim_lease; "
        f"claim_lease(pathlib.Path({str(folder)!r})); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL


def test_one_holder_until_it_releases(folder: Path) -> None:
    first = claim_lease(folder)
    claim = latest_claim(folder)
    assert claim is not None
    assert (claim.number, claim.pid, claim.released, claim.is_here, claim.is_dead) == (
        1,
        os.getpid(),
        False,
        True,
        False,
    )
    with pytest.raises(LeaseHeldError, match=f"is being worked on by process {os.getpid()} on"):
        claim_lease(folder)
    assert claims(folder) == [1]
    first.release()
    first.release()
    with claim_lease(folder) as second:
        assert second.number == 2
        assert not first.is_current
    last = latest_claim(folder)
    assert last is not None
    assert last.released


def test_a_dead_process_on_this_machine_is_not_waited_for(folder: Path) -> None:
    dead_lease(folder)
    claim = latest_claim(folder)
    assert claim is not None
    assert claim.is_dead
    assert not claim.released
    with claim_lease(folder) as lease:
        assert lease.number == 2


@pytest.mark.parametrize("change", ["birth", "pid"])
def test_a_pid_that_is_used_again_misleads_nobody(folder: Path, change: str) -> None:
    claim_lease(folder)._ended.set()
    pretend_elsewhere(
        folder, machine=machine_identity(), **({"birth": "12"} if change == "birth" else {"pid": 2**22 + 1})
    )
    claim_lease(folder).release()
    assert claims(folder) == [1, 2]


def test_a_dead_process_that_nobody_has_buried_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    deadline = time.monotonic() + 20
    while process_birth(process.pid) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process_birth(os.getpid()) == process_birth(os.getpid()) != process_birth(os.getppid()) is not None
    process.wait()


def test_elsewhere_only_an_unchanged_heartbeat_tells(folder: Path) -> None:
    now = [1000.0]
    lease = claim_lease(folder, seconds=60)
    lease._ended.set()
    pretend_elsewhere(folder)
    lease._offset = (folder / "leases/1.json").read_bytes().index(b"\n") + 1
    watch = LeaseWatch(clock=lambda: now[0])
    assert watch.look(folder)[0] is False
    now[0] += 59
    assert watch.look(folder)[0] is False
    lease.renew()
    now[0] += 59
    free, mark = watch.look(folder)
    assert not free, "it moved, so its term begins anew"
    with pytest.raises(LeaseHeldError, match="on far"):
        claim_lease(folder)
    now[0] += 61
    assert watch.look(folder) == (True, mark)
    with pytest.raises(LeaseHeldError):
        claim_lease(folder, expired=(1, "beat 0000000000\n"))  # what was seen is no longer so
    with claim_lease(folder, expired=mark) as taken:
        assert taken.number == 2
        with pytest.raises(LeaseLostError, match="its lease 1 had expired"):
            lease.check()


def test_clocks_are_not_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder whose clock is ten years off, and files dated so, are like any other."""
    monkeypatch.setattr(time, "time", lambda: 3e8)
    lease = claim_lease(folder, seconds=60)
    pretend_elsewhere(folder)
    for stamp in (0, 2**31 - 1):
        os.utime(folder / "leases/1.json", (stamp, stamp))
        assert LeaseWatch().look(folder)[0] is False
    lease.release()


def test_of_many_who_see_it_expire_one_gets_it(folder: Path) -> None:
    claim_lease(folder)._ended.set()
    pretend_elsewhere(folder)
    claim = latest_claim(folder)
    assert claim is not None
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        won = pool.starmap(_try_to_claim, [(str(folder), claim.mark)] * 12)
    assert sorted(number for number in won if number) == [2]


def _try_to_claim(folder: str, mark: tuple[int, str]) -> int:
    try:
        lease = claim_lease(Path(folder), expired=mark)
    except LeaseHeldError:
        return 0
    time.sleep(1)  # alive while the others try
    return lease.number


def test_a_number_is_never_given_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who works from an old listing, as on a network file system, fails."""
    claim_lease(folder).release()
    claim_lease(folder).release()
    monkeypatch.setattr(leases, "_numbers", lambda run: [1])
    with pytest.raises(LeaseHeldError, match="another process has just claimed it"):
        claim_lease(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe\n", b'{"seconds": "x"}\n', b"[" * 9000, b'{"seconds":NaN}']
)
def test_a_torn_or_foreign_file_is_a_lease_that_expires(folder: Path, content: bytes) -> None:
    (folder / "leases").mkdir()
    (folder / "leases/4.json").write_bytes(content)
    now = [0.0]
    watch = LeaseWatch(clock=lambda: now[0])
    assert watch.look(folder)[0] is False
    with pytest.raises(LeaseHeldError, match="a process that has not said its name"):
        claim_lease(folder)
    now[0] = leases.LEASE_SECONDS
    free, mark = watch.look(folder)
    assert free
    with claim_lease(folder, expired=mark) as lease:
        assert lease.number == 5


@pytest.mark.parametrize("seconds", [-1, 0, 1e300])
def test_a_term_that_cannot_be_is_not_believed(folder: Path, seconds: float) -> None:
    claim_lease(folder).release()
    pretend_elsewhere(folder, seconds=seconds)
    claim = latest_claim(folder)
    assert claim is not None
    assert claim.seconds == leases.LEASE_SECONDS


def test_the_holder_renews_by_itself(folder: Path) -> None:
    with claim_lease(folder, seconds=1.2):
        first = latest_claim(folder)
        time.sleep(0.6)
        second = latest_claim(folder)
    assert first is not None
    assert second is not None
    assert second.line != first.line


def test_a_full_disk_does_not_end_a_lease_but_none_can_be_claimed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = claim_lease(folder)
    size = (folder / "leases/1.json").stat().st_size
    for _ in range(3):
        lease.renew()
    lease.release()
    assert (folder / "leases/1.json").stat().st_size == size, "renewing takes no new block"

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(leases.os, "write", full)
    with pytest.raises(StoreError, match=r"cannot write .*2\.json: No space left"):
        claim_lease(folder)


def test_deaths_at_one_step_are_counted(folder: Path) -> None:
    counts = []
    for step in (0, 0, 0, 5, 5):
        lease = claim_lease(folder, step=step)
        lease._ended.set()
        counts.append(lease.deaths)
        pretend_elsewhere(folder, lease.number, machine=machine_identity(), birth="0")
    claim_lease(folder, step=5).release()
    counts.append(claim_lease(folder, step=5).deaths)
    assert counts == [0, 1, 2, 0, 1, 0]


def test_a_link_out_of_the_run_is_not_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "leases").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="is a link"):
        claim_lease(folder)
    assert not list(elsewhere.iterdir())


def test_the_term_comes_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("7", 7.0), ("0", 1.0), ("soon", leases.LEASE_SECONDS)):
        monkeypatch.setenv("LANDSCAPE_LEASE_SECONDS", text)
        with claim_lease(folder) as lease:
            assert lease.seconds == expected


# --- fencing ---


def take_over(run: Run, zombie: Lease) -> Lease:
    """As if the zombie's heartbeat had stopped for a term; it does not know."""
    pretend_elsewhere(run.path, zombie.number)
    claim = run.last_claim
    assert claim is not None
    return run.claim(expired=claim.mark)


def test_attempts_have_the_numbers_of_their_leases(run: Run) -> None:
    run.claim().release()
    with run.claim() as lease, run.under(lease).begin_attempt() as attempt:
        assert attempt.number == lease.number == 2
        with run.under(lease).begin_attempt() as further:
            assert further.number == lease.number == 3
    assert run.begin_attempt().number == 4
    with run.claim() as lease:
        assert lease.number == 5


def test_what_a_superseded_holder_writes_is_not_read(run: Run) -> None:
    zombie = run.claim()
    mine = run.under(zombie)
    mine.set_status(state="running")
    attempt = mine.begin_attempt()
    attempt.log({"step": 1, "loss_clean": 1.0})
    with take_over(run, zombie) as successor:
        theirs = run.under(successor)
        theirs.set_status(state="running")
        with theirs.begin_attempt(1) as second:
            second.log({"step": 2, "loss_clean": 2.0})
        theirs.set_status(state="done", step=2)
    attempt.log({"step": 2, "loss_clean": 99.0})
    attempt.log({"step": 3, "loss_clean": 99.0})
    for action in (lambda: mine.set_status(state="failed"), mine.compact, mine.begin_attempt):
        with pytest.raises(LeaseLostError):
            action()
    assert run.metrics()["loss_clean"].tolist() == [1.0, 2.0]
    assert (run.status.state, run.status.attempt) == ("done", successor.number)


def test_a_status_written_just_after_losing_the_lease_is_known_for_outdated(run: Run) -> None:
    """The holder was paused between looking for a successor and replacing the file."""
    zombie = run.claim()
    mine = run.under(zombie)
    with mine.begin_attempt() as attempt:
        attempt.log({"step": 1, "loss_clean": 1.0})
    with take_over(run, zombie) as successor, run.under(successor).begin_attempt(1) as second:
        second.log({"step": 2, "loss_clean": 2.0})
        run.under(successor).set_status(state="running", step=2)
        zombie._lost = False
        zombie.check = lambda: None  # type: ignore[method-assign]
        mine.set_status(state="done", step=20)
        assert (run.status.state, run.status.attempt) == ("interrupted", successor.number)
        assert run.metrics()["step"].tolist() == [1, 2]
        run.under(successor).set_status(step=2)
        assert (run.status.state, run.status.attempt) == ("running", successor.number)


def test_a_holder_suspended_while_it_writes_its_status_leaves_its_successors(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie = run.claim()
    mine = run.under(zombie)
    mine.begin_attempt().close()
    sync, awake = os.fsync, iter([False])

    def suspended(descriptor: int) -> None:
        sync(descriptor)
        if next(awake, True):
            return
        with take_over(run, zombie) as successor:
            run.under(successor).begin_attempt().close()
            run.under(successor).set_status(state="done", step=20)

    monkeypatch.setattr(os, "fsync", suspended)
    with pytest.raises(LeaseLostError):
        mine.set_status(state="running", step=1)
    assert (run.status.state, run.status.step, run.status.attempt) == ("done", 20, 2)
    assert not list(run.path.glob(".tmp-*"))


def test_an_attempt_begun_after_losing_the_lease_is_not_read(run: Run) -> None:
    zombie = run.claim()
    with take_over(run, zombie) as successor, run.under(successor).begin_attempt() as attempt:
        attempt.log({"step": 1, "loss_clean": 2.0})
        zombie.check = lambda: None  # type: ignore[method-assign]
        with run.under(zombie).begin_attempt() as late:
            late.log({"step": 1, "loss_clean": 99.0})
            assert late.number < attempt.number
        assert run.status.attempt == attempt.number
        assert run.metrics()["loss_clean"].tolist() == [2.0]


def test_the_checkpoint_goes_along_and_is_out_of_the_old_holders_reach(run: Run) -> None:
    zombie = run.claim()
    with run.under(zombie).begin_attempt() as first:
        first.log({"step": 1, "loss_clean": 1.0})
    state = first.path / "checkpoint" / "step-000001"
    state.mkdir(parents=True)
    (state / "parameters").write_bytes(b"theta")
    assert run.checkpoint_dir == first.path / "checkpoint"
    with take_over(run, zombie) as successor:
        run.under(successor).begin_attempt(1, checkpoint=state).close()
    (state / "parameters").unlink()
    state.rmdir()
    assert run.checkpoint_dir == run.path / "attempts" / str(successor.number) / "checkpoint"
    assert (run.checkpoint_dir / "step-000001" / "parameters").read_bytes() == b"theta"


def test_a_checkpoint_that_vanishes_makes_no_attempt(run: Run, tmp_path: Path) -> None:
    with run.claim() as lease:
        run.under(lease).begin_attempt().close()
        with pytest.raises(StoreError, match="No such file"):
            run.under(lease).begin_attempt(1, checkpoint=tmp_path / "gone")
    assert run.status.attempt == 1


def test_a_store_from_before_leases_goes_on(run: Run) -> None:
    train(run.begin_attempt(), 0, 12)
    (run.path / "attempts/1/attempt.json").unlink()
    assert run.status.attempt == 1
    assert not run.is_leased
    with run.claim() as lease:
        assert lease.number == 2
        train(run.under(lease).begin_attempt(resume_step=10), 11, 14)
    assert run.metrics()["step"].tolist() == list(range(1, 15))
