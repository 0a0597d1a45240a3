// The drawing itself: what was done, how much of it holds, and the picture that it makes.

const UNITS = 512; // stroke widths are in parts of this of the paper's side
const SENT = 384; // pixels a side of the drawing that is sent: the whole paper, so that its frame stays while it grows
const KEPT = "splip-drawing";
const MOST = 200_000; // characters that are kept of a drawing

export const paper = {
  done: [], // {points: [[x, y], ...], width, erase} with 0 <= x, y <= 1, or {clear: true}
  held: 0, // done[0 .. held - 1] is on the paper, the rest can be redone
  stroke: null, // being drawn
};

export function visible() {
  const kept = paper.done.slice(0, paper.held);
  const strokes = kept.slice(kept.findLastIndex((action) => action.clear) + 1);
  return paper.stroke ? [...strokes, paper.stroke] : strokes;
}

export const isBlank = () => !visible().some((action) => !action.erase);

export function act(...actions) {
  paper.done = [...paper.done.slice(0, paper.held), ...actions];
  paper.held = paper.done.length;
  keep();
}

/** Go back or forth in what was done; whether there was a way. */
export function step(by) {
  if (paper.stroke || paper.held + by < 0 || paper.held + by > paper.done.length) return false;
  paper.held += by;
  keep();
  return true;
}

export const copied = () => ({ done: paper.done, held: paper.held });

/** Another query's drawing; a new tab still begins with what was drawn last. */
export function put({ done, held }) {
  if (keeping) keepNow();
  Object.assign(paper, { done, held, stroke: null });
  keep(["sessionStorage"]);
}

/** Draw a stroke; from > 0: only what its points from there on add; open: its end is still to come. */
export function trace(context, side, { points, width, erase }, { from = 0, white = false, open = false } = {}) {
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = (width / UNITS) * side;
  context.strokeStyle = context.fillStyle = erase && white ? "#fff" : "#111";
  context.globalCompositeOperation = erase && !white ? "destination-out" : "source-over";
  const at = (i) => points[i].map((v) => v * side);
  const between = (i) => [0, 1].map((axis) => ((points[i][axis] + points[i + 1][axis]) / 2) * side);
  context.beginPath();
  if (points.length === 1) {
    context.arc(...at(0), context.lineWidth / 2, 0, 2 * Math.PI);
    context.fill();
    context.globalCompositeOperation = "source-over";
    return;
  }
  if (points.length === 2) {
    context.moveTo(...at(0));
    context.lineTo(...at(1));
  } else {
    const first = Math.max(1, from - 1);
    context.moveTo(...(first === 1 ? at(0) : between(first - 1)));
    for (let i = first; i < points.length - 1; i++) context.quadraticCurveTo(...at(i), ...between(i));
    if (!open) context.lineTo(...at(points.length - 1));
  }
  context.stroke();
  context.globalCompositeOperation = "source-over";
}

const copy = document.createElement("canvas");
copy.width = copy.height = SENT;
const ink = copy.getContext("2d", { willReadFrequently: true });

/** The whole paper as a PNG, dark on white, as a data: URL. */
export function drawing() {
  ink.fillStyle = "#fff";
  ink.fillRect(0, 0, SENT, SENT);
  for (const action of visible()) trace(ink, SENT, action, { white: true });
  return copy.toDataURL("image/png");
}

// ---- kept over a reload: by this tab first; a new tab begins with what was drawn last in any ----

/** Strokes as text, with fewer points where there are many; null: too many. */
export function written(strokes = visible()) {
  for (let round = 0; round < 6; round++) {
    const text = JSON.stringify(
      strokes.map(({ points, width, erase }) => ({ points: points.map((p) => p.map((v) => Math.round(v * 1e4) / 1e4)), width, erase })),
    );
    if (text.length <= MOST) return text;
    strokes = strokes.map((s) => ({ ...s, points: s.points.filter((_, i) => i % 2 === 0 || i === s.points.length - 1) }));
  }
  return null; // thousands of strokes: not kept
}

const STORES = ["sessionStorage", "localStorage"];
let keeping = 0;
let stores = STORES; // where it is about to be kept
function keep(wanted = STORES) {
  if (!keeping || wanted === STORES) stores = wanted;
  clearTimeout(keeping);
  keeping = setTimeout(keepNow); // the search goes first
}

function keepNow() {
  clearTimeout(keeping);
  keeping = 0;
  const text = written();
  for (const store of stores) {
    try {
      if (text === null) window[store].removeItem(KEPT);
      else window[store].setItem(KEPT, text);
    } catch {
      // Full, or the browser forbids it: the drawing is there until the page is left.
    }
  }
}

const isPoint = (p) => Array.isArray(p) && p.length === 2 && p.every((v) => Number.isFinite(v) && Math.abs(v) <= 10);
const isStroke = (s) => Array.isArray(s?.points) && s.points.length > 0 && s.points.every(isPoint) && s.width > 0 && s.width < UNITS;

export const isDrawing = (strokes) => Array.isArray(strokes) && strokes.every(isStroke);

/** Bring back the drawing that was kept. */
export function recall() {
  for (const store of STORES) {
    try {
      const text = window[store].getItem(KEPT);
      if (text === null) continue;
      const strokes = JSON.parse(text);
      if (!isDrawing(strokes)) continue;
      Object.assign(paper, { done: strokes.map((s) => ({ ...s, erase: Boolean(s.erase) })), held: strokes.length });
      return;
    } catch {
      // Nothing was kept, or not by this page.
    }
  }
}

addEventListener("pagehide", () => keeping && keepNow()); // else an old tab's drawing would come after a newer one
