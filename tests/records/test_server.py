"""What a server says of itself is read by later commands, whatever it says."""

import pytest

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_json
from tuneloop.records.record import read_record, write_record
from tuneloop.records.server import ServedName, ServerState
from tuneloop.serving.config import ServeConfig

URL = "postgresql://anna@db/x"


def test_settings_that_other_commands_need_are_read_back(tmp_path):
    config = ServeConfig(adapters={"support": "runs/a"}, prices={"usd_per_hour": 2}, log={"store": URL})
    models = [ServedName(name="support", adapter="abc", source="runs/a")]
    state = ServerState(pid=7, address="http://127.0.0.1:8100", models=models, config=config.model_dump(mode="json"))
    write_record(tmp_path / ServerState.file, state)
    found = read_record(ServerState, tmp_path)
    assert (found.address, found.models) == (state.address, models)
    assert (found.adapters, found.usd_per_hour, found.store_url) == ({"support": "runs/a"}, 2.0, URL)


def test_a_file_may_say_less_and_one_of_another_version_is_refused(tmp_path):
    write_json(tmp_path / ServerState.file, {"version": 1, "config": {}})
    found = read_record(ServerState, tmp_path)
    assert (found.adapters, found.usd_per_hour, found.store_url, found.address) == ({}, 0.0, "", "")
    write_json(tmp_path / ServerState.file, {"version": 2})
    with pytest.raises(UserError, match="version"):
        read_record(ServerState, tmp_path)
