"""What is written to train elsewhere is what the places' own definitions accept."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from host_definitions import in_environment

from tuneloop.core.errors import UserError
from tuneloop.deploy.clusters import ClusterJob, clusters, find_cluster

JOBS = [
    ClusterJob("tickets", "h100-sxm"),
    ClusterJob("tickets", "h100-sxm", gpus=8, gated=False),
    ClusterJob("tickets", "h100-sxm", gpus=8, nodes=2, spot=True, bucket="s3://acme"),
]


def written(name: str, job: ClusterJob, folder: Path) -> dict[str, Path]:
    files = find_cluster(name).project(job)
    for file, text in files.items():
        (folder / file).write_text(text)
    return {file: folder / file for file in files}


def test_the_places_are_known_and_a_slip_is_named() -> None:
    assert sorted(clusters()) == ["kubernetes", "modal", "skypilot", "slurm", "torchrun"]
    with pytest.raises(UserError, match="No place 'slurn'") as caught:
        find_cluster("slurn")
    assert "slurm" in caught.value.next_step
    with pytest.raises(UserError) as caught:
        find_cluster("moon")
    assert "skypilot" in caught.value.next_step and "ray://HOST" in caught.value.next_step


@pytest.mark.parametrize("name", ["skypilot", "kubernetes", "slurm", "torchrun"])
def test_one_card_runs_alone_and_several_find_each_other(name: str) -> None:
    item, several, many = ("\n".join(find_cluster(name).project(job).values()) for job in JOBS)
    assert "-m tuneloop run recipe.yaml" in item and "torchrun" not in item.replace("--on torchrun", "")
    assert "torchrun --nproc-per-node 8 -m tuneloop" in several
    assert "--nproc-per-node 8 --nnodes" in many and "--node-rank" in many and "--master-addr" in many
    assert len(find_cluster(name).commands(JOBS[0])) == 3


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(("name", "file"), [("slurm", "job.sbatch"), ("torchrun", "run.sh")])
def test_the_shell_reads_the_scripts(tmp_path: Path, name: str, file: str, job: ClusterJob) -> None:
    subprocess.run(["bash", "-n", written(name, job, tmp_path)[file]], check=True)


@pytest.mark.parametrize("job", JOBS)
def test_skypilot_s_schemas_accept_the_task(tmp_path: Path, job: ClusterJob) -> None:
    files = written("skypilot", job, tmp_path)
    code = """
import sys, yaml, jsonschema
from sky.utils import schemas
task = yaml.safe_load(open(sys.argv[1]))
jsonschema.validate(task, schemas.get_task_schema())
jsonschema.validate(task["resources"], schemas.get_resources_schema())
for store in task.get("file_mounts", {}).values():
    jsonschema.validate(store, schemas.get_storage_schema())
"""
    in_environment("skypilot", code, files["sky.yaml"], HOME=str(tmp_path))


@pytest.mark.parametrize("job", JOBS)
def test_kubernetes_accepts_the_job_strictly(tmp_path: Path, job: ClusterJob) -> None:
    files = written("kubernetes", job, tmp_path)
    kinds = [item["kind"] for item in yaml.safe_load_all(files["job.yaml"].read_text())]
    assert ("Service" in kinds) is (job.nodes > 1)
    code = """
import sys, yaml, kubernetes_validate
for each in yaml.safe_load_all(open(sys.argv[1])):
    kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
"""
    in_environment("kubernetes-validate", code, files["job.yaml"])


@pytest.mark.parametrize("job", JOBS[:2])
def test_modal_builds_the_app_without_a_token(tmp_path: Path, job: ClusterJob) -> None:
    files = written("modal", job, tmp_path)
    (tmp_path / "recipe.yaml").write_text("version: 1\n")
    (tmp_path / "dataset").mkdir()
    code = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("app", sys.argv[1])
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
assert list(module.app.registered_functions) == ["train"]
"""
    in_environment("modal", code, files["app.py"], HOME=str(tmp_path))
