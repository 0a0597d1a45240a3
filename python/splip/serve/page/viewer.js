// One photo in full, what is known of it, and the way to the ones beside it.

import { file, thumbnail } from "./api.js";
import { $, element, moment, title } from "./dom.js";
import { focusPhoto, shown } from "./grid.js";
import { more } from "./results.js";
import { alsoLike, moreLike } from "./state.js";
import { canExplain, hideWhy, toggleWhy } from "./why.js";

const SWIPE = 50; // pixels
const viewer = $("viewer");
const image = $("large");
let viewed = 0;

const current = () => shown.items[viewed];

function open(index) {
  if (index < 0) return;
  history.pushState({ ...history.state, viewer: true }, "");
  showPhoto(index);
  viewer.showModal();
}

/** The way out that leaves no entry of the browser's history behind. */
function leave() {
  if (history.state?.viewer) history.back();
  else viewer.close();
}

function showPhoto(index) {
  const { items } = shown;
  viewed = (index + items.length) % items.length;
  const item = current();
  hideWhy();
  $("why").hidden = !canExplain();
  $("gone").hidden = !item.missing;
  image.hidden = false;
  image.onerror = () => {
    // A format that browsers do not show (TIFF, HEIC): the server makes a JPEG of it.
    image.onerror = () => {
      $("gone").hidden = false;
      image.hidden = true;
    };
    image.src = thumbnail(item.id, 2048);
  };
  image.src = file(item.id);
  image.alt = title(item);
  $("viewer-title").textContent = title(item);
  $("place").textContent = `${viewed + 1} of ${items.length}`;
  $("original").href = file(item.id);
  $("previous").disabled = $("next").disabled = items.length < 2;
  showFacts(item);
  if (viewed > items.length - 4) more();
  for (const by of [1, -1]) {
    const other = items[viewed + by];
    if (other) new Image().src = file(other.id);
  }
}

const size = (bytes) => (bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.max(1, Math.round(bytes / 1e3))} kB`);

function showFacts(item) {
  const facts = [
    ["Taken", moment(item.taken)],
    ["Camera", item.camera],
    ["Size", [item.width && item.height && `${item.width} × ${item.height}`, item.bytes && size(item.bytes)].filter(Boolean).join(", ")],
    ["Label", item.label?.replaceAll("_", " ")],
    ...Object.entries(item.tags ?? {}),
    ["Similarity", item.score === undefined ? "" : item.score.toFixed(3) + (item.likely === false ? ", probably not what was asked" : "")],
    ["Copies", item.copies?.length ? String(item.copies.length) : ""],
    ["File", item.path ?? item.name],
  ];
  $("facts").replaceChildren(
    ...facts.filter(([, value]) => value).flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]),
  );
}

function toggleFacts() {
  $("facts").hidden = !$("facts").hidden;
  $("about-photo").setAttribute("aria-expanded", String(!$("facts").hidden));
}

function askFor(done) {
  const item = current();
  const state = history.state;
  done(item);
  viewer.close();
  if (state?.viewer && history.state?.viewer) history.back();
  scrollTo({ top: 0 });
}

const KEYS = {
  ArrowLeft: () => showPhoto(viewed - 1),
  ArrowRight: () => showPhoto(viewed + 1),
  i: toggleFacts,
  w: () => canExplain() && toggleWhy(current()),
  m: () => askFor(moreLike),
  M: () => askFor((item) => alsoLike(item, 1)),
  l: () => askFor((item) => alsoLike(item, -0.5)),
};

export function startViewer() {
  shown.open = open;
  $("previous").onclick = KEYS.ArrowLeft;
  $("next").onclick = KEYS.ArrowRight;
  $("about-photo").onclick = toggleFacts;
  $("why").onclick = KEYS.w;
  $("close").onclick = leave;
  $("more").onclick = KEYS.m;
  $("also").onclick = KEYS.M;
  $("less").onclick = KEYS.l;
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  viewer.addEventListener("click", (event) => event.target === viewer && leave());
  viewer.addEventListener("cancel", (event) => {
    event.preventDefault();
    leave();
  });
  addEventListener("popstate", () => {
    if (!history.state?.viewer && viewer.open) viewer.close();
    else if (history.state?.viewer && !viewer.open) history.replaceState({ query: history.state.query }, ""); // forward again
  });
  viewer.addEventListener("close", () => {
    const item = current();
    image.removeAttribute("src");
    hideWhy();
    if (item) focusPhoto(item.id);
  });
  if (history.state?.viewer) history.replaceState({ query: history.state.query }, ""); // it was reloaded

  let start = null;
  const stage = $("stage");
  stage.addEventListener("pointerdown", (event) => {
    start = event.isPrimary && event.pointerType !== "mouse" ? [event.clientX, event.clientY] : null;
  });
  stage.addEventListener("pointerup", (event) => {
    if (!start || !event.isPrimary) return;
    const [x, y] = [event.clientX - start[0], event.clientY - start[1]];
    start = null;
    if (Math.abs(x) > SWIPE && Math.abs(x) > 1.5 * Math.abs(y)) showPhoto(viewed + (x < 0 ? 1 : -1));
    else if (y > 2 * SWIPE && y > 1.5 * Math.abs(x)) leave();
  });
  stage.addEventListener("pointercancel", () => (start = null));
}
