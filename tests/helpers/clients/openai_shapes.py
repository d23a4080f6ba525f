"""OpenAI's client sends each conversation; prints what came as JSON. ADDRESS MODEL CONVERSATIONS as arguments."""

import json
import sys

import openai

address, model, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
api = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
chat = api.chat.completions


def text(messages, **more):
    settings = {"max_tokens": given["tokens"], **more}
    return chat.create(model=model, messages=messages, **settings).choices[0].message.content


found = {name: text(messages) for name, messages in given["conversations"].items()}
plain, tool = given["conversations"]["plain"], given["tool"]
events = chat.create(
    model=model, messages=plain, max_completion_tokens=given["tokens"], stream=True, n=1, user="anna", stop=None,
    stream_options={"include_usage": True}, metadata={"app": "test"}, store=False,
)  # fmt: skip
pieces = list(events)
assert 0 < pieces[-1].usage.completion_tokens <= given["tokens"]
found["streamed"] = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
answer = chat.create(
    model=model, messages=plain, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=200
)
assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
message = answer.choices[0].message
(call,) = message.tool_calls
found["call"] = [call.function.name, json.loads(call.function.arguments)]
turns = [*plain, message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "in Utrecht"}]
found["after the call"] = bool(text(turns, tools=[tool]))
entry = {"type": "function", "function": {"name": tool["function"]["name"]}}
again = chat.create(model=model, messages=plain, tools=[tool], tool_choice=entry, max_tokens=200)
found["named call"] = [call.function.name for call in again.choices[0].message.tool_calls]
form = {"type": "json_schema", "json_schema": {"name": "kind", "strict": True, "schema": given["schema"]}}
found["form"] = json.loads(text(plain, response_format=form, max_tokens=200))
developer = [{"role": "developer", "content": given["conversations"]["system"][0]["content"]}]
found["developer"] = text([*developer, given["conversations"]["system"][1]])
found["named"] = text([{**plain[0], "name": "anna"}])
found["embeddings"] = [len(datum.embedding) for datum in api.embeddings.create(model="minilm", input=["x", "y"]).data]
if hasattr(api, "responses"):
    found["responses"] = api.responses.create(
        model=model, input="Where is my parcel?", max_output_tokens=given["tokens"]
    ).output_text
    function = {"type": "function", "strict": False, **given["tool"]["function"]}
    asked = {"model": model, "tools": [function], "max_output_tokens": 200}
    first = api.responses.create(**asked, input="Where is my parcel?", tool_choice="required")
    call = next(item for item in first.output if item.type == "function_call")
    found["responses with tools"] = [call.name, json.loads(call.arguments)]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "in Utrecht"}
    later = api.responses.create(**asked, input=[result], previous_response_id=first.id)
    found["responses after the call"] = bool(later.output_text)
print(json.dumps({"version": openai.__version__, **found}))
