"""LiteLLM sends each conversation; prints what came as JSON. ADDRESS MODEL CONVERSATIONS as arguments."""

import json
import sys

import litellm

address, model, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
settings = {"model": f"openai/{model}", "api_base": f"{address}/v1", "api_key": "none", "num_retries": 0}


def ask(messages, **more):
    return litellm.completion(messages=messages, **settings, **{"max_tokens": given["tokens"], **more})


found = {name: ask(messages).choices[0].message.content for name, messages in given["conversations"].items()}
plain = given["conversations"]["plain"]
found["streamed"] = "".join(piece.choices[0].delta.content or "" for piece in ask(plain, stream=True))
message = ask(plain, tools=[given["tool"]], tool_choice="required", max_tokens=200).choices[0].message
(call,) = message.tool_calls
found["call"] = [call.function.name, json.loads(call.function.arguments)]
turns = [*plain, message, {"role": "tool", "tool_call_id": call.id, "content": "in Utrecht"}]
found["after the call"] = bool(ask(turns, tools=[given["tool"]]).choices[0].message.content)
form = {"type": "json_schema", "json_schema": {"name": "kind", "strict": True, "schema": given["schema"]}}
found["form"] = json.loads(ask(plain, response_format=form, max_tokens=200).choices[0].message.content)
print(json.dumps(found))
