// The page to draw on: strokes on a canvas, a search after each of them and while one is drawn.

const $ = (id) => document.getElementById(id);
const LIVE = 250; // ms between searches within a stroke
const SENT = 384; // pixels a side of the drawing that is sent
const UNITS = 512; // stroke widths are in parts of this of the paper's side
const LARGEST = 1024; // longer side of an uploaded picture that the browser can decode
const STAGES = ["decode", "prepare", "wait", "encode", "search", "lookup"];

// ---- the drawing: what was done, and how much of it holds ----

const title = (match) => match.label?.replaceAll("_", " ") ?? match.name;

const canvas = $("canvas");
const pen = canvas.getContext("2d");
let done = []; // {points: [[x, y], ...], width, erase} with 0 <= x, y <= 1, or {clear: true}
let held = 0; // done[0 .. held - 1] is on the paper, the rest can be redone
let stroke = null; // being drawn

function visible() {
  const kept = done.slice(0, held);
  const strokes = kept.slice(kept.findLastIndex((action) => action.clear) + 1);
  return stroke ? [...strokes, stroke] : strokes;
}

function isBlank() {
  return !visible().some((action) => !action.erase);
}

/** Draw a stroke; from > 0 only what its points from there on add. */
function trace(context, side, { points, width, erase }, from = 0, white = false) {
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
    if (!stroke || context !== pen) context.lineTo(...at(points.length - 1));
  }
  context.stroke();
  context.globalCompositeOperation = "source-over";
}

function redraw() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  for (const action of visible()) trace(pen, canvas.width, action);
  $("paper").classList.toggle("drawn", visible().length > 0);
  $("undo").disabled = held === 0;
  $("redo").disabled = held === done.length;
  $("clear").disabled = visible().length === 0;
}

function act(action) {
  done = [...done.slice(0, held), action];
  held = done.length;
  redraw();
}

function fitCanvas() {
  const side = Math.round(canvas.getBoundingClientRect().width * devicePixelRatio);
  if (side && canvas.width !== side) {
    canvas.width = canvas.height = side;
    redraw();
  }
}

const copy = document.createElement("canvas");
copy.width = copy.height = SENT;
const ink = copy.getContext("2d", { willReadFrequently: true });

/** The drawing as a PNG, dark on white. */
function drawing() {
  ink.fillStyle = "#fff";
  ink.fillRect(0, 0, SENT, SENT);
  for (const action of visible()) trace(ink, SENT, action, 0, true);
  return new Promise((resolve) => copy.toBlob(resolve, "image/png"));
}

// ---- pointers and keys on the canvas ----

const place = (event) => {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};
const tool = () => document.querySelector("[name=tool]:checked").value;
const begin = (point) => {
  const erase = tool() === "eraser";
  stroke = { points: [point], width: Number($("width").value) * (erase ? 2.5 : 1), erase };
};

let pointer = null;
let live = 0;

function startLive() {
  let seen = 0;
  live = setInterval(() => {
    if (stroke && stroke.points.length > seen) {
      seen = stroke.points.length;
      search({ live: true });
    }
  }, LIVE);
}

function finish(keep) {
  clearInterval(live);
  const made = stroke;
  stroke = null;
  pointer = null;
  if (made && keep) {
    act(made);
    search();
  } else redraw();
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || pointer !== null) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true, focusVisible: false });
  hideCursor();
  pointer = event.pointerId;
  canvas.setPointerCapture(pointer);
  begin(place(event));
  trace(pen, canvas.width, stroke);
  $("paper").classList.add("drawn");
  startLive();
});
canvas.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer || !stroke) return;
  const from = stroke.points.length;
  const steps = event.getCoalescedEvents?.() ?? [];
  for (const step of steps.length ? steps : [event]) stroke.points.push(place(step));
  trace(pen, canvas.width, stroke, from);
});
canvas.addEventListener("pointerup", (event) => event.pointerId === pointer && finish(true));
canvas.addEventListener("pointercancel", (event) => event.pointerId === pointer && finish(false));
canvas.addEventListener("lostpointercapture", (event) => event.pointerId === pointer && finish(true));

const cursor = { x: 0.5, y: 0.5 };
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function showCursor() {
  $("cursor").hidden = false;
  $("cursor").style.left = `${100 * cursor.x}%`;
  $("cursor").style.top = `${100 * cursor.y}%`;
  $("cursor").classList.toggle("down", stroke !== null);
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
    if (stroke) {
      stroke.points.push([cursor.x, cursor.y]);
      redraw();
    }
  } else if (event.key === " ") {
    if (stroke) finish(true);
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
  if (stroke && pointer === null) finish(true);
});

// ---- tools ----

function step(by) {
  if (stroke || held + by < 0 || held + by > done.length) return;
  held += by;
  redraw();
  search();
}

function clear() {
  if (stroke || visible().length === 0) return;
  act({ clear: true });
  search();
}

$("undo").onclick = () => step(-1);
$("redo").onclick = () => step(1);
$("clear").onclick = clear;

function showWidth() {
  const size = `${Math.max(3, Number($("width").value) * 0.7)}px`;
  $("dot").style.width = $("dot").style.height = size;
}
$("width").oninput = showWidth;

document.addEventListener("keydown", (event) => {
  const field = event.target.matches("input[type=text], input[type=password], select");
  if (field || document.querySelector("dialog[open]")) return;
  const key = event.key.toLowerCase();
  const command = event.ctrlKey || event.metaKey;
  if (command && key === "z") step(event.shiftKey ? 1 : -1);
  else if (command && key === "y") step(1);
  else if (command || event.altKey) return;
  else if (key === "b" || key === "e") document.querySelector(`[value=${key === "b" ? "pen" : "eraser"}]`).checked = true;
  else if (key === "delete") clear();
  else if (key === "[" || key === "]") {
    $("width").value = Number($("width").value) + (key === "]" ? 2 : -2);
    showWidth();
  } else return;
  event.preventDefault();
});

// ---- a picture in place of the drawing ----

let picture = null; // {blob, url} or {id}

async function usePicture(file) {
  if (!file) return;
  let blob = file;
  try {
    // Smaller, upright, and in a format that every server reads.
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
    const small = new OffscreenCanvas(Math.max(1, bitmap.width * scale), Math.max(1, bitmap.height * scale));
    const context = small.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, small.width, small.height);
    context.drawImage(bitmap, 0, 0, small.width, small.height);
    blob = await small.convertToBlob({ type: "image/png" });
  } catch {
    // SVG, TIFF, HEIC: the server may know better.
  }
  showPicture({ blob, url: URL.createObjectURL(blob) });
}

function showPicture(next) {
  if (picture?.url) URL.revokeObjectURL(picture.url);
  picture = next;
  $("picture").hidden = !next;
  $("kinds").hidden = !next?.blob;
  $("like").hidden = next?.id === undefined;
  if (next) {
    $("preview").src = next.url ?? `v1/thumbnails/${next.id}?size=512`;
    $("preview").alt = next.blob ? "The uploaded picture" : "The photo to find more like";
  } else $("preview").removeAttribute("src");
  search();
}

$("file").onchange = () => {
  usePicture($("file").files[0]);
  $("file").value = "";
};
$("back").onclick = () => {
  showPicture(null);
  canvas.focus();
};
for (const radio of document.querySelectorAll("[name=modality]")) radio.onchange = () => search();
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((f) => f.type.startsWith("image/"));
  if (file) {
    event.preventDefault();
    usePicture(file);
  }
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  usePicture([...event.dataTransfer.files].find((f) => f.type.startsWith("image/") || /\.(svg|tiff?|heic)$/i.test(f.name)));
});

// ---- searching ----

let gallery = null;
let sequence = 0;
let flight = null; // AbortController of the search on the way
let again = false; // the drawing went on while a live search was on the way
const labels = new Set();

async function question() {
  const form = new FormData();
  const text = gallery?.text ? $("text").value.trim() : "";
  if (picture?.id !== undefined) form.append("id", picture.id);
  else if (picture) {
    form.append("image", picture.blob, "picture");
    form.append("modality", document.querySelector("[name=modality]:checked").value);
  } else if (!isBlank()) form.append("image", await drawing(), "drawing.png");
  const seen = form.has("image") || form.has("id");
  $("weights").hidden = !(seen && text);
  if (!seen && !text) return null;
  if (text) {
    form.append("text", text);
    form.append("text_weight", $("weight").value);
  }
  form.append("k", $("k").value);
  for (const label of labels) form.append("label", label);
  return form;
}

/** Ask for what is drawn now. A live search waits for the one on the way; others replace it. */
async function search({ live: within = false } = {}) {
  if (within && flight) {
    again = true;
    return;
  }
  flight?.abort();
  const mine = ++sequence;
  const controller = new AbortController();
  flight = controller;
  $("results").setAttribute("aria-busy", "true");
  again = false;
  const slow = setTimeout(() => mine === sequence && $("results").classList.add("busy"), 150);
  try {
    const began = performance.now();
    const form = await question();
    if (mine !== sequence) return;
    if (!form) {
      showNothing();
      return;
    }
    const response = await fetch("v1/search", { method: "POST", body: form, signal: controller.signal });
    const answer = await response.json().catch(() => ({ message: "The answer makes no sense." }));
    if (mine !== sequence) return; // stale: a newer search is on its way
    if (response.ok) show(answer, performance.now() - began);
    else if (response.status === 401) await logIn();
    else if (answer.error === "blank") showNothing();
    else if (response.status === 429 || response.status === 503) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      complain(`${answer.message}.`);
      setTimeout(() => mine === sequence && search(), 1000 * seconds);
    } else complain(`${answer.message}.`);
  } catch (error) {
    if (error.name !== "AbortError" && mine === sequence) complain("The service does not answer.");
  } finally {
    clearTimeout(slow);
    if (mine === sequence) {
      flight = null;
      $("results").setAttribute("aria-busy", "false");
      $("results").classList.remove("busy");
      if (again && stroke) search({ live: true });
    }
  }
}

function complain(message) {
  $("problem").hidden = false;
  $("problem").firstElementChild.textContent = message;
}
$("retry").onclick = () => (gallery ? search() : start());

// ---- results ----

let matches = [];
const tiles = new Map(); // id: list item

function tile(id) {
  const item = document.createElement("li");
  item.innerHTML =
    '<button type="button"><img alt="" decoding="async"><div class="line"><span class="name"></span>' +
    '<span class="score"></span></div><div class="meter"><i></i></div></button>';
  const image = item.querySelector("img");
  image.src = `v1/thumbnails/${id}?size=256`;
  item.querySelector("button").onclick = () => openViewer(matches.findIndex((m) => m.id === id));
  return item;
}

function show(answer, milliseconds) {
  matches = answer.matches;
  $("problem").hidden = true;
  const focused = document.activeElement?.closest("#grid li");
  const items = matches.map((match, rank) => {
    const item = tiles.get(match.id) ?? tile(match.id);
    tiles.set(match.id, item);
    const name = title(match);
    item.querySelector(".name").textContent = name;
    item.querySelector(".score").textContent = match.score.toFixed(2);
    item.querySelector(".meter i").style.width = `${100 * Math.max(0, Math.min(1, match.score))}%`;
    item.querySelector("img").alt = name;
    const spoken = `${rank + 1}: ${name}, similarity ${match.score.toFixed(2)}`;
    item.querySelector("button").setAttribute("aria-label", spoken);
    return item;
  });
  const shown = [...$("grid").children];
  if (items.length !== shown.length || items.some((item, i) => item !== shown[i])) $("grid").replaceChildren(...items);
  if (focused?.isConnected) focused.querySelector("button").focus({ preventScroll: true });
  const wanted = new Set(matches.map((m) => m.id));
  if (tiles.size > 600) for (const id of tiles.keys()) if (!wanted.has(id)) tiles.delete(id);

  const count = matches.length;
  $("empty").hidden = count > 0;
  if (!count) $("invite").textContent = labels.size ? "No photo has one of these labels." : emptyGallery();
  $("status").textContent = count ? `${count} ${count === 1 ? "photo" : "photos"}, best: ${title(matches[0])}` : "No photos";
  showTiming(answer.timing_ms, milliseconds, answer.batch);
}

function showTiming(timing, whole, batch) {
  const parts = STAGES.map((name, i) => [name, timing[name] ?? 0, i + 1]);
  parts.push(["network and page", Math.max(0, whole - parts.reduce((sum, part) => sum + part[1], 0)), 7]);
  $("timing").hidden = false;
  $("total").textContent = `${whole.toFixed(0)} ms`;
  $("bar").replaceChildren(
    ...parts.map(([, value, number]) => {
      const part = document.createElement("i");
      part.className = `s${number}`;
      part.style.width = `${(100 * value) / whole}%`;
      return part;
    }),
  );
  $("stages").replaceChildren(
    ...parts.map(([name, value, number]) => {
      const row = document.createElement("li");
      const mark = document.createElement("i");
      mark.className = `s${number}`;
      const note = name === "encode" && batch > 1 ? ` (with ${batch - 1} others)` : "";
      row.append(mark, `${name} ${value.toFixed(1)} ms${note}`);
      return row;
    }),
  );
}

function emptyGallery() {
  return gallery?.count === 0
    ? "This gallery is empty. Add photos to it with: splip index add FOLDER --gallery GALLERY"
    : "Photos appear here while you draw.";
}

function showNothing() {
  matches = [];
  $("grid").replaceChildren();
  $("problem").hidden = true;
  $("timing").hidden = true;
  $("empty").hidden = false;
  $("invite").textContent = emptyGallery();
  $("status").textContent = "";
}

// ---- one photo in full ----

let viewed = 0;

function openViewer(index) {
  if (index < 0) return;
  showPhoto(index);
  if (!$("viewer").open) $("viewer").showModal();
}

function showPhoto(index) {
  viewed = (index + matches.length) % matches.length;
  const match = matches[viewed];
  const image = $("large");
  image.onerror = () => {
    // A format that browsers do not show (TIFF, HEIC): the server makes a JPEG of it.
    image.onerror = null;
    image.src = `v1/thumbnails/${match.id}?size=2048`;
  };
  image.src = `v1/images/${match.id}`;
  image.alt = title(match);
  $("viewer-title").textContent = `${viewed + 1}. ${title(match)}, ${match.score.toFixed(3)}`;
  $("viewer-path").textContent = match.path ?? match.name;
  $("original").href = `v1/images/${match.id}`;
  $("previous").disabled = $("next").disabled = matches.length < 2;
}

$("previous").onclick = () => showPhoto(viewed - 1);
$("next").onclick = () => showPhoto(viewed + 1);
$("close").onclick = () => $("viewer").close();
$("more").onclick = () => {
  $("viewer").close();
  showPicture({ id: matches[viewed].id });
  scrollTo({ top: 0 });
};
$("viewer").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") showPhoto(viewed - 1);
  else if (event.key === "ArrowRight") showPhoto(viewed + 1);
});
$("viewer").addEventListener("click", (event) => event.target === $("viewer") && $("viewer").close());
$("viewer").addEventListener("close", () => {
  $("large").removeAttribute("src");
  tiles.get(matches[viewed]?.id)?.querySelector("button").focus();
});

// ---- fields ----

let typing = 0;
const soon = () => {
  clearTimeout(typing);
  typing = setTimeout(search, LIVE);
};
$("text").oninput = soon;
$("weight").oninput = soon;
$("k").onchange = () => search();

function addLabel() {
  const name = $("label").value.trim();
  if (!gallery || !(name in gallery.labels)) return;
  $("label").value = "";
  if (labels.has(name)) return;
  labels.add(name);
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = `${name} ×`;
  button.setAttribute("aria-label", `Search all labels again, not only ${name}`);
  button.onclick = () => {
    labels.delete(name);
    item.remove();
    $("label").focus();
    search();
  };
  item.append(button);
  $("chips").append(item);
  search();
}
$("label").onchange = addLabel;
$("label").addEventListener("input", (event) => event.inputType === "insertReplacementText" && addLabel()); // from the list
$("label").addEventListener("keydown", (event) => event.key === "Enter" && addLabel());

// ---- start ----

async function logIn() {
  $("login").showModal();
  await new Promise((resolve) => $("login").addEventListener("close", resolve, { once: true }));
  const token = $("token").value.trim();
  $("token").value = "";
  const answer = await fetch("v1/session", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
  $("login-problem").textContent = answer.ok ? "" : "This is not the token.";
  if (answer.ok) await start();
  else if (token) await logIn();
  else complain("This gallery asks for a token.");
}

async function start() {
  try {
    const response = await fetch("v1/gallery");
    if (response.status === 401) {
      await logIn();
      return;
    }
    if (response.status === 503) {
      complain("The service is starting.");
      setTimeout(start, 1000);
      return;
    }
    if (!response.ok) throw new Error(response.statusText);
    gallery = await response.json();
  } catch {
    complain("The service does not answer.");
    return;
  }
  $("problem").hidden = true;
  $("about").textContent = `${gallery.count.toLocaleString("en")} photos · ${gallery.model} · ${gallery.engine}`;
  $("words").hidden = !gallery.text;
  $("filter").hidden = Object.keys(gallery.labels).length === 0;
  $("labels").replaceChildren(
    ...Object.entries(gallery.labels).map(([name, count]) => Object.assign(document.createElement("option"), { value: name, label: `${name} (${count})` })),
  );
  for (const option of $("k").options) option.disabled = Number(option.value) > gallery.max_k;
  search();
}

// On a small screen the photos should not be far below the drawing.
if (innerWidth <= 820) $("options").open = false;
new ResizeObserver(fitCanvas).observe(canvas);
addEventListener("resize", fitCanvas); // also when the page moves to a screen of another density
fitCanvas();
showWidth();
start();
