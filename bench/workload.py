"""What is asked of every topology.

A workload is one value in the ``WORKLOADS`` of ``throughput``, ``latency``, ``fairness``, ``connections`` or
``requests``.
"""

from __future__ import annotations

from dataclasses import dataclass

from .loadgen import HTTP, Job

WEBSOCKET = "websocket"


@dataclass(frozen=True)
class Workload:
    """Jobs that run at the same time, and which figures of them the table shows.

    Args:
      headline: the figure that ratios are made of.
      shows: further columns.
      together: all processes on one core. For a single ping-pong: otherwise one measures the waking of sleeping cores,
        which costs more than any relay.
      warm: whether the jobs run once before, with every byte compared.
      isolates: the first job also runs without the others, in turn, on a topology opened for it; see ``fairness``.
      urgent: the first job has a client of its own, which the kernel runs before everybody else, and the far end next.
        For latency beside a load that keeps the core which all of them share. Takes root or CAP_SYS_NICE.
      counted: the system calls of the process under test are counted, in a run of their own; see ``syscalls``.
    """

    name: str
    about: str
    jobs: tuple[Job, ...]
    headline: str
    shows: tuple[str, ...]
    together: bool = False
    warm: bool = True
    isolates: bool = False
    counted: bool = False
    urgent: bool = False

    @property
    def carried(self) -> str:
        """What a topology must carry for it: :data:`WEBSOCKET` or :data:`HTTP`."""
        return HTTP if self.jobs and self.jobs[0].kind == HTTP else WEBSOCKET
