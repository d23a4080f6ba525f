"""LangChain sends each conversation; prints what came as JSON. ADDRESS MODEL CONVERSATIONS as arguments."""

import json
import sys

from langchain_openai import ChatOpenAI

address, model, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
settings = {"base_url": f"{address}/v1", "api_key": "none", "model": model, "max_retries": 0}
chat = ChatOpenAI(**settings, max_completion_tokens=given["tokens"])
found = {name: chat.invoke(messages).content for name, messages in given["conversations"].items()}
plain = given["conversations"]["plain"]
found["streamed"] = "".join(piece.content for piece in chat.stream(plain))
long = ChatOpenAI(**settings, max_completion_tokens=200)
bound = long.bind_tools([given["tool"]], tool_choice="required")
message = bound.invoke(plain)
found["call"] = [message.tool_calls[0]["name"], message.tool_calls[0]["args"]]
answer = {"role": "tool", "content": "in Utrecht", "tool_call_id": message.tool_calls[0]["id"]}
found["after the call"] = bool(chat.bind_tools([given["tool"]]).invoke([*plain, message, answer]).content)
found["form"] = long.with_structured_output({"title": "kind", **given["schema"]}).invoke(plain)
found["by function"] = long.with_structured_output(
    {"title": "kind", "description": "k", **given["schema"]}, method="function_calling"
).invoke(plain)
print(json.dumps(found))
