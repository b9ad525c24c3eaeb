// The documents tab: a file goes to the server and its translation comes back as a download.

import { get, persist, send } from "./api.js";
import { announce, byId, make, tell } from "./dom.js";
import { glossary } from "./glossary.js";
import { nameOf, pair } from "./languages.js";

const input = byId("file");
const drop = byId("drop");
const problem = byId("document-error");
const status = byId("document-status");
const cancel = byId("document-cancel");
let most = null;
let running = null;

export async function openDocuments() {
  input.addEventListener("change", () => {
    if (input.files.length) translateFile(input.files[0]);
    input.value = "";
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) translateFile(event.dataTransfer.files[0]);
    });
  }
  byId("documents").addEventListener("submit", (event) => event.preventDefault());
  cancel.addEventListener("click", stopDocument);
  try {
    const offer = await get("v1/documents");
    most = offer.max_bytes;
    input.accept = offer.formats.flatMap((one) => one.extensions).map(dotted).join(",");
    const names = offer.formats.map((one) => one.extensions.map(dotted).join(" ")).join(" ");
    byId("formats").textContent = `${names}, up to ${megabytes(most)}`;
  } catch (error) {
    tell(problem, error.status === 404 ? "This server translates no documents." : error.message);
  }
}

export function stopDocument() {
  const was = running !== null;
  running?.abort();
  running = null;
  return was;
}

async function translateFile(file) {
  stopDocument();
  tell(problem, "");
  if (most !== null && file.size > most) {
    return tell(problem, `${file.name} has ${megabytes(file.size)}; at most ${megabytes(most)} are allowed.`);
  }
  const mine = (running = new AbortController());
  status.textContent = `Translating ${file.name} …`;
  announce(status.textContent);
  cancel.hidden = false;
  try {
    const options = { method: "POST", body: form(file), signal: mine.signal };
    const response = await persist(() => send("v1/documents", options), mine.signal, waiting);
    offerDownload(file, response, await response.blob());
    tell(problem, "");
  } catch (error) {
    if (error.name !== "AbortError") tell(problem, error.message);
  }
  if (running && running !== mine) return;
  running = null;
  status.textContent = mine.signal.aborted ? "Stopped" : "";
  cancel.hidden = true;
}

function form(file) {
  const data = new FormData();
  data.set("file", file);
  data.set("source", pair().source);
  data.set("target", pair().target);
  const terms = glossary();
  if (terms) data.set("glossary", typeof terms === "string" ? terms : JSON.stringify(terms));
  return data;
}

function offerDownload(file, response, blob) {
  const name = nameIn(response.headers.get("Content-Disposition")) ?? file.name;
  const source = response.headers.get("X-Translation-Source");
  const items = response.headers.get("X-Translation-Items");
  const flagged = Number(response.headers.get("X-Translation-Flagged"));
  const told = [source && `from ${nameOf(source)}`, items && `${items} texts`];
  if (flagged) told.push(`${flagged} worth checking`);
  const link = make("a", { className: "button", href: URL.createObjectURL(blob), download: name }, "Download");
  link.setAttribute("aria-label", `Download ${name}`);
  byId("document-results").prepend(make("li", {},
    make("span", {}, make("strong", { dir: "auto" }, name),
      make("span", { className: "note" }, told.filter(Boolean).join(", "))),
    link));
  announce(`${name} is ready`);
  link.focus();
}

/** The file name of a Content-Disposition, the encoded form before the plain one. */
function nameIn(header) {
  const encoded = /filename\*=UTF-8''([^;]+)/i.exec(header ?? "");
  if (encoded) return decodeURIComponent(encoded[1]);
  return /filename="([^"]+)"/i.exec(header ?? "")?.[1] ?? null;
}

function waiting(error, seconds) {
  tell(problem, `${error.message} Trying again in ${seconds} s.`);
}

const dotted = (extension) => (extension.startsWith(".") ? extension : `.${extension}`);
const megabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;
