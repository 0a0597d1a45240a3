// The gallery without a question: its photos by date or name, a part at a time.

import { items as ask, timeline } from "./api.js";
import { $, element, monthName } from "./dom.js";
import { changed, restrictionFields, state } from "./state.js";

const PART = 100; // photos at a time

let able = false; // the service lists its photos

export const canBrowse = () => able;

async function part(found, cursor, signal) {
  const fields = { sort: state.sort, limit: PART, ...restrictionFields() };
  if (cursor) fields.cursor = cursor;
  const page = await ask(fields, signal);
  const known = new Set(found.map((item) => item.id)); // the gallery may have changed between two parts
  const items = [...found, ...page.items.filter((item) => !known.has(item.id))];
  const more = page.next ? () => part(items, page.next) : null;
  return { items, headings: headings(items), total: page.total, more };
}

/** The first photos: {items, headings, total, more}; more: asks for the next, null at the end. */
export const browse = (signal) => part([], null, signal);

function headings(items) {
  const found = new Map();
  if (state.sort !== "newest" && state.sort !== "oldest") return found;
  let before = null;
  items.forEach((item, i) => {
    const month = item.taken?.slice(0, 7) ?? "";
    if (month !== before) found.set(i, monthName(month) || "Without a date");
    before = month;
  });
  return found;
}

let retrying = 0;

/** Find out whether the service lists photos, and which months there are; then, and when it is known later on, call. */
export async function startBrowsing(known, wait = 2) {
  clearTimeout(retrying);
  try {
    const { months } = await timeline({});
    able = true;
    $("dates").hidden = months.length === 0;
    $("month").replaceChildren(
      element("option", { value: "", textContent: "any" }),
      ...months.map(({ month, count }) => element("option", { value: month, textContent: `${monthName(month)} (${count})` })),
    );
  } catch (error) {
    able = error.code !== "unsupported"; // anything else passes
    $("dates").hidden = true;
    if (able) retrying = setTimeout(() => startBrowsing(known, Math.min(60, 2 * wait)), 1000 * Math.max(wait, error.wait || 0));
  }
  known();
}

$("sort").onchange = () => {
  state.sort = $("sort").value;
  changed();
};
