// Finds axe-core, puppeteer-core and a Chromium, or ends with exit code 2 and says what is lacking.
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];

function giveUp(reason) {
  console.error(reason);
  process.exit(2);
}

/** Return the path of a Chromium: $CHROMIUM, or the first on the path. */
function find() {
  const folders = (process.env.PATH ?? "").split(path.delimiter);
  const wanted = NAMES.flatMap((name) => folders.map((folder) => path.join(folder, name)));
  return [process.env.CHROMIUM, ...wanted].find((file) => file && existsSync(file));
}

export let axePath;
let puppeteer;
try {
  axePath = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
  puppeteer = (await import("puppeteer-core")).default;
} catch {
  giveUp("axe-core and puppeteer-core are not installed: run npm ci in tests/a11y");
}

export function launch() {
  const executablePath = find();
  if (!executablePath) giveUp("no Chromium found: install one, or name it in $CHROMIUM");
  // Chromium's sandbox needs rights that containers don't give; the pages are our own.
  return puppeteer.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
}
