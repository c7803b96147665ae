"""The part of a lease's story in which the job runs: started, watched, ended, its output collected."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node import egress, limits, output
from sandbox.node.inbox import Ended
from sandbox.node.limits import Verdict
from sandbox.node.logs import LogStream
from sandbox.node.oom import KernelLog
from sandbox.node.steps import Launched, Ran, Story
from sandbox.sealing.logs import LogSealer

if TYPE_CHECKING:
    from sandbox.node.context import Node
    from sandbox.node.engine import Exit
    from sandbox.node.plan import LaunchPlan

WATCH_SECONDS = 0.2
END_SECONDS = 20.0


def run(story: Story, launched: Launched) -> Ran:
    """Start the job, stream its sealed output, and watch time, contact's wishes and scratch until it ends."""
    node, plan = story.node, launched.attested.plan
    logs = LogStream(
        LogSealer(story.lease, launched.attested.placed.customer), lambda seq, chunk: node.client.put_log(story.lease, seq, chunk)
    )
    story.account.logs = logs
    story.go_on()
    with node.engine.attached(launched.container) as frames, KernelLog() as kernel:
        reader = threading.Thread(target=logs.take, args=(frames,), name=f"logs-{story.lease[-8:]}", daemon=True)
        reader.start()
        story.journal.write("state", state=LeaseState.RUNNING, container=launched.container)
        node.engine.start(launched.container)
        started = time.monotonic()
        story.account.started_at = datetime.now(UTC)
        story.reporter.send(LeaseState.RUNNING)
        end, stopped, full = _watch(story, launched, reader, kernel, started + plan.lease_seconds)
        reader.join(END_SECONDS)
        memory = kernel.kill_of(launched.container)
    refused = _blocked(node, plan, logs)
    for view in story.account.views:
        for problem in view.problems[:16]:
            logs.note(f"an input could not be read: {problem.get('message', 'damaged')}"[:500])
    logs.finish()
    story.account.exit_code = end.exit_code if end else None
    size, overhead = limits.tree_bytes(story.folder.out), limits.tree_overhead(story.folder.out)
    verdict = limits.judge(
        end, stopped=stopped, memory=memory, scratch_full=full, output_bytes=size, output_max=plan.output_max_size, overhead=overhead
    )
    excess = limits.too_large(size, overhead, plan.output_max_size)
    told = "; ".join(filter(None, (verdict.detail, excess if excess != verdict.detail else "", refused)))
    return Ran(launched.attested, replace(verdict, detail=told), collectable=not excess)


def _blocked(node: Node, plan: LaunchPlan, logs: LogStream) -> str:
    """Tell the customer (in the sealed log) and the operator (in the report) what the job tried to reach and may not."""
    if not plan.egress:
        return ""
    found = egress.blocked(node.engine, plan)
    for item in found:
        logs.note(f"blocked: {item.packets} packets to {item.address} ({item.protocol})")
    shown = ", ".join(f"{item.address} {item.protocol} ({item.packets})" for item in found[:16])
    return f"blocked packets to {len(found)} addresses: {shown}" if found else ""


def _watch(
    story: Story, launched: Launched, reader: threading.Thread, kernel: KernelLog, deadline: float
) -> tuple[Exit | None, Verdict | None, bool]:
    """Return the engine's word on the end, our own reason if we stopped the job, and whether its scratch was ever full."""
    engine, stopped, full = story.node.engine, None, False
    while reader.is_alive():
        reader.join(WATCH_SECONDS)
        full = full or limits.is_full(story.folder.work)
        kernel.look()
        if time.monotonic() >= deadline:
            stopped = Verdict(Outcome.TIME_LIMIT, None, "time", f"the lease's {launched.attested.plan.lease_seconds} s are over")
        else:
            try:
                story.go_on()
            except Ended as ended:
                stopped = ended.verdict
        if stopped is not None:
            engine.kill(launched.container)
            break
    end = _last_word(story, launched, deadline)
    return end, stopped, full or limits.is_full(story.folder.work)  # a short job may have ended before the first look


def _last_word(story: Story, launched: Launched, deadline: float) -> Exit | None:
    """Ask how the container ended. A job may close its output and live on: the time limit still ends it."""
    engine = story.node.engine
    while (end := engine.wait(launched.container, 1.0)) is None:
        if time.monotonic() >= deadline or story.inbox.end is not None:
            engine.kill(launched.container)
            return engine.wait(launched.container, END_SECONDS)
    return end


_COLLECTED = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIME_LIMIT, Outcome.MEMORY_LIMIT, Outcome.DISK_LIMIT})


def collect(story: Story, ran: Ran) -> Verdict:
    """Seal ``/out`` to the customer and upload it, unless the job was stopped by somebody or made too much."""
    verdict = ran.verdict
    story.journal.write("ended", outcome=verdict.outcome, exit_code=verdict.exit_code, limit=verdict.limit)
    if verdict.outcome not in _COLLECTED or not ran.collectable:
        return verdict
    story.journal.write("state", state=LeaseState.COLLECTING)
    story.reporter.send(LeaseState.COLLECTING)
    result = output.seal_output(story.folder, story.lease, ran.attested.placed.customer, story.node.key)
    output.upload_result(story.node.client, story.folder, story.lease, result, go_on=story.go_on)
    story.account.result = result
    return verdict
