"""Recipes for clusters: scripts that run with a pretended SLURM, and files that fit the project."""

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
import test_docs
import yaml

from experiments import arguments, parsers, reproduce, settings, suites

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "experiments/launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sbatch"), *LAUNCH.glob("*.sh")])
RECIPES = sorted(path for path in LAUNCH.iterdir() if path.is_file())

PYTHON = """\
#!/bin/bash
printf '%s\\n' "$@" >"$CALLS/python"
env >"$CALLS/environment"
trap 'echo term >>"$CALLS/signals"; sleep 0.2; exit 143' TERM
touch "$CALLS/ready"
[ -n "${WAIT:-}" ] && for i in $(seq 600); do sleep 0.1; done
exit "${CODE:-0}"
"""
RECORD = '#!/bin/bash\nprintf "%s\\n" "$@" >"$CALLS/$(basename "$0")"\n'
SCONTROL = """\
#!/bin/bash
if [ "$1" = show ]; then echo "JobId=$3 JobState=${STATE:-RUNNING} Reason=None"
else printf '%s\\n' "$@" >"$CALLS/scontrol"; fi
"""
SRUN = RECORD + 'while [[ $1 == --* ]]; do shift; done\n"$@"\n'


@pytest.fixture
def cluster(tmp_path):
    """A folder of pretended commands, an environment to activate, and what they were called with.

    ``start(script, *arguments, **variables)`` starts a script there.
    """
    commands, calls = tmp_path / "venv/bin", tmp_path / "calls"
    commands.mkdir(parents=True)
    calls.mkdir()
    for name, text in {"python": PYTHON, "scontrol": SCONTROL, "srun": SRUN}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (commands / "activate").write_text(f"PATH={shlex.quote(str(commands))}:$PATH\n")

    class Cluster:
        def start(self, script, *words, **variables):
            environment = os.environ | {
                "VENV": str(tmp_path / "venv"),
                "CALLS": str(calls),
                "PATH": f"{commands}:{os.environ['PATH']}",
                "SLURM_JOB_ID": "77",
                "SLURM_ARRAY_TASK_ID": "3",
            }
            environment.pop("JAX_COMPILATION_CACHE_DIR", None)
            return subprocess.Popen(
                ["bash", LAUNCH / script, *words],
                env=environment | {name: str(value) for name, value in variables.items()},
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

        def run(self, *words, **variables):
            child = self.start(*words, **variables)
            return child.communicate(timeout=60)[0], child.returncode

        def called(self, name):
            path = calls / name
            return path.read_text().splitlines() if path.exists() else None

        def wait(self, name):
            end = time.monotonic() + 30.0
            while not (calls / name).exists():
                assert time.monotonic() < end, name
                time.sleep(0.02)

    return Cluster()


def parse(name, args):
    """Let the parser of ``experiments.NAME`` read arguments; it exits if one is wrong."""
    if name in ("run", "sweep"):
        settings.parse([name, *args], test_docs.own_flags(name))
        return None
    module = getattr(parsers, name, None) or importlib.import_module(f"experiments.{name}").parser
    parsed, others = arguments.parse(module(), args, others=True)
    assert all(word.startswith("--config.") for word in others), others
    return parsed


def given(words):
    """Name and arguments of ``-m experiments.NAME ...``."""
    assert words[0] == "-m" and words[1].startswith("experiments.")
    return words[1].removeprefix("experiments."), words[2:]


# ------------------------------------------------------------------------------------ scripts


def test_a_task_of_the_array_trains_its_cell(cluster, tmp_path, monkeypatch, capsys):
    out, code = cluster.run("slurm_array.sbatch", "debug", "--minutes=60", CODE=0)
    assert code == 0 and cluster.called("scontrol") is None, out
    name, args = given(cluster.called("python"))
    assert (name, args) == ("reproduce", ["--suite=debug", "--cell=3", "--minutes=60"])
    parse(name, args)
    monkeypatch.chdir(tmp_path)
    assert reproduce.main([*args, "--dry_run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "probe/match" in said[0] and "po_mpc" in said[0]
    assert any(
        line.startswith("JAX_COMPILATION_CACHE_DIR=") for line in cluster.called("environment")
    )


@pytest.mark.parametrize("script", ["slurm_array.sbatch", "slurm_hosts.sbatch"])
@pytest.mark.parametrize("code", [75, 129, 137, 143])
def test_what_can_be_resumed_is_queued_again(cluster, script, code):
    out, ended = cluster.run(script, "debug", CODE=code)
    assert ended == code and cluster.called("scontrol") == ["requeue", "77"]
    assert "queued again" in out


@pytest.mark.parametrize("script", ["slurm_array.sbatch", "slurm_hosts.sbatch"])
@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 130])
def test_what_would_end_the_same_way_is_not(cluster, script, code):
    assert cluster.run(script, "debug", CODE=code)[1] == code
    assert cluster.called("scontrol") is None


@pytest.mark.parametrize("script", ["slurm_array.sbatch", "slurm_hosts.sbatch"])
def test_a_job_that_was_cancelled_stays_cancelled(cluster, script):
    out, code = cluster.run(script, "debug", CODE=143, STATE="CANCELLED")
    assert code == 143 and cluster.called("scontrol") is None and "was cancelled" in out


@pytest.mark.parametrize("script", ["slurm_array.sbatch", "slurm_hosts.sbatch"])
def test_restarts_have_an_end(cluster, script):
    out, code = cluster.run(script, "debug", CODE=137, SLURM_RESTART_COUNT=50)
    assert code == 137 and cluster.called("scontrol") is None and "often enough" in out


def test_the_signal_of_the_time_limit_lets_the_cell_save(cluster):
    child = cluster.start("slurm_array.sbatch", "debug", WAIT=1)
    cluster.wait("ready")
    child.send_signal(signal.SIGTERM)
    out = child.communicate(timeout=60)[0]
    # One signal, and the script has waited for the run, which takes a while to save.
    assert cluster.called("signals") == ["term"] and child.returncode == 143, out
    assert cluster.called("scontrol") == ["requeue", "77"]


def test_one_run_over_hosts(cluster):
    out, code = cluster.run(
        "slurm_hosts.sbatch", "runs/x", "--config=experiments/configs/debug.py",
        "--config.train.num_seeds=4",
    )  # fmt: skip
    assert code == 0 and "--kill-on-bad-exit=0" in cluster.called("srun"), out
    name, args = given(cluster.called("python"))
    assert name == "run" and args[:2] == ["--workdir=runs/x", "--coordinator=auto"]
    parse(name, args)


def test_a_node_with_eight_gpus(cluster):
    for gpus, wanted in (({}, "0,1,2,3,4,5,6,7"), ({"GPUS": "0,2"}, "0,2")):
        out, code = cluster.run("node_8gpu.sh", "gpu", "--minutes=9", **gpus)
        assert code == 0, out
        name, args = given(cluster.called("python"))
        parsed = parse(name, args)
        assert (parsed.suite, parsed.gpus, parsed.minutes) == ("gpu", wanted, 9.0)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_missing_argument_is_one_line(cluster, script):
    out, code = cluster.run(script.name)
    assert code != 0 and "must be named" in out and out.count("\n") == 1
    assert cluster.called("python") is None


def test_without_the_environment_nothing_starts(cluster, tmp_path):
    out, code = cluster.run("slurm_array.sbatch", "debug", VENV=tmp_path / "nowhere")
    assert code == 2 and cluster.called("python") is None and "No such file" in out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", "-s", "bash", script]).returncode == 0
    if script.suffix == ".sh":
        assert script.stat().st_mode & stat.S_IXUSR


OPTIONS = {
    "job-name", "output", "open-mode", "gpus", "cpus-per-task", "mem", "time", "requeue", "signal",
    "nodes", "ntasks-per-node", "gpus-per-task",
}  # fmt: skip


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sbatch")), ids=lambda path: path.name)
def test_directives_are_where_sbatch_reads_them(script):
    lines = script.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    found = [line for line in lines if line.startswith("#SBATCH")]
    assert found == [line for line in lines[:first] if line.startswith("#SBATCH")]
    names = {re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line).group(1) for line in found}
    assert names <= OPTIONS and names >= {"requeue", "signal", "open-mode", "time"}


# ----------------------------------------------------------------------- commands in all files


def commands(text):
    """Every ``experiments.NAME ...`` of a recipe, comments included, as name and arguments."""
    # One line each: continued lines are joined, marks of comments and of lists are dropped.
    plain = re.sub(r"^\s*(?:# ?|- )\s*", "", text, flags=re.M)
    for line in re.sub(r"\\\n\s*", " ", plain).splitlines():
        match = re.search(r"(?:python -m|pomcp_jax\S*) +(experiments\.\w+)(.*)", line)
        if match:
            words = shlex.split(match.group(2), comments=True)
            known = {"$SLURM_ARRAY_TASK_ID": "0", "$suite": "gpu", "$workdir": "runs/x"}
            for old, new in known.items():
                words = [word.replace(old, new) for word in words]
            yield match.group(1).removeprefix("experiments."), [w for w in words if w != "$@"]


FOUND = [
    pytest.param(name, args, id=f"{path.name}: {name} {' '.join(args)[:50]}")
    for path in RECIPES
    for name, args in commands(path.read_text())
    if args[-1:] != ["&"] and not any("${" in word for word in args)
]


def test_commands_are_found():
    by_file = {param.id.partition(":")[0] for param in FOUND}
    assert by_file >= {"slurm_array.sbatch", "ray_cluster.yaml", "Dockerfile"}


@pytest.mark.parametrize(("name", "args"), FOUND)
def test_commands_parse(name, args):
    if name == "run" and not any(word.startswith("--config=") for word in args):
        args = ["--config=experiments/configs/debug.py", *args]
    parse(name, args)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_usage_of_a_script_names_the_script(path):
    head = path.read_text().partition("set -u")[0]
    assert f"experiments/launch/{path.name}" in head


# -------------------------------------------------------------------------- Kubernetes and Ray


def kubernetes():
    volume, job = yaml.safe_load_all((LAUNCH / "kubernetes_job.yaml").read_text())
    return volume, job


def rules():
    return kubernetes()[1]["spec"]["podFailurePolicy"]["rules"]


def reaction(code):
    """What the Job does when the container ends with ``code``: the first rule that fits decides."""
    for rule in rules():
        wanted = rule.get("onExitCodes")
        if wanted and code in wanted["values"]:
            return rule["action"]
    return "Count"


def test_the_job_is_what_kubernetes_accepts():
    volume, job = kubernetes()
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] <= spec["completions"]
    # A policy for failures needs Never, and FailIndex a limit for each index.
    assert pod["restartPolicy"] == "Never" and spec["backoffLimitPerIndex"] > 0
    container = pod["containers"][0]
    for rule in rules():
        assert rule["action"] in ("Ignore", "FailIndex", "Count", "FailJob")
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        if "onExitCodes" in rule:
            wanted = rule["onExitCodes"]
            assert wanted["containerName"] == container["name"] and wanted["operator"] == "In"
            assert 0 not in wanted["values"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert mounted == set(volumes)
    claim = volumes["runs"]["persistentVolumeClaim"]["claimName"]
    assert claim == volume["metadata"]["name"]
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_job_retries_what_can_be_resumed():
    assert {reaction(code) for code in (75, 129, 143)} == {"Ignore"}
    assert {reaction(code) for code in (2, 3)} == {"FailIndex"}
    # Out of memory and exceptions: some retries, not for ever.
    assert {reaction(code) for code in (1, 4, 137)} == {"Count"}


def test_an_index_of_the_job_is_a_cell_of_its_suite():
    spec = kubernetes()[1]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    (variable,) = (each for each in container["env"] if each["name"] == "CELL")
    field = variable["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    words = [word.replace("$(CELL)", "0") for word in container["command"]]
    assert words[0] == "python"
    name, args = given(words[1:])
    suite = suites.get(parse(name, args).suite)
    assert spec["completions"] == len(suite.tasks) * len(suite.methods)


def test_the_cluster_of_ray_has_what_its_launcher_needs():
    cluster = yaml.safe_load((LAUNCH / "ray_cluster.yaml").read_text())
    assert set(cluster) >= {
        "cluster_name", "provider", "auth", "max_workers", "setup_commands",
        "head_start_ray_commands", "worker_start_ray_commands",
    }  # fmt: skip
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    start = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert sum("ray start --head" in line for line in start) == 1
    assert any("--address=$RAY_HEAD_IP:6379" in line for line in start)
    extras = re.search(r'-e "\.\[(.*)\]"', " ".join(cluster["setup_commands"])).group(1)
    assert set(extras.split(",")) <= known_extras()


# ---------------------------------------------------------------------------------- container


def known_extras():
    text = (ROOT / "pyproject.toml").read_text()
    table = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return set(re.findall(r"^(\w+) = ", table, flags=re.M))


def instructions():
    """Instructions of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (LAUNCH / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


def test_the_container_copies_what_exists():
    copied = [shlex.split(rest) for name, rest in instructions() if name == "COPY"]
    sources = [word for words in copied for word in words[:-1] if not word.startswith("--")]
    assert sources[-1] == "." and len(sources) > 4
    for source in sources:
        assert (ROOT / source).exists(), source


def test_the_container_installs_as_the_readme_does_before_the_code_is_copied():
    steps = instructions()
    install = next(i for i, (_, rest) in enumerate(steps) if "pip install" in rest)
    whole = next(i for i, step in enumerate(steps) if step == ("COPY", "--chown=pomcp . ."))
    assert install < whole
    assert '-e ".[run]"' in (ROOT / "README.md").read_text()
    assert '-e ".[${EXTRAS}]"' in steps[install][1] and ("ARG", "EXTRAS=run") in steps
    needed = "pyproject.toml", "README.md", "LICENSE"  # that pyproject.toml names
    before = " ".join(rest for name, rest in steps[:install] if name == "COPY")
    assert all(name in before for name in needed)
    asked = re.findall(r"EXTRAS=([\w,]+)", (LAUNCH / "Dockerfile").read_text())
    assert all(set(extras.split(",")) <= known_extras() for extras in asked)


def test_the_container_does_not_run_as_root():
    steps = instructions()
    user = next(i for i, (name, _) in enumerate(steps) if name == "USER")
    assert steps[user] == ("USER", "pomcp")
    assert all(name != "USER" for name, _ in steps[user + 1 :])
    assert steps[-2] == ("ENTRYPOINT", '["python", "-m"]')
    name, *args = json.loads(steps[-1][1])
    parse(name.removeprefix("experiments."), args)


def test_the_container_leaves_out_what_git_ignores_and_nothing_else():
    read = lambda path: {  # noqa: E731
        line.strip("/").removeprefix("**/").rstrip("*").rstrip("/")
        for line in path.read_text().splitlines()
        if line and not line.startswith("#")
    }
    assert read(LAUNCH / "Dockerfile.dockerignore") == read(ROOT / ".gitignore")
