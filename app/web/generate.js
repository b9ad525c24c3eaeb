// The generate tab: a prompt is continued, piece by piece.

import { persist, stream } from "./api.js";
import { announce, byId, copy, tell } from "./dom.js";
import { load, save } from "./store.js";

const OPTIONS = ["temperature", "top_p", "max_tokens", "seed"];
const output = byId("generated");
const problem = byId("generate-error");
const note = byId("generate-note");
let running = null;

export function openGenerate() {
  const kept = load("generate", {});
  for (const name of OPTIONS) if (kept[name] !== undefined) byId(name).value = kept[name];
  byId("generate").addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  byId("stop").addEventListener("click", stopGenerating);
  byId("generate-copy").addEventListener("click", (event) => copy(output.textContent, event.currentTarget));
}

export function stopGenerating() {
  const was = running !== null;
  running?.abort();
  return was;
}

export async function generate() {
  if (!byId("generate").reportValidity()) return;
  stopGenerating();
  const mine = (running = new AbortController());
  save("generate", Object.fromEntries(OPTIONS.map((name) => [name, byId(name).value])));
  tell(problem, "");
  output.replaceChildren();
  const prompt = document.createElement("span");
  const text = document.createTextNode("");
  prompt.className = "given";
  prompt.textContent = byId("prompt").value;
  output.append(prompt, text);
  busy(true);
  note.textContent = "Generating …";
  try {
    const reason = await persist(() => receive(text, mine.signal), mine.signal, waiting);
    note.textContent = reason === "length" ? "Ended at the limit" : "Complete";
    announce(text.data.slice(0, 500));
  } catch (error) {
    const stopped = error.name === "AbortError";
    note.textContent = stopped ? "Stopped" : "";
    if (!stopped) tell(problem, error.message);
  }
  if (running !== mine) return;
  running = null;
  busy(false);
}

async function receive(text, signal) {
  let reason = null;
  text.data = "";
  for await (const event of stream("v1/generate", request(), signal)) {
    tell(problem, "");
    text.data += event.text;
    reason = event.finish_reason ?? reason;
  }
  return reason;
}

function request() {
  const body = { prompt: byId("prompt").value };
  for (const name of OPTIONS) {
    if (byId(name).value !== "") body[name] = byId(name).valueAsNumber;
  }
  if (body.temperature === 0) delete body.top_p;
  return body;
}

function busy(on) {
  byId("stop").disabled = !on;
  byId("generate-copy").disabled = on || !output.textContent;
  output.ariaBusy = String(on);
}

function waiting(error, seconds) {
  tell(problem, `${error.message} Trying again in ${seconds} s.`);
}
