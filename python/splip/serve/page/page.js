// The page to draw on: strokes on a canvas, a search after each of them and while one is drawn. Here it begins.

import { aboutGallery, session } from "./api.js";
import { startBrowsing } from "./browse.js";
import { startChips } from "./chips.js";
import { $ } from "./dom.js";
import { startDrawing } from "./drawing.js";
import { setLabels, startFilters } from "./filters.js";
import { startHelp } from "./help.js";
import { startPictures } from "./picture.js";
import { complain, search, startResults } from "./results.js";
import { changed, recallQuery, state } from "./state.js";
import { recall } from "./strokes.js";
import { startViewer } from "./viewer.js";

let starting = 0;

async function logIn() {
  if ($("login").open) return;
  $("login").showModal();
  await new Promise((resolve) => $("login").addEventListener("close", resolve, { once: true }));
  const token = $("token").value.trim();
  $("token").value = "";
  if (!token) {
    complain("This gallery asks for a token.");
    return;
  }
  try {
    await session(token);
    $("login-problem").textContent = "";
    await start();
  } catch (error) {
    $("login-problem").textContent = error.code === "token" ? "This is not the token." : error.message;
    await logIn();
  }
}

async function start() {
  clearTimeout(starting);
  try {
    state.gallery = await aboutGallery();
  } catch (error) {
    if (error.code === "token") await logIn();
    else {
      complain(error.status === 503 ? "The service is starting." : error.message);
      starting = setTimeout(start, error.status === 503 ? 1000 : 4000);
    }
    return;
  }
  const { count, model, engine, labels, text } = state.gallery;
  $("problem").hidden = true;
  $("about").textContent = `${count.toLocaleString("en")} photos · ${model} · ${engine}`;
  $("words").hidden = !text;
  setLabels(labels);
  await startBrowsing(() => {
    $("filters-open").hidden = $("labelled").hidden && $("dates").hidden;
  });
  changed("restore");
}

state.logIn = logIn;
$("skip").onclick = (event) => {
  event.preventDefault(); // a fragment would be a step in the browser's history
  $("results").focus();
};
$("retry").onclick = () => (state.gallery ? search() : start());
recall();
recallQuery();
startResults(); // first of those that listen: the search is on its way before anything is redrawn
startDrawing();
startPictures();
startChips();
startFilters();
startViewer();
startHelp();
start();
