import * as ort from "./onnxruntime-web/ort.wasm.min.mjs";
import { command } from "./command.mjs";
import { withText } from "./png.mjs";
import { draw } from "./sampler.mjs";

const $ = (id) => document.getElementById(id);
const STILL = matchMedia("(prefers-reduced-motion: reduce)").matches;
const MOST_SEED = 2n ** 63n - 1n;

ort.env.wasm.numThreads = 1; // more need headers that servers of files do not send
ort.env.wasm.wasmPaths = new URL("./onnxruntime-web/", import.meta.url).href;

let model, session, path = [], shown = 0, busy = false;

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

/** The network on a batch of n samples, as sampler.mjs asks it. */
function networkOf(n) {
  return async (x, c_noise, label) => {
    const feeds = {
      x: new ort.Tensor("float32", x, [n, ...model.shape]),
      c_noise: new ort.Tensor("float32", new Float32Array(n).fill(c_noise), [n]),
    };
    if (model.no_label !== null) {
      feeds.labels = new ort.Tensor("int64", new BigInt64Array(n).fill(BigInt(label)), [n]);
    }
    const { output } = await session.run(feeds);
    return output.data;
  };
}

/** The settings on the page; an Error with a line for the reader where one is wrong. */
function settings() {
  const text = $("seed").value.trim();
  if (!/^\d+$/.test(text)) throw new Error(`Seed: found "${text}"; a whole number from 0 on is accepted.`);
  const seed = BigInt(text);
  if (seed > MOST_SEED) throw new Error(`Seed: found ${text}; at most ${MOST_SEED} is accepted.`);
  const picked = document.querySelector("#labels [aria-pressed=true]");
  const label = picked && picked.dataset.label !== "" ? Number(picked.dataset.label) : null;
  return {
    sampler: $("sampler").value,
    steps: steps(),
    n: Number($("n").value),
    seed,
    label,
    guidance: label === null ? 1 : Number($("guidance").value),
  };
}

const stepsOf = (sampler) => Object.keys(model.plans[sampler]).map(Number);
const steps = () => stepsOf($("sampler").value)[Number($("steps").value)];

/** Images in [-1, 1] as a grid on a canvas, each pixel as a square of `scale`, with a gap between them. */
function paint(canvas, x, scale = 1, gap = 1, background = null) {
  const [channels, height, width] = model.shape, size = height * width, n = x.length / (channels * size);
  const columns = Math.ceil(Math.sqrt(n)), rows = Math.ceil(n / columns);
  const [step_x, step_y] = [scale * width + gap, scale * height + gap];
  canvas.width = columns * step_x - gap;
  canvas.height = rows * step_y - gap;
  const context = canvas.getContext("2d");
  if (background) {
    context.fillStyle = background;
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  for (let i = 0; i < n; i++) {
    const image = context.createImageData(scale * width, scale * height);
    for (let place = 0; place < scale * scale * size; place++) {
      const row = Math.floor(place / (scale * width)), column = place % (scale * width);
      const pixel = Math.floor(row / scale) * width + Math.floor(column / scale);
      for (let channel = 0; channel < 3; channel++) {
        const value = x[(i * channels + (channels === 3 ? channel : 0)) * size + pixel];
        image.data[4 * place + channel] = (value + 1) * 127.5; // clamped, and rounded half to even, as torch does
      }
      image.data[4 * place + 3] = 255;
    }
    context.putImageData(image, (i % columns) * step_x, Math.floor(i / columns) * step_y);
  }
}

/** Shows the state after a step, and the estimate of the clean image that led there. */
function show(step) {
  shown = step;
  const { x, x_hat, log_snr } = path[step];
  paint($("state"), x);
  paint($("estimate"), x_hat ?? new Float32Array(x.length).fill(-1));
  $("step").value = step;
  const where = log_snr === Infinity ? "clean" : `log-SNR ${log_snr.toFixed(2)}`;
  $("where").textContent = `step ${step} of ${path.length - 1}, ${where}`;
  document.querySelectorAll("#times i").forEach((tick, i) => tick.classList.toggle("now", i === step));
}

/** The grid of times as ticks over log-SNR; clean data stand at the right end. */
function times(plan) {
  const ends = plan.map((point) => point.log_snr).filter(Number.isFinite);
  const low = Math.min(...ends), range = Math.max(...ends) - low || 1;
  $("times").replaceChildren(
    ...plan.map(({ log_snr }, step) => {
      const tick = document.createElement("i");
      tick.style.left = `${log_snr === Infinity ? 100 : (94 * (log_snr - low)) / range}%`;
      tick.title = log_snr === Infinity ? "clean" : `step ${step}: log-SNR ${log_snr.toFixed(2)}`;
      return tick;
    }),
  );
}

async function run() {
  if (busy || !session) return;
  busy = true;
  $("draw").disabled = true;
  try {
    const chosen = settings(), plan = model.plans[chosen.sampler][chosen.steps];
    const found = [], start = performance.now();
    say("Drawing ...");
    const { x, nfe } = await draw({
      ...chosen,
      plan,
      count: model.shape.reduce((a, b) => a * b),
      streams: model.streams,
      network: networkOf(chosen.n),
      noLabel: model.no_label,
      keep: (point) => {
        found.push(point);
        say(`Drawing ... ${found.length - 1} of ${chosen.steps}`);
      },
    });
    const seconds = (performance.now() - start) / 1000;
    path = found;
    path[path.length - 1] = { x, x_hat: x, log_snr: Infinity };
    $("step").max = path.length - 1;
    times(path);
    show(path.length - 1);
    const again = command(model.model, chosen);
    $("command").textContent = again;
    $("nfe").textContent = nfe;
    $("seconds").textContent = seconds < 10 ? seconds.toFixed(2) : seconds.toFixed(0);
    $("result").hidden = false;
    say("");
    window.drawn = { x, nfe, settings: chosen, command: again }; // for those who want the numbers, too
  } catch (error) {
    say(error.message, true);
  } finally {
    busy = false;
    $("draw").disabled = false;
  }
}

async function play() {
  for (let step = 0; step < path.length && !busy; step++) {
    show(step);
    await new Promise((done) => setTimeout(done, STILL ? 0 : Math.max(60, 1500 / path.length)));
  }
}

function stepsShown() {
  $("steps-shown").textContent = steps();
}

function options() {
  $("sampler").replaceChildren(...Object.keys(model.plans).map((name) => new Option(name, name)));
  $("sampler").value = model.sampler;
  $("steps").max = stepsOf(model.sampler).length - 1;
  $("steps").value = stepsOf(model.sampler).indexOf(10);
  stepsShown();
  const hasClasses = model.classes.length > 0;
  $("conditional").hidden = !hasClasses;
  if (hasClasses) {
    const chips = [["", "any"], ...model.classes.map((name, i) => [String(i), name])].map(([label, name]) => {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.textContent = name;
      chip.dataset.label = label;
      chip.setAttribute("aria-pressed", label === "");
      chip.onclick = () => {
        $("labels").querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", other === chip));
        run();
      };
      return chip;
    });
    $("labels").replaceChildren(...chips);
  }
}

/** The picture as sample.py writes it, with how it was drawn inside. */
async function save() {
  const canvas = document.createElement("canvas"), { settings, command } = window.drawn;
  paint(canvas, path[shown].x, Math.max(1, Math.floor(64 / Math.max(...model.shape.slice(1)))), 2, "#ffffff");
  const plain = await new Promise((done) => canvas.toBlob(done));
  const about = { command, model: model.model, weights: model.weights, ...settings, seed: String(settings.seed), step: shown };
  const bytes = withText(new Uint8Array(await plain.arrayBuffer()), "diffusion-web", JSON.stringify(about));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  link.download = `${model.data}-${settings.sampler}-seed${settings.seed}${shown < path.length - 1 ? `-step${shown}` : ""}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function copy() {
  await navigator.clipboard.writeText($("command").textContent);
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy"), 1200);
}

async function begin() {
  $("controls").onsubmit = (event) => {
    event.preventDefault();
    run();
  };
  $("steps").oninput = stepsShown;
  for (const id of ["sampler", "steps", "n", "guidance"]) $(id).onchange = run;
  $("guidance").oninput = () => ($("guidance-shown").textContent = Number($("guidance").value).toFixed(1));
  $("dice").onclick = () => {
    $("seed").value = Math.floor(Math.random() * 10000);
    run();
  };
  $("step").oninput = () => show(Number($("step").value));
  $("play").onclick = play;
  $("save").onclick = save;
  $("copy").onclick = copy;
  try {
    say("Loading the model ...");
    model = await (await fetch("model.json")).json();
    document.title = `${model.data}: drawn in the browser`;
    $("name").textContent = model.model;
    options();
    session = await ort.InferenceSession.create("network.onnx", { executionProviders: ["wasm"] });
  } catch (error) {
    say(`The model did not load: ${error.message}`, true);
    return;
  }
  await run();
}

begin();
