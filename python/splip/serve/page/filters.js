// Words, and what the photos are restricted to: labels, dates, size.

import { $, element } from "./dom.js";
import { changed, listen, state } from "./state.js";

const SUGGESTED = 12;

let names = []; // [name, as it is typed, how many photos], the most frequent first
let marked = -1; // suggestion that the arrow keys are on

const plain = (text) => text.toLowerCase().replaceAll("_", " ").trim();

/** Labels that begin with what is typed, then those that hold it. */
export function suggestions(labels, typed, taken = [], most = SUGGESTED) {
  const wanted = plain(typed);
  const first = [];
  const later = [];
  for (const label of labels) {
    if (taken.includes(label[0])) continue;
    const at = label[1].indexOf(wanted);
    if (at === 0) first.push(label);
    else if (at > 0 && later.length < most) later.push(label);
    if (first.length === most) break;
  }
  return [...first, ...later].slice(0, most);
}

export function setLabels(labels) {
  names = Object.entries(labels).map(([name, count]) => [name, plain(name), count]);
  names.sort((a, b) => b[2] - a[2] || (a[0] < b[0] ? -1 : 1));
  $("labelled").hidden = names.length === 0;
}

function offer() {
  const found = suggestions(names, $("label").value, state.labels);
  marked = -1;
  $("suggestions").replaceChildren(
    ...found.map(([name, text, count], i) => {
      const option = element("li", { id: `suggestion-${i}`, role: "option" }, text, element("span", { className: "muted", textContent: count }));
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", "false");
      option.onpointerdown = (event) => {
        event.preventDefault(); // the field keeps the focus
        choose(name);
      };
      option.dataset.name = name;
      return option;
    }),
  );
  expand(found.length > 0);
}

function expand(open) {
  $("suggestions").hidden = !open;
  if (!open) $("suggestions").replaceChildren(); // else Enter would take one that nobody sees
  $("label").setAttribute("aria-expanded", String(open));
  $("label").removeAttribute("aria-activedescendant");
}

function mark(by) {
  const options = [...$("suggestions").children];
  if ($("suggestions").hidden || !options.length) return offer();
  options[marked]?.setAttribute("aria-selected", "false");
  marked = (marked + by + options.length) % options.length;
  options[marked].setAttribute("aria-selected", "true");
  options[marked].scrollIntoView({ block: "nearest" });
  $("label").setAttribute("aria-activedescendant", options[marked].id);
}

function choose(name) {
  $("label").value = "";
  expand(false);
  if (!name || state.labels.includes(name)) return;
  state.labels = [...state.labels, name];
  changed();
}

function setDates(from, to) {
  state.from = from;
  state.to = to;
  changed();
}

export function startFilters() {
  $("text").oninput = () => {
    state.words = $("text").value;
    changed("soon");
  };
  $("filters-open").onclick = () => {
    const open = $("filters").hidden;
    $("filters").hidden = !open;
    $("filters-open").setAttribute("aria-expanded", String(open));
    if (open) $("filters").querySelector("div:not([hidden]) > input, div:not([hidden]) > select")?.focus();
  };
  const label = $("label");
  label.oninput = offer;
  label.onclick = offer;
  label.onblur = () => expand(false);
  label.onkeydown = (event) => {
    if (event.key === "ArrowDown") mark(1);
    else if (event.key === "ArrowUp") mark(-1);
    else if (event.key === "Enter") choose($("suggestions").children[Math.max(0, marked)]?.dataset.name);
    else if (event.key === "Escape" && !$("suggestions").hidden) expand(false);
    else return;
    event.preventDefault();
  };
  $("month").onchange = () => setDates($("month").value, $("month").value);
  $("from").onchange = () => setDates($("from").value, state.to);
  $("to").onchange = () => setDates(state.from, $("to").value);
  $("least").onchange = () => {
    state.least = $("least").value;
    changed();
  };
  listen((how) => {
    if (how === "live" || how === "soon") return;
    if ($("text").value.trim() !== state.words.trim()) $("text").value = state.words;
    const isDay = (text) => (text.length === 10 ? text : "");
    $("from").value = isDay(state.from);
    $("to").value = isDay(state.to);
    $("month").value = state.from === state.to && state.from.length === 7 ? state.from : "";
    $("least").value = state.least;
    const count = state.labels.length + Boolean(state.from || state.to) + Boolean(state.least);
    $("filters-open").lastChild.textContent = count ? `Filter (${count})` : "Filter";
  });
}
