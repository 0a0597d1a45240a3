// Photos in rows of one height, as wide as they are: tiles are kept by their number, so that a new answer moves them.

import { item as askItem, thumbnail } from "./api.js";
import { canBrowse } from "./browse.js";
import { $, coarse, day, element, sign, title } from "./dom.js";
import { alsoLike, canDislike, moreLike } from "./state.js";

const GAP = 8;
const KEPT = 1200; // tiles that are kept for later answers
const [FLATTEST, TALLEST] = [2.6, coarse() ? 0.85 : 0.62]; // shapes beyond are cut to these

const grid = $("grid");
export const shown = { items: [], open: () => {} };
const tiles = new Map(); // id: {element, image, ...}
const natural = new Map(); // id: width / height of its thumbnail, where the service does not know the photo's
let heads = new Map(); // index of the photo that it stands before: a heading's text

// ---- a tile ----

function tile(item) {
  const image = element("img", { alt: "", decoding: "async" });
  const photo = element("button", { type: "button", className: "photo", tabIndex: -1 }, image);
  const act = (name, key, text, done) => {
    const button = element("button", { type: "button", className: "act", tabIndex: -1, title: `${text} (${key})` }, sign(name));
    button.onclick = done;
    return button;
  };
  const made = { item, image, photo, width: 0 };
  made.more = act("more", "M", "More like this", () => moreLike(made.item));
  made.less = act("less", "L", "Less like this", () => alsoLike(made.item, -0.5));
  made.name = element("span", { className: "name" });
  made.facts = element("span", { className: "facts" });
  made.element = element("li", {}, photo, made.more, made.less, element("p", {}, made.name, made.facts));
  made.element.dataset.id = item.id;
  photo.onclick = () => shown.open(shown.items.findIndex((one) => one.id === made.item.id));
  image.onload = () => {
    natural.set(item.id, image.naturalWidth / image.naturalHeight);
    if (made.failed) Object.assign(made, { failed: "", label: "" });
  };
  image.onerror = () => markFailed(made);
  return made;
}

const [GONE, FAILED] = ["the file is gone", "cannot be shown"];

let asking = Promise.resolve(); // one at a time: whoever refuses pictures is asked for little

/** Whether the file of a photo is gone, as the service says now; false where it does not say. */
export function isGone(item) {
  if (item.missing || !canBrowse()) return Promise.resolve(item.missing === true);
  asking = asking.then(() => askItem(item.id)).then(
    (told) => told.missing === true,
    () => false,
  );
  return asking;
}

function markFailed(made) {
  Object.assign(made, { sharp: 0, width: 0, label: "" }); // with the next answer it is tried again
  const say = (words) => {
    made.failed = words;
    made.element.classList.add("missing");
    made.facts.textContent = words;
  };
  say(made.failed || FAILED);
  if (made.asked) return;
  made.asked = true;
  isGone(made.item).then((gone) => gone && made.failed && say(GONE));
}

function fill(made, item, rank) {
  made.item = item;
  const name = title(item);
  const facts = [day(item.taken) || item.label?.replaceAll("_", " "), item.copies?.length && `${item.copies.length + 1} copies`];
  const told = item.missing ? GONE : made.failed ? made.failed : facts.filter(Boolean).join(" · ");
  const score = item.score === undefined ? "" : `, similarity ${item.score.toFixed(2)}`;
  const label = `${rank + 1}: ${[name, told].filter(Boolean).join(", ")}${score}`;
  if (made.label === label && made.likely === item.likely) return; // what is written again is laid out again
  Object.assign(made, { label, likely: item.likely });
  made.photo.setAttribute("aria-label", label);
  made.element.title = `${name}${score}`;
  made.element.classList.toggle("unlikely", item.likely === false);
  made.image.loading = rank < 40 ? "eager" : "lazy";
  if (made.name.textContent !== name) {
    made.name.textContent = name;
    made.more.setAttribute("aria-label", `More like ${name}`);
    made.less.setAttribute("aria-label", `Less like ${name}`);
  }
  if (made.facts.textContent !== told) made.facts.textContent = told;
  made.element.classList.toggle("missing", item.missing === true || Boolean(made.failed));
}

// ---- rows ----

const ratio = (item) => {
  const known = item.width && item.height ? item.width / item.height : natural.get(item.id);
  return Math.min(FLATTEST, Math.max(TALLEST, known ?? 1));
};

/** Height that rows are near to, for a width of the whole. */
const target = (width) => Math.min(210, Math.max(112, width / 4.2));

/** Width and height of each photo, so that rows fill the whole width and share a height near to the one that is wanted. */
export function arrange(ratios, width, breaks = new Set()) {
  const wanted = target(width);
  const sizes = [];
  let row = [];
  let sum = 0;
  const filling = (more, count) => (width - GAP * (count - 1)) / more;
  const end = (height) => {
    for (const one of row) sizes.push([Math.floor(one * height * 10) / 10, Math.round(height)]);
    row = [];
    sum = 0;
  };
  ratios.forEach((one, i) => {
    if (row.length && breaks.has(i)) end(Math.min(wanted, filling(sum, row.length)));
    const [before, after] = [filling(sum, row.length), filling(sum + one, row.length + 1)];
    if (row.length && before - wanted < wanted - after) end(before);
    row.push(one);
    sum += one;
  });
  if (row.length) end(Math.min(wanted, filling(sum, row.length)));
  return sizes;
}

// clientWidth rounds up, and a row would not fit.
const inside = () => Math.floor(grid.getBoundingClientRect().width);
let across = 0;

function layOut(width = across || inside()) {
  across = width;
  if (!across) return;
  const sizes = arrange(shown.items.map(ratio), across, new Set(heads.keys()));
  shown.items.forEach((item, i) => {
    const made = tiles.get(item.id);
    const [width, height] = sizes[i];
    if (made.width === width && made.height === height) return;
    Object.assign(made, { width, height });
    made.element.style.width = `${width}px`;
    made.image.style.height = `${height}px`;
    const sharp = Math.max(width, height) * devicePixelRatio > 300 ? 512 : 256;
    if (!(made.sharp >= sharp)) {
      made.sharp = sharp;
      made.image.src = thumbnail(item.id, sharp);
    }
  });
}

// Of a change the observer tells before it is painted: an answer need not measure, which lays out what stood there before.
new ResizeObserver(() => inside() !== across && layOut(inside())).observe(grid);

/** Show photos in this order; headings: texts by the index of the photo that they stand before. */
export function show(items, headings = new Map()) {
  const focused = document.activeElement?.closest("#grid li");
  shown.items = items;
  heads = headings;
  const rows = [];
  items.forEach((item, rank) => {
    if (headings.has(rank)) rows.push(element("li", { className: "heading" }, element("h2", { textContent: headings.get(rank) })));
    const made = tiles.get(item.id) ?? tile(item);
    tiles.set(item.id, made);
    fill(made, item, rank);
    made.less.hidden = !canDislike(item);
    rows.push(made.element);
  });
  layOut();
  const there = [...grid.children];
  if (rows.length > there.length && there.every((child, i) => child === rows[i])) grid.append(...rows.slice(there.length));
  else if (rows.length !== there.length || rows.some((row, i) => row !== there[i])) grid.replaceChildren(...rows);
  if (tiles.size > KEPT) {
    const wanted = new Set(items.map((item) => item.id));
    for (const id of tiles.keys()) if (!wanted.has(id)) tiles.delete(id);
  }
  const now = focused?.isConnected ? focused : grid.querySelector("li[data-id]");
  for (const item of items) tiles.get(item.id).photo.tabIndex = -1;
  if (now?.dataset.id) now.querySelector(".photo").tabIndex = 0;
  if (focused?.isConnected && document.activeElement !== focused) focused.querySelector(".photo")?.focus({ preventScroll: true });
  if (focused && !focused.isConnected) $("results").focus({ preventScroll: true }); // not in this answer: from there Tab goes on
}

/** To this photo, or to where the photos begin. */
export function focusPhoto(id) {
  const li = tiles.get(id)?.element;
  if (li?.isConnected) goTo(li);
  else $("results").focus();
}

// ---- keys: one stop for Tab, arrows within ----

function goTo(li) {
  if (!li?.isConnected) return;
  for (const other of grid.querySelectorAll(".photo[tabindex='0']")) other.tabIndex = -1;
  const photo = li.querySelector(".photo");
  photo.tabIndex = 0;
  photo.focus();
}

/** The photo above or below: of the next row that way, the one whose middle is nearest. */
function vertical(li, way) {
  const middle = (one) => one.offsetLeft + one.offsetWidth / 2;
  const all = [...grid.querySelectorAll("li[data-id]")];
  const beyond = all.filter((one) => way * (one.offsetTop - li.offsetTop) > 4);
  if (!beyond.length) return null;
  const row = (way > 0 ? beyond[0] : beyond.at(-1)).offsetTop;
  const off = (one) => Math.abs(middle(one) - middle(li));
  return beyond.filter((one) => one.offsetTop === row).reduce((a, b) => (off(b) < off(a) ? b : a));
}

grid.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const li = event.target.closest("li[data-id]");
  if (!li) return;
  const all = [...grid.querySelectorAll("li[data-id]")];
  const at = all.indexOf(li);
  const item = tiles.get(shown.items[at]?.id)?.item;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const next = { ArrowLeft: all[at - 1], ArrowRight: all[at + 1], Home: all[0], End: all.at(-1) }[key];
  if (next) goTo(next);
  else if (key === "ArrowUp" || key === "ArrowDown") goTo(vertical(li, key === "ArrowDown" ? 1 : -1) ?? li);
  else if (key === "m" && event.shiftKey) alsoLike(item, 1);
  else if (key === "m") moreLike(item);
  else if (key === "l") alsoLike(item, -0.5);
  else return;
  event.preventDefault();
});
