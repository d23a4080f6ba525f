// Says when the server is away, and when it is back; htmx tries again on its own.
"use strict";
const lost = document.getElementById("lost");
document.addEventListener("htmx:sseError", () => { lost.hidden = false; });
document.addEventListener("htmx:sseOpen", () => { lost.hidden = true; });

// Labels are corrected by keyboard: j and k go from row to row, 1 to 9 choose a label, Enter corrects. A row that is
// corrected has no form any more, so the first j after it is at the next one. In a field, letters are letters.
const rows = [...document.querySelectorAll("#suspects .sample")].filter((row) => row.querySelector(".fix"));
for (const keys of document.querySelectorAll(".keys")) keys.hidden = !rows.length;
for (const row of rows) row.tabIndex = -1;
document.addEventListener("keydown", (event) => {
  if (!rows.length || event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.activeElement.matches("input, textarea, select, button, summary, a")) return;
  const at = rows.indexOf(document.activeElement);
  const label = document.querySelectorAll("#labels option")[Number(event.key) - 1];
  if (event.key === "j" || event.key === "k") {
    const next = rows[Math.min(Math.max(at + (event.key === "j" ? 1 : -1), 0), rows.length - 1)];
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  } else if (at >= 0 && label && /^[1-9]$/.test(event.key)) {
    rows[at].querySelector("input[name=becomes]").value = label.value;
  } else if (at >= 0 && event.key === "Enter") {
    rows[at].querySelector(".fix").requestSubmit();
  } else return;
  event.preventDefault();
});
