// What is asked for: a drawing or a picture, words, photos that are liked or not, and what the photos are restricted to.

import { copied, drawing, isBlank, isDrawing, put, written } from "./strokes.js";

export const state = {
  gallery: null, // what GET /v1/gallery told
  picture: null, // {blob, svg, kind: "sketch" | "photo"}, in place of the drawing
  words: "",
  weights: { drawing: 1, picture: 1, words: 1 },
  photos: [], // {id, name, weight}: liked; below 0 not
  labels: [],
  from: "",
  to: "",
  least: "",
  sort: "newest",
};

const listeners = new Set();
export const listen = (listener) => listeners.add(listener);

/** Tell everybody; how: "now", "soon" while somebody types, "live" within a stroke, or "restore". */
export function changed(how = "now") {
  for (const listener of listeners) listener(how);
}

export const seen = () => (state.picture ? "picture" : isBlank() ? null : "drawing");
export const understands = () => Boolean(state.gallery?.text);
export const spoken = () => (understands() ? state.words.trim() : "");

/** What the query is made of, for its chips. */
export function parts() {
  const found = [];
  const first = seen();
  if (first) found.push({ kind: first, weight: state.weights[first] });
  if (spoken()) found.push({ kind: "words", name: spoken(), weight: state.weights.words });
  for (const photo of state.photos) found.push({ kind: "photo", ...photo });
  return found;
}

export const isRestricted = () => Boolean(state.labels.length || state.from || state.to || state.least);

function restriction() {
  const body = {};
  if (state.labels.length) body.labels = state.labels;
  if (state.from) body.taken_from = state.from;
  if (state.to) body.taken_to = state.to;
  if (state.least) body.min_side = Number(state.least);
  return body;
}

/** The fields of GET /v1/items and /v1/timeline that say the same. */
export function restrictionFields() {
  return { label: state.labels, taken_from: state.from, taken_to: state.to, min_side: state.least };
}

/** The search as the service takes it, without k; null: nothing is asked for. */
export async function question() {
  const body = restriction();
  const first = seen();
  const words = spoken();
  const { photos, picture, weights } = state;
  if (!first && !words && !photos.length) return null;
  if (!first && !words && photos.length === 1 && photos[0].weight > 0) return { ...body, id: photos[0].id };
  if (first === "drawing") body.image = drawing();
  else if (picture?.svg) body.svg = picture.svg;
  else if (picture) body.image = picture.text ??= await dataUrl(picture.blob);
  if (first) body.modality = picture?.kind ?? "sketch";
  // The service counts the drawing as 1 and the rest beside it.
  const unit = first ? weights[first] : 1;
  const like = photos.map(({ id, weight }) => ({ id, weight: weight / unit }));
  if (words && !first && !like.length) body.text = words;
  else if (words) like.push({ text: words, weight: weights.words / unit });
  if (like.length) body.like = like;
  return body;
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

// ---- a new query from a photo, and the way back to the one before ----

const KEPT = "splip-queries"; // in the tab's storage: for after a reload, without pictures
const MOST = 8; // queries kept there
const before = new Map(); // number in the browser's history: a query

/** The queries that were kept, by their numbers as text. */
function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT)) ?? {};
  } catch {
    return {}; // nonsense, or the browser forbids it
  }
}

/** Keep what is asked for now under a number; what came after it is no more, where another query follows. */
function keep(number, { follows = false } = {}) {
  before.set(number, snapshot());
  const { picture, words, weights, photos } = state;
  // Without its picture, what is not looked for would be all that is asked for.
  const mine = { words, weights, photos: picture ? photos.filter((photo) => photo.weight > 0) : photos, strokes: JSON.parse(written() ?? "[]") };
  const others = Object.entries(kept()).filter(([other]) => Number(other) !== number && !(follows && Number(other) > number));
  const rows = [...others.slice(1 - MOST), [number, mine]];
  while (rows.length) {
    try {
      sessionStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(rows)));
      return;
    } catch {
      rows.shift(); // full: the oldest go
    }
  }
}

const isPhoto = (photo) => Number.isInteger(photo?.id) && typeof (photo.name ?? "") === "string" && Number.isFinite(photo.weight);

/** A query that this page does not remember: from before it was loaded; null: not kept. */
function recalled(number) {
  const { words, weights, photos, strokes } = kept()[number] ?? {};
  const whole = Object.keys(state.weights).every((name) => weights?.[name] > 0);
  if (typeof words !== "string" || !whole || !Array.isArray(photos) || !photos.every(isPhoto) || !isDrawing(strokes)) return null;
  return { picture: null, words, weights, photos, strokes: { done: strokes, held: strokes.length } };
}

const known = (number) => before.get(number) ?? recalled(number);

function snapshot() {
  const { picture, words, weights, photos } = state;
  return { picture, words, weights: { ...weights }, photos: [...photos], strokes: copied() };
}

function restore({ strokes, ...rest }) {
  Object.assign(state, rest);
  put(strokes);
  changed("restore");
}

let shownQuery = history.state?.query;
let way = false; // there is a query one step back

/** What was asked for before a reload; where one comes anew, its numbers are apart from those of an earlier visit. */
export function recallQuery() {
  const query = shownQuery === undefined ? null : recalled(shownQuery);
  if (query) {
    const { strokes, ...rest } = query; // the drawing itself is kept at each stroke
    Object.assign(state, rest);
  }
  shownQuery ??= Math.max(-2, ...Object.keys(kept()).map(Number).filter(Number.isInteger)) + 2;
  history.replaceState({ ...history.state, query: shownQuery }, "");
  way = known(shownQuery - 1) !== null;
}
export const canGoBack = () => way;

/** Photos like this one and nothing else; what was asked for before is one step back in the browser's history. */
export function moreLike(item) {
  keep(shownQuery, { follows: true });
  shownQuery += 1;
  way = true;
  const next = { query: shownQuery };
  if (history.state?.viewer) history.replaceState(next, "");
  else history.pushState(next, "");
  for (const number of before.keys()) if (number >= shownQuery) before.delete(number);
  restore({
    picture: null,
    words: "",
    weights: { drawing: 1, picture: 1, words: 1 },
    photos: [{ id: item.id, name: item.name, weight: 1 }],
    strokes: { done: [], held: 0 },
  });
}

addEventListener("popstate", () => {
  const number = history.state?.query;
  if (number === undefined) history.replaceState({ query: shownQuery }, ""); // a fragment, typed in: nothing else is asked for
  if (number === undefined || number === shownQuery) return;
  keep(shownQuery);
  shownQuery = number;
  way = known(number - 1) !== null;
  const query = known(number);
  if (query) restore(query);
});
addEventListener("pagehide", () => keep(shownQuery));

/** Whether something is looked for beside this photo: what is not like it is not all that is asked for. */
export const canDislike = (item) => parts().some(({ kind, id, weight }) => kind !== "photo" || (weight > 0 && id !== item.id));

/** Photos like this one, or unlike it, beside what is asked for already. */
export function alsoLike(item, weight) {
  if (weight < 0 && !canDislike(item)) return;
  state.photos = [...state.photos.filter((photo) => photo.id !== item.id), { id: item.id, name: item.name, weight }];
  changed();
}
