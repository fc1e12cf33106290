"""A run that needs no JAX: ``python fake_run.py DECISIONS SECONDS CONFIG --workdir=DIR``.

Each of its decisions adds a line to a chain of digests, so that one that is done twice, left out or
out of order shows. A checkpoint after each is one file, replaced in one step. SIGTERM saves and
exits as experiments.run does; the kinds of endings below are for tests.
"""

import hashlib
import json
import os
import pathlib
import signal
import sys
import time

CHECKPOINT = "checkpoints/state.json"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def main(total, seconds, config, workdir):
    stopped = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopped.append(number))
    try:
        state = json.loads((workdir / CHECKPOINT).read_text())
    except FileNotFoundError:
        state = {"done": 0, "chain": "", "rows": []}
    write(workdir / "config.json", config)

    def record(status, code):
        about = {"exit_code": code, "status": status, "decisions_per_seed": state["done"]}
        about |= {"seconds": state["done"] * seconds, "last_checkpoint": state["done"]}
        write(workdir / "run.json", json.dumps(about))
        return code

    record("running", None)
    print(f"resumed at {state['done']}", flush=True)
    while state["done"] < total and not stopped:
        time.sleep(seconds)
        state["done"] += 1
        state["chain"] = hashlib.sha256(f"{state['chain']} {state['done']}".encode()).hexdigest()
        state["rows"].append(f"0,{state['done']},{state['chain']}")
        write(workdir / CHECKPOINT, json.dumps(state))
        write(workdir / "run.json", json.dumps({"status": "running", "seconds": 0,
              "last_checkpoint": state["done"], "exit_code": None}))  # fmt: skip
    rows = "\n".join(state["rows"])
    write(workdir / "evaluations.csv", f"seed,decisions,eval/return\n{rows}\n")
    write(workdir / "metrics.csv", f"seed,decisions,digest\n{rows}\n")
    if stopped:
        return record("stopped", 128 + stopped[0])
    print(f"trained {total}", flush=True)
    return record("done", 0)


if __name__ == "__main__":
    total, seconds, config, *others = sys.argv[1:]
    place = next(text.removeprefix("--workdir=") for text in others if "--workdir=" in text)
    os.umask(0o022)
    sys.exit(main(int(total), float(seconds), config, pathlib.Path(place)))
