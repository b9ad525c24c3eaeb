// Other translations of a sentence or of the whole text, by beam search.

import { post, persist } from "./api.js";
import { announce, byId, make } from "./dom.js";

const BEAM = 5;
const card = byId("alternatives");
const list = byId("alternatives-list");
const note = byId("alternatives-note");
let asking = null;
let opener = null;

/**
 * Asks for translations of `request.text` and shows them; `choose(text)` when one is taken.
 * The focus goes to the list and, when it is closed, back to `from`.
 */
export async function openAlternatives(request, current, from, choose) {
  closeAlternatives(false);
  opener = from;
  asking = new AbortController();
  card.hidden = false;
  byId("alternatives-source").textContent = request.text;
  note.textContent = "Looking for others …";
  byId("alternatives-title").focus();
  const { signal } = asking;
  const body = { ...request, beam: BEAM, alternatives: BEAM };
  const waiting = (error, seconds) => {
    note.textContent = `${error.message} Trying again in ${seconds} s.`;
  };
  try {
    const answer = await persist(() => post("v1/translate", body, signal), signal, waiting);
    const [found] = answer.translations;
    const texts = found.error ? [] : found.alternatives.map((one) => one.text);
    list.replaceChildren(...texts.map((text) => choice(text, current, choose)));
    note.textContent = found.error?.detail ?? (texts.length > 1 ? "" : "There is no other.");
    announce(note.textContent || `${texts.length} alternatives`);
    if (document.activeElement?.id === "alternatives-title") list.querySelector("button")?.focus();
  } catch (error) {
    if (error.name !== "AbortError") note.textContent = error.message;
  }
}

export function closeAlternatives(refocus = true) {
  if (card.hidden) return false;
  asking?.abort();
  card.hidden = true;
  list.replaceChildren();
  note.textContent = "";
  if (refocus && opener?.isConnected) opener.focus();
  return true;
}

function choice(text, current, choose) {
  const button = make("button", { className: "choice", dir: "auto" }, text);
  if (text === current) button.setAttribute("aria-current", "true");
  button.addEventListener("click", () => {
    closeAlternatives();
    choose(text);
  });
  return make("li", {}, button);
}

byId("alternatives-close").addEventListener("click", () => closeAlternatives());
