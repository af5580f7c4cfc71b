// Loads a compact encoder that `hf-compact export --format onnx` wrote, and searches sentences as one types.
import { AutoModel, AutoTokenizer, env } from "@huggingface/transformers";

const RESULTS = 10;
const began = performance.now();
const element = (id) => document.getElementById(id);

// Everything comes from where the page itself is.
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "./";
env.useBrowserCache = false;
const runtime = new URL("runtime/", location.href).href;
env.backends.onnx.wasm.wasmPaths = {
  mjs: `${runtime}ort-wasm-simd-threaded.mjs`,
  wasm: `${runtime}ort-wasm-simd-threaded.wasm`,
};
env.backends.onnx.wasm.numThreads = 1;

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(2)} MB`;
}

function showDownloads() {
  const entries = performance.getEntriesByType("resource").filter((entry) => entry.decodedBodySize > 0);
  const rows = entries.map((entry) => [new URL(entry.name).pathname.slice(1), entry.decodedBodySize]);
  rows.sort((one, other) => other[1] - one[1]);
  rows.push(["together", rows.reduce((sum, row) => sum + row[1], 0)]);
  element("downloads").replaceChildren(
    ...rows.map(([name, bytes]) => {
      const row = document.createElement("tr");
      for (const text of [name, megabytes(bytes)]) row.insertCell().textContent = text;
      return row;
    }),
  );
}

async function fetched(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return response;
}

const settings = await (await fetched("settings.json")).json();
const dtype = new URLSearchParams(location.search).get("dtype") ?? "q8";
const [tokenizer, model, sentences, vectors] = await Promise.all([
  AutoTokenizer.from_pretrained("model"),
  AutoModel.from_pretrained("model", { dtype, device: "wasm" }),
  fetched("sentences.json").then((response) => response.json()),
  fetched("vectors.bin").then(async (response) => new Float32Array(await response.arrayBuffer())),
]);
const width = vectors.length / sentences.length;

// The vector of one text, of length 1: pooling is in the graph.
async function encode(text) {
  const outputs = await model(await tokenizer(text, { truncation: true }));
  return outputs.sentence_embedding.data;
}

function nearest(vector) {
  const scored = sentences.map((sentence, row) => {
    let score = 0;
    for (let column = 0; column < width; column++) score += vector[column] * vectors[row * width + column];
    return { ...sentence, score };
  });
  return scored.sort((one, other) => other.score - one.score);
}

function showResults(scored) {
  const found = scored.slice(0, RESULTS);
  // Some models' scores all lie close together: bars begin where half of the sentences end.
  const middle = scored[scored.length >> 1].score;
  const span = found[0].score - middle;
  element("results").replaceChildren(
    ...found.map(({ language, text, score }) => {
      const item = document.createElement("li");
      item.style.setProperty("--share", ((score - middle) / span).toFixed(3));
      for (const [name, value] of [["language", language], ["text", text], ["score", score.toFixed(3)]]) {
        const part = document.createElement("span");
        part.className = name;
        part.textContent = value;
        if (name === "text") part.lang = language;
        item.append(part);
      }
      return item;
    }),
  );
}

let wanted = null;
let working = false;
// One query at a time, and of those that were typed meanwhile only the last.
async function search() {
  if (working) return;
  working = true;
  while (wanted !== null) {
    const text = wanted.trim();
    wanted = null;
    if (!text) continue;
    const start = performance.now();
    showResults(nearest(await encode(settings.query_prefix + text)));
    element("status").textContent =
      `${sentences.length} sentences searched in ${(performance.now() - start).toFixed(0)} ms. ` +
      `Ready ${(readyAfter / 1000).toFixed(1)} s after the page began to load.`;
    document.body.dataset.searched = text;
  }
  working = false;
}

element("about").textContent = settings.about;
const query = element("query");
query.addEventListener("input", () => {
  wanted = query.value;
  void search();
});
// The first run of a graph makes room for what the others use.
await encode(settings.query_prefix);
const readyAfter = performance.now() - began;
query.disabled = false;
query.focus();
element("status").textContent = `Ready after ${(readyAfter / 1000).toFixed(1)} s.`;
showDownloads();
document.body.dataset.ready = readyAfter.toFixed(0);
// For whoever drives the page.
window.encode = async (text) => Array.from(await encode(text));
