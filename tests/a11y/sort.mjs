// Sorts the first table of a page by every column that can be sorted, and copies its first command. Prints JSON:
// by column the first cells of its rows, ascending and descending, and what the copy button said.
import path from "node:path";
import { pathToFileURL } from "node:url";
import { launch } from "./browser.mjs";

const browser = await launch();
const page = await browser.newPage();
await page.goto(pathToFileURL(path.resolve(process.argv[2])).href);
const sorted = await page.evaluate(() => {
  const table = document.querySelector("table");
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
  const found = {};
  for (const button of table.querySelectorAll("th > button.sort")) {
    const key = button.textContent.trim();
    found[key] = [];
    for (let turn = 0; turn < 2; turn++) {
      button.click();
      found[key].push(names().join(""));
    }
  }
  return found;
});
await page.click("button.copy");
await page.waitForFunction(() => document.querySelector("button.copy").textContent.match(/Copied|Selected/));
const copied = await page.evaluate(() => document.querySelector("button.copy").firstChild.data);
console.log(JSON.stringify({ sorted, copied }));
await browser.close();
