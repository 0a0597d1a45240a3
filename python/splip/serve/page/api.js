// The service: what it is asked, and what it says when it cannot answer.

/** An answer that is none; code "away": the service does not answer. */
export class Problem extends Error {
  constructor(code, message, wait = 0, status = 0) {
    super(message);
    Object.assign(this, { code, wait, status });
  }
}

const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

async function ask(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("away", "The service does not answer.");
  }
  if (response.status === 204) return null;
  const answer = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return null;
  });
  if (response.ok && answer !== null) return answer;
  const wait = Number(response.headers.get("Retry-After")) || 0;
  const code = response.status === 401 ? "token" : (answer?.error ?? "error");
  throw new Problem(code, sentence(answer?.message ?? "The answer makes no sense"), wait, response.status);
}

const post = (address, body, signal) =>
  ask(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

/** What is left out is left out of the address. */
function withFields(address, fields) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(fields)) {
    for (const one of [value].flat()) if (one !== "" && one !== null && one !== undefined) given.append(name, one);
  }
  return given.size ? `${address}?${given}` : address;
}

export const aboutGallery = () => ask("v1/gallery");
export const search = (body, signal) => post("v1/search", body, signal);
export const explain = (body, signal) => post("v1/explain", body, signal);
export const items = (fields, signal) => ask(withFields("v1/items", fields), { signal });
export const item = (id) => ask(`v1/items/${id}`);
export const timeline = (fields) => ask(withFields("v1/timeline", fields));
export const session = (token) => ask("v1/session", { method: "POST", headers: { Authorization: `Bearer ${token}` } });

export const thumbnail = (id, size) => `v1/thumbnails/${id}?size=${size}`;
export const file = (id) => `v1/images/${id}`;
