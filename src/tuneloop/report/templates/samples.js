"use strict";
// Search, filter, order and pages of the samples. Texts of users and models are only ever set as text.
(() => {
  const $ = id => document.getElementById(id), source = $("sample-rows"), list = $("sample-list"), form = $("sample-form");
  if (!source || !list || !form) return;
  const data = JSON.parse(source.textContent), texts = data.texts, own = data.names.length - 1;
  const [PLACE, WHY, PROMPT, REFERENCE, LABEL, RIGHT, VALUE, ANSWERS, JUDGED, SCORES, MARKED] = Array(11).keys();
  const make = (tag, kind, text) => { const e = document.createElement(tag); if (kind) e.className = kind; if (text !== undefined) e.textContent = text; return e; };
  let found = data.rows, page = 0;

  // Words of an answer that the reference lacks, by their longest common subsequence, as on the first page.
  function marked(reference, answer) {
    const words = text => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || [], fold = word => /^\s/.test(word) ? " " : word.toLowerCase();
    const a = words(reference).map(fold), shown = words(answer), b = shown.map(fold), w = b.length + 1;
    if (!a.length || !b.length || a.length * b.length > 1e6) return [answer];
    const t = new Uint32Array((a.length + 1) * w);
    for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--) t[i * w + j] = a[i] === b[j] ? t[(i + 1) * w + j + 1] + 1 : Math.max(t[(i + 1) * w + j], t[i * w + j + 1]);
    const parts = []; let i = 0, j = 0, shared = 0;
    const put = (word, only) => { const last = parts[parts.length - 1]; only = only && !!word.trim(); if (last && last.only === only) last.text += word; else parts.push({ text: word, only }); };
    while (j < b.length) {
      if (i < a.length && a[i] === b[j]) { if (shown[j].trim()) shared += shown[j].length; put(shown[j++], false); i++; }
      else if (i < a.length && t[(i + 1) * w + j] >= t[i * w + j + 1]) i++;
      else put(shown[j++], true);
    }
    if (shared < 0.3 * Math.max(reference.length, answer.length)) return [answer];  // marked all over, it would say nothing
    return parts.map(p => p.only ? make("mark", "", p.text) : p.text);
  }
  function answer(name, kind, right, parts) {
    const box = make("section", `answer ${kind}`), head = make("h3", "", name);
    if (right === 0 || right === 1) head.append(" ", make("span", right ? "right" : "wrong", right ? "✓ right" : "✗ wrong"));
    const text = make("div", parts.length ? "text" : "text none", parts.length ? undefined : "(no answer)"); text.dir = "auto"; text.append(...parts);
    box.append(head, text); return box;
  }
  function card(row) {
    const box = make("article", "sample"), prompt = make("div", "prompt", texts[row[PROMPT]]), answers = make("div", "answers"), reference = texts[row[REFERENCE]];
    prompt.dir = "auto";
    if (texts[row[WHY]]) box.append(make("p", "why", texts[row[WHY]]));
    answers.append(answer("reference", "reference", -1, reference ? [reference] : []));
    row[ANSWERS].forEach((at, k) => {
      if (at < 0) return;
      const text = texts[at], right = row[JUDGED][k];
      answers.append(answer(data.names[k], k === own ? "tuned" : "", right, !text ? [] : row[MARKED] ? marked(reference, text) : [text]));
    });
    box.append(prompt, answers);
    if (texts[row[SCORES]]) box.append(make("p", "scores", texts[row[SCORES]]));
    return box;
  }
  function draw() {
    const pages = Math.max(Math.ceil(found.length / data.size), 1); page = Math.min(Math.max(page, 0), pages - 1);
    const from = page * data.size, some = found.slice(from, from + data.size);
    list.replaceChildren(...some.map(card));
    $("sample-count").textContent = found.length ? `${(from + 1).toLocaleString("en")} to ${(from + some.length).toLocaleString("en")} of ${found.length.toLocaleString("en")} rows` : "No row is like that.";
    $("sample-back").disabled = page === 0; $("sample-on").disabled = page === pages - 1;
  }
  function filter() {
    const value = id => $(id) ? $(id).value : "", search = value("sample-search").trim().toLowerCase(), outcome = value("sample-outcome"), label = value("sample-label"), [k, which] = value("sample-changed").split(":"), order = value("sample-order");
    const ranked = data.rows.map(r => r[VALUE]).filter(v => v !== null).sort((a, b) => a - b), quarter = ranked[Math.floor(ranked.length / 4)], top = ranked[Math.floor(3 * ranked.length / 4)];
    const low = search ? texts.map(text => text.toLowerCase().includes(search)) : [];
    found = data.rows.filter(r => {
      if (search && !low[r[PROMPT]] && !low[r[REFERENCE]] && !r[ANSWERS].some(at => low[at])) return false;
      if (outcome === "wrong" && r[RIGHT] !== 0 || outcome === "right" && r[RIGHT] !== 1) return false;
      if (outcome === "low" && !(r[VALUE] !== null && r[VALUE] <= quarter) || outcome === "high" && !(r[VALUE] !== null && r[VALUE] >= top)) return false;
      if (label && texts[r[LABEL]] !== label) return false;
      if (which === "won" && !(r[RIGHT] === 1 && r[JUDGED][k] === 0) || which === "lost" && !(r[RIGHT] === 0 && r[JUDGED][k] === 1)) return false;
      if (which === "differs" && (r[ANSWERS][k] < 0 || texts[r[ANSWERS][k]].trim() === texts[r[ANSWERS][own]].trim())) return false;
      return true;
    });
    const rank = r => r[VALUE] === null ? Infinity : r[VALUE];
    if (order === "file") found.sort((a, b) => a[PLACE] - b[PLACE]);
    if (order === "low") found.sort((a, b) => rank(a) - rank(b) || a[PLACE] - b[PLACE]);
    page = 0; draw();
  }
  form.addEventListener("input", filter); form.addEventListener("change", filter); form.addEventListener("submit", event => { event.preventDefault(); filter(); });
  form.addEventListener("reset", () => setTimeout(filter));
  const turn = by => { page += by; draw(); $("samples").scrollIntoView(); };
  $("sample-back").onclick = () => turn(-1); $("sample-on").onclick = () => turn(1);
  form.hidden = $("sample-pages").hidden = false; draw();
})();
