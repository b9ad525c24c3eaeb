// The language pair: what is served, what is chosen, the swap.

import { get, persist } from "./api.js";
import { byId, make, tell } from "./dom.js";
import { load, save } from "./store.js";

const source = byId("source");
const target = byId("target");
let names = new Map();
let served = [];
let changed = () => {};

export const pair = () => ({ source: source.value, target: target.value });
export const nameOf = (code) => names.get(code) ?? code;

/** Asks the server what it serves; `onChange` is called when another pair is chosen. */
export async function openLanguages(onChange) {
  changed = onChange;
  const problem = byId("translate-error");
  const waiting = (error, seconds) => tell(problem, `${error.message} Trying again in ${seconds} s.`);
  served = (await persist(() => get("v1/languages"), null, waiting)).languages;
  tell(problem, "");
  names = new Map(served.map((one) => [one.code, one.name]));
  for (const one of served) if (one.targets.length) source.append(option(one.code));
  const kept = load("pair", {});
  if (names.has(kept.source)) source.value = kept.source;
  offerTargets(kept.target);
  source.addEventListener("change", () => choose(source.value, target.value));
  target.addEventListener("change", () => choose(source.value, target.value));
}

/** Another pair; a target that the source has not is replaced. */
export function choose(from, to) {
  source.value = from;
  offerTargets(to);
  save("pair", pair());
  changed();
}

/** Exchanges the two; of a detected source, `detected` is meant. */
export function swap(detected) {
  const from = source.value === "auto" ? detected : source.value;
  const to = target.value;
  const canBeSource = [...source.options].some((one) => one.value === to);
  choose(canBeSource ? to : "auto", from ?? targets(to)[0]);
}

function targets(from) {
  const lists = served.filter((one) => from === "auto" || one.code === from);
  const known = new Set(lists.flatMap((one) => one.targets));
  return [...new Set([...names.keys(), ...known])].filter((code) => known.has(code));
}

function offerTargets(wanted) {
  const codes = targets(source.value);
  target.replaceChildren(...codes.map(option));
  const usual = codes.find((code) => !navigator.language.startsWith(code)) ?? codes[0];
  target.value = codes.includes(wanted) ? wanted : usual;
}

function option(code) {
  return make("option", { value: code }, nameOf(code));
}
