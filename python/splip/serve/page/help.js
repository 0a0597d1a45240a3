// All keys, in one place.

import { $, element, typing } from "./dom.js";

const KEYS = {
  Drawing: [
    ["B · E", "pen · eraser"],
    ["[ · ]", "thinner · thicker"],
    ["Ctrl+Z · Ctrl+Shift+Z", "undo · redo"],
    ["Delete", "clear the paper"],
    ["Arrows, Space", "on the paper: move the pen, put it down or lift it (Shift: small steps)"],
    ["Ctrl+V", "search with a picture from the clipboard"],
  ],
  Photos: [
    ["Arrows, Home, End", "from photo to photo"],
    ["Enter", "open it"],
    ["M", "more like this, and nothing else"],
    ["Shift+M", "like this too, beside what is asked for"],
    ["L", "less like this"],
    ["/", "to the words"],
  ],
  "One photo": [
    ["← · →", "the one before · the next (or swipe)"],
    ["I", "what is known of it"],
    ["W", "why it was found"],
    ["Esc", "close (so does the Back button)"],
  ],
};

export function startHelp() {
  for (const [group, keys] of Object.entries(KEYS)) {
    const list = element("dl");
    for (const [key, text] of keys) list.append(element("dt", { textContent: key }), element("dd", { textContent: text }));
    $("keys").append(element("section", {}, element("h3", { textContent: group }), list));
  }
  $("help-open").onclick = () => $("help").showModal();
  $("help-close").onclick = () => $("help").close();
  $("help").addEventListener("click", (event) => event.target === $("help") && $("help").close());
  document.addEventListener("keydown", (event) => {
    if (typing(event.target) || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.key === "?") $("help").showModal();
    else if (event.key === "/" && !$("words").hidden) $("text").focus();
    else return;
    event.preventDefault();
  });
}
