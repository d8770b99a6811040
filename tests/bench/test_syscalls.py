"""Counts of system calls, as the tools write them and as they find them."""

import os
import subprocess
import sys
from shutil import which

import pytest

from bench.processes import BenchError
from bench.syscalls import counter, counting_by_perf, counting_by_strace, perf_count, strace_count

STRACE = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000300           3       100           recvfrom
 40.00    0.000200           2       100         7 sendto
------ ----------- ----------- --------- --------- ----------------
100.00    0.000500           2       200         7 total
"""


def test_strace_writes_a_total_with_and_without_errors():
    assert strace_count(STRACE) == 200
    assert strace_count("100.00    0.000500                   200           total\n") == 200
    assert strace_count("") == 0


def test_perf_writes_a_line_for_the_event():
    assert perf_count("# started\n\n2271,,raw_syscalls:sys_enter,32372555,100.00,,\nEvents disabled\n") == 2271
    assert perf_count("<not counted>,,raw_syscalls:sys_enter,0,0.00,,\n") == 0
    with pytest.raises(BenchError):
        perf_count("")


@pytest.mark.parametrize("counting", [counting_by_perf, counting_by_strace])
def test_calls_of_another_process_are_counted(counting):
    found = counter()
    if found is None or which(counting.__name__.rpartition("_")[2]) is None:
        pytest.skip("this machine lets nobody count")
    if counting is counting_by_perf and found[0] != "perf":
        pytest.skip("perf may not count here")
    program = "import os, sys\nfor line in sys.stdin:\n [os.getppid() for _ in range(1000)]; print(flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}
    ) as child:

        def work():
            child.stdin.write(b"\n")
            child.stdin.flush()
            child.stdout.readline()

        work()
        with counting([child.pid]) as count:
            work()
        work()
        child.stdin.close()
    assert 1000 <= count.calls < 1100
