// What is asked for: a drawing or a picture, words, photos that are liked or not, and what the photos are restricted to.

import { copied, drawing, isBlank, put } from "./strokes.js";

export const state = {
  gallery: null, // what GET /v1/gallery told
  picture: null, // {blob, url, svg, kind: "sketch" | "photo"}, in place of the drawing
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

const before = new Map(); // number in the browser's history: a query

function snapshot() {
  const { picture, words, weights, photos } = state;
  return { picture, words, weights: { ...weights }, photos: [...photos], strokes: copied() };
}

function restore({ strokes, ...rest }) {
  Object.assign(state, rest);
  put(strokes);
  changed("restore");
}

const here = () => history.state?.query ?? 0;
export const canGoBack = () => before.has(here() - 1);

/** Photos like this one and nothing else; what was asked for before is one step back in the browser's history. */
export function moreLike(item) {
  const number = here();
  before.set(number, snapshot());
  const next = { query: number + 1 };
  if (history.state?.viewer) history.replaceState(next, "");
  else history.pushState(next, "");
  shownQuery = number + 1;
  before.delete(number + 1);
  restore({
    picture: null,
    words: "",
    weights: { drawing: 1, picture: 1, words: 1 },
    photos: [{ id: item.id, name: item.name, weight: 1 }],
    strokes: { done: [], held: 0 },
  });
}

let shownQuery = here();
addEventListener("popstate", () => {
  const number = here();
  if (number === shownQuery) return;
  before.set(shownQuery, snapshot());
  shownQuery = number;
  if (before.has(number)) restore(before.get(number));
});

/** Photos like this one, or unlike it, beside what is asked for already. */
export function alsoLike(item, weight) {
  state.photos = [...state.photos.filter((photo) => photo.id !== item.id), { id: item.id, name: item.name, weight }];
  changed();
}
