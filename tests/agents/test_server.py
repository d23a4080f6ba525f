"""`tuneloop mcp`, asked by the official client over real standard input and output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

mcp = pytest.importorskip("mcp")
from mcp.client import Client  # noqa: E402
from mcp.client.stdio import StdioServerParameters, stdio_client  # noqa: E402
from tickets import tickets  # noqa: E402

from patience import HANG  # noqa: E402
from tuneloop.records.rows import last_user_turn  # noqa: E402

pytestmark = pytest.mark.process
Ask = Callable[..., Any]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A root with a CSV of tickets."""
    root = tmp_path / "root"
    root.mkdir()
    lines = [f'"{last_user_turn(row)}",{row.label}' for row in tickets(150)]
    (root / "mails.csv").write_text("\n".join(["text,queue", *lines]) + "\n")
    return root


@asynccontextmanager
async def client_of(root: Path, environment: dict[str, str], *options: str) -> AsyncIterator[Client]:
    """A client of a new server."""
    text = ["-m", "tuneloop", "mcp", "--root", str(root), *options]
    server = StdioServerParameters(command=sys.executable, args=text, env=environment, cwd=root)
    with (root.parent / "server.log").open("a") as log:
        async with Client(stdio_client(server, log), read_timeout_seconds=HANG) as client:
            yield client


def ask(work: Callable[[Client], Any], root: Path, environment: dict[str, str], *options: str) -> Any:
    """What a conversation with a new server gives."""

    async def talk() -> Any:
        async with client_of(root, environment, *options) as client:
            return await work(client)

    return anyio.run(talk)


async def answer(client: Client, tool: str, /, **arguments: Any) -> dict[str, Any]:
    """The structured answer of a tool, which must not be an error."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return result.structured_content


RECIPES = ("recipe.yaml", "r1.YAML", "r3.yaml.bak")


async def refusal(client: Client, tool: str, /, **arguments: Any) -> str:
    """The words with which a tool refuses."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return str(result.content[0].text)  # type: ignore[union-attr]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_read_only_server_advises_and_plans_and_writes_nothing(
    workspace: Path, cli_environment: dict[str, str], small_packaged: dict[str, str]
) -> None:
    async def work(client: Client) -> None:
        assert "read-only" in (client.instructions or "")
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert tools == {
            "advise",
            "plan",
            "prepare",
            "run",
            "run_status",
            "run_cancel",
            "evaluate",
            "compare",
            "predict",
        }
        advice = await answer(
            client, "advise", facts={"rows": 2000, "few_shot": 0.7, "test_rows": 200, "budget_usd": 500}
        )
        assert advice["answer"] in ("tune", "prompt", "dont")
        assert (await answer(client, "advise", data="mails.csv"))["headline"]
        plan = await answer(client, "plan", model="llama-3.1-8b", options={"gpu": "l40s", "packing": False})
        assert plan["fits"] is True and plan["exit_status"] == 0
        for tool, arguments in (
            ("prepare", {"sources": ["mails.csv"]}),
            ("run", {"source": "mails.csv"}),
            ("evaluate", {"target": "smollm2-135m", "data": "mails.csv"}),
            ("run_cancel", {"folder": "runs/a"}),
            ("advise", {"data": "mails.csv", "measure": True}),
            ("predict", {"target": "smollm2-135m", "file": "mails.csv", "out": "answers.jsonl"}),
            ("compare", {"systems": ["mails.csv", "mails.csv"], "references": "mails.csv"}),
            ("compare", {"systems": ["runs/a"]}),
        ):
            assert "--allow-write" in await refusal(client, tool, **arguments)

    ask(work, workspace, {**cli_environment, **small_packaged})
    assert [path.name for path in workspace.iterdir()] == ["mails.csv"]


def test_wrong_calls_are_answered_and_the_server_lives(workspace: Path, cli_environment: dict[str, str]) -> None:
    async def work(client: Client) -> None:
        assert "Unknown tool" in await refusal(client, "delete_everything")
        assert "gpux" in await refusal(client, "plan", options={"gpux": "l40s"})
        assert "characters" in await refusal(client, "advise", data="x" * 10_000_000)
        assert "too long" in await refusal(client, "plan", data="mails.csv", options={"targets": "y" * 5_000_000})
        assert "Which rows?" in await refusal(client, "predict", target="smollm2-135m")
        assert await refusal(client, "predict", target="smollm2-135m", rows=[{"text": "a"}] * 201)
        assert await refusal(client, "run_status", folder="runs", wait_seconds="soon")
        for path in ("/etc/passwd", "../other.csv", "file:///etc/passwd", "~/x.csv", "leads-out.csv"):
            assert "is refused" in await refusal(client, "advise", data=path)
            assert "is refused" in await refusal(client, "predict", target="smollm2-135m", file=path)
            assert "is refused" in await refusal(client, "prepare", sources=["mails.csv", path])
            assert "is refused" in await refusal(
                client, "run", source="mails.csv", settings={"data": {"split": {"test": path}}}
            )
            assert "is refused" in await refusal(client, "run_status", folder=path)
            assert "is refused" in await refusal(client, "compare", systems=["a", path])
        assert "Code is not run" in await refusal(
            client, "run", source="mails.csv", settings={"train": {"method": "m.py"}}
        )
        for recipe in RECIPES:  # only the first name is a recipe's
            text = await refusal(client, "run", source=recipe)
            assert ("is refused" if recipe == RECIPES[0] else "Can't read files") in text, text
        for uri in (
            "tuneloop://record/run.json/../other",
            "tuneloop://record/passwd/etc",
            "tuneloop://record/run.json/%2Fetc",
        ):
            with pytest.raises(mcp.MCPError):
                await client.read_resource(uri)
        assert (await answer(client, "plan", model="llama-3.2-1b"))["model"]  # it still works

    (workspace.parent / "other.csv").write_text("text,queue\na,b\n")
    (workspace / "leads-out.csv").symlink_to(workspace.parent / "other.csv")
    for recipe in RECIPES:
        (workspace / recipe).write_text("data: {sources: [/etc/passwd]}\n")
    ask(work, workspace, cli_environment, "--allow-write")


def test_lines_that_are_no_protocol_are_survived_and_stdout_has_nothing_else(
    workspace: Path, cli_environment: dict[str, str]
) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "initialize"}
    call["params"] = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}  # type: ignore[assignment]
    lines = ["no json", "{}", "[" * 100_000, json.dumps(call)]
    server = subprocess.Popen(
        [sys.executable, "-m", "tuneloop", "mcp"],
        cwd=workspace,
        env=cli_environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    out, _ = server.communicate("".join(f"{line}\n" for line in lines).encode(), timeout=HANG)
    replies = [json.loads(line) for line in out.splitlines()]
    assert all(reply["jsonrpc"] == "2.0" for reply in replies)
    (welcome,) = [reply["result"] for reply in replies if reply.get("id") == 1]  # of a client of an older protocol
    assert welcome["serverInfo"]["name"] == "tuneloop" and welcome["protocolVersion"] == "2025-06-18"
    assert server.returncode == 0


QUICK = {"train": {"max_minutes": 0.05}, "track": {"report_to": ["none"]}}


async def started(client: Client, **settings: Any) -> str:
    """The folder of a run that was just started."""
    status = await answer(client, "run", source="mails.csv", settings={**QUICK, **settings})
    assert status["state"] == "running"
    return str(status["folder"])


@pytest.mark.slow
def test_a_run_outlives_client_and_server_and_is_found_again(
    workspace: Path, cli_environment: dict[str, str], small_packaged: dict[str, str]
) -> None:
    environment = {**cli_environment, **small_packaged}
    program = f"""import anyio, sys, time
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from pathlib import Path
from test_server import client_of, started
async def work():
    async with client_of(Path({str(workspace)!r}), {environment!r}, "--allow-write") as client:
        print(await started(client), flush=True)
        time.sleep(600)
anyio.run(work)"""
    client = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert client.stdout is not None
    folder = client.stdout.readline().strip()
    assert folder.startswith("runs/mails-")
    os.kill(client.pid, signal.SIGKILL)
    client.wait()
    pid = json.loads((workspace / folder / "job.json").read_text())["pid"]
    assert lives(pid)

    async def find(client: Client) -> dict[str, Any]:
        runs = json.loads((await client.read_resource("tuneloop://runs")).contents[0].text)  # type: ignore[union-attr]
        assert [run["folder"] for run in runs["folders"]] == [folder]
        again = await answer(client, "run", source="mails.csv", settings=QUICK)
        assert again["folder"] == folder
        return await answer(client, "run_status", folder=folder, wait_seconds=3600)

    status = ask(find, workspace, environment, "--allow-write")
    assert status["state"] == "finished" and status["verdict"], status
    assert json.loads((workspace / folder / "job.json").read_text())["pid"] == pid


@pytest.mark.nightly
@pytest.mark.slow
def test_a_cancelled_run_is_continued_by_the_same_call(
    workspace: Path, cli_environment: dict[str, str], small_packaged: dict[str, str]
) -> None:
    heard: list[str] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    async def work(client: Client) -> dict[str, Any]:
        slow = {"train": {"epochs": 400}}
        folder = await started(client, **slow)
        until = time.monotonic() + HANG
        while not list((workspace / folder).glob("metrics.jsonl")) and time.monotonic() < until:
            await anyio.sleep(0.2)
        ended = await answer(client, "run_cancel", folder=folder)
        assert ended["state"] == "cancelled" and not lives(
            json.loads((workspace / folder / "job.json").read_text())["pid"]
        )
        assert await started(client, **slow) == folder
        await client.call_tool("run_status", {"folder": folder, "wait_seconds": 2}, progress_callback=hear)
        assert (await answer(client, "run_cancel", folder=folder))["state"] == "cancelled"
        return ended

    ask(work, workspace, {**cli_environment, **small_packaged}, "--allow-write")
    assert heard


@pytest.mark.nightly
@pytest.mark.slow
def test_an_agent_goes_from_a_csv_to_a_verdict(
    workspace: Path, cli_environment: dict[str, str], small_packaged: dict[str, str]
) -> None:
    async def work(client: Client) -> None:
        assert (await answer(client, "advise", data="mails.csv"))["answer"]
        prepared = await client.call_tool("prepare", {"sources": ["mails.csv"], "settings": {"split": {"test": 0.3}}})
        data = prepared.structured_content or {}
        assert data["path"] == "datasets/mails" and data["counts"]["read"] == 150
        settings: dict[str, Any] = {**QUICK, "baselines": {"few_shot": 2}, "evaluate": {"limit": 15}}
        status = await answer(client, "run", source=data["path"], settings=settings, wait_seconds=3600)
        assert status["state"] == "finished", status
        folder = status["folder"]
        assert status["verdict"] and 0 <= status["metrics"]["accuracy"]["value"] <= 1
        record = await client.read_resource(f"tuneloop://record/eval.json/{folder}")
        assert json.loads(record.contents[0].text)["words"] == status["verdict"]  # type: ignore[union-attr]
        page = await client.read_resource(f"tuneloop://record/report.html/{folder}")
        assert "<html" in page.contents[0].text  # type: ignore[union-attr]
        compared = await answer(client, "compare", systems=[folder, f"{folder}:zero-shot"])
        assert compared["comparisons"]
        asked = await answer(client, "predict", target=folder, rows=[{"text": "my card and pin are expired"}])
        assert asked["errors"] == 0 and asked["predictions"][0]
        limited = await answer(client, "evaluate", target=folder, settings={"limit": 10}, out="evals/again")
        assert limited["n"] <= 10

    ask(work, workspace, {**cli_environment, **small_packaged}, "--allow-write")


def test_the_command_lists_its_tools_without_serving(workspace: Path, cli_environment: dict[str, str]) -> None:
    text = [sys.executable, "-m", "tuneloop", "mcp", "--json"]
    done = subprocess.run(text, cwd=workspace, env=cli_environment, capture_output=True, text=True, timeout=HANG)
    listed = json.loads(done.stdout)
    assert listed["allow_write"] is False and len(listed["tools"]) == 9
    assert all(tool["description"] and tool["inputSchema"] for tool in listed["tools"])


def test_without_the_library_the_command_names_the_install_line(
    workspace: Path, cli_environment: dict[str, str]
) -> None:
    code = "import sys; sys.modules['mcp'] = None\nfrom tuneloop.cli.main import main\nsys.exit(main(['mcp']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=workspace, env=cli_environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "pip install 'tuneloop[mcp]'" in done.stderr and not done.stdout
