// A picture in place of the drawing: uploaded, pasted or dropped.

import { $ } from "./dom.js";
import { changed, listen, state } from "./state.js";

const LARGEST = 1024; // longer side of an uploaded picture that the browser can decode
const isPicture = (file) => file.type.startsWith("image/") || /\.(svg|tiff?|heic|heif|avif)$/i.test(file.name);

let chosen = 0; // times that something was chosen
let preview = null; // {blob, url} that is shown

/** Search with a file; null: with the drawing again. */
export async function usePicture(file) {
  const mine = ++chosen;
  let next = null;
  if (file) {
    let blob = file;
    let svg = null;
    try {
      // Smaller, upright, and in a format that every server reads.
      const bitmap = await createImageBitmap(file);
      const scale = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
      const canvas = new OffscreenCanvas(Math.max(1, bitmap.width * scale), Math.max(1, bitmap.height * scale));
      const context = canvas.getContext("2d");
      context.fillStyle = "#fff";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      bitmap.close();
      blob = await canvas.convertToBlob({ type: "image/png" });
    } catch {
      // SVG, TIFF, HEIC, or damaged: the service reads it, or says what is wrong.
      if (file.type === "image/svg+xml" || /\.svg$/i.test(file.name)) svg = await file.text();
    }
    next = { blob, svg, kind: "sketch" };
  }
  if (mine !== chosen) return; // a later one was faster
  state.picture = next;
  changed();
}

function letGo() {
  $("preview").removeAttribute("src");
  if (preview) URL.revokeObjectURL(preview.url);
  preview = null;
}

function showPicture() {
  const { picture } = state;
  if ($("picture").hidden !== !picture) $("picture").hidden = !picture;
  if (!picture) {
    letGo();
    return;
  }
  if (preview?.blob !== picture.blob) {
    letGo();
    preview = { blob: picture.blob, url: URL.createObjectURL(picture.blob) };
    $("preview").src = preview.url;
  }
  document.querySelector(`[name=modality][value=${picture.kind}]`).checked = true;
}

export function startPictures() {
  $("file").onchange = () => {
    const [file] = $("file").files;
    if (file) usePicture(file);
    $("file").value = "";
  };
  $("back").onclick = () => {
    usePicture(null);
    $("canvas").focus();
  };
  for (const radio of document.querySelectorAll("[name=modality]")) {
    radio.onchange = () => {
      state.picture.kind = radio.value;
      changed();
    };
  }
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(isPicture);
    if (!file) return;
    event.preventDefault();
    usePicture(file);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragging"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const file = [...event.dataTransfer.files].find(isPicture);
    if (file) usePicture(file);
  });
  listen(showPicture);
}
