"""The HTTP API as models. From them come what is checked at the door, the OpenAPI document and the reference page.

A field that is no part of a body is refused, in a nested object it is ignored: clients write more there than is read.
`null` is the same as a field that is left out. What no model can say is checked where it is used: which tool is named,
whether a schema is supported, limits that are settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator, with_config
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core import core_schema
from typing_extensions import TypedDict  # typing's own one can't be read by pydantic before Python 3.12

from tuneloop.inference import MOST_LOGPROBS
from tuneloop.records.feedback import HEAVIEST, KIND

LONGEST_STOP = 256  # characters: each token is compared with all beginnings of them
MOST_TEXTS = 256  # of `/v1/classify`
MOST_EMBEDDED = 2048  # texts of `/v1/embeddings`
MOST_TOKENS = 1_000_000  # of an answer, as a request may ask for it

_Item = TypeVar("_Item")
_open = with_config(ConfigDict(strict=True, extra="allow"))  # passed on as it came: templates may read more
_lenient = with_config(ConfigDict(strict=True, extra="ignore"))


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


def _whole_ids(value: Any) -> Any:  # a prompt may have a million, so it looks at each only where one is no whole number
    return [*map(_whole, value)] if isinstance(value, list) and float in {*map(type, value)} else value


# --- values ------------------------------------------------------------------------------------

Name = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]  # Postgres stores no character of number 0
Word = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, BeforeValidator(_whole)]  # as JSON Schema reads numbers, 1.0 is a whole one
Count = Annotated[int, Field(ge=1, le=MOST_TOKENS), BeforeValidator(_whole)]
Unsigned = Annotated[int, Field(ge=0, le=MOST_TOKENS), BeforeValidator(_whole)]
FewTokens = Annotated[int, Field(ge=0, le=MOST_LOGPROBS), BeforeValidator(_whole)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(ge=1e-6, le=1)]
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Stops = Stop | Annotated[list[Stop], Field(max_length=16, fail_fast=True)]
ServiceTier = Literal["auto", "default", "flex", "priority"]
Several = Annotated[list[_Item], Field(min_length=1, fail_fast=True)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[Several[TokenId], BeforeValidator(_whole_ids)]


_EMPTY = {
    "number": {"const": 0}, "integer": {"const": 0}, "boolean": {"const": False}, "string": {"maxLength": 0},
    "array": {"maxItems": 0}, "object": {"maxProperties": 0}, "null": {},
}  # fmt: skip


@dataclass(frozen=True)
class Unsupported:
    """Marks a field of OpenAI's API that is refused unless it is empty; `instead`: what to use."""

    instead: str = ""

    @property
    def says(self) -> str:
        """The end of its message."""
        return f"not supported; {self.instead}" if self.instead else "not supported"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        def empty(value: Any) -> Any:
            if value:
                raise ValueError(f"is {self.says}")
            return value

        return core_schema.no_info_after_validator_function(empty, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        kinds = [kind | _EMPTY[kind["type"]] for kind in handler(schema)["anyOf"]]
        return {"anyOf": kinds, "description": self.says}


Ignored = Annotated[Any, Field(description="ignored")]


# --- turns and tools ---------------------------------------------------------------------------


@_lenient
class TextPart(TypedDict):
    """A text of a turn."""

    type: NotRequired[Literal["text", "input_text", "output_text"] | None]
    text: str


@_lenient
class RefusalPart(TypedDict):
    """What the assistant said in place of an answer."""

    type: Literal["refusal"]
    refusal: str


Content = str | Annotated[list[str | TextPart | RefusalPart], Field(fail_fast=True)]


@_open
class CalledFunction(TypedDict):
    """A function, and what it is called with: as a rule a JSON text."""

    name: str
    arguments: NotRequired[Any]


@_open
class ToolCall(TypedDict):
    """A call of a function."""

    id: NotRequired[str | None]
    type: NotRequired[Literal["function"] | None]
    function: CalledFunction


NoCalls = Annotated[list[Any], Field(max_length=0)] | None


@_lenient
class SystemTurn(TypedDict):
    """The instruction that the assistant gets."""

    role: Literal["system", "developer"]
    content: Content
    tool_calls: NotRequired[NoCalls]


@_lenient
class UserTurn(TypedDict):
    """What the user says."""

    role: Literal["user"]
    content: Content
    tool_calls: NotRequired[NoCalls]


@_lenient
class AssistantTurn(TypedDict):
    """What the assistant said, or the functions that it called."""

    role: Literal["assistant"]
    content: NotRequired[Content | None]
    tool_calls: NotRequired[Annotated[list[ToolCall], Field(fail_fast=True)] | None]
    reasoning_content: NotRequired[Any]
    reasoning: NotRequired[Any]


@_lenient
class ToolTurn(TypedDict):
    """What a function returned."""

    role: Literal["tool", "function"]
    content: Content
    tool_call_id: NotRequired[str | None]
    name: NotRequired[str | None]
    tool_calls: NotRequired[NoCalls]


Turn = Annotated[SystemTurn | UserTurn | AssistantTurn | ToolTurn, Field(discriminator="role")]


@_open
class Function(TypedDict):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: Word
    description: NotRequired[str | None]
    parameters: NotRequired[dict[str, Any] | None]


@_open
class Tool(TypedDict):
    """A tool of a chat."""

    type: Literal["function"]
    function: Function


@_lenient
class NamedFunction(TypedDict):
    """The name of a function."""

    name: Word


@_lenient
class NamedTool(TypedDict):
    """The tool that must be called."""

    type: NotRequired[Literal["function"]]
    function: NamedFunction


# --- forms of an answer ------------------------------------------------------------------------


@_lenient
class PlainFormat(TypedDict):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


@_lenient
class NamedSchema(TypedDict):
    """A JSON Schema, with what OpenAI says of it."""

    name: NotRequired[Any]
    schema: dict[str, Any]


@_lenient
class SchemaFormat(TypedDict):
    """An answer that fulfils a JSON Schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")]


@_lenient
class StreamOptions(TypedDict):
    """What a stream further has."""

    include_usage: NotRequired[bool | None]


# --- bodies ------------------------------------------------------------------------------------


class Body(BaseModel):
    """A body, of which every field is known."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    model: Name | None = Field(None, description="empty: the first one")


class DrawnBody(Body):
    """How answers are drawn, and where they end."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = Field(None, description="answers")
    temperature: Temperature | None = Field(None, description="default: 0")
    top_p: TopP | None = None
    top_k: Unsigned | None = Field(None, description="0: all tokens; of other servers, as the next two")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=100)] | None = None
    seed: Whole | None = None
    stop: Stops | None = None
    max_tokens: Count | None = None
    user: Name | None = Field(None, description="name of the end user")
    service_tier: ServiceTier | None = None
    frequency_penalty: Annotated[float | None, Unsupported("repetition_penalty is")] = None
    presence_penalty: Annotated[float | None, Unsupported("repetition_penalty is")] = None
    logit_bias: Annotated[dict[str, Any] | None, Unsupported()] = None


class ChatBody(DrawnBody):
    """The body of `/v1/chat/completions`."""

    messages: Several[Turn]
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    max_completion_tokens: Count | None = Field(None, description="goes before max_tokens")
    logprobs: bool | None = None
    top_logprobs: FewTokens | None = Field(None, description="needs logprobs")
    metadata: Ignored = None
    store: Ignored = None
    reasoning_effort: Ignored = None
    verbosity: Ignored = None
    modalities: Ignored = None
    prediction: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    web_search_options: Ignored = None
    functions: Annotated[list[Any] | None, Unsupported("use tools")] = None
    function_call: Annotated[str | dict[str, Any] | None, Unsupported("use tool_choice")] = None
    audio: Annotated[dict[str, Any] | None, Unsupported("use messages")] = None


class CompletionsBody(DrawnBody):
    """The body of `/v1/completions`."""

    prompt: str | TokenIds | Several[str | TokenIds]
    echo: bool | None = None
    logprobs: FewTokens | None = None
    suffix: Annotated[str | None, Unsupported()] = None
    best_of: Count | None = Field(None, description="1, or as n")


@_lenient
class SystemItem(SystemTurn):
    """A turn, as an item."""

    type: NotRequired[Literal["message"] | None]


@_lenient
class UserItem(UserTurn):
    """A turn, as an item."""

    type: NotRequired[Literal["message"] | None]


@_lenient
class AssistantItem(AssistantTurn):
    """A turn, as an item."""

    type: NotRequired[Literal["message"] | None]


@_lenient
class ReasoningItem(TypedDict):
    """What a model thought before; it is left out."""

    type: Literal["reasoning"]


Message = Annotated[SystemItem | UserItem | AssistantItem, Field(discriminator="role")]


def _item_kind(item: Any) -> Any:
    return (item.get("type") or "message") if isinstance(item, dict) else "message"


@_lenient
class FunctionCallItem(TypedDict):
    """A call of a function, of an earlier answer."""

    type: Literal["function_call"]
    call_id: Word
    name: Word
    arguments: str


@_lenient
class FunctionOutputItem(TypedDict):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: Word
    output: Content


@_lenient
class ItemReference(TypedDict):
    """An item of an earlier answer, by its id."""

    type: Literal["item_reference"]
    id: Word


Item = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_item_kind),
]


@_lenient
class ResponseTool(TypedDict):
    """A function that the model may call; `parameters` is a JSON Schema."""

    type: Literal["function"]
    name: Word
    description: NotRequired[str | None]
    parameters: NotRequired[dict[str, Any] | None]


@_lenient
class NamedResponseTool(TypedDict):
    """The function that must be called."""

    type: Literal["function"]
    name: Word


@_lenient
class ResponseSchema(TypedDict):
    """An answer that fulfils a JSON Schema."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


@_lenient
class ResponseText(TypedDict):
    """The form of an answer."""

    format: NotRequired[Annotated[PlainFormat | ResponseSchema, Field(discriminator="type")] | None]


_ALONE = "use previous_response_id, or send all turns as input"


class ResponsesBody(Body):
    """The body of `/v1/responses`."""

    input: str | Several[Item]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = Field(None, description="default: 0")
    top_p: TopP | None = None
    max_output_tokens: Count | None = None
    text: ResponseText | None = None
    user: Name | None = Field(None, description="name of the end user")
    service_tier: ServiceTier | None = None
    tools: Annotated[list[ResponseTool], Field(fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedResponseTool | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: Word | None = Field(None, description="of an answer to the same key, whose turns go before")
    store: bool | None = Field(None, description="default: true; false: no later request can refer to the answer")
    conversation: Annotated[str | dict[str, Any] | None, Unsupported(_ALONE)] = None
    background: Annotated[bool | None, Unsupported()] = None
    prompt: Annotated[dict[str, Any] | None, Unsupported()] = None
    metadata: Ignored = None
    truncation: Ignored = None
    include: Ignored = None
    reasoning: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    max_tool_calls: Ignored = None
    top_logprobs: Ignored = None


def _any_of(*names: str) -> Any:
    """The validator of a model one of whose fields must have a value; `_schema_any_of`: the same in the document."""

    def check(self: BaseModel) -> BaseModel:
        if all(getattr(self, name) is None for name in names):
            raise ValueError(f"{' or '.join(names)} is required")
        return self

    return model_validator(mode="after")(check)


def _schema_any_of(*names: str) -> ConfigDict:
    """See `_any_of`."""
    some: list[Any] = [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names]
    return ConfigDict(json_schema_extra={"anyOf": some})


class ClassifyBody(Body):
    """The body of `/v1/classify`: texts, or a conversation."""

    model_config = _schema_any_of("input", "messages")

    input: str | Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS, fail_fast=True)] | None = None
    messages: Several[Turn] | None = None
    _any = _any_of("input", "messages")
    top: Unsigned | None = Field(None, description="labels whose probabilities are given; 0: all")
    user: Name | None = Field(None, description="name of the end user")
    service_tier: ServiceTier | None = None


def _no_token_ids(value: Any) -> Any:
    first = value[0] if isinstance(value, list) and value else value
    if type(first) is int:
        raise ValueError("is no text: token ids of another model's tokenizer are not read; send texts")
    return value


EmbeddedText = Annotated[str, Field(min_length=1), BeforeValidator(_no_token_ids)]


class EmbeddingsBody(Body):
    """The body of `/v1/embeddings`."""

    input: EmbeddedText | Annotated[list[EmbeddedText], Field(min_length=1, max_length=MOST_EMBEDDED, fail_fast=True)]
    encoding_format: Literal["float", "base64"] | None = Field(None, description="default: float")
    dimensions: Annotated[Whole | None, Unsupported("each vector has the encoder's 384 numbers")] = None
    user: Name | None = Field(None, description="name of the end user")


class TokenizeBody(Body):
    """The body of `/tokenize`: a text, or a conversation as the model reads it."""

    model_config = ConfigDict(extra="ignore") | _schema_any_of("prompt", "text", "messages")

    prompt: str | None = None
    text: str | None = Field(None, description="the same as prompt")
    messages: Several[Turn] | None = None
    _any = _any_of("prompt", "text", "messages")


Id = Annotated[str, Field(max_length=256)] | Whole
FeedbackName = Annotated[str, Field(json_schema_extra={"pattern": f"^{KIND.pattern}$"})]


class FeedbackBody(BaseModel):
    """The body of `/v1/feedback`; `records.feedback.feedback_of` checks which value fits the kind."""

    model_config = ConfigDict(strict=True, extra="forbid") | _schema_any_of("request", "conversation")

    request: Id | None = Field(None, description="id of an answer")
    conversation: Id | None = Field(None, description="in place of a request; needs the key that had it")
    kind: FeedbackName
    value: Any
    user: Id | None = None
    key: Id | None = Field(None, description="the same key again is the same feedback")
    source: FeedbackName | Literal[""] | None = Field(None, description="an empty one is none")
    weight: Annotated[float, Field(gt=0, le=HEAVIEST)] | None = None


BatchEndpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]


class BatchBody(BaseModel):
    """The body of `/v1/batches`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    input_file_id: str
    endpoint: BatchEndpoint
    completion_window: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}[hd]$")] = "24h"
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None


class FileForm(BaseModel):
    """The form of `/v1/files`."""

    file: bytes
    purpose: Literal["batch"] = "batch"


class ErrorPart(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The answer to a request that is refused, or that fails."""

    error: ErrorPart


# --- endpoints ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """What can be done at a path."""

    method: str
    path: str
    summary: str
    body: type[BaseModel] | None = None
    media: str = "application/json"  # of the body


OPERATIONS = (
    Operation("post", "/v1/chat/completions", "Answer a conversation", ChatBody),
    Operation("post", "/v1/completions", "Continue a text", CompletionsBody),
    Operation("post", "/v1/responses", "Answer a text or a conversation", ResponsesBody),
    Operation("post", "/v1/classify", "Choose a label, with its probability", ClassifyBody),
    Operation("post", "/v1/embeddings", "Vectors of texts, where the encoder is installed", EmbeddingsBody),
    Operation(
        "post", "/v1/feedback", "Say what came of an answer: by the id of a request, or with the key that had the "
        "conversation", FeedbackBody,
    ),
    Operation("post", "/tokenize", "Token ids of a text or a conversation", TokenizeBody),
    Operation("get", "/v1/models", "The models that answer"),
    Operation("get", "/v1/models/{model}", "One of them"),
    Operation("get", "/healthz", "Whether the process is alive"),
    Operation("get", "/readyz", "Whether it takes requests"),
    Operation("get", "/metrics", "Metrics for Prometheus"),
    Operation("get", "/openapi.json", "This document"),
    Operation("get", "/feedback.js", "A script with which a page asks its readers for feedback"),
    Operation("post", "/v1/files", "Upload a file of requests", FileForm, "multipart/form-data"),
    Operation("get", "/v1/files", "The files"),
    Operation("get", "/v1/files/{id}", "One of them"),
    Operation("delete", "/v1/files/{id}", "Delete it"),
    Operation("get", "/v1/files/{id}/content", "What it holds"),
    Operation("post", "/v1/batches", "Answer a file of requests", BatchBody),
    Operation("get", "/v1/batches", "The batches"),
    Operation("get", "/v1/batches/{id}", "One of them"),
    Operation("post", "/v1/batches/{id}/cancel", "End it early"),
)  # fmt: skip

# --- the document ------------------------------------------------------------------------------

_PLACE = "#/components/schemas/"


class _Terse(GenerateJsonSchema):
    """Schemas without titles of fields, which are their names, and without `null` as a default: it says nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """It should not."""
        return False

    def default_schema(self, schema: Any) -> dict[str, Any]:
        """A field with its default."""
        return self.generate_inner(schema["schema"]) if schema["default"] is None else super().default_schema(schema)


def document(*, batches: bool = True, most_choices: int | None = None) -> dict[str, Any]:
    """The OpenAPI document of a server, as JSON.

    Args:
        batches: whether the server takes batches.
        most_choices: answers to a request, at most; None: the document does not say it.
    """
    operations = [
        operation for operation in OPERATIONS if batches or not operation.path.startswith(("/v1/files", "/v1/batches"))
    ]
    models: list[type[BaseModel]] = [
        ErrorReply,
        *(operation.body for operation in operations if operation.body is not None),
    ]
    _, found = models_json_schema(
        [(model, "validation") for model in models], ref_template=_PLACE + "{model}", schema_generator=_Terse
    )
    schemas = found["$defs"]
    if most_choices is not None:
        for name in ("ChatBody", "CompletionsBody"):
            schemas[name]["properties"]["n"]["anyOf"][0]["maximum"] = most_choices
    refused = {"description": "Refused", "content": {"application/json": {"schema": {"$ref": f"{_PLACE}ErrorReply"}}}}
    paths: dict[str, Any] = {}
    for entry in operations:
        operation: dict[str, Any] = {
            "summary": entry.summary, "responses": {"200": {"description": "Done"}, "4XX": refused, "5XX": refused},
        }  # fmt: skip
        if entry.body is not None:
            content = {entry.media: {"schema": {"$ref": _PLACE + entry.body.__name__}}}
            operation["requestBody"] = {"required": True, "content": content}
        if "{" in entry.path:
            name = entry.path.partition("{")[2].partition("}")[0]
            operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
        paths.setdefault(entry.path, {})[entry.method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "tuneloop", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }
