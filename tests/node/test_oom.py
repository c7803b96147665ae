"""Memory as the cause of a job's end is what the kernel or the engine says, and never a guess."""

from __future__ import annotations

import pytest

from sandbox.lifecycle import Outcome
from sandbox.node.engine import Exit
from sandbox.node.limits import KILLED, Verdict, judge
from sandbox.node.oom import KernelLog, MemoryKill

ID = "364e3792f8a1f3c824a465bdcefdae02c0158eca173d833fc3fddec9a2309d16"
OTHER = "a" * 64
BESIDE = (
    "4,1701,1473723523,-;dd invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0\n"
    "6,1801,1473727338,-;[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name\n"
)
AFTER = "3,1804,1473727377,-;Memory cgroup out of memory: Killed process 27184 (dd) total-vm:514268kB, anon-rss:32384kB\n"


def line(constraint: str, limit: str, task: str) -> str:
    """Return the kernel's line, as 6.18 writes it (mm/oom_kill.c and mm/memcontrol.c)."""
    where = f"oom_memcg={limit}" if constraint == "CONSTRAINT_MEMCG" else "global_oom"
    head = f"6,1803,1473727349,-;oom-kill:constraint={constraint},nodemask=(null),cpuset={ID},mems_allowed=0"
    return f"{head},{where},task_memcg={task},task=dd,pid=27184,uid=0\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", None),
        (BESIDE + AFTER, None),
        (line("CONSTRAINT_MEMCG", f"/docker/{ID}", f"/docker/{ID}"), MemoryKill.JOB),
        (line("CONSTRAINT_MEMCG", f"/system.slice/docker-{ID}.scope", f"/system.slice/docker-{ID}.scope"), MemoryKill.JOB),
        (line("CONSTRAINT_MEMCG", f"/docker/{OTHER}", f"/docker/{OTHER}"), None),
        (line("CONSTRAINT_MEMCG", "/system.slice", f"/system.slice/docker-{ID}.scope"), MemoryKill.HOST),
        (line("CONSTRAINT_NONE", "", f"/docker/{ID}"), MemoryKill.HOST),
        (line("CONSTRAINT_NONE", "", f"/docker/{ID}") + line("CONSTRAINT_MEMCG", f"/docker/{ID}", f"/docker/{ID}"), MemoryKill.JOB),
    ],
)
def test_the_kernels_line_says_whose_memory_it_was(tmp_path, text, wanted):
    place = tmp_path / "kmsg"
    place.write_text(line("CONSTRAINT_MEMCG", f"/docker/{ID}", f"/docker/{ID}"))  # from before: of no concern
    with KernelLog(place) as log, place.open("a") as file:
        log.look()
        file.write(BESIDE + text + AFTER)
        file.flush()
        assert log.kill_of(ID) is wanted


def test_a_log_that_cannot_be_read_says_nothing(tmp_path):
    with KernelLog(tmp_path / "none") as log:
        assert log.kill_of(ID) is None


NEVER = {"scratch_full": False, "output_bytes": 0, "output_max": 1}
OURS = Verdict(Outcome.TIME_LIMIT, None, "time", "over")


@pytest.mark.parametrize(
    ("code", "engine", "kernel", "stopped", "outcome"),
    [
        (KILLED, True, None, None, Outcome.MEMORY_LIMIT),
        (KILLED, False, MemoryKill.JOB, None, Outcome.MEMORY_LIMIT),
        (1, False, MemoryKill.JOB, None, Outcome.MEMORY_LIMIT),
        (KILLED, False, None, None, Outcome.FAILED),
        (KILLED, True, MemoryKill.HOST, None, Outcome.NODE_FAILURE),
        (KILLED, True, MemoryKill.JOB, OURS, Outcome.TIME_LIMIT),
        (0, True, MemoryKill.JOB, None, Outcome.SUCCEEDED),
        (0, False, MemoryKill.HOST, None, Outcome.SUCCEEDED),
    ],
)
def test_who_is_believed(code, engine, kernel, stopped, outcome):
    end = Exit(code, oom_killed=engine, error="")
    assert judge(end, stopped=stopped, memory=kernel, **NEVER).outcome is outcome
