// Opens reports in a headless Chromium, light and dark, and runs axe-core on them; then sorts, copies and tabs.
// Usage: node check.mjs [--shots FOLDER] REPORT.html...   Exit code 1: something is wrong; 2: nothing could be checked.
import { mkdirSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { axePath, launch } from "./browser.mjs";

const GRAVE = ["serious", "critical"];

/** Run axe on the open page; every section of numbers is open, so that hidden text is judged as well. */
async function judge(page) {
  await page.evaluate(() => document.querySelectorAll("details").forEach((found) => (found.open = true)));
  if (!(await page.evaluate(() => "axe" in globalThis))) await page.addScriptTag({ path: axePath });
  return page.evaluate(() =>
    globalThis.axe.run(document, {
      resultTypes: ["violations", "incomplete"],
      runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    }),
  );
}

/** Press Tab through the page: everything interactive must be reached and show that it has the focus. */
async function tabThrough(page) {
  const wanted = await page.evaluate(() => {
    document.querySelectorAll("details").forEach((found) => (found.open = true));
    const all = [...document.querySelectorAll("a[href], button, summary, [tabindex='0']")];
    all.forEach((element, number) => (element.dataset.number = number));
    return all.filter((element) => element.checkVisibility()).map((element) => element.dataset.number);
  });
  const reached = new Set();
  const unseen = [];
  for (let i = 0; i < wanted.length + 2; i++) {
    await page.keyboard.press("Tab");
    const [number, outlined, what] = await page.evaluate(() => {
      const style = getComputedStyle(document.activeElement);
      const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
      return [document.activeElement.dataset.number ?? null, seen, document.activeElement.outerHTML.slice(0, 60)];
    });
    if (number !== null && !outlined) unseen.push(what);
    reached.add(number);
  }
  const missed = wanted.filter((number) => !reached.has(number));
  return [
    ...(missed.length ? [`Tab does not reach ${missed.length} of ${wanted.length} interactive parts`] : []),
    ...(unseen.length ? [`${unseen.length} interactive parts have no visible focus, such as ${unseen[0]}`] : []),
  ];
}

/** Sort the first table that can be, with the keyboard, and look at what it says. */
async function sortOne(page) {
  return page.evaluate(async () => {
    const button = document.querySelector("th > button.sort");
    if (!button) return [];
    const wrong = [];
    const head = button.parentElement;
    const rows = () => [...head.closest("table").tBodies[0].rows];
    const before = rows();
    const status = () => document.querySelector("[role=status]")?.textContent ?? "";
    for (const order of ["ascending", "descending"]) {
      button.click();
      if (head.getAttribute("aria-sort") !== order) wrong.push(`aria-sort is not ${order} after a click`);
      await new Promise((done) => setTimeout(done, 60));
      if (!status().includes(order)) wrong.push(`nothing announces the ${order} order`);
    }
    button.click();
    if (head.hasAttribute("aria-sort")) wrong.push("the third click does not give up sorting");
    if (rows().some((row, i) => row !== before[i])) wrong.push("the third click does not bring back the first order");
    return wrong;
  });
}

/** Point at a part of each chart: its values must stand in the window, and be gone with Escape. */
async function pointAtCharts(page) {
  const wrong = [];
  for (const svg of await page.$$("figure svg:has(.tip)")) {
    const part = await svg.evaluateHandle((found) => {
      const size = (part) => part.width.baseVal.value * part.height.baseVal.value;
      const [largest] = [...found.querySelectorAll(".tip rect")].sort((a, b) => size(b) - size(a));
      found.scrollIntoView({ block: "center", behavior: "instant" });
      return new Promise((done) => setTimeout(done, 60, largest));
    });
    await part.hover();
    const [text, fits] = await page.evaluate(() => {
      const values = document.querySelector(".values");
      if (!values) return ["", false];
      const box = values.getBoundingClientRect();
      return [values.innerText, box.left >= 0 && box.top >= 0 && box.right <= innerWidth && box.bottom <= innerHeight];
    });
    const name = await svg.evaluate((found) => found.closest("figure").id);
    if (!fits || text.split("\n").length < 2) wrong.push(`${name}: pointing shows no values`);
    await page.keyboard.press("Escape");
    if (await page.$(".values:not([hidden])")) wrong.push(`${name}: Escape does not hide the values`);
  }
  return wrong;
}

/** Return what is wider than the window of a phone, other than what scrolls by itself. */
async function tooWide(page) {
  return page.evaluate(() => {
    const wide = document.documentElement.scrollWidth - 390;
    return wide > 0 ? [`the page is ${wide} px wider than a phone`] : [];
  });
}

async function checkOne(browser, file, shots) {
  const page = await browser.newPage();
  const wrong = [];
  const counts = { text: 0, unsure: 0 };
  page.on("pageerror", (error) => wrong.push(`script: ${error.message}`));
  page.on("console", (message) => {
    if (message.type() === "error") wrong.push(`console: ${message.text()}`);
  });
  await page.setBypassCSP(false);
  for (const scheme of ["light", "dark"]) {
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.setViewport({ width: 1200, height: 900 });
    await page.goto(pathToFileURL(path.resolve(file)).href);
    if (shots) await shoot(page, shots, file, scheme);
    if (scheme === "light") wrong.push(...(await pointAtCharts(page)), ...(await tabThrough(page)), ...(await sortOne(page)));
    await page.setBypassCSP(true); // for axe alone: the page must live with its own policy until here
    await page.reload();
    const found = await judge(page);
    await page.setBypassCSP(false);
    for (const rule of found.violations) {
      const grave = GRAVE.includes(rule.impact);
      const where = rule.nodes.slice(0, 3).map((node) => `${node.target.join(" ")}: ${node.any[0]?.message ?? node.all[0]?.message ?? ""}`);
      const text = `${scheme}, ${rule.impact}: ${rule.id}, ${rule.nodes.length} times\n      ${where.join("\n      ")}`;
      if (grave) wrong.push(text);
      else console.log(`    note: ${text}`);
    }
    counts.unsure += found.incomplete.reduce((sum, rule) => sum + rule.nodes.length, 0);
    if (process.env.VERBOSE) {
      for (const rule of found.incomplete) console.log(`    unsure: ${scheme} ${rule.id} ${rule.nodes.length} ${rule.nodes[0].html.slice(0, 150)} ${rule.nodes[0].any[0]?.message ?? ""}`);
    }
    wrong.push(...(await textOfCharts(page)).map((text) => `${scheme}: ${text}`));
    counts.text += await page.evaluate(() => document.querySelectorAll("svg text").length);
  }
  await page.setViewport({ width: 390, height: 844, isMobile: true });
  await page.reload();
  wrong.push(...(await tooWide(page)));
  if (shots) await shoot(page, shots, file, "phone");
  if (shots) await page.pdf({ path: path.join(shots, `${label(file)}.pdf`), preferCSSPageSize: true });
  await page.close();
  return [wrong, counts];
}

const label = (file) => path.basename(path.dirname(path.resolve(file))) + "-" + path.basename(file, ".html");

async function shoot(page, folder, file, kind) {
  mkdirSync(folder, { recursive: true });
  await page.screenshot({ path: path.join(folder, `${label(file)}-${kind}.png`), fullPage: true });
}

/**
 * Return texts of charts without contrast or that overlap. Axe judges no text inside an SVG with a role of an image, so
 * this looks at each text's fill against the fill of the shape that is painted below it.
 */
async function textOfCharts(page) {
  return page.evaluate(() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const parts = (colour) => {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const over = ([r, g, b, a], alpha, below) => [r, g, b].map((v, i) => (a / 255) * alpha * v + (1 - (a / 255) * alpha) * below[i]);
    const light = (rgb) => {
      const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const paper = parts(getComputedStyle(document.body).backgroundColor).slice(0, 3);
    const wrong = [];
    for (const svg of document.querySelectorAll("figure svg")) {
      const name = svg.closest("figure").id;
      const shapes = [...svg.querySelectorAll("path, use, rect")].filter((s) => !s.closest("clipPath, defs"));
      const boxes = [];
      for (const text of svg.querySelectorAll("text")) {
        const box = text.getBoundingClientRect();
        if (!box.width || !text.textContent.trim()) continue;
        const x = box.x + box.width / 2, y = box.y + box.height / 2;
        let ground = paper;
        for (const shape of shapes) {
          const style = getComputedStyle(shape);
          if (style.fill === "none" || !(shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING)) continue;
          const r = shape.getBoundingClientRect();
          if (x < r.left || x > r.right || y < r.top || y > r.bottom) continue;
          if (shape.isPointInFill) {
            const at = new DOMPoint(x, y).matrixTransform(shape.getScreenCTM().inverse());
            if (!shape.isPointInFill(at)) continue;
          }
          ground = over(parts(style.fill.startsWith("url") ? "transparent" : style.fill), parseFloat(style.opacity) * parseFloat(style.fillOpacity), ground);
        }
        const ink = parts(getComputedStyle(text).fill).slice(0, 3);
        const found = contrast(ink, ground);
        if (found < 4.5) wrong.push(`${name}: contrast ${found.toFixed(2)} of “${text.textContent}”`);
        const frame = svg.getBoundingClientRect();
        if (box.left < frame.left - 14 || box.right > frame.right + 14) wrong.push(`${name}: “${text.textContent}” is cut off`);
        if (text.hasAttribute("transform")) continue; // a slanted text's box is larger than what it covers
        for (const [other, words] of boxes) {
          const w = Math.min(box.right, other.right) - Math.max(box.left, other.left);
          const h = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
          if (w > 1.5 && h > 5) wrong.push(`${name}: “${text.textContent}” lies on “${words}”`);
        }
        boxes.push([box, text.textContent]);
      }
    }
    return wrong;
  });
}

const given = process.argv.slice(2);
const shots = given[0] === "--shots" ? given.splice(0, 2)[1] : null;
const browser = await launch();
let bad = 0;
for (const file of given) {
  const [wrong, counts] = await checkOne(browser, file, shots);
  bad += wrong.length > 0;
  console.log(`${wrong.length ? "BAD " : "good"} ${file} (${counts.text} texts in charts, ${counts.unsure} left open by axe)`);
  for (const text of wrong.slice(0, 40)) console.log(`    ${text}`);
}
await browser.close();
process.exit(bad ? 1 : 0);
