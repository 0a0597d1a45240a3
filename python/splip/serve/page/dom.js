// Small things that every part of the page uses.

export const $ = (id) => document.getElementById(id);

/** An element with properties, and children. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const SHAPES = {
  more: "M12 5v14M5 12h14",
  less: "M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  drawing: "M4 20l1-4L16 5l3 3L8 19z",
  words: "M5 6h14M12 6v13",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4",
};

/** A drawn sign. */
export function sign(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(space, "path"));
  svg.firstChild.setAttribute("d", SHAPES[name]);
  return svg;
}

export const coarse = () => matchMedia("(pointer: coarse)").matches;

/** What a photo is called: its file's name, else what it shows. */
export const title = (item) => item.name || item.label?.replaceAll("_", " ") || `photo ${item.id}`;

const DAY = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeZone: "UTC" });
const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "long", timeStyle: "short", timeZone: "UTC" });
const MONTH = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "long", timeZone: "UTC" });
// Cameras write local time without a zone: it is shown as it stands.
const told = (form, text) => (text && Number.isFinite(Date.parse(`${text}Z`)) ? form.format(new Date(`${text}Z`)) : "");
export const day = (taken) => told(DAY, taken);
export const moment = (taken) => told(MOMENT, taken);
export const monthName = (month) => told(MONTH, `${month}-01T00:00:00`);

/** Whether a key pressed there is text, or the field's own. */
export const typing = (target) => target.matches("input:not([type=radio], [type=file]), select, textarea");
