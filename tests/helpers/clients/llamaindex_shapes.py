"""LlamaIndex sends each conversation; prints what came as JSON. ADDRESS MODEL CONVERSATIONS as arguments."""

import json
import sys

from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

address, model, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
settings = {"api_base": f"{address}/v1", "api_key": "none", "model": model, "max_retries": 0, "temperature": 0}
chat = OpenAILike(**settings, is_chat_model=True, is_function_calling_model=True, max_tokens=given["tokens"])


def turns(messages):
    def blocks(content):
        return [TextBlock(text=part["text"]) for part in content] if isinstance(content, list) else content

    return [ChatMessage(role=turn["role"], content=blocks(turn["content"])) for turn in messages]


found = {name: chat.chat(turns(messages)).message.content for name, messages in given["conversations"].items()}
plain = given["conversations"]["plain"]
found["streamed"] = "".join(piece.delta or "" for piece in chat.stream_chat(turns(plain)))


def look_up(path: str) -> str:
    """Look a place up."""
    return f"{path}: in Utrecht"


long = OpenAILike(**settings, is_chat_model=True, is_function_calling_model=True, max_tokens=200)
function = given["tool"]["function"]
reply = long.chat(turns(plain), tools=[given["tool"]], tool_choice="required")
(call,) = long.get_tool_calls_from_response(reply)
found["call"] = [call.tool_name, call.tool_kwargs]
answer = ChatMessage(role="tool", content="in Utrecht", additional_kwargs={"tool_call_id": call.tool_id})
found["after the call"] = bool(chat.chat([*turns(plain), reply.message, answer]).message.content)
agentic = chat.chat_with_tools([FunctionTool.from_defaults(look_up)], user_msg="Where is my parcel?")
found["with tools"] = agentic.message.content is not None
form = {"type": "json_schema", "json_schema": {"name": "kind", "strict": True, "schema": given["schema"]}}
found["form"] = json.loads(long.chat(turns(plain), response_format=form).message.content)
found["completion"] = bool(OpenAILike(**settings, max_tokens=4).complete("Where is").text)
print(json.dumps(found))
