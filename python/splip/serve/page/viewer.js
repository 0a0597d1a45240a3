// One photo in full, what is known of it, and the way to the ones beside it.

import { file, thumbnail } from "./api.js";
import { $, element, moment, title } from "./dom.js";
import { focusPhoto, isGone, shown } from "./grid.js";
import { more } from "./results.js";
import { alsoLike, canDislike, moreLike } from "./state.js";
import { canExplain, hideWhy, paint, toggleWhy } from "./why.js";

const SWIPE = 50; // pixels
const GONE = "The file of this photo is not there any more.";
const viewer = $("viewer");
const image = $("large");
let list = []; // the photos that were shown when it was opened: an answer that comes later does not change what is looked at
let viewed = 0; // index in it
let leaving = false; // on the way back in the browser's history

const current = () => list[viewed];

function open(index) {
  if (index < 0) return;
  list = shown.items;
  history.pushState({ ...history.state, viewer: true }, "");
  showPhoto(index);
  viewer.showModal();
}

/** The way out that leaves no entry of the browser's history behind. */
function leave() {
  if (leaving) return;
  leaving = Boolean(history.state?.viewer);
  if (leaving) history.back();
  else viewer.close();
}

/** Go on to photos that came meanwhile, if they continue these. */
function lengthen() {
  const { items } = shown;
  if (items.length <= list.length || !list.every((item, i) => item.id === items[i].id)) return;
  list = items;
  showPlace();
}

function showPlace() {
  $("place").textContent = `${viewed + 1} of ${list.length}`;
  $("previous").disabled = $("next").disabled = list.length < 2;
}

function load(item) {
  image.hidden = false;
  image.removeAttribute("src"); // else the photo before stays, with its size, until this one is there
  delete image.dataset.photo;
  image.onload = () => {
    image.dataset.photo = item.id;
    paint();
  };
  image.onerror = () => {
    // A format that browsers do not show (TIFF, HEIC): the server makes a JPEG of it.
    image.onerror = () => {
      if (item !== current()) return;
      image.hidden = true;
      $("gone").hidden = false;
      $("gone").textContent = "This photo cannot be shown.";
      isGone(item).then((gone) => gone && item === current() && ($("gone").textContent = GONE));
    };
    image.src = thumbnail(item.id, 2048);
  };
  image.src = file(item.id);
}

function showPhoto(index) {
  if (!list.length) return;
  lengthen();
  viewed = (index + list.length) % list.length;
  const item = current();
  hideWhy();
  $("why").hidden = !canExplain();
  $("less").disabled = !canDislike(item);
  $("gone").hidden = !item.missing;
  $("gone").textContent = GONE;
  load(item);
  image.alt = title(item);
  $("viewer-title").textContent = title(item);
  showPlace();
  $("original").href = file(item.id);
  showFacts(item);
  if (viewed > list.length - 4) Promise.resolve(more()).then(lengthen);
  for (const by of [1, -1]) {
    const other = list[viewed + by];
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
  if (leaving) return;
  done(current());
  viewer.close();
  leaving = Boolean(history.state?.viewer);
  if (leaving) history.back();
  scrollTo({ top: 0 });
}

const KEYS = {
  ArrowLeft: () => showPhoto(viewed - 1),
  ArrowRight: () => showPhoto(viewed + 1),
  i: toggleFacts,
  w: () => canExplain() && toggleWhy(current()),
  m: () => askFor(moreLike),
  M: () => askFor((item) => alsoLike(item, 1)),
  l: () => canDislike(current()) && askFor((item) => alsoLike(item, -0.5)),
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
    leaving = false;
    if (!history.state?.viewer && viewer.open) viewer.close();
    else if (history.state?.viewer && !viewer.open) history.replaceState({ query: history.state.query }, ""); // forward again
  });
  viewer.addEventListener("close", () => {
    const item = current();
    image.onload = image.onerror = null;
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
