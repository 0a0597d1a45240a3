// Which places of a photo speak for the match, over the photo.

import { explain } from "./api.js";
import { $ } from "./dom.js";
import { parts, question, state } from "./state.js";

let asking = null;
let told = null; // the answer that is shown
let about = 0; // id of the photo that it is about

const [INK, SHADE] = [[8, 18, 28], 215]; // what darkens the photo, and how far of 255 where nothing speaks for the match

export const canExplain = () => Boolean(state.gallery?.explains) && parts().length > 0;

export function hideWhy() {
  asking?.abort();
  asking = told = null;
  $("heat").hidden = true;
  $("why-line").hidden = true;
  $("why").setAttribute("aria-pressed", "false");
}

export async function toggleWhy(item) {
  if ($("why").getAttribute("aria-pressed") === "true") {
    hideWhy();
    return;
  }
  $("why").setAttribute("aria-pressed", "true");
  asking = new AbortController();
  const { signal } = asking;
  const say = (line) => {
    $("why-line").hidden = false;
    $("why-line").textContent = line;
  };
  say("Looking for the places that speak for the match …");
  try {
    const { labels, taken_from, taken_to, min_side, ...query } = await question(); // a filter explains nothing
    const answer = await explain({ ...query, photo: item.id }, signal);
    if (signal.aborted) return;
    say("Bright places speak for the match.");
    told = answer;
    about = item.id;
    paint();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message);
  }
}

/** The heat as a picture of as many pixels as it has places, laid where the model saw them; what it did not see is dark. */
export function paint() {
  const image = $("large");
  if (!told || image.dataset.photo !== String(about) || !image.naturalWidth) return; // comes when the file is there
  const { heat, box = [0, 0, 1, 1] } = told;
  const canvas = $("heat");
  const [rows, columns] = [heat.length, heat[0].length];
  const small = new OffscreenCanvas(columns, rows);
  const pixels = small.getContext("2d").createImageData(columns, rows);
  heat.flat().forEach((value, i) => pixels.data.set([...INK, SHADE * (1 - Math.min(1, Math.max(0, value)))], 4 * i));
  small.getContext("2d").putImageData(pixels, 0, 0);
  // The photo is fitted into its frame; the canvas covers just the photo.
  const scale = Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight);
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round(height));
  canvas.style.left = `${image.offsetLeft + (image.clientWidth - width) / 2}px`;
  canvas.style.top = `${image.offsetTop + (image.clientHeight - height) / 2}px`;
  const [left, top, right, bottom] = box.map((share, i) => Math.round(share * (i % 2 ? canvas.height : canvas.width)));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = `rgba(${INK}, ${SHADE / 255})`;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.clearRect(left, top, right - left, bottom - top);
  context.drawImage(small, left, top, right - left, bottom - top);
  canvas.hidden = false;
}

new ResizeObserver(paint).observe($("large"));
