"""Modal: one function that trains, with a volume for the run."""

from __future__ import annotations

from tuneloop.deploy.clusters import Cluster, ClusterJob
from tuneloop.deploy.hosts import Steps
from tuneloop.deploy.hosts.modal import GPUS, KEEP_TOKEN


def project(job: ClusterJob) -> dict[str, str]:
    secrets = '[modal.Secret.from_name("huggingface")]' if job.gated else "[]"
    arguments = job.command(f"/runs/{job.name}").split()
    gpu = GPUS[job.gpu] + (f":{job.gpus}" if job.gpus > 1 else "")
    return {
        "app.py": f'''"""{job.name}: a training run on Modal. `modal run app.py`."""

import subprocess
import threading
from pathlib import Path

import modal

HERE = Path(__file__).parent
app = modal.App({job.name!r})
image = (
    modal.Image.debian_slim(python_version="3.12")
    .pip_install({job.package!r})
    .add_local_file(HERE / "recipe.yaml", "/job/recipe.yaml")
    .add_local_dir(HERE / "dataset", "/job/dataset")
)
runs = modal.Volume.from_name({job.name + "-runs"!r}, create_if_missing=True)


@app.function(
    image=image, gpu="{gpu}", volumes={{"/runs": runs}}, secrets={secrets},
    timeout=24 * 60 * 60, retries=3,
)
def train() -> None:
    # A function that is taken away begins again, and the run continues from its last checkpoint in the volume.
    over = threading.Event()

    def keep() -> None:
        while not over.wait(120):
            runs.commit()

    threading.Thread(target=keep, daemon=True).start()
    try:
        subprocess.run({arguments!r}, cwd="/job", check=True)
    finally:
        over.set()
        runs.commit()


@app.local_entrypoint()
def main() -> None:
    train.remote()
'''
    }


def commands(job: ClusterJob) -> Steps:
    secret = f"{KEEP_TOKEN}\n" if job.gated else ""
    return (
        (f"{secret}modal run --detach app.py", "Start it"),
        (f"modal volume get {job.name}-runs {job.name} runs/", "Fetch the run"),
        (f"modal app stop {job.name}\nmodal volume delete {job.name}-runs", "Take it down"),
    )


CLUSTER = Cluster(
    title="Modal",
    source="https://modal.com/docs/reference, read on 2026-11-27",
    unchecked="that the image builds there, the prices.",
    gpus=GPUS,
    providers=("Modal",),
    bucket="",
    nodes=1,
    variables=("HF_TOKEN",),
)
