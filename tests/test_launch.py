"""The launchers run the right commands, and restart a run if and only if it was preempted and saved."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest
import yaml
from conftest import ROOT

from rar_jax.parallel import distributed
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
    """A folder with copies of the launchers, where stand-ins can replace the programs that they call."""
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


def launch(project, script, *arguments, **environment):
    """Does what `start` does, but does not wait for the end."""
    environment = {"PATH": f"{project}/bin:{os.environ['PATH']}", "PROJECT": str(project), **environment}
    command = [project / "launch" / script, *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_until(holds, seconds=30):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Each start of process i takes its exit code from the next line of the file "codes" + i, and records its arguments.
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
    # Both processes of a start have the same port.
    assert len({re.search(r"address=127\.0\.0\.1:(\d+)", call)[1] for call in calls}) == starts


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "3,GPU-5a,6"}, ["3", "GPU-5a"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["", ""]),
    ],
)
def test_local_gives_each_process_one_of_the_gpus_that_are_allowed(project, given, expected):
    put_program(project / ".venv/bin/python", 'echo "${*: -1}=$CUDA_VISIBLE_DEVICES" >> "$PROJECT/gpus"')
    assert start(project, "local.sh", "2", **given).returncode == 0
    gpus = [f"--process_id={i}={gpu}" for i, gpu in enumerate(expected)]
    assert sorted((project / "gpus").read_text().splitlines()) == gpus
    shown = start(project, "local.sh", "--dry_run", "2", **given).stdout.splitlines()
    assert [line.split()[0] for line in shown] == [f"CUDA_VISIBLE_DEVICES={gpu}" for gpu in expected]


def test_local_refuses_more_processes_than_gpus_are_allowed(project):
    done = start(project, "local.sh", "3", "--config=a.py", CUDA_VISIBLE_DEVICES="0,1")
    assert done.returncode == 2 and done.stderr == "error: CUDA_VISIBLE_DEVICES=0,1 has 2 GPUs for 3 processes\n"


def test_local_passes_signals_on_and_is_not_started_again(project):
    put_program(
        project / ".venv/bin/python",
        'trap "echo saved; exit 75" TERM; touch "$PROJECT/ready$RANDOM"; while true; do sleep 0.05; done',
    )
    process = launch(project, "local.sh", "2")
    wait_until(lambda: len(list(project.glob("ready*"))) == 2)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "saved\nsaved\n"
    assert process.returncode == PREEMPTED


SLURM = {"SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "8"}


@pytest.mark.parametrize(("code", "queued"), [(75, True), (0, False), (2, False), (134, False)])
def test_slurm(project, code, queued):
    put_program(project / "bin/srun", f'echo "$SRUN_CPUS_PER_TASK $*" >> "$PROJECT/calls"; exit {code}')
    put_program(project / "bin/scontrol", 'echo "scontrol $*" >> "$PROJECT/calls"')
    done = start(project, "slurm.sbatch", "--config=configs/rar_b.py", SLURM_SUBMIT_DIR=str(project), **SLURM)
    assert done.returncode == code, done.stderr
    calls = (project / "calls").read_text().splitlines()
    assert calls[0].endswith(".venv/bin/python -m rar_jax.main --config=configs/rar_b.py")
    # srun does not take this setting over from sbatch.
    assert calls[0].startswith("8 ")
    assert calls[1:] == ["scontrol requeue 17"] * queued


# Like the real srun, it kills its processes if it receives SIGTERM. The processes save if they receive SIGTERM.
SRUN = """
for i in 0 1; do
  bash -c 'trap "echo saved; exit 75" TERM; touch "$PROJECT/ready$0"; while true; do sleep 0.05; done' $i &
  echo $! >> "$PROJECT/processes"
done
trap 'kill -KILL $(cat "$PROJECT/processes"); exit 143' TERM
code=0
for pid in $(cat "$PROJECT/processes"); do wait "$pid" || code=$?; done
exit $code
"""
# With these arguments, the real scancel signals the processes of the job's steps, but not srun or the batch script.
SCANCEL = '[ "$*" = "--signal=TERM 17" ] && kill -TERM $(cat "$PROJECT/processes")'


@pytest.mark.parametrize(
    ("number", "queued"),
    # Its time is nearly up, and it is asked to end; or Slurm preempts it and queues it again.
    [(signal.SIGUSR1, True), (signal.SIGTERM, False)],
)
def test_slurm_lets_the_processes_save(project, number, queued):
    put_program(project / "bin/srun", SRUN)
    put_program(project / "bin/scancel", SCANCEL)
    put_program(project / "bin/scontrol", 'echo "scontrol $*" >> "$PROJECT/calls"')
    process = launch(project, "slurm.sbatch", SLURM_SUBMIT_DIR=str(project), **SLURM)
    wait_until(lambda: len(list(project.glob("ready*"))) == 2)
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == PREEMPTED and output.count("saved\n") == 2
    assert (project / "calls").exists() == queued
    if queued:
        assert (project / "calls").read_text() == "scontrol requeue 17\n"


def test_slurm_is_told_before_its_time_is_up():
    lines = (ROOT / "launch" / "slurm.sbatch").read_text().splitlines()
    # Only the batch script is signalled, with the signal that it traps.
    assert "#SBATCH --signal=B:USR1@300" in lines and "trap stop USR1" in lines


# Each query of the slice's state takes the next line of the file "states", and the last line stays. Each creation takes
# its error, if any, from the next line of "creations". Each install takes its exit code from "installs". Each training
# takes from "trainings" the output of the workers and the states that follow.
GCLOUD = """
echo "$*" >> "$PROJECT/calls"
next() { head -n 1 "$PROJECT/$1" 2>/dev/null; sed -i 1d "$PROJECT/$1" 2>/dev/null; }
case "$*" in
  *" describe "*)
    [ -s "$PROJECT/states" ] || exit 1
    if [ "$(wc -l < "$PROJECT/states")" -gt 1 ]; then next states; else cat "$PROJECT/states"; fi ;;
  *" create "*)
    error=$(next creations)
    if [ -n "$error" ]; then echo "ERROR: $error" >&2; exit 1; fi
    echo READY > "$PROJECT/states" ;;
  *" delete "*) rm "$PROJECT/states" ;;
  *install.sh*)
    code=$(next installs)
    exit "${code:-0}" ;;
  *rar_jax.main*)
    IFS='|' read -r said states <<< "$(next trainings)"
    printf "$said"
    tr , '\\n' <<< "$states" > "$PROJECT/states"
    exit 1 ;;
esac
"""
# Pauses take no time.
SLEEP = 'echo "sleep $*" >> "$PROJECT/calls"'
SLICE = ("rar", "us-central1-a", "v5litepod-64")


def put_cloud(project, states=(), **files):
    put_program(project / "bin/gcloud", GCLOUD)
    put_program(project / "bin/sleep", SLEEP)
    for name, lines in {"states": states, **files}.items():
        (project / name).write_text("".join(f"{line}\n" for line in lines))


def cloud_calls(project, *words):
    return [line for line in (project / "calls").read_text().splitlines() if all(word in line for word in words)]


@pytest.mark.parametrize(
    ("state", "trainings", "expected", "created", "trained"),
    [
        ("", [r"loss\nexit code 0\nexit code 0\n|READY"], 0, 1, 1),
        ("READY", ["exit code 0\\n|READY"], 0, 0, 1),
        ("PREEMPTED", ["exit code 0\\n|READY"], 0, 1, 1),
        ("READY", [r"exit code 75\nexit code 75\n|READY", "exit code 0\\n|READY"], 0, 0, 2),
        # The slice was taken away before the run could save.
        ("READY", [r"exit code 134\n|PREEMPTED", "exit code 0\\n|READY"], 0, 1, 2),
        # The workers are gone, and the state shows it only later.
        ("READY", [r"ssh: connection lost\n|READY,READY,PREEMPTED", "exit code 0\\n|READY"], 0, 1, 2),
        ("READY", [r"exit code 2\nexit code 2\n|READY"], 1, 0, 1),
        ("READY", [r"exit code 75\nexit code 134\n|READY"], 1, 0, 1),
        ("READY", ["ssh: connection lost\\n|READY"], 1, 0, 1),
    ],
)
def test_tpu_vm(project, state, trainings, expected, created, trained):
    put_cloud(project, [state] if state else [], trainings=trainings)
    flags = ("--config=configs/rar_b.py", "--workdir=gs://bucket/run", "--config.data.path=/mnt/a b")
    setup = {"TPU_CREATE_FLAGS": "--spot", "TPU_SETUP": "gcsfuse tokens /mnt/tokens"}
    done = start(project, "tpu_vm.sh", *SLICE, *flags, **setup)
    assert done.returncode == expected, done.stderr
    creations = cloud_calls(project, " create ")
    assert len(creations) == created and all(call.endswith(" --spot") for call in creations)
    runs = cloud_calls(project, "rar_jax.main")
    assert len(runs) == trained and all("--worker=all" in call for call in runs)
    assert all(r"--config=configs/rar_b.py --workdir=gs://bucket/run --config.data.path=/mnt/a\ b" in c for c in runs)
    # Each training is preceded by the installation and the set-up, because the slice may be a new one.
    prepared = [call for call in cloud_calls(project, "--command=") if "rar_jax.main" not in call]
    assert len(prepared) == 2 * trained
    assert all("install.sh tpu" in call for call in prepared[::2])
    assert all(call.endswith("--worker=all --command=gcsfuse tokens /mnt/tokens") for call in prepared[1::2])
    # A mistake in the flags is reported at once. Otherwise the state is polled for two minutes.
    failed = expected and "exit code 2" not in trainings[0]
    assert len(cloud_calls(project, "sleep 1")) == (120 if failed else 20 if ",PREEMPTED" in trainings[0] else 0)


@pytest.mark.parametrize(
    ("creations", "expected", "tries"),
    [
        (['There is no more capacity in the zone "us-central1-a"', "Insufficient capacity.", ""], 0, 3),
        (["Permission denied"], 1, 1),
    ],
)
def test_tpu_vm_waits_for_room_and_not_after_a_mistake(project, creations, expected, tries):
    put_cloud(project, creations=creations, trainings=["exit code 0\\n|READY"])
    done = start(project, "tpu_vm.sh", *SLICE, "--config=configs/rar_b.py")
    assert done.returncode == expected
    assert len(cloud_calls(project, " create ")) == tries
    assert done.stderr.count("No capacity for a v5litepod-64 in us-central1-a") == tries - 1
    assert len(cloud_calls(project, "sleep 1")) == 60 * (tries - 1)
    # The message of gcloud is shown.
    assert all(error in done.stderr for error in creations)


def test_tpu_vm_waits_for_a_slice_that_is_being_made(project):
    put_cloud(project, ["CREATING", "READY"], trainings=["exit code 0\\n|READY"])
    assert start(project, "tpu_vm.sh", *SLICE, "--config=configs/rar_b.py").returncode == 0
    assert not cloud_calls(project, " create ") and not cloud_calls(project, " delete ")


def test_tpu_vm_goes_on_when_the_slice_is_taken_away_during_the_install(project):
    put_cloud(project, ["READY", "PREEMPTED"], installs=["255"], trainings=["exit code 0\\n|READY"])
    done = start(project, "tpu_vm.sh", *SLICE, "--config=configs/rar_b.py")
    assert done.returncode == 0, done.stderr
    assert len(cloud_calls(project, " delete ")) == len(cloud_calls(project, " create ")) == 1


def test_tpu_vm_stops_while_it_waits_for_room(project):
    put_cloud(project, creations=["no more capacity"] * 9)
    (project / "bin/sleep").unlink()
    process = launch(project, "tpu_vm.sh", *SLICE, "--config=configs/rar_b.py")
    wait_until(lambda: (project / "calls").exists() and cloud_calls(project, " create "))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == PREEMPTED and len(cloud_calls(project, " create ")) == 1


def test_tpu_vm_stops_before_it_trains(project):
    slow_install = 'case "$*" in *" describe "*) echo READY ;; *install.sh*) sleep 0.5 ;; esac'
    put_program(project / "bin/gcloud", f'echo "$*" >> "$PROJECT/calls"; {slow_install}')
    process = launch(project, "tpu_vm.sh", *SLICE, "--config=configs/rar_b.py")
    wait_until(lambda: (project / "calls").exists() and cloud_calls(project, "install.sh"))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == PREEMPTED and not cloud_calls(project, "rar_jax.main")


# Commands run on one worker, which is a folder here.
GCLOUD_WITH_WORKER = """
echo "$*" >> "$PROJECT/calls"
case "$*" in
  *" describe "*) echo READY ;;
  *install.sh*) ;;
  *" ssh "*)
    # Training starts some time after the request.
    case "$*" in *"exit code"*) sleep 0.5 ;; esac
    asked=${!#}
    cd "$PROJECT/worker" && bash -c "${asked#--command=}" ;;
esac
"""
TRAINING = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
open("began", "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize("begun", [True, False])
def test_tpu_vm_passes_the_signal_on_and_hears_the_exit_code(project, begun):
    """The commands run without ssh. Among all processes whose command line names training, only Python is signalled."""
    put_program(project / "bin/gcloud", GCLOUD_WITH_WORKER)
    # The pattern is matched against all processes of this machine, so the name of the command is unique.
    command = f"training_{os.getpid()}"
    folder = project / "worker/rar_jax"
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").symlink_to(sys.executable)
    (folder / "rar_jax").mkdir()
    (folder / "rar_jax/__main__.py").write_text(TRAINING)
    process = launch(project, "tpu_vm.sh", *SLICE, "--config=configs/rar_b.py", TPU_COMMAND=command)
    wait_until(lambda: (project / "calls").exists() and cloud_calls(project, f"-m rar_jax {command} "))
    if begun:
        wait_until((folder / "began").exists)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=50)[0]
    if begun:
        assert process.returncode == PREEMPTED and "exit code 75\n" in output, output
    else:
        # While Python starts, SIGTERM ends it at once.
        assert process.returncode in (PREEMPTED, 128 + signal.SIGTERM), output
    assert len(cloud_calls(project, f"-m rar_jax {command} --config")) == 1


# A stand-in for Python with version $version, and with venv unless $no_venv is set.
PYTHON = """
echo "$(basename "$0") $*" >> "$PROJECT/calls"
case "$*" in
  -c*ensurepip*) [ -z "$no_venv" ] && [ "$version" -ge 11 ] ;;
  -c*) [ "$version" -ge 11 ] ;;
  "-m venv .venv") mkdir -p .venv/bin && cp "$PROJECT/pip" .venv/bin/pip ;;
  "-m pip install"*) [ -e "$PROJECT/uv" ] && mkdir -p "${@: -2:1}/bin" && cp "$PROJECT/uv" "${@: -2:1}/bin/uv" ;;
esac
"""
CALLED = 'echo "$(basename "$0") $*" >> "$PROJECT/calls"'


def install(project, pythons, *programs):
    """Runs install.sh on a machine with these Pythons only: name -> (minor version, whether it has venv)."""
    (project / "setup.py").touch()
    put_program(project / "pip", CALLED)
    for program in ("bash", "env", "basename", "dirname", "cat", "cksum", "cp", "mkdir", "mktemp", "rm", *programs):
        (project / "bin").mkdir(exist_ok=True)
        (project / "bin" / program).symlink_to(shutil.which(program) or project / program)
    for name, (version, venv) in pythons.items():
        put_program(project / "bin" / name, f"version={version} no_venv={'' if venv else 1}\n{PYTHON}")
    done = start(project, "install.sh", "cpu", "test", PATH=f"{project}/bin", TMPDIR=str(project))
    calls = (project / "calls").read_text().splitlines() if (project / "calls").exists() else []
    return done, [call for call in calls if " -c " not in call]


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3": (14, True)}, "python3"),
        ({"python3": (10, True), "python3.11": (11, True)}, "python3.11"),
        ({"python3": (11, True), "python3.12": (12, True), "python3.13": (13, True)}, "python3.13"),
        # On Debian, venv is missing without the package python3-venv.
        ({"python3": (13, False), "python3.13": (13, False), "python3.12": (12, True)}, "python3.12"),
    ],
)
def test_install_takes_the_first_python_that_will_do(project, pythons, chosen):
    done, calls = install(project, pythons)
    assert done.returncode == 0, done.stderr
    assert calls == [f"{chosen} -m venv .venv", "pip install --quiet --disable-pip-version-check -e .[cpu,test]"]
    # It is not created a second time.
    assert start(project, "install.sh", "cpu", "test", PATH=f"{project}/bin").returncode == 0
    assert [call for call in (project / "calls").read_text().splitlines() if " -c " not in call] == calls


# A stand-in for uv, which creates .venv in the working directory.
UV = CALLED + '; mkdir -p .venv/bin && cp "$PROJECT/pip" .venv/bin/pip'


@pytest.mark.parametrize("installed", [True, False])
def test_install_fetches_a_python_where_there_is_none_that_will_do(project, installed):
    put_program(project / "uv", UV)
    done, calls = install(project, {"python3": (10, True)}, *["uv"] * installed)
    assert done.returncode == 0, done.stderr
    assert calls[-2:] == [
        "uv venv --quiet --seed --python 3.12 .venv",
        "pip install --quiet --disable-pip-version-check -e .[cpu,test]",
    ]
    assert len(calls) == (2 if installed else 3)
    # uv itself is removed.
    assert not list(project.glob("tmp.*"))


@pytest.mark.parametrize("pythons", [{}, {"python3": (10, True)}])
def test_install_says_what_is_missing(project, pythons):
    done, _ = install(project, pythons)
    assert done.returncode == 2 and "error: install Python 3.11 or later with venv" in done.stderr
    assert not (project / ".venv").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "shown"),
    [
        ("local.sh", ["2"], "--num_processes=2 --process_id=1"),
        ("slurm.sbatch", [], "srun "),
        ("tpu_vm.sh", SLICE, "gcloud compute tpus tpu-vm create rar --zone=us-c"),
    ],
)
def test_dry_run_prints_and_runs_nothing(project, script, arguments, shown):
    for program in ("bin/gcloud", "bin/srun", "bin/scontrol", "bin/tar", ".venv/bin/python"):
        put_program(project / program, 'touch "$PROJECT/ran"')
    flags = ("--config=configs/rar_b.py", "--config.data.path=/mnt/a b")
    done = start(project, script, "--dry_run", *arguments, *flags)
    assert done.returncode == 0 and shown in done.stdout
    # The line is parsed as a shell does.
    assert r"rar_jax.main --config=configs/rar_b.py --config.data.path=/mnt/a\ b " in done.stdout
    assert not (project / "ran").exists()


@pytest.mark.parametrize(("script", "arguments"), [("local.sh", ["--config=a.py"]), ("tpu_vm.sh", ["rar", "zone"])])
def test_mistakes(project, script, arguments):
    done = start(project, script, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ")


@pytest.fixture
def jobset():
    return yaml.safe_load((ROOT / "launch" / "kubernetes.yaml").read_text())


def goes_on(jobset, code):
    """Returns what Job and JobSet do after a pod ends with an exit code: restart the JobSet, fail it, or None."""
    if code == 0:
        return None
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    # The first matching rule decides. Without one, the Job fails once too many pods have failed.
    reason = "BackoffLimitExceeded" if job["backoffLimit"] == 0 else None
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule["onExitCodes"]
        if (code in codes["values"]) == {"In": True, "NotIn": False}[codes["operator"]]:
            reason = {"FailJob": "PodFailurePolicy", "Ignore": None, "Count": reason}[rule["action"]]
            break
    policy = jobset["spec"]["failurePolicy"]
    for rule in policy["rules"]:
        if reason in rule.get("onJobFailureReasons", [reason]):
            return rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    return policy["maxRestarts"] > 0


@pytest.mark.parametrize(
    ("code", "again"), [(0, None), (PREEMPTED, True), (1, False), (2, False), (134, False), (137, False), (143, False)]
)
def test_kubernetes_starts_again_when_preempted_and_saved_and_only_then(jobset, code, again):
    assert goes_on(jobset, code) is again


def test_kubernetes_has_what_jobset_demands(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    # All pods start at once, each with its own number.
    assert job["parallelism"] == job["completions"] > 1 and job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    # Kubernetes requires this value with a podFailurePolicy.
    assert pod["restartPolicy"] == "Never"
    # Host names have letters, digits and hyphens, at most 63 together with the numbers of job and pod.
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", f"{jobset['metadata']['name']}-{workers['name']}")
    for container in pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}


def test_kubernetes_gives_the_processes_what_they_find_each_other_by(jobset, project, monkeypatch):
    """Runs the container's command as the kubelet does, with a stand-in for Python that prints its arguments."""
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    put_program(project / ".venv/bin/python", 'printf "%s\\n" "$@"')
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: joined.append(given))
    for index in range(job["completions"]):
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        # An Indexed Job adds this variable.
        environment |= {"JOB_COMPLETION_INDEX": str(index), "PATH": os.environ["PATH"]}
        output = subprocess.run(container["command"], cwd=project, env=environment, capture_output=True, text=True)
        option, module, *flags = output.stdout.splitlines()
        assert (option, module) == ("-m", "rar_jax.main"), output
        given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
        assert (ROOT / given["config"]).is_file()
        distributed.initialize(given["coordinator_address"], int(given["num_processes"]), int(given["process_id"]))
        # The folders of the run and of the data are mounted.
        for path in (given["workdir"], given["config.data.path"]):
            assert any(path.startswith(mount["mountPath"]) for mount in container["volumeMounts"])
    assert [each["process_id"] for each in joined] == list(range(job["completions"]))
    assert {each["num_processes"] for each in joined} == {job["completions"]}
    # This is JobSet's host name for the pod of process 0, in the service with the JobSet's name.
    name = jobset["metadata"]["name"]
    port = container["ports"][0]["containerPort"]
    assert {each["coordinator_address"] for each in joined} == {f"{name}-{workers['name']}-0-0.{name}:{port}"}


def test_kubernetes_signals_come_to_python(jobset, project):
    (container,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    put_program(
        project / ".venv/bin/python", 'trap "exit 75" TERM; touch "$PROJECT/ready"; while true; do sleep 0.05; done'
    )
    environment = {"PATH": os.environ["PATH"], "PROJECT": str(project), "NODES": "2", "JOB_COMPLETION_INDEX": "0"}
    process = subprocess.Popen(container["command"], cwd=project, env=environment)
    wait_until((project / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == PREEMPTED


@pytest.mark.long
def test_local_for_real(tmp_path):
    """One of two processes is asked to end. Both save, are started again, and finish."""
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
    output = (tmp_path / "log").read_text()
    assert output.count("Preempted and saved: restarting") == 1
    assert [entry["step"] for entry in read_metrics(run) if "train/loss" in entry] == list(range(5, 201, 5))


def test_the_page_trains_a_run_that_does_not_exist(project):
    put_program(project / ".venv/bin/python", 'echo "$*"')
    put_program(project / "launch/install.sh", 'echo "install $*"')
    (project / "mine").mkdir()
    train = f"-m rar_jax.main --config={project}/configs/digits_any_order.py --workdir="
    run = project / "runs" / "digits_any_order"
    default = start(project, "serve.sh").stdout.splitlines()
    assert default == ["install cpu demo", f"{train}{run}", f"-m rar_jax serve --checkpoint={run}"]
    # A folder is looked up where the user is, or on a bucket.
    for new in ("new", "gs://bucket/new"):
        assert start(project, "serve.sh", new, PLATFORM="cuda").stdout.splitlines() == [
            "install cuda demo", f"{train}{new}", f"-m rar_jax serve --checkpoint={new}",
        ]  # fmt: skip
    flag = start(project, "serve.sh", "--port=8000").stdout.splitlines()
    assert flag == [*default[:2], f"{default[2]} --port=8000"]
    mine = start(project, "serve.sh", project / "mine", "--port=8000").stdout.splitlines()
    assert mine == ["install cpu demo", f"-m rar_jax serve --checkpoint={project / 'mine'} --port=8000"]
