// Drawing on the canvas, with a pointer or with keys, and the tools beside it.

import { $, typing } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { changed, listen, state } from "./state.js";
import { act, isBlank, paper, step, trace, visible } from "./strokes.js";

const LIVE = 250; // ms between searches within a stroke
const SLIP = { touch: 12, mouse: 5, pen: 5 }; // px that a press on a button may move: fingers tremble
const WIDTHS = [["thin", 6], ["medium", 13], ["thick", 26]];

const canvas = $("canvas");
const pen = canvas.getContext("2d");
let width = 1;

export function redraw() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  for (const action of visible()) trace(pen, canvas.width, action, { open: action === paper.stroke });
  showTools();
}

function showTools() {
  const drawn = visible().length > 0;
  $("paper").classList.toggle("drawn", drawn);
  $("undo").disabled = paper.held === 0;
  $("redo").disabled = paper.held === paper.done.length;
  $("clear").disabled = !drawn;
}

function fitCanvas() {
  const side = Math.round(canvas.getBoundingClientRect().width * devicePixelRatio);
  if (side && canvas.width !== side) {
    canvas.width = canvas.height = side;
    redraw();
  }
}

// ---- pointers and keys on the canvas ----

const place = (event) => {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};
const tool = () => document.querySelector("[name=tool]:checked").value;
const begin = (point) => {
  const erase = tool() === "eraser";
  paper.stroke = { points: [point], width: WIDTHS[width][1] * (erase ? 2.5 : 1), erase };
};

let pointer = null;
let live = 0;
let searched = false; // for what is there of the stroke

function startLive() {
  let seen = 0;
  searched = false;
  live = setInterval(() => {
    if (paper.stroke && paper.stroke.points.length > seen) {
      seen = paper.stroke.points.length;
      searched = true;
      changed("live");
    }
  }, LIVE);
}

function finish(keep) {
  clearInterval(live);
  const made = paper.stroke;
  paper.stroke = null;
  pointer = null;
  if (made && keep) act(made);
  if (made && (keep || searched)) changed();
  else redraw();
}

function start(event) {
  if (event.button !== 0 || pointer !== null || paper.stroke) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true, focusVisible: false });
  hideCursor();
  pointer = event.pointerId;
  canvas.setPointerCapture(pointer);
  begin(place(event));
  trace(pen, canvas.width, paper.stroke);
  $("paper").classList.add("drawn");
  startLive();
}
canvas.addEventListener("pointerdown", start);
canvas.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer || !paper.stroke) return;
  const from = paper.stroke.points.length;
  const steps = event.getCoalescedEvents?.() ?? [];
  for (const one of steps.length ? steps : [event]) paper.stroke.points.push(place(one));
  trace(pen, canvas.width, paper.stroke, { from, open: true });
});
canvas.addEventListener("pointerup", (event) => event.pointerId === pointer && finish(true));
canvas.addEventListener("pointercancel", (event) => event.pointerId === pointer && finish(false));
canvas.addEventListener("lostpointercapture", (event) => event.pointerId === pointer && finish(true));

/** A press on a button of the paper that moves is a stroke that begins there. */
function letStrokesBeginOn(button) {
  let from = null;
  button.addEventListener("pointerdown", (event) => {
    from = event.button === 0 ? event : null;
    if (from) button.setPointerCapture(event.pointerId); // a fast hand is off the button with its first move
  });
  button.addEventListener("pointermove", (event) => {
    if (event.pointerId !== from?.pointerId) return;
    const moved = Math.hypot(event.clientX - from.clientX, event.clientY - from.clientY);
    if (moved < (SLIP[event.pointerType] ?? SLIP.mouse)) return;
    start(from);
    from = null;
    if (pointer === event.pointerId) paper.stroke.points.push(place(event)); // else another finger draws
  });
  for (const end of ["pointerup", "pointercancel"]) button.addEventListener(end, () => (from = null));
}

const cursor = { x: 0.5, y: 0.5 };
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function showCursor() {
  $("cursor").hidden = false;
  $("cursor").style.left = `${100 * cursor.x}%`;
  $("cursor").style.top = `${100 * cursor.y}%`;
  $("cursor").classList.toggle("down", paper.stroke !== null);
}

function hideCursor() {
  $("cursor").hidden = true;
}

canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || pointer !== null) return;
  if (event.key in STEPS) {
    const size = event.shiftKey ? 0.005 : 0.02;
    const [x, y] = STEPS[event.key];
    cursor.x = Math.min(1, Math.max(0, cursor.x + x * size));
    cursor.y = Math.min(1, Math.max(0, cursor.y + y * size));
    if (paper.stroke) {
      paper.stroke.points.push([cursor.x, cursor.y]);
      redraw();
    }
  } else if (event.key === " ") {
    if (paper.stroke) finish(true);
    else {
      begin([cursor.x, cursor.y]);
      redraw();
      startLive();
    }
  } else return;
  event.preventDefault();
  showCursor();
});
canvas.addEventListener("blur", () => {
  hideCursor();
  if (paper.stroke && pointer === null) finish(true);
});

// ---- tools ----

export function clear() {
  if (paper.stroke || visible().length === 0) return;
  act({ clear: true });
  changed();
}

const move = (by) => step(by) && changed();

function setWidth(next) {
  width = Math.max(0, Math.min(WIDTHS.length - 1, next));
  const [name, units] = WIDTHS[width];
  $("dot").style.width = $("dot").style.height = `${Math.max(4, units * 0.7)}px`;
  $("width").setAttribute("aria-label", `Width: ${name}`);
}

function hasKey(event) {
  const key = event.key.toLowerCase();
  const command = event.ctrlKey || event.metaKey;
  if (command && key === "z") move(event.shiftKey ? 1 : -1);
  else if (command && key === "y") move(1);
  else if (command || event.altKey) return false;
  else if (key === "b" || key === "e") document.querySelector(`[value=${key === "b" ? "pen" : "eraser"}]`).checked = true;
  else if (key === "delete") clear();
  else if (key === "[" || key === "]") setWidth(width + (key === "]" ? 1 : -1));
  else return false;
  return true;
}

// ---- examples on an empty paper ----

function offerExamples() {
  const space = "http://www.w3.org/2000/svg";
  for (const [name, lines] of Object.entries(EXAMPLES)) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Draw ${name} as an example`);
    button.title = `For example ${name}`;
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", "0 0 100 100");
    svg.setAttribute("aria-hidden", "true");
    for (const line of lines) {
      const shape = svg.appendChild(document.createElementNS(space, "polyline"));
      shape.setAttribute("points", line.join(" "));
    }
    button.append(svg);
    button.onclick = () => {
      act(...lines.map((line) => ({ points: line.map(([x, y]) => [x / 100, y / 100]), width: WIDTHS[1][1], erase: false })));
      changed();
      canvas.focus({ preventScroll: true, focusVisible: false });
    };
    letStrokesBeginOn(button);
    $("examples").append(button);
  }
}

export function startDrawing() {
  $("undo").onclick = () => move(-1);
  $("redo").onclick = () => move(1);
  $("clear").onclick = clear;
  $("width").onclick = () => setWidth((width + 1) % WIDTHS.length);
  document.addEventListener("keydown", (event) => {
    if (typing(event.target) || document.querySelector("dialog[open]")) return;
    if (hasKey(event)) event.preventDefault();
  });
  listen((how) => {
    $("examples").hidden = !isBlank() || state.picture !== null;
    if (how !== "live") redraw();
  });
  offerExamples();
  setWidth(1);
  new ResizeObserver(fitCanvas).observe(canvas);
  addEventListener("resize", fitCanvas); // also when the page moves to a screen of another density
  fitCanvas();
}
