"""The launchers: what they run, and that they start again when a run was preempted and saved, and only then."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT

from rar_jax.training.metrics import read_metrics

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch").glob("*.sbatch")])
PREEMPTED = 75


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    checked = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.fixture
def project(tmp_path):
    """The launchers in a folder of their own, where other programs can be put in the place of the real ones."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    return tmp_path


def put_program(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def start(project, script, *arguments, **environment):
    environment = {"PATH": f"{project}/bin:{os.environ['PATH']}", "PROJECT": str(project), **environment}
    return subprocess.run(
        [project / "launch" / script, *arguments], capture_output=True, text=True, timeout=60, env=environment
    )


# Each start of process i takes the next word of the file "codes" + i, and says with what it was called.
PROCESS = """
echo "$*" >> "$PROJECT/calls"
id=$(sed 's/.*--process_id=//' <<<"$*")
code=$(head -n 1 "$PROJECT/codes$id")
sed -i 1d "$PROJECT/codes$id"
exit "$code"
"""


@pytest.mark.parametrize(
    ("codes", "expected", "starts"),
    [
        (([0], [0]), 0, 1),
        (([75, 75, 0], [75, 75, 0]), 0, 3),
        (([75, 2], [75, 2]), 2, 2),
        (([75], [134]), 134, 1),
        (([1], [75]), 1, 1),
        (([0], [-1]), 255, 1),
    ],
)
def test_local(project, codes, expected, starts):
    put_program(project / ".venv/bin/python", PROCESS)
    for i, mine in enumerate(codes):
        (project / f"codes{i}").write_text("".join(f"{code}\n" for code in mine))
    done = start(project, "local.sh", "2", "--config=configs/digits.py", "--config.data.path=a b")
    assert done.returncode == expected, done.stderr
    calls = (project / "calls").read_text().splitlines()
    assert len(calls) == 2 * starts
    assert all("-m rar_jax.main --config=configs/digits.py --config.data.path=a b" in call for call in calls)
    assert all("--num_processes=2" in call for call in calls)
    assert sorted(call[-1] for call in calls) == ["0"] * starts + ["1"] * starts
    # Both of a start have one port.
    assert len({re.search(r"address=127\.0\.0\.1:(\d+)", call)[1] for call in calls}) == starts


def test_local_passes_signals_on_and_is_not_started_again(project):
    put_program(
        project / ".venv/bin/python",
        'trap "echo saved; exit 75" TERM; touch "$PROJECT/ready$RANDOM"; while true; do sleep 0.05; done',
    )
    process = subprocess.Popen(
        [project / "launch" / "local.sh", "2"], env=os.environ | {"PROJECT": str(project)}, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 30
    while len(list(project.glob("ready*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == b"saved\nsaved\n"
    assert process.returncode == PREEMPTED


@pytest.mark.parametrize(("code", "queued"), [(75, True), (0, False), (2, False), (134, False)])
def test_slurm(project, code, queued):
    put_program(project / "bin/srun", f'echo "$*" >> "$PROJECT/calls"; exit {code}')
    put_program(project / "bin/scontrol", 'echo "scontrol $*" >> "$PROJECT/calls"')
    done = start(project, "slurm.sbatch", "--config=configs/rar_b.py", SLURM_SUBMIT_DIR=str(project), SLURM_JOB_ID="17")
    assert done.returncode == code, done.stderr
    calls = (project / "calls").read_text().splitlines()
    assert calls[0].endswith(".venv/bin/python -m rar_jax.main --config=configs/rar_b.py")
    assert calls[1:] == ["scontrol requeue 17"] * queued


def test_slurm_passes_the_signal_on(project):
    put_program(project / "bin/srun", 'trap "exit 75" TERM; touch "$PROJECT/ready"; while true; do sleep 0.05; done')
    put_program(project / "bin/scontrol", 'echo "scontrol $*" >> "$PROJECT/calls"')
    environment = {"PATH": f"{project}/bin:{os.environ['PATH']}", "PROJECT": str(project)}
    environment |= {"SLURM_SUBMIT_DIR": str(project), "SLURM_JOB_ID": "17"}
    process = subprocess.Popen([project / "launch" / "slurm.sbatch"], env=environment, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not (project / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == PREEMPTED
    assert (project / "calls").read_text() == "scontrol requeue 17\n"


# A slice's state is in the file "state"; each training takes the next line of "trainings": what the workers say, and
# the state after it.
GCLOUD = """
echo "$*" >> "$PROJECT/calls"
case "$*" in
  *" describe "*) cat "$PROJECT/state" 2>/dev/null || exit 1 ;;
  *" create "*) echo READY > "$PROJECT/state" ;;
  *" delete "*) rm "$PROJECT/state" ;;
  *rar_jax.main*)
    IFS='|' read -r said state < "$PROJECT/trainings"
    sed -i 1d "$PROJECT/trainings"
    printf "$said"
    echo "$state" > "$PROJECT/state"
    exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("state", "trainings", "expected", "created", "trained"),
    [
        ("", [r"loss\nexit code 0\nexit code 0\n|READY"], 0, 1, 1),
        ("READY", ["exit code 0\\n|READY"], 0, 0, 1),
        ("PREEMPTED", ["exit code 0\\n|READY"], 0, 1, 1),
        ("READY", [r"exit code 75\nexit code 75\n|READY", "exit code 0\\n|READY"], 0, 0, 2),
        # Taken away before it could save.
        ("READY", [r"exit code 134\n|PREEMPTED", "exit code 0\\n|READY"], 0, 1, 2),
        ("READY", [r"exit code 2\nexit code 2\n|READY"], 1, 0, 1),
        ("READY", [r"exit code 75\nexit code 134\n|READY"], 1, 0, 1),
        ("READY", ["ssh: connection lost\\n|READY"], 1, 0, 1),
    ],
)
def test_tpu_vm(project, state, trainings, expected, created, trained):
    put_program(project / "bin/gcloud", GCLOUD)
    if state:
        (project / "state").write_text(f"{state}\n")
    (project / "trainings").write_text("".join(f"{line}\n" for line in trainings))
    flags = ("--config=configs/rar_b.py", "--workdir=gs://bucket/run", "--config.data.path=/mnt/a b")
    done = start(project, "tpu_vm.sh", "rar", "us-central1-a", "v5litepod-64", *flags, TPU_CREATE_FLAGS="--spot")
    assert done.returncode == expected, done.stderr
    calls = (project / "calls").read_text().splitlines()
    creations = [call for call in calls if " create " in call]
    assert len(creations) == created and all(call.endswith(" --spot") for call in creations)
    runs = [call for call in calls if "rar_jax.main" in call]
    assert len(runs) == trained and all("--worker=all" in call for call in runs)
    assert all(r"--config=configs/rar_b.py --workdir=gs://bucket/run --config.data.path=/mnt/a\ b" in c for c in runs)
    # Installed before each, as the slice may be a new one.
    assert len([call for call in calls if "install.sh tpu" in call]) == trained


@pytest.mark.parametrize(
    ("script", "arguments", "shown"),
    [
        ("local.sh", ["2"], "--num_processes=2 --process_id=1"),
        ("slurm.sbatch", [], "srun "),
        ("tpu_vm.sh", ["rar", "us-central1-a", "v5litepod-64"], "gcloud compute tpus tpu-vm create rar --zone=us-c"),
    ],
)
def test_dry_run_prints_and_runs_nothing(project, script, arguments, shown):
    for program in ("bin/gcloud", "bin/srun", "bin/scontrol", "bin/tar", ".venv/bin/python"):
        put_program(project / program, 'touch "$PROJECT/ran"')
    done = start(project, script, "--dry_run", *arguments, "--config=configs/rar_b.py")
    assert done.returncode == 0 and shown in done.stdout and "rar_jax.main --config=configs/rar_b.py" in done.stdout
    assert not (project / "ran").exists()


@pytest.mark.parametrize(("script", "arguments"), [("local.sh", ["--config=a.py"]), ("tpu_vm.sh", ["rar", "zone"])])
def test_mistakes(project, script, arguments):
    done = start(project, script, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ")


def test_kubernetes():
    """What JobSet needs to give the processes names and numbers, and to start them again on 75 and only then."""
    jobset = yaml.safe_load((ROOT / "launch" / "kubernetes.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 0
    assert policy["rules"] == [
        {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert job["parallelism"] == job["completions"] and job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [PREEMPTED]}}
    pod = job["template"]["spec"]
    # Kubernetes allows a podFailurePolicy with no other.
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert {"name": "NODES", "value": str(job["completions"])} in container["env"]
    shell, option, script = container["command"]
    assert (shell, option) == ("sh", "-c") and "\n" not in script.strip()
    # In place of the shell, so that SIGTERM comes to it.
    assert script.startswith("exec .venv/bin/python -m rar_jax.main --config=configs/")
    host = f"{jobset['metadata']['name']}-{workers['name']}-0-0.{jobset['metadata']['name']}"
    port = container["ports"][0]["containerPort"]
    assert f"--coordinator_address={host}:{port} --num_processes=$NODES --process_id=$JOB_COMPLETION_INDEX" in script
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.long
def test_local_for_real(tmp_path):
    """One of two processes is asked to end: both save, are started again and finish."""
    run = tmp_path / "run"
    (tmp_path / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    for name in ("rar_jax", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    small = ["--config.model.width=16", "--config.model.depth=1", "--config.train.stop_step=200"]
    small += ["--config.eval.every=1000", "--config.eval.report_samples=0", "--config.train.log_every=5"]
    command = [tmp_path / "launch" / "local.sh", "2", "--config=configs/digits.py", f"--workdir={run}", *small]
    environment = {name: os.environ[name] for name in ("PATH", "XDG_CACHE_HOME")} | {"JAX_PLATFORMS": "cpu"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 300
    while not read_metrics(run) and time.monotonic() < deadline:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.02)
    found = subprocess.run(["pgrep", "-f", f"workdir={run} .*--process_id=1$"], capture_output=True, text=True)
    os.kill(int(found.stdout.split()[-1]), signal.SIGTERM)
    assert process.wait(timeout=300) == 0, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert said.count("Preempted and saved: starting again") == 1
    assert [entry["step"] for entry in read_metrics(run) if "train/loss" in entry] == list(range(5, 201, 5))
