"""How the files of a project are written: YAML with a first line that says what it is, and the README."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tuneloop.core.units import counted, exactly
from tuneloop.deploy.deployment import REQUEST, ServingJob, first_request
from tuneloop.deploy.hosts import Host, JobSite, Steps


class _Plain(yaml.SafeDumper):
    """YAML as people write it: what occurs twice is written twice, and texts with lines or quotes are blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors."""
        return True

    def text(self, text: str) -> yaml.ScalarNode:
        """A block where quotes would need escapes."""
        is_block = "\n" in text or "\\" in text or ("'" in text and '"' in text)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if is_block else None)


_Plain.add_representer(str, _Plain.text)


def yaml_text(comment: str, *documents: Mapping[str, Any]) -> str:
    """YAML documents, with a comment that says what they are."""
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 1000}
    return f"# {comment}\n" + "---\n".join(
        yaml.dump(dict(document), Dumper=_Plain, **options) for document in documents
    )


def shell(arguments: Sequence[str]) -> str:
    """A command as a shell reads it; variables such as $HF_TOKEN stay."""
    return " ".join(word if "$" in word else shlex.quote(word) for word in arguments)


def shell_steps(steps: Steps) -> str:
    """Commands as Markdown, each behind what it does."""
    return "\n\n".join(f"{title}:\n\n```sh\n{command}\n```" for command, title in steps)


def price_words(host: Host, job: ServingJob) -> str:
    """The monthly price, in a sentence or two; at the given traffic, where there is one."""
    text, demand, month = _replica_words(host, job), job.demand, job.usd_a_month()
    if demand is None:
        return text
    tokens = f"{demand.prompt_tokens:,.0f} + {demand.answer_tokens:,.0f} tokens"
    text += (
        f" {counted(demand.queries_per_day, 'request')} a day of {tokens} need {counted(demand.replicas, 'replica')} "
        f"in the busiest hour ({exactly(demand.peak, 'time')} the mean, half loaded)"
    )
    if month:
        usd = demand.replicas * month[1] / job.traffic.most
        text += f", which cost{'s' * (demand.replicas == 1)} ${usd:,.0f} a month"
    few = job.traffic.most < demand.replicas
    return text + (f": --max-replicas {job.traffic.most} is too few." if few else ".")


def _replica_words(host: Host, job: ServingJob) -> str:
    if job.machine is None:
        at_home = "It runs on a machine of your own and costs nothing more."
        return at_home if host.own_machines else "The host bills by use; see its price page."
    card = job.machine.card
    machine = f"{job.machine.cards} x {card.name}"
    month = job.usd_a_month()
    if month is None:
        return f"A replica is {machine}. No price of it here is known: see the host's price page."
    least, most = month
    always = f"${least:,.0f} a month for {counted(job.traffic.least, 'replica')} all the time"
    top = f", ${most:,.0f} at most for {job.traffic.most}" if job.traffic.most > job.traffic.least else ""
    if not job.traffic.least:
        always = "nothing while no one asks"
        top = f", ${most:,.0f} a month at most for {counted(job.traffic.most, 'replica')}"
    if card.rented:
        rented = f"Rented, such a card costs {card.price}; at that price it is {always}{top}."
        return f"A replica is {machine}, on machines of your own; `--usd-per-hour` says what they cost you. {rented}"
    return f"A replica is {machine}: {card.price}. That is {always}{top}."


def request_text(host: Host, job: ServingJob) -> str | None:
    """The file with a first request; None: the host has another way."""
    model = host.request_model(job)
    if model is None:
        return None
    return json.dumps(first_request(job, model, host.vllm), indent=2, ensure_ascii=False) + "\n"


def readme(host: Host, job: ServingJob) -> str:
    """The project's README: what it is, three commands, price, what was checked and what was not."""
    project = "".join([*host.project(job).values(), *(command for command, _ in host.commands(job))])
    needs_token = "HF_TOKEN" in project  # not for a mounted file
    secrets = "".join(
        f"- `{name}`: {description}\n" for name, description in host.secrets if name != "HF_TOKEN" or needs_token
    )
    system = artifact = ""
    if job.system:
        file = f"; `{REQUEST}` holds it, and your question" if host.request_model(job) is not None else ""
        system = f"\nThe model was trained with this system turn; send it with each request{file}:\n\n> {job.system}\n"
    if "ARTIFACT" in project:
        artifact = f"`$ARTIFACT` is the artifact's folder: `export ARTIFACT=$PWD/artifacts/{job.artifact}`.\n"
    return f"""# {job.name} on {host.title}

Artifact `{job.artifact}` ({job.form}), base `{job.base}`, at most {job.context:,} tokens of prompt and answer together.
{artifact}{system}
{shell_steps(host.commands(job))}

## Price

{price_words(host, job)} Planned need: {job.size.need_gib:,.1f} GiB of GPU memory (weights {job.size.weights_gib:,.1f}).

{f"## Secrets{chr(10)}{chr(10)}{secrets}{chr(10)}" if secrets else ""}{evidence(host)}"""


def evidence(site: JobSite[Any]) -> str:
    """The end of a README: what the files follow, what was not checked, and what one should know."""
    text = f"## What was checked\n\nThe files follow {site.source}. **Not checked: {site.unchecked}**\n"
    limits = "".join(f"- {limit}\n" for limit in site.limits)
    return text + (f"\n## Good to know\n\n{limits}" if limits else "")
