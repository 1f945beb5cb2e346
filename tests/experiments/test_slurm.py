"""A real Slurm on this machine: one controller, two nodes, and a sweep of real runs on sample data."""

import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aaai23.l2x.sample import write_sample

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "sinfo")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NODES = ("n1", "n2")
EPOCHS = 12
SWEEP = f"--aspects 3 --methods aimle imle softsub --seeds 2 --epochs {EPOCHS}"
EXTRA = "-- -m 60 -H 20 --device cpu"

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge_socket},cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=2
{nodes}
PartitionName=test Nodes={names} Default=YES State=UP
"""


def refuse(reason):
    """Skip; fail instead where the environment promises that Slurm is here."""
    if os.environ.get("REQUIRE_SLURM"):
        pytest.fail(f"REQUIRE_SLURM is set, but {reason}")
    pytest.skip(reason)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [it.getsockname()[1] for it in sockets]
    for it in sockets:
        it.close()
    return ports


def wait_for(what, condition, seconds, logs=()):
    """Return the first true value of `condition()`; fails with the ends of the logs when time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    ends = "\n".join(f"--- {log}\n{log.read_text()[-1500:]}" for log in logs if log.exists())
    pytest.fail(f"no {what} after {seconds} s\n{ends}")


def stop(pid_file, program):
    """End the daemon that wrote `pid_file`, if it is still that program."""
    try:
        pid = int(pid_file.read_text())
        if program not in Path(f"/proc/{pid}/cmdline").read_text():
            return
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            time.sleep(0.05)
            os.kill(pid, 0)
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        return  # gone, or never started


def start_munge(folder, run):
    """Start a munged of our own, with a key of our own."""
    folder.mkdir(mode=0o755)
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o400)
    for path in (folder / "key", folder):
        shutil.chown(path, "munge", "munge")
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    flags = [f"--{flag}={folder / name}" for flag, name in files.items()]
    run(["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--num-threads=2", *flags])


class Cluster:
    """Runs Slurm's commands against the test's own controller."""

    def __init__(self, folder):
        self.folder = folder
        self.logs = [folder / "slurmctld.log", *(folder / f"slurmd-{node}.log" for node in NODES)]
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, command, **options):
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, cwd=ROOT, **options
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def write_config(self, munge_socket):
        controller_port, *ports = free_ports(1 + len(NODES))
        host = socket.gethostname().split(".")[0]
        node = "NodeName={} NodeHostname={} NodeAddr=127.0.0.1 Port={} CPUs=1 RealMemory=1000"
        text = CONFIG.format(
            host=host,
            controller_port=controller_port,
            folder=self.folder,
            munge_socket=munge_socket,
            nodes="\n".join(node.format(name, host, port) for name, port in zip(NODES, ports)),
            names=",".join(NODES),
        )
        (self.folder / "slurm.conf").write_text(text)

    def start(self):
        (self.folder / "state").mkdir()
        self.run(["slurmctld", "-i"])
        for node in NODES:
            self.run(["slurmd", "-N", node])
        wait_for("idle nodes", lambda: self.run(["sinfo", "-h", "-o", "%D %t"]) == "2 idle", 30, self.logs)

    def stop(self):
        for node in NODES:
            stop(self.folder / f"slurmd-{node}.pid", "slurmd")
        stop(self.folder / "slurmctld.pid", "slurmctld")

    def submit(self, script):
        return self.run(["sbatch", "--parsable"], input=script)

    def queue(self, job):
        """Return task -> state of what has not ended."""
        lines = self.run(["squeue", "-h", "-r", "-j", job, "-o", "%K %T"]).splitlines()
        return dict(line.split() for line in lines)

    def wait_until_empty(self, seconds):
        wait_for("empty queue", lambda: not self.run(["squeue", "-h"]), seconds, self.logs)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    missing = [program for program in PROGRAMS if not shutil.which(program, path=PATH)]
    if missing:
        refuse(f"{', '.join(missing)} are missing: install slurm-wlm and munge")
    if getpass.getuser() != "root" or os.geteuid() != 0:
        refuse("Slurm's daemons of this test run as root")
    folder = Path("/run") / f"test-slurm-{os.getpid()}"  # a path that munge trusts: no parent others can write to
    folder.mkdir(mode=0o755)
    found = Cluster(folder)
    try:
        start_munge(folder / "munge", found.run)
        found.write_config(folder / "munge" / "socket")
        found.start()
        yield found
    finally:
        found.stop()
        stop(folder / "munge" / "pid", "munged")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "sample"
    write_sample(folder, 0, 160, 60, 20)
    return folder


def generate(*words):
    """Return what the generator of Learning to Explain prints."""
    command = [sys.executable, str(ROOT / "experiments/generate_l2x_aimle_cmd.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def array(sample, results, *more, sweep=SWEEP):
    places = ["--data-dir", str(sample), "--results-dir", str(results), "--python", sys.executable]
    return generate(*sweep.split(), *places, "--format", "slurm", *more, *EXTRA.split())


def read(path):
    return json.loads(path.read_text()) if path.exists() else {"status": "none", "history": []}


def test_an_array_of_real_runs_finishes_and_a_requeued_task_resumes(cluster, sample, tmp_path):
    results = tmp_path / "results"
    script = array(sample, results, "--time", "10", "--mem", "100", "--max-parallel", "2", "--partition", "test")
    tasks = re.findall(r"--name (\S+) --seed (\d+)", script)
    records = [results / "l2x" / name / f"seed{seed}.json" for name, seed in tasks]
    assert len(records) == 6

    job = cluster.submit(script)
    # at two epochs in the record, the first one is in the checkpoint
    wait_for("training task", lambda: 2 <= len(read(records[0])["history"]) < EPOCHS - 4, 90, cluster.logs)
    assert cluster.queue(job)["0"] == "RUNNING"
    started = read(records[0])["timing"]["started"]
    cluster.run(["scontrol", "requeue", f"{job}_0"])  # kills the task, and puts it back into the queue
    cluster.wait_until_empty(240)

    assert [read(record)["status"] for record in records] == ["finished"] * 6
    assert all(len(read(record)["history"]) == EPOCHS for record in records)
    resumed = read(records[0])
    log = records[0].with_suffix(".log").read_text()
    (messages,) = (results / "slurm").glob(f"*-{job}_0.out")
    assert messages.read_text().count(" start ") == 2 and " start 1: " in messages.read_text()
    assert resumed["timing"]["started"] == started
    assert [entry["epoch"] for entry in resumed["history"]] == [*range(1, EPOCHS + 1)]
    assert log.count(f"Epoch 1/{EPOCHS}\t") == 1, "the requeued task began anew"
    assert "Experiment completed." in log
    assert array(sample, results, "--pending") == ""


def test_a_folder_may_be_named_as_slurms_own_patterns_are(cluster, sample, tmp_path):
    results = tmp_path / "50%u 100%% %j%x"
    job = cluster.submit(array(sample, results, sweep="--aspects 3 --methods imle --seeds 1 --epochs 1"))
    cluster.wait_until_empty(90)
    assert [path.name for path in (results / "slurm").iterdir()] == [f"l2x-sweep-{job}_0.out"]
    assert [path.name for path in tmp_path.iterdir()] == [results.name]
    assert [read(path)["status"] for path in results.rglob("seed0.json")] == ["finished"]


def test_a_failing_line_fails_its_task_of_the_array_and_no_other(cluster, sample, tmp_path):
    results = tmp_path / "results"
    script = array(sample, results, sweep="--aspects 3 --methods imle --seeds 2 --epochs 1")
    broken = script.replace("--seed 1 ", "--seed nonsense ")
    assert broken != script
    job = cluster.submit(broken)
    cluster.wait_until_empty(90)
    codes = [cluster.run(["scontrol", "show", "job", f"{job}_{task}"]) for task in (0, 1)]
    assert "ExitCode=0:0" in codes[0] and "JobState=COMPLETED" in codes[0]
    assert "ExitCode=2:0" in codes[1] and "JobState=FAILED" in codes[1]
    left = array(sample, results, "--pending", sweep="--aspects 3 --methods imle --seeds 2 --epochs 1")
    assert re.findall(r"--seed (\d)", left) == ["1"]
