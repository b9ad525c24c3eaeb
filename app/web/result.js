// A translation on its way and when it is there: sentences, drafts, marks of doubt.

import { make } from "./dom.js";

/** What the flags of a sentence mean. */
export const REASONS = {
  spans: "a placeholder, link or address is missing or doubled",
  numbers: "a number differs from the source",
  glossary: "a term of the glossary is missing",
  truncated: "it was cut at its limit",
  repetition: "it repeats itself",
  length: "it is far shorter or longer than the source",
  copied: "it is the source itself",
  script: "it has letters of another script",
  score: "the model itself finds it unlikely",
};

export function reasons(quality) {
  const texts = quality.flags.map((flag) => REASONS[flag] ?? flag);
  if (quality.lost?.length) texts.push(`missing: ${quality.lost.join(", ")}`);
  return texts.join("; ");
}

/**
 * The events of one item, put together: each text replaces all from its place on. Places of the
 * server are counted in characters, not in UTF-16 units as JavaScript's are.
 */
export class Result {
  constructor(text) {
    this.source = [...text];
    this.characters = [];
    this.sentences = [];
    this.answer = null;
  }

  /** Takes an event of the stream in. */
  take(event) {
    if (event.type === "token") {
      this.write(event.offset, event.text);
    } else if (event.type === "sentence") {
      const { source, target, text, quality } = event;
      this.write(target.start, text);
      this.sentences.push({ start: target.start, end: target.end, source, text, quality });
    } else if (event.type === "translation") {
      this.answer = event;
      this.write(0, event.text);
    }
  }

  write(start, text) {
    this.characters.length = start;
    for (const character of text) this.characters.push(character);
  }

  /** Another text in the place of the whole translation. */
  replace(text) {
    this.sentences = [];
    this.write(0, text);
  }

  get done() {
    return this.answer !== null;
  }

  /** The translation as it stands on the page, with what was chosen in the place of a sentence. */
  get text() {
    return this.parts().map((part) => part.chosen ?? part.text).join("");
  }

  /** Sentences, what stands between them (`layout`), and at the end what is a draft yet. */
  parts() {
    const parts = [];
    let at = 0;
    for (const sentence of this.sentences) {
      if (sentence.start > at) parts.push({ text: this.slice(at, sentence.start), layout: true });
      parts.push(sentence);
      at = sentence.end;
    }
    const rest = this.slice(at);
    if (rest) parts.push({ text: rest, layout: this.done });
    return parts;
  }

  slice(start, end) {
    return this.characters.slice(start, end).join("");
  }

  sourceOf(sentence) {
    return this.source.slice(sentence.source.start, sentence.source.end).join("");
  }
}

/** Fills `place` with the parts of a result; `open(sentence, element)` when one is chosen. */
export function show(place, result, open) {
  const sentences = [];
  const nodes = result.parts().map((part) => {
    if (part.layout) return document.createTextNode(part.text);
    const node = make("span", { className: "sentence", dir: "auto" }, part.chosen ?? part.text);
    if (!part.quality) node.classList.add("draft");
    else makeChoice(node, part, sentences, open);
    return node;
  });
  place.replaceChildren(...nodes);
}

function makeChoice(node, sentence, sentences, open) {
  node.role = "button";
  node.tabIndex = sentences.length ? -1 : 0;
  if (sentence.quality.flags.length && sentence.chosen === undefined) {
    node.classList.add("flagged");
    node.title = `Worth checking: ${reasons(sentence.quality)}`;
    node.setAttribute("aria-description", node.title);
  }
  sentences.push(node);
  node.addEventListener("click", () => {
    if (!document.getSelection()?.toString()) open(sentence, node);
  });
  node.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" || event.key === " ") open(sentence, node);
    else if (!step) return;
    else moveFocus(sentences, node, step);
    if (!event.ctrlKey) event.preventDefault();
  });
}

function moveFocus(nodes, from, step) {
  const next = nodes[(nodes.indexOf(from) + step + nodes.length) % nodes.length];
  from.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}
