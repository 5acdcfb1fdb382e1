# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs in a real PostgreSQL: whose they are, what becomes of those of the lost, and what is told of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from made_postgresql import Cluster

from harness.errors import HostError, MissingError, UsageError
from harness.report.work import WorkDoc, work_text
from harness.work.ability import Ability, HostOffer, OfferedQemu
from harness.work.hosted import given_up_line
from harness.work.jobs import TRIES, Held, Jobs, Pulse, open_jobs
from harness.work.process import Over, said_in

NEEDS = Ability(qemu="ab" * 32, version="7.2.22", accel="tcg")
OFFER = HostOffer(
    host="alpha", pid=7, jobs=2, arch="x86_64", kernel="6.1", kvm=False,
    qemus=(OfferedQemu(qemu="ab" * 32, version="7.2.22", path="/usr/bin/qemu"),),
)  # fmt: skip
TASK = json.dumps({"request": {"machine": "pc-q35-7.2"}})
PULSE = Pulse()


@pytest.fixture
def url(postgresql: Cluster) -> Iterator[str]:
    name = postgresql.create()
    yield postgresql.url(name)
    postgresql.drop(name)


@pytest.fixture
def jobs(url: str) -> Iterator[Jobs]:
    with closing(open_jobs(url)) as opened:
        opened.begin("run")
        yield opened


def worker(jobs: Jobs) -> int:
    with jobs.connected() as connection:
        found = connection.execute("SELECT worker_id FROM procrastinate_register_worker_v1()").fetchone()
    assert found is not None
    return int(found[0])


def take(jobs: Jobs, by: int, needs: Ability = NEEDS) -> Held | None:
    """What procrastinate does for a worker that asks for a job."""
    with jobs.connected() as connection:
        query = "SELECT id, attempts FROM procrastinate_fetch_job_v2(%s::varchar[], %s)"
        found = connection.execute(query, ([needs.queue], by)).fetchone()
    return None if found is None or found[0] is None else Held(job=found[0], attempt=found[1], worker=by)


def taken(jobs: Jobs, by: int) -> Held:
    held = take(jobs, by)
    assert held is not None
    return held


def silence(jobs: Jobs, who: int) -> None:
    with jobs.connected() as connection:
        query = "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour' WHERE id = %s"
        connection.execute(query, (who,))


def lines(jobs: Jobs, job: int) -> list[str]:
    reports, _ = jobs.follow({job: 0})
    return [report.line for report in reports]


def status(jobs: Jobs, job: int) -> str:
    return jobs.follow({job: 0})[1][job]


def test_what_is_reported_of_a_job_is_followed_in_its_order(jobs: Jobs) -> None:
    job, other = jobs.defer("run", TASK, NEEDS), jobs.defer("run", TASK, NEEDS)
    held = taken(jobs, worker(jobs))
    assert held.job == job
    assert jobs.report(held, "alpha", ["one", "two"])
    assert jobs.report(held, "alpha", ["three"])
    reports, states = jobs.follow({job: 0, other: 0})
    assert [(report.host, report.line) for report in reports] == [
        ("alpha", "one"),
        ("alpha", "two"),
        ("alpha", "three"),
    ]
    assert states == {job: "doing", other: "todo"}
    assert [report.line for report in jobs.follow({job: reports[1].number})[0]] == ["three"]


def test_the_job_of_a_lost_worker_is_anothers_and_the_lost_one_has_no_say(jobs: Jobs) -> None:
    job = jobs.defer("run", TASK, NEEDS)
    lost, living = worker(jobs), worker(jobs)
    first = taken(jobs, lost)
    assert jobs.report(first, "alpha", ["of the first"])
    assert take(jobs, living) is None
    assert jobs.sweep(PULSE, given_up_line()) == 0
    silence(jobs, lost)
    assert jobs.sweep(PULSE, given_up_line()) == 1
    second = taken(jobs, living)
    assert second.job == job
    assert jobs.report(first, "alpha", ["of the dead"]) is None
    assert jobs.report(second, "beta", ["of the second"])
    assert lines(jobs, job) == ["of the first", "of the second"]


def test_a_worker_that_gets_its_own_job_again_has_no_say_for_the_first_time(jobs: Jobs) -> None:
    jobs.defer("run", TASK, NEEDS)
    only = worker(jobs)
    first = taken(jobs, only)
    silence(jobs, only)
    jobs.sweep(PULSE, given_up_line())
    second = taken(jobs, only)
    assert jobs.report(first, "alpha", ["of the first time"]) is None
    assert jobs.report(second, "alpha", ["of the second"])


def test_a_job_that_loses_its_workers_is_given_up(jobs: Jobs) -> None:
    job = jobs.defer("run", TASK, NEEDS)
    for _ in range(TRIES):
        assert status(jobs, job) == "todo"
        lost = worker(jobs)
        taken(jobs, lost)
        silence(jobs, lost)
        assert jobs.sweep(PULSE, given_up_line()) == 1
    assert status(jobs, job) == "failed"
    (line,) = lines(jobs, job)
    said = said_in(line)
    assert isinstance(said, Over)
    assert said.error == "3 workers were lost with it, one after the other"


def test_a_worker_whose_row_was_pruned_is_lost_too(jobs: Jobs) -> None:
    jobs.defer("run", TASK, NEEDS)
    lost = worker(jobs)
    held = taken(jobs, lost)
    silence(jobs, lost)
    with jobs.connected() as connection:
        connection.execute("SELECT procrastinate_prune_stalled_workers_v1(30)")
    assert jobs.report(held, "alpha", ["late"]) is None
    assert jobs.sweep(PULSE, given_up_line()) == 1


def test_the_jobs_of_a_run_that_ended_are_nobodys(jobs: Jobs) -> None:
    doing, waiting = jobs.defer("run", TASK, NEEDS), jobs.defer("run", TASK, NEEDS)
    jobs.begin("other")
    kept = jobs.defer("other", TASK, NEEDS)
    held = taken(jobs, worker(jobs))
    jobs.end("run")
    assert jobs.report(held, "alpha", ["too late"]) is False
    assert (status(jobs, doing), status(jobs, waiting), status(jobs, kept)) == ("doing", "gone", "todo")
    assert lines(jobs, doing) == []


def test_the_jobs_of_a_run_that_was_killed_are_nobodys(jobs: Jobs) -> None:
    job = jobs.defer("run", TASK, NEEDS)
    jobs.sweep(PULSE, given_up_line())
    assert status(jobs, job) == "todo"
    with jobs.connected() as connection:
        connection.execute("UPDATE leads SET alive = now() - interval '1 hour'")
    jobs.sweep(PULSE, given_up_line())
    assert status(jobs, job) == "gone"


def test_a_job_that_nobody_waits_for_ends(jobs: Jobs) -> None:
    doing, waiting = jobs.defer("run", TASK, NEEDS), jobs.defer("run", TASK, NEEDS)
    held = taken(jobs, worker(jobs))
    jobs.forget(doing)
    jobs.forget(waiting)
    assert jobs.report(held, "alpha", []) is False
    assert status(jobs, waiting) == "gone"


def test_a_recording_comes_out_as_it_went_in(jobs: Jobs, tmp_path: Path) -> None:
    file = tmp_path / "in"
    file.write_bytes(bytes(range(256)) * (9 << 12))  # more than two parts
    assert not jobs.has_recording("cd" * 32)
    for _ in range(2):
        jobs.put_recording("cd" * 32, file, "its hash")
    assert jobs.has_recording("cd" * 32)
    assert jobs.get_recording("cd" * 32, tmp_path / "out") == "its hash"
    assert (tmp_path / "out").read_bytes() == file.read_bytes()
    with pytest.raises(HostError, match="is not in postgresql://"):
        jobs.get_recording("ef" * 32, tmp_path / "other")


def test_two_that_open_a_new_store_at_once_make_one(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(open_jobs, [url] * 4))
    for each in opened:
        each.close()


def test_what_waits_for_which_ability_is_told(jobs: Jobs) -> None:
    kvm = replace(NEEDS, accel="kvm", kernel="6.1")
    for needs in (NEEDS, NEEDS, kvm, replace(NEEDS, host="beta")):
        jobs.defer("run", TASK, needs)
    jobs.offer(worker(jobs), OFFER)
    lost = worker(jobs)
    jobs.offer(lost, replace(OFFER, host="beta", pid=8, kvm=True))
    before = work_text(WorkDoc.of(jobs.waiting(), jobs.living(PULSE)))
    silence(jobs, lost)
    doc = WorkDoc.of(jobs.waiting(), jobs.living(PULSE))
    assert "2 living workers" in before
    assert "NO LIVING WORKER" not in before
    assert [(row.needs.accel, row.needs.host, row.todo, row.able) for row in doc.queues] == [
        ("tcg", "", 2, ("alpha",)), ("kvm", "", 1, ()), ("tcg", "beta", 1, ()),
    ]  # fmt: skip
    text = work_text(doc)
    assert "1 living worker:" in text
    assert "pc-q35-7.2 on QEMU 7.2.22 (abababababab), KVM, kernel 6.1\n    able: NO LIVING WORKER" in text
    assert "TCG, on beta alone\n    able: NO LIVING WORKER" in text
    assert "able: alpha" in text


@pytest.mark.parametrize(
    ("needs", "able"),
    [
        (NEEDS, True),
        (replace(NEEDS, waits=True), True),
        (replace(NEEDS, host="alpha"), True),
        (replace(NEEDS, host="beta"), False),
        (replace(NEEDS, qemu="cd" * 32), False),
        (replace(NEEDS, accel="kvm", kernel="6.1"), True),
        (replace(NEEDS, accel="kvm", kernel="6.12"), False),
        (replace(NEEDS, accel="kvm", host="alpha"), True),
    ],
)
def test_a_job_comes_to_hosts_that_are_able_to_do_it(needs: Ability, able: bool) -> None:
    assert replace(OFFER, kvm=True).has(needs.queue) is able
    assert OFFER.has(needs.queue) is (able and needs.accel == "tcg")


def test_a_store_that_is_a_file_has_no_jobs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="postgresql://"):
        open_jobs(str(tmp_path / "history.db"))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "procrastinate", None)
    with pytest.raises(MissingError, match=r"procrastinate: pip install 'postload\[workers\]'"):
        open_jobs("postgresql://me@127.0.0.1:1/none")


def test_a_database_that_is_away_is_told_without_its_password() -> None:
    with pytest.raises(HostError) as told:
        open_jobs("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(told.value)
    assert "127.0.0.1" in str(told.value)
