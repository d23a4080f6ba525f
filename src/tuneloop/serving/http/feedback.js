// Feedback on answers, in any page: thumbs, the right answer, a comment. No other file is loaded.
//
//   <script src="http://SERVER/feedback.js"></script>
//   <div data-tuneloop-request="ID"></div>
//
// Elements that come later are found as well; `tuneloopFeedback(element, {request, server})` does the
// same by hand. Each vote that the server took raises the event `tuneloop-feedback` on the element.
"use strict";
(() => {
  const script = document.currentScript;
  const origin = script && script.src ? new URL(script.src).origin : location.origin;
  const STYLE = `
    :host { display: inline-block; font: inherit; color: inherit; }
    div, form { display: flex; flex-wrap: wrap; gap: .4em; align-items: center; }
    form { margin-top: .4em; max-width: 34em; } form[hidden] { display: none; }
    button { font: inherit; color: inherit; background: none; border: 1px solid currentColor; border-radius: .4em; padding: .2em .6em; cursor: pointer; opacity: .75; }
    button:hover, button:focus-visible, button[aria-pressed=true] { opacity: 1; }
    button[aria-pressed=true] { box-shadow: inset 0 0 0 2px currentColor; }
    button:disabled { opacity: .35; cursor: default; }
    textarea { font: inherit; color: inherit; background: transparent; border: 1px solid currentColor; border-radius: .4em; padding: .4em; width: 100%; box-sizing: border-box; min-height: 3.2em; }
    label { flex: 1 1 100%; display: grid; gap: .2em; font-size: .9em; } small { opacity: .8; }`;
  const WORDS = {
    up: "Good answer", down: "Bad answer", more: "Say more", correction: "What would be right?", comment: "Anything else?", send: "Send",
    thanks: "Thank you", failed: "This could not be sent. Please try again.",
  };

  const make = (name, attributes = {}, text = "") => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };
  const known = new WeakSet();
  const shadow = host => {
    try { return host.attachShadow({ mode: "open" }); }
    catch { return host.appendChild(make("span")).attachShadow({ mode: "open" }); }  // not every element can have one
  };
  const key = () => "widget:" + Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0")).join("");

  // The same vote is sent again with the same key where the network fails, so that it counts once.
  async function send(about, kind, value) {
    const { server = origin, request } = about;
    const body = JSON.stringify({ request, kind, value, key: key() });
    for (let attempt = 0; ; attempt++) {
      try {
        const reply = await fetch(server + "/v1/feedback", { method: "POST", headers: { "content-type": "application/json" }, body });
        if (reply.ok) return;
        if (reply.status < 500 && reply.status !== 429) throw Object.assign(new Error(String(reply.status)), { final: true });
        throw new Error(String(reply.status));
      } catch (error) {
        if (error.final || attempt === 2) throw error;
        await new Promise(done => setTimeout(done, 500 * 2 ** attempt));
      }
    }
  }

  function attach(host, about) {
    if (known.has(host) || !about.request) return;
    known.add(host);
    const root = shadow(host);
    const bar = make("div", { role: "group", "aria-label": "Feedback" });
    const thumbs = [["up", "\u{1F44D}", true], ["down", "\u{1F44E}", false]].map(([name, sign, value]) => {
      const button = make("button", { type: "button", name, title: WORDS[name], "aria-label": WORDS[name], "aria-pressed": "false" }, sign);
      button.onclick = () => vote(button, value);
      return button;
    });
    const more = make("button", { type: "button", name: "more" }, WORDS.more);
    const status = make("small", { role: "status" });
    const form = make("form", { hidden: "" });
    const fields = ["correction", "comment"].map(name => {
      const label = make("label", {}, WORDS[name]);
      label.append(make("textarea", { name, maxlength: "20000" }));
      form.append(label);
      return label.lastChild;
    });
    form.append(make("button", { type: "submit", name: "send" }, WORDS.send));
    more.onclick = () => { form.hidden = !form.hidden; if (!form.hidden) fields[0].focus(); };
    form.onsubmit = event => { event.preventDefault(); write(); };
    bar.append(...thumbs, more, status);
    root.append(make("style", {}, STYLE), bar, form);

    async function report(kind, value) {
      await send(about, kind, value);
      host.dispatchEvent(new CustomEvent("tuneloop-feedback", { bubbles: true, detail: { kind, value } }));
    }
    async function vote(button, value) {
      for (const one of thumbs) one.disabled = true;
      try {
        await report("thumbs", value);
        for (const one of thumbs) one.setAttribute("aria-pressed", String(one === button));
        status.textContent = WORDS.thanks;
        if (!value) form.hidden = false;
      } catch { status.textContent = WORDS.failed; }
      for (const one of thumbs) one.disabled = false;
    }
    async function write() {
      const button = form.lastChild;
      button.disabled = true;
      try {
        for (const field of fields) {
          if (!field.value.trim()) continue;
          await report(field.name, field.value);
          field.value = "";
        }
        form.hidden = true;
        status.textContent = WORDS.thanks;
      } catch { status.textContent = WORDS.failed; }
      button.disabled = false;
    }
  }

  const SELECTOR = "[data-tuneloop-request]";
  const found = element => attach(element, { request: element.dataset.tuneloopRequest });
  const search = node => {
    if (node.nodeType !== Node.ELEMENT_NODE && node !== document) return;
    if (node.matches && node.matches(SELECTOR)) found(node);
    node.querySelectorAll(SELECTOR).forEach(found);
  };
  const begin = () => {
    search(document);
    new MutationObserver(changes => changes.forEach(change => change.addedNodes.forEach(search))).observe(document.body, { childList: true, subtree: true });
  };
  window.tuneloopFeedback = attach;
  if (document.body) begin(); else addEventListener("DOMContentLoaded", begin);
})();
