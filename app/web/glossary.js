// Wanted translations of terms: typed here and kept in this browser, or stored on the server.

import { get } from "./api.js";
import { byId, make } from "./dom.js";
import { nameOf, pair } from "./languages.js";
import { load, save } from "./store.js";

const rows = byId("terms");
const choice = byId("glossary-choice");
let stored = [];
let changed = () => {};

/** The `glossary` of a request: a stored one's name, terms, or nothing. */
export function glossary() {
  if (choice.value) return choice.value;
  const own = ownTerms();
  return Object.keys(own).length ? own : undefined;
}

export async function openGlossary(onChange) {
  changed = onChange;
  byId("add-term").addEventListener("click", () => addRow("", "", true).focus());
  choice.addEventListener("change", () => {
    save("glossary.stored", choice.value);
    fill();
    changed();
  });
  showGlossary();
  try {
    stored = (await get("v1/glossaries")).glossaries;
  } catch {
    return; // those of this browser can be used all the same
  }
  showGlossary(load("glossary.stored", ""));
}

/** For the chosen languages: terms are kept by target, stored glossaries fit a pair. */
export function showGlossary(wanted = choice.value) {
  const { source, target } = pair();
  const fitting = stored.filter(
    (one) => one.target === target && (source === "auto" || one.source === source),
  );
  choice.replaceChildren(
    make("option", { value: "" }, "Terms of this browser"),
    ...fitting.map((one) => make("option", { value: one.name }, `Stored: ${one.name}`)),
  );
  choice.value = fitting.some((one) => one.name === wanted) ? wanted : "";
  fill();
}

function fill() {
  const named = stored.find((one) => one.name === choice.value);
  rows.replaceChildren();
  byId("add-term").hidden = Boolean(named);
  byId("glossary-note").textContent = named
    ? `Kept on the server, from ${nameOf(named.source)} to ${nameOf(named.target)}.`
    : `For translations into ${nameOf(pair().target)}; kept in this browser only.`;
  if (named) {
    fillFromServer(named);
    return;
  }
  const own = Object.entries(load("glossary", {})[pair().target] ?? {});
  for (const [term, translation] of own) addRow(term, translation, true);
  if (!own.length) addRow("", "", true);
  summarise();
}

async function fillFromServer(named) {
  byId("glossary-state").textContent = named.name;
  try {
    const { entries } = await get(`v1/glossaries/${encodeURIComponent(named.name)}`);
    if (choice.value !== named.name) return;
    rows.replaceChildren();
    for (const [term, translation] of Object.entries(entries)) addRow(term, translation, false);
  } catch (error) {
    byId("glossary-note").textContent = error.message;
  }
}

function addRow(term, translation, editable) {
  const number = rows.children.length + 1;
  const field = (value, label) =>
    make("input", { value, dir: "auto", readOnly: !editable, "aria-label": `${label} ${number}` });
  const first = field(term, "Term");
  const second = field(translation, "Translation");
  const remove = make("button", { className: "quiet", "aria-label": `Remove term ${number}` }, "✕");
  const row = make("tr", {}, ...[first, second].map((one) => make("td", {}, one)));
  row.append(make("td", {}, ...(editable ? [remove] : [])));
  row.addEventListener("input", keep);
  remove.addEventListener("click", () => {
    row.remove();
    keep();
    byId("add-term").focus();
  });
  rows.append(row);
  return first;
}

function ownTerms() {
  const pairs = [...rows.rows].map((row) => [...row.querySelectorAll("input")].map((i) => i.value.trim()));
  return Object.fromEntries(pairs.filter(([term, translation]) => term && translation));
}

function keep() {
  save("glossary", { ...load("glossary", {}), [pair().target]: ownTerms() });
  summarise();
  changed();
}

function summarise() {
  const count = Object.keys(ownTerms()).length;
  byId("glossary-state").textContent = count ? `${count} ${count === 1 ? "term" : "terms"}` : "";
}
