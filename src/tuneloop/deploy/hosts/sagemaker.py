"""Amazon SageMaker: a real-time endpoint with the vLLM of AWS' large model inference container."""

from __future__ import annotations

import json
from typing import Any

from tuneloop.deploy.deployment import ServingJob, engine_arguments, option_text
from tuneloop.deploy.hosts import Host, Steps, steps

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/djl-inference:0.36.0-lmi23.0.0-cu130"

PASSED = ("generation-config", "hf-overrides", "scheduling-policy")  # on to vLLM


def environment(job: ServingJob) -> dict[str, str]:
    """The container's variables (docs.djl.ai, LMI configurations)."""
    variables = {
        "HF_MODEL_ID": job.model, "OPTION_ROLLING_BATCH": "disable", "OPTION_ASYNC_MODE": "true",
        "OPTION_ENTRYPOINT": "djl_python.lmi_vllm.vllm_async_service", "OPTION_MAX_MODEL_LEN": str(job.context),
        "OPTION_TENSOR_PARALLEL_DEGREE": str(job.cards), "SERVING_FAIL_FAST": "true",
    }  # fmt: skip
    if job.half:
        variables["OPTION_DTYPE"] = "fp16"
    for name, value in engine_arguments(job).items():
        if name in PASSED:
            variables[f"OPTION_{name.replace('-', '_').upper()}"] = option_text(value)
    return variables


def requests(job: ServingJob) -> dict[str, dict[str, Any]]:
    """Bodies of the three calls that deploy it; the role and the token are filled in when they are sent."""
    instance = INSTANCES[job.machine.card.key][job.cards] if job.machine else "ml.g6.2xlarge"
    variant = {
        "VariantName": "all", "ModelName": job.name, "InstanceType": instance,
        "InitialInstanceCount": max(job.traffic.least, 1), "ContainerStartupHealthCheckTimeoutInSeconds": 1800,
        "ModelDataDownloadTimeoutInSeconds": 1800,
    }  # fmt: skip
    model = {"ModelName": job.name, "PrimaryContainer": {"Image": IMAGE, "Environment": environment(job)}}
    return {
        "create_model": {**model, "ExecutionRoleArn": "arn:aws:iam::123456789012:role/ROLE"},
        "create_endpoint_config": {"EndpointConfigName": job.name, "ProductionVariants": [variant]},
        "create_endpoint": {"EndpointName": job.name, "EndpointConfigName": job.name},
    }


def project(job: ServingJob) -> dict[str, str]:
    return {"requests.json": json.dumps(requests(job), indent=2) + "\n", "deploy.py": _SCRIPT}


_SCRIPT = '''"""Makes the calls of requests.json; what was created is deleted again when a later one fails.

A call whose answer was lost may have been carried out all the same: what it creates is looked for."""

import json
import os
import sys
from pathlib import Path

import boto3
from botocore.exceptions import ClientError

calls = json.loads(Path(__file__).with_name("requests.json").read_text())
calls["create_model"]["ExecutionRoleArn"] = os.environ["SAGEMAKER_ROLE"]
calls["create_model"]["PrimaryContainer"]["Environment"]["HF_TOKEN"] = os.environ["HF_TOKEN"]
client = boto3.client("sagemaker", region_name=os.environ.get("AWS_REGION", "us-east-1"))


def name_of(call):
    key = next(key for key in calls[call] if key.endswith("Name"))
    return {key: calls[call][key]}


def there(call):
    try:
        return getattr(client, call.replace("create_", "describe_"))(**name_of(call))
    except ClientError as error:
        if error.response["Error"]["Code"] == "ValidationException":  # SageMaker's word for what does not exist
            return None
        raise


for call in calls:
    if there(call):
        sys.exit(f"{name_of(call)} is there already: delete it, or deploy with another --name")
made = []
try:
    for call, values in calls.items():
        made.append(call)
        try:
            getattr(client, call)(**values)
        except ClientError:
            if not there(call):
                raise
except BaseException:
    for call in reversed(made):
        if there(call):
            getattr(client, call.replace("create_", "delete_"))(**name_of(call))
            print("undone:", call, name_of(call))
    raise
name = calls["create_endpoint"]["EndpointName"]
print("creating; it is ready when this says InService: aws sagemaker describe-endpoint --endpoint-name", name)
'''


def commands(job: ServingJob) -> Steps:
    ask = f"aws sagemaker-runtime invoke-endpoint --endpoint-name {job.name} --content-type application/json "
    ask += "--body fileb://request.json /dev/stdout"
    parts = ("endpoint", "endpoint-config", "model")
    down = "\n".join(f"aws sagemaker delete-{part} --{part}-name {job.name}" for part in parts)
    return steps("pip install boto3\npython deploy.py", ask, down)


INSTANCES: dict[str, dict[int, str]] = {
    "l4": {1: "ml.g6.2xlarge", 4: "ml.g6.12xlarge", 8: "ml.g6.48xlarge"},
    "a10g": {1: "ml.g5.2xlarge", 4: "ml.g5.12xlarge", 8: "ml.g5.48xlarge"},
    "l40s": {1: "ml.g6e.2xlarge", 4: "ml.g6e.12xlarge", 8: "ml.g6e.48xlarge"}, "a100-40gb": {8: "ml.p4d.24xlarge"},
    "a100-80gb": {8: "ml.p4de.24xlarge"}, "h100-sxm": {1: "ml.p5.4xlarge", 8: "ml.p5.48xlarge"},
}  # fmt: skip

HOST = Host(
    title="Amazon SageMaker",
    forms=("merged",),
    source="botocore's model of SageMaker's API, and docs.djl.ai for the container's variables, read on 2026-11-27",
    unchecked="that the image of that tag is in your region, quotas, the prices.",
    limits=("The address of the image holds for us-east-1.", "An endpoint is billed while it exists, used or not."),
    request_model=lambda job: "",
    gpus={key: key for key in INSTANCES},
    counts={key: tuple(row) for key, row in INSTANCES.items()},
    providers=("AWS us-east-1",),
    variables=("SAGEMAKER_ROLE", "HF_TOKEN"),
    secrets=(("SAGEMAKER_ROLE", "an IAM role that SageMaker may take on"), ("HF_TOKEN", "reads the model")),
)
