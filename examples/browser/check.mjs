// Drives the page in a real browser: `node check.mjs [SCREENSHOT]`. CHROMIUM names another one than Debian's.
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { serve } from "./serve.mjs";

const FLOAT_TOLERANCE = 1e-4;
// Layers in 8 bits round their inputs anew in each run, and runtimes do not add up in the same order.
const LEAST_COSINE = 0.995;
const PATIENCE = 120_000;

const expected = JSON.parse(await readFile("expected.json", "utf8"));
const server = await serve("dist", 0);
const home = `http://127.0.0.1:${server.address().port}/`;
const profile = await mkdtemp(join(tmpdir(), "compact-browser-"));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  headless: true,
  viewport: { width: 900, height: 980 },
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});

async function opened(dtype) {
  const page = await browser.newPage();
  const faults = [];
  page.on("console", (message) => {
    if (message.type() === "error") faults.push(message.text());
  });
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(home) && !/^(data|blob):/.test(url)) faults.push(`asked for ${url}`);
  });
  await page.goto(`${home}?dtype=${dtype}`);
  await page.waitForFunction(() => document.body.dataset.ready, null, { timeout: PATIENCE }).catch((error) => {
    throw new Error(`the page is not ready: ${[...faults, error.message].join("\n")}`);
  });
  return { page, faults };
}

function cosine(one, other) {
  const dot = (left, right) => left.reduce((sum, value, i) => sum + value * right[i], 0);
  return dot(one, other) / Math.sqrt(dot(one, one) * dot(other, other));
}

async function checkFloats() {
  const { page, faults } = await opened("fp32");
  let worst = 0;
  for (const [i, text] of expected.texts.entries()) {
    const vector = await page.evaluate((given) => window.encode(given), text);
    assert.equal(vector.length, expected.torch[i].length);
    worst = Math.max(worst, ...vector.map((value, at) => Math.abs(value - expected.torch[i][at])));
  }
  console.log(`float32: the largest difference from PyTorch is ${worst.toExponential(1)}`);
  assert.ok(worst <= FLOAT_TOLERANCE);
  assert.deepEqual(faults, []);
  await page.close();
}

async function checkSearch(screenshot) {
  const { page, faults } = await opened("q8");
  const ready = Number(await page.evaluate(() => document.body.dataset.ready));
  const least = [];
  for (const [i, text] of expected.texts.entries()) {
    const vector = await page.evaluate((given) => window.encode(given), text);
    least.push(cosine(vector, expected.quantized[i]));
  }
  console.log(`int8 layers: the least cosine with ONNX Runtime's vectors is ${Math.min(...least).toFixed(5)}`);
  assert.ok(Math.min(...least) >= LEAST_COSINE);
  for (const [query, first] of Object.entries(expected.queries)) {
    await page.fill("#query", "");
    await page.locator("#query").pressSequentially(query, { delay: 5 });
    await page.waitForFunction((typed) => document.body.dataset.searched === typed, query, { timeout: PATIENCE });
    const found = await page.locator("#results .text").allTextContents();
    console.log(`${query}: ${found.slice(0, 5).join(" | ")}`);
    assert.ok(found.slice(0, 5).includes(first), `"${first}" is not among the first five`);
  }
  console.log(`ready ${(ready / 1000).toFixed(1)} s after the page began; ${await page.textContent("#status")}`);
  const downloads = await page.locator("#downloads tr").allInnerTexts();
  console.log(downloads.map((line) => `  ${line.replace(/\s+/g, " ")}`).join("\n"));
  assert.match(downloads.at(-1), /together/);
  if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
  assert.deepEqual(faults, []);
}

try {
  await checkFloats();
  await checkSearch(process.argv[2]);
  console.log("The page gives what Python gives.");
} finally {
  await browser.close();
  server.close();
  await rm(profile, { recursive: true, force: true });
}
