"""A server retrains by a controller beside it, which begins and ends with it."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patience import slowness
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.ui import reporting
from tuneloop.improve import serve as w
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.store.store import connect


@pytest.fixture
def project(tmp_path):
    connect(tmp_path / "serve", create=True).close()
    file = tmp_path / "project.yaml"
    file.write_text(f"name: queue\nstore: {tmp_path / 'serve'}\nmodel: queue\nrecipe: {tmp_path / 'r.yaml'}\n")
    (tmp_path / "r.yaml").touch()
    return file


def config(project, **improve):
    folder = str(project.parent / "serve")
    return ServeConfig.model_validate({"folder": folder, "improve": {"project": str(project), **improve}})


def children_of(pid):
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "improve"], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def wait_for(found, seconds=60):
    until = time.monotonic() + seconds * slowness()
    while not (value := found()) and time.monotonic() < until:
        time.sleep(0.05)
    return value


def ends(pid):
    return wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_a_controller_works_for_the_time_of_the_server_and_its_lines_are_said(project):
    said = []

    async def serve():
        async with w.improving(config(project, every="1s")):
            await asyncio.to_thread(wait_for, lambda: said[1:])
            return children_of(os.getpid())

    with reporting(say=said.append):
        controllers = asyncio.run(serve())
    assert len(controllers) == 1 and ends(controllers[0])
    assert all(line.startswith("improve   ") for line in said) and "Nothing to do" in said[1]


def test_a_controller_that_dies_is_started_again(project, monkeypatch):
    monkeypatch.setattr(w, "AGAIN", 0.1)
    said = []

    async def serve():
        async with w.improving(config(project)):
            (first,) = await asyncio.to_thread(wait_for, lambda: children_of(os.getpid()))
            os.kill(first, 9)
            await asyncio.to_thread(wait_for, lambda: [line for line in said if "Nothing to do" in line])
            (second,) = await asyncio.to_thread(wait_for, lambda: children_of(os.getpid()))
            return first != second

    with reporting(say=said.append):
        assert asyncio.run(serve())
    assert any("ended with -9 and is started again" in line for line in said)


def test_a_server_that_is_killed_takes_its_controller_along(project):
    code = (
        "import asyncio, sys\n"
        "from tuneloop.serving.config import ServeConfig\n"
        "from tuneloop.improve.serve import improving\n"
        "config = ServeConfig.model_validate({'folder': sys.argv[1], 'improve': {'project': sys.argv[2]}})\n"
        "async def serve():\n"
        "    async with improving(config):\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(serve())\n"
    )
    server = subprocess.Popen([sys.executable, "-c", code, str(project.parent / "serve"), str(project)])
    (controller,) = wait_for(lambda: children_of(server.pid))
    server.kill()
    server.wait()
    assert ends(controller)


def test_a_server_begins_and_ends_with_its_controller(project, make_tuned, cli_environment):
    run = make_tuned([{"prompt": f"Say {i}", "completion": "All is well."} for i in range(20)])
    text = [
        "serve",
        f"adapters.queue={run}",
        f"improve.project={project}",
        f"folder={project.parent / 'serve'}",
        "port=0",
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "tuneloop", *text], stderr=subprocess.PIPE, text=True, env=cli_environment
    )
    said = []
    for line in server.stderr:
        said.append(line)
        if "Nothing to do" in line:
            break
    controllers = children_of(server.pid)
    server.terminate()
    said.extend(server.stderr)
    assert server.wait() == 0, "".join(said)
    assert len(controllers) == 1 and ends(controllers[0])


def test_a_server_of_another_model_is_refused_the_project(project, make_tuned, capsys):
    run = make_tuned([{"prompt": f"Say {i}", "completion": "All is well."} for i in range(20)])
    folder = f"folder={project.parent / 'serve'}"
    assert main(["serve", f"adapters.other={run}", f"improve.project={project}", folder, "port=0", "-q"]) == 2
    assert "keeps 'queue' good, and this server has other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "settings", "models", "told"),
    [
        ("", {"every": "often"}, ["queue"], "Not a length of time"),
        ("", {}, ["other"], "keeps 'queue' good, and this server has other"),
        ("store: elsewhere\n", {}, ["queue"], "reads the store elsewhere"),
        ("recipe: none.yaml\n", {}, ["queue"], "The project's recipe is not there"),
        ("triggers: {never: 1}\n", {}, ["queue"], "never"),
    ],
)
def test_a_project_that_this_server_can_not_keep_good_is_refused(project, change, settings, models, told):
    lines = [line for line in project.read_text().splitlines(True) if not change or not line.startswith(change[:6])]
    project.write_text("".join([*lines, change]))
    with pytest.raises(UserError) as raised:
        w.check_improve(config(project, **settings), models)
    assert told in str(raised.value)
