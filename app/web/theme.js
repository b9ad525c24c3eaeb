// Runs before the first paint, so that a chosen theme does not flash.
"use strict";
try {
  const theme = JSON.parse(localStorage.getItem("gpt2mt.theme") ?? '"system"');
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // no storage: the system's theme
}
