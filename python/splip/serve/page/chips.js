// What the query is made of, as chips: each with its weight and a way to take it out.

import { thumbnail } from "./api.js";
import { $, element, sign } from "./dom.js";
import { clear } from "./drawing.js";
import { usePicture } from "./picture.js";
import { canGoBack, changed, listen, parts, state } from "./state.js";

const WEIGHTS = [4, 2, 1, 0.5, 0.25];
const NAMES = { 0.25: "¼", 0.5: "½" };
const NAMED = { drawing: "drawing", picture: "picture" };

let before = "";

function setWeight(part, weight) {
  if (part.kind !== "photo") state.weights[part.kind] = weight;
  else state.photos = state.photos.map((photo) => (photo.id === part.id ? { ...photo, weight } : photo));
  changed();
}

function takeOut(part) {
  if (part.kind === "drawing") {
    clear();
    return;
  }
  if (part.kind === "picture") {
    usePicture(null);
    return;
  }
  if (part.kind === "words") state.words = $("text").value = "";
  else state.photos = state.photos.filter((photo) => photo.id !== part.id);
  changed();
}

function weights(part, name) {
  const select = element("select", { className: "weight" });
  select.setAttribute("aria-label", `Weight of ${name}`);
  const signs = part.kind === "photo" ? [1, -1] : [1];
  const values = [...new Set([...signs.flatMap((s) => WEIGHTS.map((w) => s * w)), part.weight])].sort((a, b) => b - a);
  for (const value of values) {
    const text = `${value < 0 ? "−" : "×"}${NAMES[Math.abs(value)] ?? Math.abs(value)}`;
    select.append(element("option", { value, textContent: text, selected: value === part.weight }));
  }
  select.onchange = () => setWeight(part, Number(select.value));
  return select;
}

function chip(part, alone) {
  const unlike = part.weight < 0;
  const name = part.name ?? NAMED[part.kind];
  const picture = part.kind === "photo" ? element("img", { src: thumbnail(part.id, 128), alt: "" }) : sign(part.kind);
  const words = unlike ? `not like ${name}` : part.kind === "photo" ? `like ${name}` : name;
  const item = element("li", { className: unlike ? "chip unlike" : "chip" }, picture, element("span", { textContent: words }));
  if (!alone || unlike) item.append(weights(part, words));
  const out = element("button", { type: "button", className: "icon", title: "Take out" }, sign("close"));
  out.setAttribute("aria-label", `Take out: ${words}`);
  out.onclick = () => takeOut(part);
  item.append(out);
  return item;
}

function restriction(text, spoken, done) {
  const item = element("li", { className: "chip only" }, element("span", { textContent: text }));
  const out = element("button", { type: "button", className: "icon", title: "Take out" }, sign("close"));
  out.setAttribute("aria-label", spoken);
  out.onclick = () => {
    done();
    changed("restore");
  };
  item.append(out);
  return item;
}

function showChips() {
  const found = parts();
  const filters = [state.labels, state.from, state.to, state.least];
  const now = JSON.stringify([found, filters, canGoBack()]);
  if (now === before) return;
  before = now;
  const held = [...$("chips").children].indexOf(document.activeElement?.closest("#chips > li"));
  const kind = document.activeElement?.tagName;
  const rows = found.map((part) => chip(part, found.length === 1));
  for (const label of state.labels) {
    const out = () => (state.labels = state.labels.filter((other) => other !== label));
    rows.push(restriction(label.replaceAll("_", " "), `Search all labels again, not only ${label}`, out));
  }
  if (state.from || state.to) {
    const text = state.from === state.to ? state.from : `${state.from || "…"} – ${state.to || "…"}`;
    rows.push(restriction(text, "Search photos of all dates", () => (state.from = state.to = "")));
  }
  if (state.least) rows.push(restriction(`≥ ${state.least} px`, "Search photos of all sizes", () => (state.least = "")));
  if (canGoBack()) {
    const back = element("button", { type: "button", id: "undo-query", textContent: "← Back to the search before" });
    back.onclick = () => history.back();
    rows.unshift(element("li", {}, back));
  }
  $("chips").replaceChildren(...rows);
  // The chip that was worked on is another element now, or gone.
  if (held >= 0) (rows[Math.min(held, rows.length - 1)]?.querySelector(kind === "SELECT" ? "select" : "button") ?? $($("words").hidden ? "results" : "text")).focus();
}

export const startChips = () => listen(showChips);
