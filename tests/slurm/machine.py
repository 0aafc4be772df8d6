"""A real Slurm on this machine: its own folder, the loopback interface, several nodes, no cgroups.

Each node is a slurmd in a host name space of its own, so that `n1` is a name that resolves, as on a
cluster. The GPUs are links to /dev/null: Slurm hands them out, nobody can compute on them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["PACKAGES", "Machine", "missing", "wait_for"]

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
_SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def missing() -> str:
    """Says why no Slurm can be started here, after an attempt to install it; empty if it can."""
    if os.geteuid() != 0:
        return "only root can give each node a host name"
    commands = ("slurmctld", "slurmd", "sbatch", "munged", "unshare")
    if not all(shutil.which(name, path=_SEARCH) for name in commands):
        install = ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES]
        for command in (["apt-get", "update"], install):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"{' '.join(command)}: {error}"
            if done.returncode:
                return f"{' '.join(command)}: {done.stderr.strip()[-300:]}"
    if subprocess.run(["unshare", "-u", "-m", "true"], capture_output=True).returncode:
        return "unshare cannot make name spaces here"
    return ""


def wait_for(condition: Callable[[], bool], what: Callable[[], str], seconds: float = 60) -> None:
    """Waits until a condition holds; `what` tells what is there if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


class Machine:
    """A controller and its nodes; use as a context manager.

    Args:
        folder: For everything; not longer than 80 characters.
        num_nodes: They are called n1, n2, ...
    """

    def __init__(self, folder: Path, num_nodes: int) -> None:
        self.folder = folder
        self.nodes = [f"n{i}" for i in range(1, num_nodes + 1)]
        self.conf = folder / "slurm.conf"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {"PATH": _SEARCH, "SLURM_CONF": str(self.conf)}

    def __enter__(self) -> Machine:
        try:
            self._write_files()
            self._start_munge()
            self._start("slurmctld", "slurmctld", "-D", "-i", "-f", str(self.conf))
            for node in self.nodes:
                self.start_node(node)
            wait_for(self._all_idle, self._logs, 40)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--user=root")
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not self.run("squeue", "--noheader"), str, 15)
        self._stop()

    def run(self, *command: str) -> str:
        """Runs one of Slurm's commands and returns what it prints."""
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout.strip()

    def start_node(self, node: str) -> None:
        """Starts the slurmd of a node, in a host name space of its own."""
        script = 'hostname "$1"; mount --bind "$2" /etc/hosts; exec slurmd -D -N "$1" -f "$3"'
        hosts = str(self.folder / "hosts")
        self._start(
            node, *("unshare", "-u", "-m", "--propagation", "slave"),
            *("sh", "-c", script, "sh", node, hosts, str(self.conf)),
        )  # fmt: skip

    def crash_node(self, node: str) -> None:
        """Kills slurmd and everything of the jobs on a node at once, as a loss of power does."""
        process = self._processes.pop(node)
        process.kill()
        process.wait()
        for pid in self._job_processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def revive(self, node: str) -> None:
        """Starts a crashed node again and waits for it."""
        self.start_node(node)
        wait_for(self._all_idle, self._logs, 60)

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%t")
        return states.split() == ["idle"] * len(self.nodes)

    def _logs(self) -> str:
        tails = [
            f"{path.name}: " + "\n".join(path.read_text(errors="replace").splitlines()[-8:])
            for path in sorted(self.folder.glob("*.log"))
        ]
        return "\n".join([self.run("sinfo", "-N", "-l"), self.run("squeue"), *tails])

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                command, env=self._environment | {"HOME": "/root"}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        names = {
            "socket": "munge.sock",
            "key-file": key.name,
            "pid-file": "munge.pid",
            "log-file": "munge.log",
            "seed-file": "munge.seed",
        }
        options = [f"--{option}={self.folder / name}" for option, name in names.items()]
        self._start("munged", "munged", "--foreground", "--force", *options)
        wait_for((self.folder / "munge.sock").exists, self._logs, 10)

    def _stop(self) -> None:
        """Ends what was started here, jobs before nodes before the controller."""
        for node in self.nodes:
            for pid in self._job_processes(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _job_processes(self, node: str) -> list[int]:
        """Returns the processes of jobs of this Slurm on a node, their slurmstepds first."""
        wanted = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.conf}".encode()}
        tasks, parents = [], set()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                    tasks.append(int(entry.name))
                    parents.add(int((entry / "stat").read_text().rpartition(")")[2].split()[1]))
        return [pid for pid in sorted(parents) if _name(pid) == "slurmstepd"] + tasks

    def _write_files(self) -> None:
        devices = self.folder / "dev"
        devices.mkdir()
        for number in range(2):
            (devices / f"nvidia{number}").symlink_to("/dev/null")
        names = "".join(f"127.0.0.1 {node}\n" for node in self.nodes)
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text() + names)
        every = f"n[1-{len(self.nodes)}]"
        (self.folder / "gres.conf").write_text(
            f"NodeName={every} Name=gpu File={devices}/nvidia[0-1]\n"
        )
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        port = next(_free_ports(len(self.nodes) + 1))
        host = socket.gethostname().partition(".")[0]
        (self.folder / "state").mkdir()
        lines = [
            _SETTINGS.format(
                folder=self.folder, host=host, port=port, srun=port + 50, last=port + 399
            )
        ]
        lines += [
            f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port + 1 + i} CPUs=4 "
            "RealMemory=8000 Gres=gpu:2 State=UNKNOWN"
            for i, node in enumerate(self.nodes)
        ]
        lines += [
            f"PartitionName=main Nodes={every} Default=YES MaxTime=60 PriorityTier=1",
            f"PartitionName=graceful Nodes={every} MaxTime=60 PriorityTier=1 GraceTime=60",
            f"PartitionName=high Nodes={every} MaxTime=60 PriorityTier=10 PreemptMode=OFF",
        ]
        self.conf.write_text("\n".join(lines) + "\n")


_SETTINGS = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
SrunPortRange={srun}-{last}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
MailProg=/bin/true
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
EnforcePartLimits=ALL
GresTypes=gpu
KillWait=20
SlurmdTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
AccountingStorageType=accounting_storage/none
"""


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _free_ports(count: int) -> Iterator[int]:
    """Yields first ports of ranges that nobody listens on."""
    for first in range(15000, 19600, 400):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            yield first
    raise AssertionError("no free ports between 15000 and 19600")
