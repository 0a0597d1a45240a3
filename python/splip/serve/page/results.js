// Asking, and showing what is answered: a search while one draws, the gallery where nothing is asked for.

import { search as ask } from "./api.js";
import { browse, canBrowse } from "./browse.js";
import { $, element } from "./dom.js";
import { show } from "./grid.js";
import { isRestricted, listen, question, state } from "./state.js";
import { paper } from "./strokes.js";

const TYPED = 250; // ms without a key before words are searched
const FIRST = 24; // photos; more as one scrolls
const STAGES = ["decode", "prepare", "wait", "encode", "search", "lookup"];
const AGAIN = [2, 4, 8, 15]; // seconds until a service that is away is asked again

let sequence = 0;
let flight = null; // AbortController of the search on the way
let again = false; // the drawing went on while a live search was on the way
let wanted = FIRST;
let got = 0; // photos of the last answer
let asked = ""; // what the last answer was to
let next = null; // asks for more photos of the gallery
let away = 0; // times in a row that the service did not answer
let retrying = 0;

/** Ask for what is wanted now. A live search waits for the one on the way; others replace it. */
export async function search({ live = false, more = false } = {}) {
  if (live && flight) {
    again = true;
    return;
  }
  clearTimeout(retrying);
  flight?.abort();
  const mine = ++sequence;
  flight = new AbortController();
  const { signal } = flight;
  again = false;
  $("results").setAttribute("aria-busy", "true");
  const slow = setTimeout(() => mine === sequence && $("results").classList.add("busy"), 150);
  try {
    const began = performance.now();
    const body = await question();
    if (mine !== sequence) return;
    if (!more) wanted = FIRST;
    if (!body) await showGallery(mine, signal);
    else {
      body.k = Math.min(wanted, state.gallery?.max_k ?? wanted);
      const answer = await ask(body, signal);
      if (mine !== sequence) return; // stale: a newer search is on its way
      found(answer, body, performance.now() - began);
    }
    away = 0;
  } catch (error) {
    if (mine === sequence && error.name !== "AbortError") await (more ? failedMore(error, mine, () => search({ more })) : failed(error, mine, signal));
  } finally {
    clearTimeout(slow);
    if (mine === sequence) {
      flight = null;
      $("results").setAttribute("aria-busy", "false");
      $("results").classList.remove("busy");
      if (again && paper.stroke) search({ live: true });
    }
  }
}

function later(seconds, mine, done) {
  clearTimeout(retrying);
  retrying = setTimeout(() => mine === sequence && done(), 1000 * seconds);
}

const isBusy = (error) => error.wait || error.status === 429 || error.status === 503;

async function failed(error, mine, signal) {
  if (error.code === "token") state.logIn();
  else if (error.code === "blank") {
    try {
      await showGallery(mine, signal);
    } catch (other) {
      if (mine === sequence && other.name !== "AbortError") await failed(other, mine, signal);
    }
  }
  else if (error.code === "away") {
    complain(paper.held ? "The service does not answer. Your drawing is kept, and it is tried again." : error.message);
    later(AGAIN[Math.min(away++, AGAIN.length - 1)], mine, search);
  } else {
    complain(error.message);
    if (isBusy(error)) later(error.wait || 1, mine, search);
    else if (!error.code) throw error; // a fault of the page
  }
}

/** More photos did not come: those that are there stay, and it is tried again. */
function failedMore(error, mine, ask) {
  if (error.code === "token") state.logIn();
  $("status").textContent = error.message;
  next = ask;
  wanted /= 2;
  if (error.code === "away") later(AGAIN[Math.min(away++, AGAIN.length - 1)], mine, more);
  else if (isBusy(error)) later(error.wait || 1, mine, more);
  else if (!error.code) throw error; // a fault of the page
}

/** Say what is wrong, in place of photos that answer something else. */
export function complain(message) {
  clear();
  $("empty").hidden = true;
  $("problem").hidden = false;
  $("problem").firstElementChild.textContent = message;
}

function clear() {
  show([]);
  next = null;
  asked = "";
  $("problem").hidden = true;
  $("timing").hidden = true;
  $("doubt").hidden = true;
  $("sorting").hidden = true;
  $("status").textContent = "";
}

// ---- answers ----

function found(answer, body, milliseconds) {
  const { matches } = answer;
  const { k, ...rest } = body;
  const now = JSON.stringify(rest);
  if (now !== asked) toTop();
  asked = now;
  got = matches.length;
  const { max_k: most = k, count = k } = state.gallery ?? {};
  next = got === k && got < count && k < most ? () => search({ more: true }) : null;
  const likely = matches.findLastIndex((match) => match.likely === true);
  const divided = likely >= 0 && likely < got - 1 && matches[likely + 1].likely === false;
  show(matches, divided ? new Map([[likely + 1, "Less likely"]]) : new Map());
  $("problem").hidden = true;
  $("sorting").hidden = true;
  doubt(answer);
  $("empty").hidden = got > 0;
  if (!got) $("invite").textContent = isRestricted() ? "No photo passes the filter." : nothingHere();
  $("status").textContent = got ? (next ? `Best ${got} photos` : `${got} ${got === 1 ? "photo" : "photos"}`) : "No photos";
  $("grid").setAttribute("aria-label", "Photos, best first");
  showTiming(answer.timing_ms, milliseconds, answer.batch);
}

function doubt({ matches, unknown_words: unknown = [] }) {
  const lines = [];
  if (unknown.length) lines.push(`The model does not know: ${unknown.join(", ")}.`);
  if (matches.length && matches.every((match) => match.likely === false)) lines.push("Probably nothing here shows that.");
  $("doubt").replaceChildren(...lines.map((line) => element("p", { textContent: line })));
  $("doubt").hidden = !lines.length;
}

function showTiming(timing, whole, batch) {
  const parts = STAGES.map((name, i) => [name, timing[name] ?? 0, i + 1]);
  parts.push(["network and page", Math.max(0, whole - parts.reduce((sum, part) => sum + part[1], 0)), 7]);
  $("timing").hidden = false;
  $("total").textContent = `${whole.toFixed(0)} ms`;
  const bars = parts.map(([, value, number]) => {
    const part = element("i", { className: `s${number}` });
    part.style.width = `${(100 * value) / whole}%`;
    return part;
  });
  $("bar").replaceChildren(...bars);
  const rows = parts.map(([name, value, number]) => {
    const note = name === "encode" && batch > 1 ? ` (with ${batch - 1} others)` : "";
    return element("li", {}, element("i", { className: `s${number}` }), `${name} ${value.toFixed(1)} ms${note}`);
  });
  $("stages").replaceChildren(...rows);
}

const nothingHere = () =>
  state.gallery?.count === 0
    ? "This gallery is empty. Add photos to it with: splip index add FOLDER --gallery GALLERY"
    : "Photos appear here while you draw.";

/** Nothing is asked for: the gallery's photos, where the service lists them. */
async function showGallery(mine, signal) {
  if (asked !== "gallery") toTop();
  if (!canBrowse() || !state.gallery?.count) {
    clear();
    $("empty").hidden = false;
    $("invite").textContent = nothingHere();
    return;
  }
  const page = await browse(signal);
  if (mine !== sequence) return;
  listed(page);
}

function listed({ items, headings, total, more }) {
  asked = "gallery";
  next = more && (() => grow(more));
  show(items, headings);
  for (const id of ["problem", "timing", "doubt"]) $(id).hidden = true;
  $("sorting").hidden = false;
  $("empty").hidden = items.length > 0;
  if (!items.length) $("invite").textContent = isRestricted() ? "No photo passes the filter." : nothingHere();
  $("status").textContent = `${total.toLocaleString("en")} ${total === 1 ? "photo" : "photos"}`;
  $("grid").setAttribute("aria-label", "Photos of the gallery");
}

async function grow(part) {
  clearTimeout(retrying);
  const mine = sequence;
  try {
    const page = await part();
    if (mine !== sequence) return;
    away = 0;
    listed(page);
  } catch (error) {
    if (mine === sequence && error.name !== "AbortError") failedMore(error, mine, () => grow(part));
  }
}

// ---- more of them ----

/** Ask for more photos, if there are; whether it asks. */
export function more() {
  if (!next || flight || paper.stroke) return false;
  wanted *= 2;
  const ask = next;
  next = null;
  return Promise.resolve(ask()).then(() => true);
}

function toTop() {
  const top = $("results").getBoundingClientRect().top + scrollY;
  if (scrollY > top && matchMedia("(min-width: 600px)").matches) scrollTo({ top: top - 8 });
}

export function startResults() {
  let typed = 0;
  listen((how) => {
    clearTimeout(typed);
    if (how === "soon") typed = setTimeout(search, TYPED);
    else search({ live: how === "live" });
  });
  const near = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && more(), { rootMargin: "400px" });
  near.observe($("end"));
  // An observer tells of changes: what stays in sight is asked for after each answer.
  new MutationObserver(() => {
    near.unobserve($("end"));
    near.observe($("end"));
  }).observe($("grid"), { childList: true });
  addEventListener("online", () => away && (next ? more() : search())); // where more did not come, those that are there stay
}
