"""The page at `/`: which models answer, and a box to try one."""

import base64
import hashlib
import re

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>tuneloop serve</title>
<meta name="viewport" content="width=device-width">
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#222}
textarea,select,input,button{font:inherit;width:100%;box-sizing:border-box;margin:.3rem 0;padding:.4rem}
button{width:auto}pre{background:#f4f4f4;padding:1rem;white-space:pre-wrap;min-height:3rem}
a{margin-right:1rem}small{color:#666}
</style></head><body>
<h1>tuneloop serve</h1>
<p id="state">...</p>
<label>Model <select id="model"></select></label>
<label>Key, where one is needed <input id="key" type="password" autocomplete="off"></label>
<label>Prompt <textarea id="prompt" rows="5">Hello</textarea></label>
<button id="send">Send</button> <small id="tells"></small>
<pre id="answer"></pre>
<p><a href="/v1/models">models</a><a href="/metrics">metrics</a><a href="/openapi.json">API</a><a href="/readyz">ready</a></p>
<script>
const at = id => document.getElementById(id);
const headers = () => ({"content-type": "application/json", ...(at("key").value ? {authorization: "Bearer " + at("key").value} : {})});
async function load() {
  const ready = await fetch("/readyz"), found = await fetch("/v1/models", {headers: headers()});
  at("state").textContent = ready.ok ? "It answers." : "It does not take requests now.";
  if (!found.ok) { at("state").textContent += " A key is needed."; return; }
  at("model").replaceChildren(...(await found.json()).data.map(m => new Option(m.id + (m.release ? " (" + m.release + ")" : ""), m.id)));
}
at("key").onchange = load;
at("send").onclick = async () => {
  at("answer").textContent = ""; const began = performance.now();
  const body = {model: at("model").value, messages: [{role: "user", content: at("prompt").value}], stream: true};
  const reply = await fetch("/v1/chat/completions", {method: "POST", headers: headers(), body: JSON.stringify(body)});
  if (!reply.ok) { at("answer").textContent = (await reply.json()).error.message; return; }
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader(); let rest = "";
  for (;;) {
    const {done, value} = await reader.read(); if (done) break;
    const lines = (rest + value).split("\\n\\n"); rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) {
      const event = JSON.parse(line.slice(6));
      at("answer").textContent += event.error ? "\\n" + event.error.message : (event.choices[0]?.delta.content ?? "");
    }
  }
  at("tells").textContent = Math.round(performance.now() - began) + " ms, request " + reply.headers.get("x-tuneloop-request");
};
load();
</script></body></html>
"""


def _hash_of(tag: str) -> str:
    """The source of a policy that allows what stands in the page's only such tag, and nothing else."""
    found = re.search(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
