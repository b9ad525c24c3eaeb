// The page's elements. Text of users and of the server is only ever set as text.

/** @param {string} id */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element ${id}`);
  return found;
}

/** An element with properties, and nodes or texts inside. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Shows a message in its place, or hides the place when there is none. */
export function tell(place, text, ...more) {
  place.hidden = !text;
  place.replaceChildren(...(text ? [make("span", {}, text), ...more] : []));
}

/** For screen readers; the same text twice is told twice. */
export function announce(text) {
  const live = byId("live");
  live.textContent = "";
  setTimeout(() => (live.textContent = text), 50);
}

export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // no clipboard where the page came by plain HTTP from another host
  }
  const label = button.textContent;
  button.textContent = "Copied";
  button.disabled = true;
  announce("Copied");
  setTimeout(() => {
    button.textContent = label;
    button.disabled = false;
  }, 1200);
}

function copyBySelection(text) {
  const area = make("textarea", { value: text, className: "hidden" });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  focused?.focus();
}
