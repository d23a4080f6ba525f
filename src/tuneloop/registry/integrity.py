"""Whether an artifact's files are those that were exported, and who signed them."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import nearest_path, sha256_file, user_errors_of_the_disk, write_bytes
from tuneloop.core.ui import progress
from tuneloop.records.artifact import ARTIFACT, SIGNATURE, ArtifactManifest
from tuneloop.records.record import read_record

# Git and the hub's library put these into folders that they download; nothing loads a model from them.
_TOOLS = {".git", ".gitattributes", ".gitignore", ".github", ".cache", ".lock"}
PASSWORD = "TUNELOOP_KEY_PASSWORD"  # of an encrypted private key  # noqa: S105 - no password
INSTALL = "pip install 'tuneloop[release]'"
Signature = Literal["none", "unchecked", "valid", "invalid"]


@dataclass(frozen=True)
class Verification:
    """What became of an artifact's files."""

    id: str  # of the artifact
    files: int  # how many `artifact.json` names
    changed: list[str]  # names, relative to the folder, as of the next two
    missing: list[str]
    added: list[str]
    signature: Signature = "none"  # `unchecked` where no key was given; `invalid` also where it is wanted and missing
    reason: str = ""  # why a signature is not valid

    @property
    def intact(self) -> bool:
        """Whether all is as it was exported, and the signature is valid where it was checked."""
        return not (self.changed or self.missing or self.added or self.signature == "invalid")


def read_artifact(folder: Path) -> ArtifactManifest:
    """An artifact's manifest; UserError: no artifact is there."""
    if not (folder / ARTIFACT).is_file():
        step = "name the folder that `tuneloop export` printed" if folder.exists() else nearest_path(folder)
        raise UserError(f"There is no artifact here (no {ARTIFACT})", where=str(folder), next_step=step)
    return read_record(ArtifactManifest, folder)


def verify(folder: Path, key: Path | None = None) -> Verification:
    """Compare all files with their SHA-256 in `artifact.json`, and the signature with a public key.

    Args:
        key: a PEM file with the public key of who signed; None: the signature is not checked.

    Raises:
        UserError: no artifact is there, no such key, or the package that checks signatures is missing.
    """
    manifest = read_artifact(folder)
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    names, changed = {path.as_posix() for path in paths if path.parts[0] not in _TOOLS}, []
    with user_errors_of_the_disk(folder):
        for count, (file, entry) in enumerate(manifest.files.items(), 1):
            if file in names and sha256_file(folder / file) != entry.sha256:
                changed.append(file)
            progress("hashing", count, len(manifest.files))
    missing = [file for file in manifest.files if file not in names]
    added = sorted(names - {*manifest.files, ARTIFACT, SIGNATURE})
    signature, reason = _check_signature(folder, key)
    return Verification(manifest.id, len(manifest.files), changed, missing, added, signature, reason)


def read_intact(folder: Path) -> ArtifactManifest:
    """The manifest of an artifact; UserError: it is not there, or a file was changed, is missing or was added."""
    result = verify(folder)
    if not result.intact:
        faults = {"changed": result.changed, "missing": result.missing, "added": result.added}
        where = "; ".join(f"{fault}: {', '.join(names[:3])}" for fault, names in faults.items() if names)
        step = "export the run again; `tuneloop models verify` names all files"
        raise UserError("The artifact is not as it was exported", where=f"{folder}: {where}", next_step=step)
    return read_artifact(folder)


def check_private_key(key: Path) -> None:
    """Refuse a key that can't sign, before anything is written; UserError: no such key or package, a wrong password."""
    _signer(key)


def sign(folder: Path, key: Path) -> None:
    """Sign all files of an artifact: `artifact.sig`, a Sigstore bundle as `model-signing` writes and reads it.

    Args:
        key: a PEM file with a private key (NIST P-256, P-384 or P-521), which `TUNELOOP_KEY_PASSWORD` opens.

    Raises:
        UserError: see `check_private_key`.
    """
    signing = _signer(key)
    from model_signing import hashing

    others = [SIGNATURE, *sorted(_TOOLS)]  # relative to the folder, and said in the signature
    signing.set_hashing_config(hashing.Config().set_ignored_paths(paths=others))
    with tempfile.TemporaryDirectory() as scratch:
        signature = Path(scratch) / SIGNATURE
        signing.sign(folder, signature)
        write_bytes(folder / SIGNATURE, signature.read_bytes())


def _signer(key: Path):  # type: ignore[no-untyped-def]  # a class of an optional package
    _need_package()
    from model_signing import signing

    if not key.is_file():
        raise UserError("No such key", where=str(key), next_step=nearest_path(key))
    password = os.environ.get(PASSWORD)
    try:
        # The library passes the password on as it is, and the function behind takes bytes.
        secret = password.encode() if password else None
        return signing.Config().use_elliptic_key_signer(private_key=key, password=secret)
    except (ValueError, TypeError, AttributeError) as error:  # AttributeError: an RSA key
        reason = "it is of another kind" if isinstance(error, AttributeError) else str(error)
        step = "make one with `openssl ecparam -name prime256v1 -genkey -noout -out KEY`"
        if "password" in str(error).lower():
            step = f"set {PASSWORD}"
        raise UserError(f"Can't sign with this key: {reason}", where=str(key), next_step=step) from None


def _check_signature(folder: Path, key: Path | None) -> tuple[Signature, str]:
    there = (folder / SIGNATURE).is_file()
    if key is None:
        return "unchecked" if there else "none", ""
    _need_package()
    from model_signing import verifying

    if not key.is_file():
        raise UserError("No such key", where=str(key), next_step=nearest_path(key))
    try:
        checker = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except ValueError as error:
        message = f"This is not a public key: {str(error).splitlines()[0]}"
        step = "write it with `openssl ec -in PRIVATE_KEY -pubout -out KEY`"
        raise UserError(message, where=str(key), next_step=step) from None
    if not there:
        return "invalid", f"there is no {SIGNATURE}"
    try:
        checker.set_ignore_unsigned_files(True).verify(folder, folder / SIGNATURE)
    except Exception as error:  # the library lets those of its parsers and of cryptography through
        if "Signature mismatch" in str(error) or "Cannot use" in str(error):
            return "invalid", "the files are not those that were signed"
        return "invalid", "it was made with another key, or is damaged"
    return "valid", ""


def _need_package() -> None:
    try:
        import model_signing  # noqa: F401
    except ImportError as error:
        message = f"Signatures need the package model-signing ({error})"
        raise UserError(message, where=SIGNATURE, next_step=INSTALL) from None
