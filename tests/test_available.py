"""How much memory can be taken: what the system has, less where a control group or a limit of the process says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import numconv as nc
from numconv import _memory

GIB = 1 << 30

#: Lines of ``/proc/self/mountinfo`` for both versions; in a container the first path is that of the group it sees.
V2 = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:27 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 23 0:28 {top} /sys/fs/cgroup/memory rw,relatime shared:12 - cgroup cgroup rw,memory\n"
)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Writes files of a system of its own; free are 64 GiB."""

    def write(files: dict[str, object]) -> None:
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n" if not isinstance(text, str) else text)

    monkeypatch.setattr(_memory, "ROOT", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    write({"proc/meminfo": f"MemTotal: {128 << 20} kB\nMemFree: 7 kB\nMemAvailable:   {64 << 20} kB\nHugepages: 0\n"})
    return write


def group(version: int, path: str, limit: object, used: int, files: int = 0) -> dict[str, object]:
    """The files of a control group; ``files`` of what it uses could be dropped."""
    if version == 2:
        names, folder, stat = ("max", "current"), "sys/fs/cgroup", "inactive_file"
    else:
        names, folder, stat = ("limit_in_bytes", "usage_in_bytes"), "sys/fs/cgroup/memory", "total_inactive_file"
    where = f"{folder}{path}/memory."
    return {
        f"{where}{names[0]}": limit, f"{where}{names[1]}": used,
        f"{where}stat": f"anon 1\n{stat} {files}\ninactive_file_of_another 7\n",
    }  # fmt: skip


def test_without_groups_it_is_what_the_system_says(system):
    assert _memory.available() == 64 * GIB


def test_every_group_above_the_own_one_counts(system):
    system({"proc/self/cgroup": "0::/a.slice/job_1/step_0\n", "proc/self/mountinfo": V2.format(top="/")})
    system(group(2, "/a.slice/job_1/step_0", "max\n", 5 * GIB))
    assert _memory.available() == 64 * GIB
    system(group(2, "/a.slice/job_1", 8 * GIB, 6 * GIB))
    assert _memory.available() == 2 * GIB
    system(group(2, "/a.slice", 9 * GIB, 8 * GIB))
    assert _memory.available() == GIB
    system(group(2, "/a.slice/job_1/step_0", 10 * GIB, 10 * GIB + 5))  # it may be over its limit for a moment
    assert _memory.available() == 0


def test_what_could_be_dropped_is_free(system):
    system({"proc/self/cgroup": "0::/job\n", "proc/self/mountinfo": V2.format(top="/")})
    system(group(2, "/job", 8 * GIB, 7 * GIB, files=3 * GIB))
    assert _memory.available() == 4 * GIB


def test_a_limit_at_which_a_process_is_slowed_down_counts(system):
    system({"proc/self/cgroup": "0::/user.slice\n", "proc/self/mountinfo": V2.format(top="/")})
    system(group(2, "/user.slice", 8 * GIB, 2 * GIB) | {"sys/fs/cgroup/user.slice/memory.high": 3 * GIB})
    assert _memory.available() == GIB


def test_groups_of_version_1(system):
    lines = "5:cpu,cpuacct:/elsewhere\n4:memory:/slurm/uid_7/job_9\n1:name=systemd:/\n0::/\n"
    system({"proc/self/cgroup": lines, "proc/self/mountinfo": V1.format(top="/")})
    unlimited = 9223372036854771712
    system(group(1, "", unlimited, 50 * GIB) | group(1, "/slurm", unlimited, 20 * GIB))
    system(group(1, "/slurm/uid_7/job_9", unlimited, 4 * GIB))
    assert _memory.available() == 64 * GIB
    system(group(1, "/slurm/uid_7", 6 * GIB, 4 * GIB, files=GIB))
    assert _memory.available() == 3 * GIB
    system(group(1, "/slurm/uid_7/job_9", 5 * GIB, 4 * GIB))
    assert _memory.available() == GIB


@pytest.mark.parametrize(("version", "mount"), [(1, V1), (2, V2)])
@pytest.mark.parametrize(
    ("top", "path"), [("/docker/0123", "/docker/0123"), ("/", "/docker/0123"), ("/docker/0123", "/"), ("/", "/../..")]
)
def test_a_container_sees_its_own_group_where_the_host_mounts_it(system, version, mount, top, path):
    """With a namespace for groups or without: the files of the container lie at the top."""
    line = f"0::{path}\n" if version == 2 else f"4:memory:{path}\n"
    system({"proc/self/cgroup": line, "proc/self/mountinfo": mount.format(top=top)})
    system(group(version, "", 4 * GIB, 3 * GIB))
    assert _memory.available() == GIB


def test_a_group_below_the_one_that_a_container_sees(system):
    system({"proc/self/cgroup": "0::/pod/7/worker\n", "proc/self/mountinfo": V2.format(top="/pod/7")})
    system(group(2, "", 9 * GIB, GIB) | group(2, "/worker", 4 * GIB, 2 * GIB))
    assert _memory.available() == 2 * GIB


def test_files_that_say_nonsense_or_are_not_there_limit_nothing(system):
    system({"proc/self/cgroup": "0::/job\n", "proc/self/mountinfo": V2.format(top="/")})
    assert _memory.available() == 64 * GIB
    system({"sys/fs/cgroup/job/memory.max": "many\n", "sys/fs/cgroup/job/memory.current": ""})
    assert _memory.available() == 64 * GIB
    system({"sys/fs/cgroup/job/memory.max": f"{2 * GIB}\n"})
    assert _memory.available() == 2 * GIB


@pytest.mark.parametrize(("limit", "name"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_limits_of_the_process_count(system, monkeypatch, limit, name):
    resource = pytest.importorskip("resource")
    system({"proc/self/status": f"Name:\tpython\n{name}:\t  {3 << 20} kB\nVmRSS:\t  5 kB\n"})
    own = resource.getrlimit
    which = getattr(resource, limit)
    monkeypatch.setattr(resource, "getrlimit", lambda a: (5 * GIB, 6 * GIB) if a == which else own(a))
    assert _memory.available() == 2 * GIB
    monkeypatch.setattr(resource, "getrlimit", lambda a: (GIB, GIB) if a == which else own(a))
    assert _memory.available() == 0


def test_small_calls_read_nothing(monkeypatch):
    monkeypatch.setattr(_memory, "available", lambda: pytest.fail("it asked"))
    x, w = np.ones((1, 1, 500, 500), np.float32), np.ones((1, 1, 3, 3), np.float32)
    plan = nc.plan_conv(x.shape, w.shape)
    plan.forward(x, w)
    plan.grad_input(plan.forward(x, w), w)
    nc.normalized_convolve(x[0, 0], w[0, 0])
    nc.kernel2row(w[0, 0], (100, 100))


SCRIPT = """
import resource, sys
import numpy as np, numconv as nc
x, w = np.ones((3000, 3000), np.float32), np.ones((3, 3), np.float32)
nc.convolve(x[:500, :500], w)
held = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(sys.argv[2]))
limit = getattr(resource, sys.argv[1])
resource.setrlimit(limit, (held + (20 << 20), resource.getrlimit(limit)[1]))
try:
    nc.convolve(x, w)
except MemoryError as error:
    print(error)
"""


@pytest.mark.parametrize(("limit", "name"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_a_limit_of_a_real_process(limit, name):
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not say what a process holds")
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, limit, name], capture_output=True, text=True, timeout=120, check=True
    )
    assert "bytes are available; use smaller pieces" in run.stdout
