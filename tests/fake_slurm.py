"""``sbatch``, ``srun``, ``squeue`` and ``scontrol`` for a cluster of one machine, in one script.

Called by the name of the command; the folder of the variable FAKE_SLURM has a file for every job
with its state. Jobs run at once and all together.
"""

import os
import pathlib
import re
import subprocess
import sys

name, words = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
home = pathlib.Path(os.environ["FAKE_SLURM"])


def run(number, index, script):
    """Run an element of an array, again if it is requeued."""
    job = f"{number}_{index}" if index is not None else str(number)
    array = {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(index)}
    raw = str(number) if index is None else f"{number}{index:03}"
    ids = {"SLURM_JOB_ID": raw, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    while True:
        (home / job).write_text("RUNNING")
        environment = os.environ | ids | (array if index is not None else {})
        code = subprocess.run(["bash", script], env=environment).returncode
        requeued = home / f"requeue-{job}"
        if not requeued.exists():
            break
        requeued.unlink()
    (home / job).write_text("COMPLETED" if code == 0 else "FAILED")


if name == "sbatch":
    text = pathlib.Path(words[0]).read_text()
    if "--partition=none" in text:
        sys.exit("sbatch: error: invalid partition specified: none")
    number = 100 + len([*home.glob("*.sh")])
    script = home / f"{number}.sh"
    script.write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    for index in range(int(array[1]) + 1) if array else [None]:
        (home / (f"{number}_{index}" if array else str(number))).write_text("PENDING")
        if os.fork() == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(null, stream)
            run(number, index, script)
            os._exit(0)
    print(f"Submitted batch job {number}")
elif name == "srun":
    out = words[words.index("--output") + 1]
    with open(out.replace("%A", "a").replace("%a", "b").replace("%t", "0"), "ab") as log:
        start = next(i for i, word in enumerate(words) if "python" in word)
        sys.exit(subprocess.run(words[start:], stdout=log, stderr=log).returncode)
elif name == "squeue":
    for path in home.glob("[0-9]*"):
        if path.suffix != ".sh":
            print(path.name, path.read_text())
elif words[0] == "requeue":
    (home / f"requeue-{words[1]}").touch()
else:
    print("MaxArraySize            = 3")
