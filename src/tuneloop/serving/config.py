"""The settings of a server: what `serve.yaml` holds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from tuneloop.core.files import Config
from tuneloop.serving.keys import Right
from tuneloop.serving.store.database import FILE


class Objective(Config):
    """What real-time requests are promised."""

    ttft_ms: float = Field(500.0, gt=0, description="milliseconds to the first token; a key may have its own")
    admission: Literal["auto", "refuse", "queue"] = Field(
        "auto",
        description="refuse: a request that can't meet its objective gets 429 at once; queue: it waits; "
        "auto: refuse where ttft_ms or the key's deadline is named, else queue",
    )

    @property
    def refuses(self) -> bool:
        """Whether late requests of keys without a deadline are refused."""
        return self.admission == "refuse" or (self.admission == "auto" and "ttft_ms" in self.model_fields_set)


class KeysConfig(Config):
    """Who may send requests."""

    required: bool | None = Field(
        None, description="whether a key is needed; default: off loopback, and once a key was made until `keys open`"
    )
    open_rights: list[Right] = Field(
        [],
        description="rights of callers without a key, where only your own application reaches the server; "
        "`ui` lets all who reach it read the pages, and `steer` needs a key",
    )

    @field_validator("open_rights")
    @classmethod
    def _no_one_steers(cls, rights: list[Right]) -> list[Right]:
        if "steer" in rights:
            raise ValueError("`steer` needs a key: tuneloop keys add NAME --rights steer")
        return rights


class ServeLimits(Config):
    """Bounds that keep a server alive."""

    body_mb: float = Field(10.0, gt=0, description="largest body of a request, in MB")
    waiting: int = Field(512, ge=1, description="requests that may wait for the engine; further ones get 429")
    max_new_tokens: int = Field(256, ge=1, description="longest answer where neither the request nor the task says it")
    most_choices: int = Field(16, ge=1, description="largest n of a request")
    request_seconds: float = Field(600.0, gt=0, description="time for a request as a whole")
    silent_seconds: float = Field(
        30.0, gt=0, description="time for a request's head, the next part of its body, or the connection's next request"
    )
    drain_seconds: float = Field(30.0, ge=0, description="time that running requests get when the server is stopped")
    proxies: list[str] = Field(
        [], description="addresses of reverse proxies: only their X-Forwarded-For names the client"
    )


class LogConfig(Config):
    """What is kept of requests, and where."""

    store: str = Field("", description="database in place of the folder's store.db, as postgresql://USER@HOST/DATABASE")
    content: Literal["redacted", "pseudonyms", "full", "hash", "none"] = Field(
        "redacted",
        description="redacted: texts without personal data; pseudonyms: with invented values in their place, by the "
        "key in TUNELOOP_SECRET; full: texts as they are; hash: a digest of each text; none; but for full, batches "
        "that are over lose their input",
    )
    lines: Literal["text", "json"] = Field(
        "text",
        description="on standard error: text, notes for people; json, an object a line for a collector of logs, also "
        "for each request, without its texts",
    )
    keep_days: float | None = Field(
        None,
        gt=0,
        description="days after which texts, users and conversations leave the store, and texts the uploads and ended "
        "batches; numbers stay; default: never",
    )


class BatchConfig(Config):
    """How batches are done."""

    enabled: bool = Field(True, description="whether /v1/files and /v1/batches take work")
    rows: int = Field(4, ge=1, description="rows that are answered at the same time, where no request waits")
    file_mb: float = Field(512.0, gt=0, description="largest file that is uploaded, in MB")
    most_gb: float = Field(20.0, gt=0, description="files and results that are stored for a key, in GB")
    most_open: int = Field(50, ge=1, description="batches of a key that are not over")
    most_rows: int = Field(5_000_000, ge=1, description="requests of a key that wait, in all of its batches together")


class TokenPrices(Config):
    """What tokens cost."""

    input: float = Field(0.0, ge=0, description="USD for a million tokens read")
    output: float = Field(0.0, ge=0, description="USD for a million tokens written")


class Prices(TokenPrices):
    """What answers cost, for budgets and `tuneloop costs`."""

    sources: dict[str, TokenPrices] = Field(
        {}, description="source of a model -> its own prices, as of a hosted one (URL#MODEL)"
    )
    usd_per_hour: float = Field(0.0, ge=0, description="USD for an hour of this machine")


class FeedbackConfig(Config):
    """Where feedback may come from, besides this server's own clients, and how much of it is taken."""

    origins: list[str] = Field(
        [], description="sites whose readers may send feedback without a key, by `/feedback.js`: https://shop.example"
    )
    per_minute: int = Field(120, ge=1, description="pieces of feedback a minute from one key, or address without a key")
    pages_per_minute: int = Field(
        3000, ge=1, description="the same from all readers of pages together, or all users whom one key names"
    )


class MonitorConfig(Config):
    """Windows of production that are compared when they are over."""

    reference: str = Field("", description="prepared data set that is compared with; empty: nothing is monitored")
    window: str = Field("7d", description="length of a window, as in 7d or 12h")
    false_alarms: float = Field(1.0, gt=0, le=50, description="windows of a year that may raise an alarm without cause")
    canaries: int = Field(20, ge=0, le=500, description="test rows that are sent regularly: did the answers change?")
    canaries_every: str = Field("1d", description="time between two rounds of them, as in 1d or 12h")


class ImproveConfig(Config):
    """Retraining next to the server, as `tuneloop improve PROJECT --watch` does it."""

    project: str = Field("", description="file of `tuneloop improve`; empty: nothing is retrained")
    every: str = Field("15m", description="time between two passes, as in 15m or 2h")


class ServeConfig(Config):
    """A server."""

    base: str = Field("", description="base model; default: that of the adapters")
    adapters: dict[str, str] = Field(
        {},
        description="name -> run, artifact or registered version (NAME@champion), or next to them a server's model "
        "(URL#MODEL); the first one answers by default",
    )
    tasks: str = Field("", description="tasks.json of `tuneloop merge`: which model answers which task")
    router: str = Field("", description="folder of `tuneloop route fit`: decides who answers the model `router`")
    engine: str | list[str] = Field(
        "auto",
        description="tuneloop, our own; llama.cpp, for GGUF files; auto: by what the base is; "
        "or the URL of an OpenAI-compatible server, or several with commas, between which requests are balanced",
    )
    tokenizer: str = Field(
        "", description="model whose tokenizer makes a URL's prompts; default: the runs' base, else the server renders"
    )
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable with the key of these servers")
    priorities: bool = Field(
        False, description="these servers are vLLM with --scheduling-policy priority: background work gets a low one"
    )
    host: str = Field("127.0.0.1", description="address; 0.0.0.0 lets others in, who then need a key")
    port: int = Field(8100, ge=0, le=65535, description="port; 0 for a free one")
    folder: str = Field("serve", description="folder of the store, keys and batches")
    ui: bool = Field(
        False, description="whether the pages of `tuneloop ui` are at /ui, for keys with the right `ui` or `steer`"
    )
    merge: bool = Field(
        False,
        description="our own engine with one adapter: write it into the base's weights, which answers faster; some "
        "answers differ by rounding, and the base itself is not served",
    )
    deterministic: bool = Field(
        False,
        description="our own engine on a processor: an answer is the same, bit for bit, whatever is computed with it",
    )
    slots: int = Field(16, ge=1, description="requests that the engine answers at the same time")
    context: int = Field(4096, ge=64, description="tokens of a prompt with its answer, in llama.cpp")
    canaries: int = Field(
        5, ge=0, description="evaluated test rows that are sent at the start: each model must answer as it did then"
    )
    objective: Objective = Objective()
    keys: KeysConfig = KeysConfig()
    limits: ServeLimits = ServeLimits()
    log: LogConfig = LogConfig()
    batch: BatchConfig = BatchConfig()
    prices: Prices = Prices()
    feedback: FeedbackConfig = FeedbackConfig()
    monitor: MonitorConfig = MonitorConfig()
    improve: ImproveConfig = ImproveConfig()

    @property
    def urls(self) -> list[str]:
        """The servers that answer in place of an engine here."""
        names = self.engine if isinstance(self.engine, list) else self.engine.split(",")
        return [name.strip() for name in names if name.strip().startswith(("http://", "https://"))]

    @property
    def store(self) -> str:
        """The place of the store: the URL of a database, or a file."""
        return self.log.store or str(Path(self.folder) / FILE)

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    @property
    def priced(self) -> bool:
        """Whether tokens have a price, without which a budget is never used up."""
        return any(price.input or price.output for price in (self.prices, *self.prices.sources.values()))
