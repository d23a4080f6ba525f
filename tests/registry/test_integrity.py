"""A changed, missing or added file of an artifact is noticed, and so is a signature of somebody else."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, write_json
from tuneloop.registry.integrity import PASSWORD, read_intact, verify
from tuneloop.release.export import export_run

MakeRun = Callable[..., Path]
needs_signing = pytest.mark.skipif(importlib.util.find_spec("model_signing") is None, reason="needs model-signing")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def artifact(make_run: MakeRun) -> Path:
    return export_run(make_run(), "adapter").folder


def keys(name: str, *, password: bytes | None = None, rsa_key: bool = False) -> tuple[Path, Path]:
    """A private key and its public one, as PEM files."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    private = rsa.generate_private_key(65537, 2048) if rsa_key else ec.generate_private_key(ec.SECP256R1())
    lock = s.BestAvailableEncryption(password) if password else s.NoEncryption()
    files = Path(f"{name}.pem"), Path(f"{name}-public.pem")
    files[0].write_bytes(private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, lock))
    files[1].write_bytes(private.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    return files


def test_an_artifact_is_intact_wherever_it_lies(artifact: Path) -> None:
    shutil.move(artifact, "elsewhere")
    (Path("elsewhere") / ".cache" / "huggingface").mkdir(parents=True)
    (Path("elsewhere") / ".cache" / "huggingface" / "x.metadata").write_text("what a download leaves")
    found = verify(Path("elsewhere"))
    assert found.intact and found.signature == "none" and found.files >= 5
    assert read_intact(Path("elsewhere")).id == artifact.name


@pytest.mark.parametrize("message", ["changed", "missing", "added"])
def test_what_became_of_the_files_is_named(message: str, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, name = artifact / "adapter_model.safetensors", "adapter_model.safetensors"
    if message == "changed":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif message == "missing":
        weights.unlink()
    else:
        name = "code/model.py"
        (artifact / "code").mkdir()
        (artifact / name).write_text("import os")
    assert main(["models", "verify", str(artifact), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found[message] == [name] and found["intact"] is False
    assert not any(found[other] for other in {"changed", "missing", "added"} - {message})
    assert main(["models", "verify", str(artifact)]) == 1
    out = capsys.readouterr().out
    assert name in out and "NOT intact" in out
    with pytest.raises(UserError, match="not as it was exported") as error:
        read_intact(artifact)
    assert f"{message}: {name}" in error.value.where


def test_a_folder_without_an_artifact_is_refused(capsys: pytest.CaptureFixture[str], make_run: MakeRun) -> None:
    for path in ("nowhere", str(make_run())):
        assert main(["models", "verify", path]) == 2
        err = capsys.readouterr().err
        assert "There is no artifact here" in err and len(err.strip().splitlines()) <= 3


@needs_signing
def test_a_signature_holds_for_the_files_that_were_signed_and_for_that_key(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    (private, public), (_, other) = keys("mine"), keys("other")
    run = make_run()
    for _ in range(2):  # also over an older signature
        assert main(["export", str(run), "--format", "adapter", "--sign", str(private), "--json"]) == 0
        folder = Path(json.loads(capsys.readouterr().out)["path"])
        assert verify(folder, public).signature == "valid"
    shutil.copytree(folder, "moved")
    assert verify(Path("moved"), public).intact
    unasked = verify(folder)
    assert unasked.signature == "unchecked" and unasked.intact
    assert verify(folder, other).reason == "it was made with another key, or is damaged"
    manifest = read_json(folder / "artifact.json")
    write_json(folder / "artifact.json", {**manifest, "gate": {"status": "pass", "suite": None, "forced": False}})
    forged = verify(folder, public)
    assert (forged.signature, forged.intact) == ("invalid", False)
    assert forged.reason == "the files are not those that were signed"


@needs_signing
def test_an_unsigned_artifact_is_not_taken_for_a_signed_one(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, public = keys("mine")
    assert main(["models", "verify", str(artifact), "--key", str(public)]) == 1
    assert "there is no artifact.sig" in capsys.readouterr().out


@needs_signing
def test_a_signature_goes_when_something_else_is_said_and_stays_when_not(make_run: MakeRun) -> None:
    private, public = keys("mine")
    run = make_run()
    folder = export_run(run, "adapter", key=private).folder
    export_run(run, "adapter")
    assert verify(folder, public).signature == "valid"
    write_json(run / "eval.json", {**read_json(run / "eval.json"), "n": 80})
    export_run(run, "adapter")
    assert verify(folder).intact and not (folder / "artifact.sig").exists()


@needs_signing
@pytest.mark.parametrize("case", ["missing", "rsa", "locked", "public"])
def test_a_key_that_can_t_sign_stops_the_export_before_it_begins(
    case: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys("mine", password=b"open" if case == "locked" else None, rsa_key=case == "rsa")
    key = {"missing": Path("nope.pem"), "public": public}.get(case, private)
    assert main(["export", str(make_run()), "--sign", str(key)]) == 2
    err = capsys.readouterr().err
    assert ("No such key" if case == "missing" else "Can't sign with this key") in err
    assert len(err.strip().splitlines()) <= 3 and not Path("artifacts").exists()


@needs_signing
def test_a_locked_key_is_opened_by_the_environments_password(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys("mine", password=b"open")
    monkeypatch.setenv(PASSWORD, "open")
    assert verify(export_run(make_run(), "adapter", key=private).folder, public).signature == "valid"
