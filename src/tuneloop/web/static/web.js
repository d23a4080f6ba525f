// Says when the server is away, and when it is back; htmx tries again on its own.
"use strict";
const lost = document.getElementById("lost");
document.addEventListener("htmx:sseError", () => { lost.hidden = false; });
document.addEventListener("htmx:sseOpen", () => { lost.hidden = true; });
