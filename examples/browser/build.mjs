// Bundles the page with transformers.js and ONNX Runtime, so that it needs nothing from elsewhere when it runs.
import { cp, mkdir } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { build } from "esbuild";

const target = "dist";
const require = createRequire(import.meta.url);
const runtime = dirname(require.resolve("onnxruntime-web/ort-wasm-simd-threaded.wasm"));

await mkdir(join(target, "runtime"), { recursive: true });
await build({
  entryPoints: ["search.js"],
  outfile: join(target, "search.js"),
  bundle: true,
  minify: true,
  format: "esm",
  // The build of the runtime for CPUs alone: half as large as the one that also drives GPUs.
  alias: { "onnxruntime-web/webgpu": "onnxruntime-web/wasm" },
  conditions: ["onnxruntime-web-use-extern-wasm"],
});
for (const name of ["ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"]) {
  await cp(join(runtime, name), join(target, "runtime", name));
}
await cp("index.html", join(target, "index.html"));
