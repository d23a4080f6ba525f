"""A run on a service's machines: what is sent, followed, continued, ended; and measured as any other model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from by_day import by_day
from fireworks_service import ACCOUNT, Fireworks
from fireworks_service import BASE as LLAMA
from host_definitions import in_environment
from openai_service import BASE, KEY, MODEL, Service, serving

from patience import until
from tuneloop.cli.main import main
from tuneloop.core.files import read_json, read_jsonl
from tuneloop.deploy import hosted

OUT = Path("runs/there")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    things = ["parcel", "invoice", "refund", "courier", "receipt", "label", "address", "voucher"]
    rows = [
        {
            "text": f"the {things[i % 8]} and the {things[(3 * i + i // 8) % 8]} of order {i * 7919}",
            "label": "late" if i % 2 else "lost",
        }
        for i in range(60)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["prepare", str(folder / "rows.jsonl"), "-o", str(folder / "data"), "--quiet", "split.test=0.3"]) == 0
    return folder


@pytest.fixture
def patch(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A folder with the data, and all keys."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "TOGETHER_API_KEY", "FIREWORKS_API_KEY"):
        monkeypatch.setenv(name, KEY)
    trained = hosted.run_hosted
    monkeypatch.setattr(hosted, "run_hosted", lambda *a, **more: trained(*a, **more, pause=0.01))
    return monkeypatch


@pytest.fixture
def service(patch: pytest.MonkeyPatch) -> Iterator[Service]:
    with serving(Service(jobs=[])) as item:
        item.answer = lambda body: "late"
        patch.setenv("TOGETHER_BASE_URL", item.url.removesuffix("/v1"))  # as its client of today takes it
        yield item


@pytest.fixture
def fireworks(patch: pytest.MonkeyPatch) -> Iterator[Fireworks]:
    with serving(Fireworks()) as item:
        assert isinstance(item, Fireworks)
        item.answer = lambda body: "late"
        patch.setenv("FIREWORKS_BASE_URL", item.url.removesuffix("/v1"))
        patch.setenv("FIREWORKS_ACCOUNT_ID", ACCOUNT)
        yield item


def run(service: Service, *more: str, status: int = 0, on: str = "") -> dict[str, Any]:
    base = LLAMA if on == "fireworks" else BASE
    text = ["run", "data", f"model={base}", f"output_dir={OUT}", "--on", on or service.url, *more]
    assert main([*text, "--json", "--quiet"]) == status
    return {}


def test_a_hosted_run_is_sent_followed_and_measured(service: Service, capsys: Capture) -> None:
    run(service, "--yes")
    order = service.bodies[0]
    assert (order["model"], order["training_file"], order["validation_file"]) == (BASE, "file-0", "file-1")
    assert order["method"]["supervised"]["hyperparameters"] == {"n_epochs": 3}
    sent = [json.loads(line) for line in service.files["file-0"][1].splitlines()]
    assert len(sent) == len(read_jsonl("data/train.jsonl")) and all(row.keys() == {"messages"} for row in sent)
    record, evaluation = read_json(OUT / "hosted.json"), read_json(OUT / "eval.json")
    assert (record["state"], record["model"], record["tokens"]) == ("succeeded", MODEL, 999)
    assert (
        evaluation["name"] == "tuned"
        and evaluation["model"] == MODEL
        and 0 < evaluation["metrics"]["accuracy"]["value"] < 1
    )
    steps = read_jsonl(OUT / "metrics.jsonl")
    assert [step["step"] for step in steps] == list(range(1, 31)) and steps[0]["loss"] == 1.0
    assert KEY.encode() not in b"".join(path.read_bytes() for path in OUT.rglob("*") if path.is_file())
    assert main(["gate", str(OUT), "--against", f"{OUT}:majority class", "--margin", "90", "--json"]) in (0, 1, 3)


def test_nothing_is_sent_without_a_yes_and_the_price_comes_first(service: Service, capsys: Capture) -> None:
    assert main(["run", "data", f"model={BASE}", "--on", service.url]) == 0
    text = "".join(capsys.readouterr())
    assert "3 epochs" in text and "$3 for 1M" in text and "Nothing was sent" in text and not service.calls
    assert main(["run", "data", f"model={BASE}", "--on", service.url, "--max-usd", "0.0000001", "--yes"]) == 2
    assert "--max-usd" in capsys.readouterr().err and not service.calls


def test_a_run_that_was_interrupted_continues_its_job(service: Service) -> None:
    service.faults = {r"GET /v1/fine_tuning/jobs/ftjob-1$": [(401, {}, "expired")]}
    run(service, "--yes", status=2)
    assert read_json(OUT / "hosted.json")["job"] == "ftjob-1"
    run(service)
    assert len(service.jobs) == 1 and len(service.files) == 2


def test_a_job_whose_reply_was_lost_is_not_started_twice(service: Service) -> None:
    service.faults = {"POST /v1/fine_tuning/jobs": ["cut"]}
    run(service, "--yes", status=2)
    assert len(service.jobs) == 1 and not read_json(OUT / "hosted.json").get("job")
    run(service)
    assert len(service.jobs) == 1 and read_json(OUT / "eval.json")["model"] == MODEL


@pytest.mark.parametrize("on", ["", "together", "fireworks"])
def test_a_gateway_that_fails_behind_a_taken_order_makes_no_second_job(
    service: Service, fireworks: Fireworks, on: str
) -> None:
    there = fireworks if on == "fireworks" else service
    there.faults = {r"POST .*(/jobs|/fine-tunes|TuningJobs)$": [503]}
    run(there, "--yes", on=on, status=2)
    run(there, on=on, status=2 if on == "fireworks" else 0)
    assert len(there.jobs) == 1 and jobs_ordered(there) == 1


JOBS = re.compile(r"POST .*(/fine_tuning/jobs|/fine-tunes|/supervisedFineTuningJobs)$")


def jobs_ordered(service: Service) -> int:
    return sum(bool(JOBS.match(call)) for call in service.calls)


@pytest.mark.parametrize("on", by_day(["", "together", "fireworks"], 1))
def test_two_commands_at_once_start_one_job_from_two_folders_too(
    service: Service, fireworks: Fireworks, on: str, tmp_path: Path
) -> None:
    there = fireworks if on == "fireworks" else service
    base = LLAMA if on == "fireworks" else BASE
    outputs = [tmp_path / f"{number}.log" for number in range(2)]

    def both_are_here() -> bool:
        return jobs_ordered(there) > 1 or any("starts the same job" in log.read_text() for log in outputs)

    there.before = lambda path: until(both_are_here) if JOBS.match(there.calls[-1]) else None
    command = [sys.executable, "-m", "tuneloop", "run", "data", f"model={base}", "--on", on or there.url, "--yes"]
    with outputs[0].open("w") as first, outputs[1].open("w") as second:
        processes = [
            subprocess.Popen([*command, f"output_dir=runs/{number}"], stderr=log, stdout=subprocess.DEVNULL)
            for number, log in enumerate((first, second))
        ]
        until(lambda: all((tmp_path / f"runs/{n}/hosted.json").is_file() for n in range(2)))
        until(lambda: all(read_json(tmp_path / f"runs/{n}/hosted.json").get("job") for n in range(2)))
        for process in processes:
            process.kill()
            process.wait()
    assert len(there.jobs) == 1 and jobs_ordered(there) == 1


@pytest.mark.parametrize("on", ["", "together", "fireworks"])
def test_a_refused_quota_starts_nothing_and_the_same_command_continues(
    service: Service, fireworks: Fireworks, on: str, capsys: Capture
) -> None:
    there = fireworks if on == "fireworks" else service
    there.faults = {JOBS.pattern: [(429, {}, "You exceeded your current quota (insufficient_quota)")]}
    run(there, "--yes", on=on, status=2)
    assert "exceeded your current quota" in "".join(capsys.readouterr()) and not there.jobs
    sent = sum(call.startswith("POST") for call in there.calls)
    run(there, on=on, status=2 if on == "fireworks" else 0)
    assert len(there.jobs) == 1 and len(there.files) == 2
    assert jobs_ordered(there) == 2 and sent <= 6


@pytest.mark.parametrize("on", ["", "together", "fireworks"])
def test_a_job_that_hangs_is_left_after_a_time_and_ended_by_max_minutes(
    service: Service, fireworks: Fireworks, patch: pytest.MonkeyPatch, on: str, capsys: Capture
) -> None:
    there = fireworks if on == "fireworks" else service
    there.ends = "RUNNING" if on == "fireworks" else "running"
    patch.setattr(hosted, "STILL", 0.05)
    run(there, "--yes", on=on, status=2)
    assert "nothing new" in "".join(capsys.readouterr())
    field = "state" if on == "fireworks" else "status"
    assert [job[field].casefold().removeprefix("job_state_") for job in there.jobs] == ["running"]
    patch.setattr(hosted, "STILL", 3600.0)
    run(there, "max_minutes=0.0001", on=on, status=2)
    assert "max_minutes=0.0001" in "".join(capsys.readouterr())
    assert [job[field].casefold().removeprefix("job_state_")[:6] for job in there.jobs] == ["cancel"]
    assert read_json(OUT / "hosted.json")["state"] == "cancelled"


def test_together_s_own_price_decides_before_a_job_starts(service: Service, capsys: Capture) -> None:
    service.price = 9.0
    run(service, "--yes", on="together", status=2)  # the table says less than a cent
    assert "$9" in "".join(capsys.readouterr()) and not service.jobs
    run(service, "--yes", "--max-usd", "5", on="together", status=2)
    assert "$9" in "".join(capsys.readouterr()) and not service.jobs
    service.credit = 8.0
    run(service, "--yes", "--max-usd", "10", on="together", status=2)
    assert "your credit" in "".join(capsys.readouterr()) and not service.jobs
    service.credit = 100.0
    run(service, "--yes", "--max-usd", "10", on="together")
    assert len(service.jobs) == 1 and read_json(OUT / "hosted.json")["usd"] == 9.0


def test_a_limit_needs_no_table_where_the_service_names_its_price(
    service: Service, patch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    text = ["run", "data", "model=acme/unlisted", f"output_dir={OUT}", "--on", "together", "--quiet", "--yes"]
    service.unchecked = 10**6
    patch.setattr("tuneloop.deploy.services.together.LOOKS", 3)
    assert main([*text, "--max-usd", "1"]) == 2 and not service.jobs
    assert "nothing yet" in "".join(capsys.readouterr())
    service.unchecked, service.price = 1, 0.5
    assert main([*text, "--max-usd", "1"]) == 0
    assert len(service.jobs) == 1 and read_json(OUT / "hosted.json")["usd"] == 0.5


def test_a_job_that_fireworks_puts_above_the_limit_is_ended_at_once(fireworks: Fireworks, capsys: Capture) -> None:
    fireworks.price = 7.25
    run(fireworks, "--yes", "--max-usd", "5", on="fireworks", status=2)
    assert "$7.25" in "".join(capsys.readouterr())
    assert [job["state"] for job in fireworks.jobs] == ["JOB_STATE_CANCELLING"]
    assert fireworks.jobs[0]["looks"] == 1
    fireworks.price = 0.25
    command = ["run", "data", f"model={LLAMA}", "output_dir=runs/b", "--on", "fireworks", "--quiet", "--yes"]
    assert main([*command, "--max-usd", "5"]) == 2
    assert [job["state"] for job in fireworks.jobs] == ["JOB_STATE_CANCELLING", "JOB_STATE_COMPLETED"]
    assert read_json("runs/b/hosted.json")["usd"] == 0.25


def test_what_was_billed_is_by_the_tokens_of_the_service(service: Service) -> None:
    run(service, "--yes")
    record = read_json(OUT / "hosted.json")
    assert (record["price"], record["tokens"], record["usd"]) == (3.0, 999, pytest.approx(999 * 3e-6))


def test_a_job_that_fails_says_why_and_one_is_ended_by_cancel(service: Service, capsys: Capture) -> None:
    service.ends = "failed"
    run(service, "--yes", status=2)
    assert "row 3 is bad" in capsys.readouterr().out and not (OUT / "eval.json").exists()
    service.ends, text = "succeeded", ["run", "data", f"model={BASE}", "output_dir=runs/b", "--on", service.url]
    service.faults = {r"GET /v1/fine_tuning/jobs/ftjob-2$": [(401, {}, "expired")]}
    assert main([*text, "--yes", "--quiet"]) == 2
    assert main([*text, "--cancel", "--quiet"]) == 0
    assert service.jobs[0]["status"] == "cancelled" and read_json("runs/b/hosted.json")["state"] == "cancelled"


def test_together_trains_by_its_own_api_and_gives_the_weights(service: Service) -> None:
    service.faults = {"GET .*/metrics": [(404, {}, "no metrics yet")]}
    run(service, "--yes", on="together")
    order = service.bodies[0]
    assert order["suffix"] and order["random_seed"] == 0 and order["training_method"]["method"] == "sft"
    assert "training_type" not in order  # LoRA of the service's rank: its client would send rank and alpha with it
    record = read_json(OUT / "hosted.json")
    assert (record["on"], record["state"], record["weights"]) == ("Together", "succeeded", "adapter.tar.zst")
    assert (OUT / "adapter.tar.zst").read_bytes() == b"weights" and read_json(OUT / "eval.json")["model"] == MODEL
    assert [step["loss"] for step in read_jsonl(OUT / "metrics.jsonl")] == [1.0, 1 / 2, 1 / 3]


def test_weights_elsewhere_are_fetched_without_the_key(service: Service) -> None:
    service.faults = {"GET /v1/finetune/download": [(307, {"Location": f"{service.url}/signed/adapter"}, "")]}
    run(service, "--yes", on="together")
    assert (OUT / "adapter.tar.zst").read_bytes() == b"weights" and "GET /v1/signed/adapter" in service.calls


def test_a_model_that_needs_an_endpoint_first_is_trained_and_the_step_is_named(
    service: Service, capsys: Capture
) -> None:
    service.refuse = lambda body: "Unable to access non-serverless model"
    service.faults = {"GET /v1/finetune/download": [(403, {}, "no download")]}
    run(service, "--yes", on="together", status=2)
    text = "".join(capsys.readouterr())
    assert "not measured yet" in text and "non-serverless" in text and f"dedicated endpoint of {MODEL}" in text
    assert read_json(OUT / "hosted.json")["state"] == "succeeded"
    service.refuse = lambda body: ""
    command = text[text.index("tuneloop evaluate") :].split("`")[0].replace("ENDPOINT", MODEL)
    assert main([*shlex.split(command)[1:], "--quiet"]) == 0 and read_json(OUT / "eval.json")["model"] == MODEL
    run(service, on="together")
    assert len(service.jobs) == 1 and read_json(OUT / "hosted.json")["weights"]


TUNED = f"accounts/{ACCOUNT}/models/tuneloop-"


@pytest.mark.parametrize("loaded", [False, True])
def test_fireworks_trains_and_is_measured_once_the_model_is_deployed(
    fireworks: Fireworks, loaded: bool, capsys: Capture
) -> None:
    run(fireworks, "--yes", on="fireworks", status=2)
    record, order = read_json(OUT / "hosted.json"), fireworks.bodies[0]
    assert f"firectl deployment create {record['model']}" in "".join(capsys.readouterr())
    assert record["model"].startswith(TUNED) and (record["state"], record["job"]) == ("succeeded", "j1")
    assert (order["baseModel"], order["epochs"], order["outputModel"]) == (LLAMA, 3, f"tuneloop-{record['key']}")
    assert order["dataset"] == f"accounts/{ACCOUNT}/datasets/tuneloop-{record['key']}-train"
    sent = fireworks.files[f"tuneloop-{record['key']}-train"][1].splitlines()
    assert fireworks.datasets[f"tuneloop-{record['key']}-train"]["exampleCount"] == str(len(sent)) != "0"
    assert all(json.loads(line).keys() == {"messages"} for line in sent)
    assert record["weights"] == "adapter"
    assert (OUT / "adapter" / "adapter_model.safetensors").read_bytes() == b"weights of adapter_model.safetensors"
    name = f"accounts/{ACCOUNT}/deployments/d1"
    fireworks.deployments = [{"name": name, "baseModel": LLAMA if loaded else record["model"], "state": "READY"}]
    fireworks.loaded = {record["model"]: name} if loaded else {}
    run(fireworks, on="fireworks")
    assert len(fireworks.jobs) == 1 and read_json(OUT / "eval.json")["model"] == f"{record['model']}#{name}"
    assert KEY.encode() not in b"".join(path.read_bytes() for path in OUT.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "lost", ["POST .*/datasets$", "POST .*-train:upload$", "POST .*/supervisedFineTuningJobs$", "GET .*/j2$"]
)
def test_what_fireworks_got_although_its_reply_was_lost_is_not_sent_twice(fireworks: Fireworks, lost: str) -> None:
    fireworks.faults, fireworks.most = {lost: ["cut"] * (1 if lost.startswith("POST") else 20)}, 1
    fireworks.jobs.append({"name": "accounts/acme/supervisedFineTuningJobs/j0", "state": "JOB_STATE_COMPLETED"})
    run(fireworks, "--yes", on="fireworks", status=2)
    fireworks.faults = {}
    run(fireworks, "--yes", on="fireworks", status=2)
    assert [job["state"] for job in fireworks.jobs] == ["JOB_STATE_COMPLETED"] * 2 and len(fireworks.datasets) == 2


def test_a_killed_run_at_fireworks_continues_its_job(fireworks: Fireworks) -> None:
    base = [sys.executable, "-m", "tuneloop", "run", "data", f"model={LLAMA}", f"output_dir={OUT}", "--on", "fireworks"]
    process = subprocess.Popen([*base, "--yes", "--quiet"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    fireworks.before = lambda path: process.kill() if path.endswith("/j1") else None
    assert process.wait(60) == -signal.SIGKILL and len(fireworks.jobs) == 1
    fireworks.before = lambda path: None
    run(fireworks, on="fireworks", status=2)
    assert read_json(OUT / "hosted.json")["state"] == "succeeded"
    assert len(fireworks.jobs) == 1 and sum(call.startswith("POST") for call in fireworks.calls) == 5


def test_a_job_at_fireworks_fails_with_its_reason_or_is_ended_by_cancel(fireworks: Fireworks, capsys: Capture) -> None:
    fireworks.ends = "FAILED"
    run(fireworks, "--yes", on="fireworks", status=2)
    assert "row 3 is bad" in "".join(capsys.readouterr()) and not (OUT / "eval.json").exists()
    fireworks.faults = {r"GET .*/j2$": [(401, {}, "expired")]}
    text = ["run", "data", f"model={LLAMA}", "output_dir=runs/b", "--on", "fireworks", "--quiet"]
    assert main([*text, "--yes"]) == 2 and "export FIREWORKS_API_KEY" in capsys.readouterr().err
    assert main([*text, "--cancel"]) == 0
    assert fireworks.jobs[1]["state"] == "JOB_STATE_CANCELLING"
    assert read_json("runs/b/hosted.json")["state"] == "cancelled"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FIREWORKS_API_KEY", "sk-other", "export FIREWORKS_API_KEY"),
        ("FIREWORKS_ACCOUNT_ID", "", "FIREWORKS_ACCOUNT_ID is not set"),
        ("FIREWORKS_ACCOUNT_ID", "other/../acme", "HTTP 403"),
    ],
)
def test_what_fireworks_can_not_take_is_refused(
    fireworks: Fireworks, patch: pytest.MonkeyPatch, name: str, value: str, message: str, capsys: Capture
) -> None:
    patch.setenv(name, value)
    run(fireworks, "--yes", on="fireworks", status=2)
    text = "".join(capsys.readouterr())
    assert message in text and KEY not in text and not fireworks.datasets


def test_a_file_that_is_too_large_for_fireworks_is_not_sent(
    fireworks: Fireworks, patch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    patch.setattr("tuneloop.deploy.services.fireworks.LARGEST", 100)
    run(fireworks, "--yes", on="fireworks", status=2)
    assert "larger than Fireworks takes" in "".join(capsys.readouterr()) and not fireworks.calls


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (["rows.jsonl", f"model={BASE}"], "prepared data set"),
        (["data"], "Which of the service's models"),
        (["data", f"model={BASE}", "--cancel"], "no job to end"),
    ],
)
def test_what_can_not_be_sent_is_refused(service: Service, text: list[str], message: str, capsys: Capture) -> None:
    assert main(["run", *text, "--on", service.url, "--yes"]) == 2
    assert message in capsys.readouterr().err


def test_the_official_client_sends_the_same(service: Service) -> None:
    client = openai.OpenAI(base_url=service.url, api_key=KEY, max_retries=0)
    file = client.files.create(file=("train.jsonl", b'{"messages": []}\n'), purpose="fine-tune")
    item = client.fine_tuning.jobs.create(model=BASE, training_file=file.id, metadata={"tuneloop": "k"}, seed=1)
    assert service.files[file.id][1] == b'{"messages": []}\n'
    assert client.fine_tuning.jobs.retrieve(item.id).status == "running"
    assert client.fine_tuning.jobs.cancel(item.id).status == "cancelled"


FIREWORKS = """
import sys
from fireworks import Fireworks
url, key, account, run, rows, val, base = sys.argv[1:]
client = Fireworks(api_key=key, account_id=account, base_url=url, max_retries=0)
names = []
for split, file in (("train", rows), ("val", val)):
    facts = {"user_uploaded": {}, "format": "CHAT", "example_count": str(open(file, "rb").read().count(b"\\n"))}
    client.datasets.create(dataset_id=f"tuneloop-{run}-{split}", dataset=facts)
    client.datasets.upload(f"tuneloop-{run}-{split}", file=open(file, "rb"))
    while (one := client.datasets.get(f"tuneloop-{run}-{split}")).state != "READY":
        pass
    names.append(one.name)
jobs = client.supervised_fine_tuning_jobs
assert not list(jobs.list(page_size=200))
job = jobs.create(
    dataset=names[0], evaluation_dataset=names[1], base_model=base, output_model=f"tuneloop-{run}",
    display_name=f"tuneloop-{run}", epochs=3,
)
name = job.name.split("/")[-1]
while (job := jobs.get(name)).state != "JOB_STATE_COMPLETED":
    pass
model = job.output_model.split("/")[-1]
print(sorted(client.models.get_download_endpoint(model).filename_to_signed_urls))
print(client.models.get(model).deployed_model_refs, list(client.deployments.list(page_size=200)))
jobs.cancel(name, body={})
print(jobs.get(name).state)
"""


def test_fireworks_s_own_client_sends_the_same(fireworks: Fireworks) -> None:
    run(fireworks, "--yes", on="fireworks", status=2)
    run(fireworks, "--cancel", on="fireworks")
    key, sent = (
        read_json(OUT / "hosted.json")["key"],
        [str(OUT / "sent" / f"{name}.jsonl") for name in ("train", "val")],
    )
    with serving(Fireworks()) as theirs:
        assert isinstance(theirs, Fireworks)
        said = in_environment(
            "fireworks-ai", FIREWORKS, theirs.url.removesuffix("/v1"), KEY, ACCOUNT, key, *sent, LLAMA
        )
    assert said.splitlines() == [
        "['adapter_config.json', 'adapter_model.safetensors']", "[] []", "JOB_STATE_CANCELLING",
    ]  # fmt: skip
    assert theirs.bodies == fireworks.bodies and theirs.datasets.keys() == fireworks.datasets.keys()
    assert all(
        theirs.datasets[name]["exampleCount"] == dataset["exampleCount"] for name, dataset in fireworks.datasets.items()
    )
    assert {name: file for name, (_, file) in theirs.files.items()} == {
        name: file for name, (_, file) in fireworks.files.items()
    }
    assert set(theirs.calls) == {call for call in fireworks.calls if "/signed/" not in call}


class Together(Service):
    def reply(self, method: str, target: str, body: bytes, kind: str = "") -> tuple[int, Any]:
        """With what its client asks before it starts a job."""
        if "/models/limits" in target:
            lora = {"max_rank": 64, "default_rank": 16, "target_modules": [], "min_batch_size": 1}
            lora |= {"max_batch_size": 8, "max_batch_size_dpo": 8}
            lengths = {"max_seq_length_sft": 8192, "max_seq_length_dpo": 8192, "min_max_seq_length": 8}
            return 200, {"model_name": BASE, "lora_training": lora, "supports_vision": False, "max_num_epochs": 9,
                "max_num_evals": 9, "max_learning_rate": 1.0, "min_learning_rate": 0.0, **lengths}  # fmt: skip
        return super().reply(method, target, body, kind)


TOGETHER = """
import sys
from together import Together
url, key, run, base, train, val = sys.argv[1:]
jobs = Together(api_key=key, base_url=url, max_retries=0).fine_tuning
assert not jobs.list().data
one = jobs.create(
    training_file=train, validation_file=val, n_evals=1, model=base, n_epochs=3, suffix=run, random_seed=0,
    training_method="sft", train_on_inputs="auto",
)
while (job := jobs.retrieve(one.id)).status != "completed":
    pass
print(job.x_model_output_name, job.token_count)
print([row["train/loss"] for row in jobs.list_metrics(one.id).metrics if "train/loss" in row])
print(jobs.content(ft_id=one.id, checkpoint="adapter").read())
jobs.cancel(one.id)
"""


def test_together_s_own_client_sends_the_same_but_for_the_files(service: Service) -> None:
    run(service, "--yes", on="together")
    run(service, "--cancel", on="together")
    key = read_json(OUT / "hosted.json")["key"]
    with serving(Together(jobs=[])) as theirs:
        said = in_environment(
            "together", TOGETHER, theirs.url.removesuffix("/v1"), KEY, key, BASE, "file-0", "file-1",
            TOGETHER_TELEMETRY_DISABLED="1",
        )  # fmt: skip
    assert said.splitlines() == [f"{MODEL} 999", "[1.0, 0.5, 0.3333333333333333]", "b'weights'"]
    assert service.bodies[0].items() <= theirs.bodies[0].items() and "training_type" not in theirs.bodies[0]
    own = {call for call in service.calls if "/files" not in call and "/chat" not in call}
    assert own == {call for call in theirs.calls if "/models/limits" not in call}
