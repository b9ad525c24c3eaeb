// Puts the page together: tabs, theme, shortcuts, and what the parts tell each other.

import { closeAlternatives } from "./alternatives.js";
import { get, useKey } from "./api.js";
import { announce, byId, tell } from "./dom.js";
import { openDocuments, stopDocument } from "./documents.js";
import { generate, openGenerate, stopGenerating } from "./generate.js";
import { openGlossary, showGlossary } from "./glossary.js";
import { openHistory } from "./history.js";
import { choose, nameOf, openLanguages, pair, swap } from "./languages.js";
import { load, save } from "./store.js";
import * as text from "./translate.js";

const TABS = ["translate", "documents", "generate"];
let current = TABS[0];

function showTab(name, focus = false) {
  current = name;
  for (const one of TABS) {
    const tab = byId(`tab-${one}`);
    tab.ariaSelected = String(one === name);
    tab.tabIndex = one === name ? 0 : -1;
    byId(`panel-${one}`).hidden = one !== name;
  }
  byId("languages").hidden = byId("glossary").hidden = name === "generate";
  byId("history").hidden = name !== "translate";
  save("tab", name);
  if (focus) byId(`tab-${name}`).focus();
}

function openTabs() {
  for (const [i, name] of TABS.entries()) {
    const tab = byId(`tab-${name}`);
    tab.addEventListener("click", () => showTab(name));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) showTab(TABS[(i + step + TABS.length) % TABS.length], true);
    });
  }
  const kept = load("tab", TABS[0]);
  showTab(TABS.includes(kept) ? kept : TABS[0]);
}

function openTheme() {
  const theme = byId("theme");
  theme.value = document.documentElement.dataset.theme ?? "system";
  theme.addEventListener("change", () => {
    save("theme", theme.value);
    if (theme.value === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme.value;
  });
}

function swapLanguages() {
  const translation = text.translationText();
  swap(text.detectedLanguage());
  if (translation) text.setText(translation);
  announce(`From ${nameOf(pair().source)} to ${nameOf(pair().target)}`);
}

function onKey(event) {
  if (event.isComposing) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    if (current === "translate") text.translate();
    if (current === "generate") generate();
  } else if (event.key === "Escape") {
    const stopIt = { translate: text.stop, documents: stopDocument, generate: stopGenerating }[current];
    if (!byId("shortcuts").open && !closeAlternatives()) stopIt();
    return;
  } else if (event.altKey && event.shiftKey && !byId("languages").hidden && event.code === "KeyS") {
    swapLanguages();
  } else if (event.altKey && event.shiftKey && event.code === "KeyC") {
    text.copyTranslation();
  } else if (event.altKey && event.shiftKey && /^Digit[123]$/.test(event.code)) {
    showTab(TABS[event.code.at(-1) - 1], true);
  } else {
    return;
  }
  event.preventDefault();
}

/** Shows the server's words and resolves to the key that is typed, or null. */
function askForKey(words) {
  const dialog = byId("key-dialog");
  byId("key-words").textContent = words ?? "";
  byId("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const typed = dialog.returnValue === "use" ? byId("key").value.trim() : "";
      if (typed) sessionStorage.setItem("gpt2mt.key", typed);
      resolve(typed || null);
    }, { once: true });
  });
}

async function open() {
  useKey(sessionStorage.getItem("gpt2mt.key"), askForKey);
  openTheme();
  openTabs();
  text.openTranslate();
  openGenerate();
  byId("swap").addEventListener("click", swapLanguages);
  byId("shortcuts-open").addEventListener("click", () => byId("shortcuts").showModal());
  document.addEventListener("keydown", onKey);
  await openLanguages(() => {
    showGlossary();
    text.translate();
  });
  openHistory((entry) => {
    choose(entry.source, entry.target);
    text.setText(entry.text);
  });
  openGlossary(text.soon);
  openDocuments();
  const [model] = (await get("v1/models")).data;
  text.setLimit(model.limits.max_characters);
  byId("max_tokens").max = model.context;
  byId("model").textContent = `${model.id}, ${Math.round(model.parameters / 1e5) / 10} M parameters`;
  document.documentElement.dataset.ready = "true";
}

open().catch((error) => tell(byId("translate-error"), error.message));
