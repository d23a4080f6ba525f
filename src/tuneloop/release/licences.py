"""Licences of base models, and what they ask of a model that was made from one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from tuneloop.core.foreign import parse_yaml
from tuneloop.models.files import SHORT_NAMES


@dataclass(frozen=True)
class Licence:
    """A base model's licence."""

    id: str  # as model cards on the hub name it
    name: str  # for people
    url: str = ""  # its text
    notice: str = ""  # what a file `NOTICE` next to a derived model has to say; empty where nothing
    terms: str = ""  # what it demands of those who pass a derived model on; empty where nothing beyond the usual


def _llama(id_: str, version: str, page: str, *, meta: str = "", start: str = "Llama") -> Licence:
    title = f"{meta}Llama {version} Community License"
    return Licence(
        id_,
        title,
        f"https://www.llama.com/{page}/license/",
        f"{meta}Llama {version} is licensed under the {title}, Copyright © Meta Platforms, Inc. All Rights Reserved.",
        "Who passes this model on must give a copy of the licence with it, say "
        f'"Built with {meta}Llama{" 3" if meta else ""}" where it is shown, begin its name with "{start}", '
        "and keep the file NOTICE.",
    )


_APACHE = Licence("apache-2.0", "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0")
_QWEN = "https://huggingface.co/Qwen/Qwen2.5-{}/blob/main/LICENSE"
_GEMMA = Licence(
    "gemma",
    "Gemma Terms of Use",
    "https://ai.google.dev/gemma/terms",
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    "Who passes this model on must pass on the use restrictions of section 3.2 of the terms, give a copy of them with "
    "it, say that it was changed, and keep the file NOTICE.",
)

# Starts of hub names -> licence, the first that fits, from the models' hub pages and section 1.b of each licence.
_KNOWN = {
    "meta-llama/Meta-Llama-3-": _llama("llama3", "3", "llama3", meta="Meta ", start="Llama 3"),
    "meta-llama/Llama-3.1-": _llama("llama3.1", "3.1", "llama3_1"),
    "meta-llama/Llama-3.2-": _llama("llama3.2", "3.2", "llama3_2"),
    "meta-llama/Llama-3.3-": _llama("llama3.3", "3.3", "llama3_3"),
    "HuggingFaceTB/SmolLM": _APACHE,
    "Qwen/Qwen2.5-3B": Licence(
        "other",
        "Qwen Research License",
        _QWEN.format("3B"),
        "Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All Rights Reserved.",
        "It is for research and evaluation only: commercial use needs a licence from Alibaba Cloud. Who passes this "
        "model on must give a copy of the licence with it, say that it was changed, and keep the file NOTICE.",
    ),
    "Qwen/Qwen2.5-72B": Licence(
        "other",
        "Qwen License",
        _QWEN.format("72B"),
        "Qwen is licensed under the Qwen LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All Rights Reserved.",
        "Above 100 million users a month it needs a licence from Alibaba Cloud. Who passes this model on must give a "
        "copy of the licence with it, say that it was changed, and keep the file NOTICE.",
    ),
    "Qwen/Qwen": _APACHE,
    "mistralai/Mistral-7B": _APACHE,
    "mistralai/Mistral-Small-3.1": _APACHE,
    "mistralai/Mixtral-8x7B": _APACHE,
    "openai/gpt-oss-": _APACHE,
    "microsoft/Phi-3": Licence("mit", "MIT License", "https://opensource.org/license/mit"),
    "microsoft/phi-4": Licence("mit", "MIT License", "https://opensource.org/license/mit"),
    "google/gemma-3-": _GEMMA,
}


def hub_name(model: str) -> str:
    """A base model's name on the hub, where its name says it; else empty."""
    if Path(model).expanduser().exists():
        return ""
    name = SHORT_NAMES.get(model.lower(), model)
    return name if "/" in name else ""


def licence_of(model: str) -> Licence | None:
    """A base model's licence: by its hub name, or as the model card in its folder says; None where neither tells."""
    name = hub_name(model)
    for start, licence in _KNOWN.items():
        if name.startswith(start):
            return licence
    card = Path(model).expanduser() / "README.md"
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2) if card.is_file() else []
    try:
        head = parse_yaml(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (yaml.YAMLError, ValueError):
        return None
    if not isinstance(head, dict) or not isinstance(head.get("license"), str):
        return None
    stated = str(head["license"])
    for licence in _KNOWN.values():
        if licence.id == stated:
            return licence
    return Licence(stated, str(head.get("license_name") or stated), str(head.get("license_link") or ""))
