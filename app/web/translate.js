// The text tab: translates while one types; a newer request stops the older one.

import { closeAlternatives, openAlternatives } from "./alternatives.js";
import { persist, stream } from "./api.js";
import { announce, byId, copy, make, tell } from "./dom.js";
import { glossary } from "./glossary.js";
import { remember } from "./history.js";
import { nameOf, pair } from "./languages.js";
import { Result, reasons, show } from "./result.js";

const DEBOUNCE_MS = 350;
const area = byId("text");
const output = byId("result");
const problem = byId("translate-error");
const progress = byId("progress");
let timer = 0;
let running = null;
let result = null;
let detected = null;
let limit = null;
let frame = 0;

export const detectedLanguage = () => detected;

export function openTranslate() {
  area.addEventListener("input", soon);
  byId("clear").addEventListener("click", () => setText(""));
  byId("copy").addEventListener("click", copyTranslation);
  byId("more").addEventListener("click", (event) => {
    const text = area.value.trim();
    ask(text, result.text, event.currentTarget, (chosen) => result.replace(chosen));
  });
  measure();
}

/** Tells how long a text may be. */
export function setLimit(characters) {
  limit = characters;
  measure();
}

export function setText(text) {
  area.value = text;
  area.focus();
  translate();
}

export const translationText = () => result?.text ?? "";

export function copyTranslation() {
  if (result?.done) copy(result.text, byId("copy"));
}

/** Translates when no key has been pressed for a moment. */
export function soon() {
  measure();
  clearTimeout(timer);
  timer = setTimeout(translate, area.value.trim() ? DEBOUNCE_MS : 0);
}

export function stop() {
  const was = running !== null;
  running?.abort();
  running = null;
  clearTimeout(timer);
  output.ariaBusy = "false";
  output.classList.remove("stale");
  if (was) progress.textContent = "Stopped";
  return was;
}

/** Translates now. */
export async function translate() {
  stop();
  measure();
  closeAlternatives(false);
  tell(problem, "");
  progress.textContent = "";
  const text = area.value;
  if (!text.trim()) return clear();
  const mine = (running = new AbortController());
  const asked = { text, ...pair(), glossary: glossary() };
  output.classList.add("stale");
  output.ariaBusy = "true";
  byId("copy").disabled = byId("more").disabled = true;
  progress.textContent = "Translating …";
  try {
    await persist(() => receive(asked, mine.signal), mine.signal, waiting);
    finish(asked);
  } catch (error) {
    if (error.name === "AbortError") return;
    fail(error);
  }
  if (running === mine) running = null;
}

async function receive(asked, signal) {
  const coming = new Result(asked.text);
  for await (const event of stream("v1/translate", asked, signal)) {
    if (signal.aborted) return;
    result = coming;
    coming.take(event);
    tell(problem, "");
    output.lang = asked.target;
    output.classList.remove("stale");
    redraw();
    if (event.type === "translation") tellDetected(event.detected);
  }
}

function finish(asked) {
  output.ariaBusy = "false";
  if (result.answer.error) return fail(new Error(result.answer.error.detail));
  draw();
  progress.textContent = result.answer.truncated ? "Cut at the limit" : "";
  byId("copy").disabled = byId("more").disabled = false;
  const doubtful = showDoubts();
  const also = doubtful ? `. ${doubtful} to check` : "";
  announce(`${nameOf(asked.target)}: ${result.text.slice(0, 500)}${also}`);
  const { source } = result.answer;
  remember({ text: asked.text, source, target: asked.target, translation: result.text });
}

function fail(error) {
  progress.textContent = "";
  output.ariaBusy = "false";
  output.classList.remove("stale");
  const again = make("button", { className: "quiet" }, "Try again");
  again.addEventListener("click", translate);
  tell(problem, error.message, again);
}

function waiting(error, seconds) {
  tell(problem, `${error.message} Trying again in ${seconds} s.`);
}

function clear() {
  result = null;
  output.replaceChildren();
  byId("copy").disabled = byId("more").disabled = true;
  byId("doubts").hidden = true;
  tellDetected(null);
}

function tellDetected(found) {
  detected = found?.language ?? null;
  const share = found ? ` (${Math.round(found.confidence * 100)} %)` : "";
  byId("detected").textContent = found ? `Detected: ${nameOf(found.language)}${share}` : "";
}

function measure() {
  const size = [...area.value].length;
  const near = limit !== null && size > 0.8 * limit;
  const most = near ? ` of ${limit.toLocaleString("en")}` : "";
  byId("count").textContent = size ? `${size.toLocaleString("en")}${most} characters` : "";
  byId("count").classList.toggle("near", near);
  byId("clear").disabled = !size;
}

/** Draws once for all events of a frame. */
function redraw() {
  if (!frame) frame = requestAnimationFrame(draw);
}

function draw() {
  cancelAnimationFrame(frame);
  frame = 0;
  if (result) show(output, result, openSentence);
}

function openSentence(sentence, element) {
  if (!result.done) return;
  const place = [...output.querySelectorAll(".sentence")].indexOf(element);
  const back = () => output.querySelectorAll(".sentence")[place];
  ask(result.sourceOf(sentence), sentence.chosen ?? sentence.text, element, (chosen) => {
    sentence.chosen = chosen === sentence.text ? undefined : chosen;
    setTimeout(() => back()?.focus());
  });
}

function ask(text, current, from, choose) {
  const { target } = pair();
  const request = { text, source: result.answer.source, target, glossary: glossary() };
  openAlternatives(request, current, from, (chosen) => {
    choose(chosen);
    draw();
    showDoubts();
  });
}

/** The flagged sentences, each with its reason in words; returns how many. */
function showDoubts() {
  const flagged = result.sentences.filter((one) => one?.quality?.flags.length && one.chosen === undefined);
  const nodes = [...output.querySelectorAll(".flagged")];
  byId("doubts").hidden = !flagged.length;
  byId("doubts-list").replaceChildren(...flagged.map((sentence, i) => {
    const button = make("button", { className: "choice" },
      make("span", { dir: "auto" }, sentence.text),
      make("span", { className: "note" }, reasons(sentence.quality)));
    button.addEventListener("click", () => nodes[i]?.focus());
    return make("li", {}, button);
  }));
  return flagged.length;
}
