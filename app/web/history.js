// Past translations: in this browser only, cleared or switched off at any time.

import { announce, byId, make } from "./dom.js";
import { nameOf } from "./languages.js";
import { forget, load, save } from "./store.js";

const KEPT = 50;
const list = byId("history-list");
const on = byId("history-on");
let recall = () => {};

/** `onRecall(entry)` when a past translation is chosen. */
export function openHistory(onRecall) {
  recall = onRecall;
  on.checked = load("history.on", true);
  on.addEventListener("change", () => save("history.on", on.checked));
  byId("history-clear").addEventListener("click", () => {
    forget("history");
    render();
    announce("History cleared");
  });
  render();
}

/** Keeps a translation; one whose text was typed on takes the place of its beginning. */
export function remember(entry) {
  if (!on.checked) return;
  const entries = load("history", []);
  const [last] = entries;
  const same = last?.target === entry.target &&
    (entry.text.startsWith(last.text) || last.text.startsWith(entry.text));
  if (same) entries.shift();
  save("history", [entry, ...entries].slice(0, KEPT));
  render();
}

function render() {
  const entries = load("history", []);
  byId("history-state").textContent = entries.length || "";
  byId("history-clear").disabled = !entries.length;
  list.replaceChildren(...entries.map(item));
}

function item(entry) {
  const from = nameOf(entry.source);
  const button = make("button", { className: "choice" },
    make("span", { className: "note" }, `${from} → ${nameOf(entry.target)}`),
    make("span", { dir: "auto", className: "short" }, entry.text),
    make("span", { dir: "auto", className: "short" }, entry.translation));
  button.addEventListener("click", () => recall(entry));
  return make("li", {}, button);
}
