// The loop of every sampler on the page: its formulas are numbers in the plan (diffusion/commands/export/plans.py).

import { normals } from "./noise.mjs";

/** out += factor x, in float32 as the original. */
function add(out, factor, x) {
  for (let i = 0; i < x.length; i++) out[i] += Math.fround(factor * x[i]);
}

function scaled(factor, x) {
  const out = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) out[i] = factor * x[i];
  return out;
}

/** x_hat = from_x_t x_t + from_output output. */
function denoised(level, x, output) {
  const x_hat = scaled(level.from_x_t, x);
  add(x_hat, level.from_output, output);
  return x_hat;
}

/** towards and away, extrapolated from each other: classifier-free guidance. */
function guided(towards, away, weight) {
  const out = new Float32Array(towards.length);
  for (let i = 0; i < out.length; i++) out[i] = away[i] + weight * (towards[i] - away[i]);
  return out;
}

/**
 * Draw samples.
 *
 * plan: of plans.py. count: numbers in a sample. n: samples. seed: BigInt. streams: {initial, solver}.
 * network: async (x, c_noise, label) => output, Float32Arrays of n * count. label: a class, or null.
 * noLabel: the label that stands for none. guidance: 1 is off. keep: called after each step with {x, x_hat, log_snr}.
 * Resolves to {x, nfe}: samples within [-1, 1], and evaluations of the network per sample.
 */
export async function draw({ plan, count, n, seed, streams, network, label, noLabel, guidance = 1, keep = () => {} }) {
  let nfe = 0;
  const evaluate = async (level, x, which) => {
    nfe++;
    return denoised(level, x, await network(scaled(level.c_in, x), level.c_noise, which));
  };
  const denoise = async (level, x) => {
    const towards = await evaluate(level, x, label ?? noLabel);
    return guidance === 1 ? towards : guided(towards, await evaluate(level, x, noLabel), guidance);
  };
  let x = scaled(plan.std, normals(seed, n, 0, streams.initial, count));
  keep({ x, x_hat: null, log_snr: plan.levels[0].log_snr });
  let base = x, memory = [], step = 0;
  for (const row of plan.rows) {
    const level = plan.levels[row.level], x_hat = await denoise(level, x);
    const [newest, ...others] = row.weights;
    const to = scaled(row.keep, base);
    add(to, newest, x_hat);
    if (row.from_x) add(to, row.from_x, x);
    others.forEach((weight, j) => weight && add(to, weight, memory[j]));
    if (row.fresh) add(to, row.fresh, normals(seed, n, step, streams.solver, count));
    let m = x_hat;
    if (row.made !== null) {
      m = x_hat.slice();
      add(m, -row.made, x);
    }
    memory = [m, ...memory].slice(0, 4);
    x = to;
    if (row.lands) {
      base = x;
      step++;
      const next = plan.levels[row.level + 1];
      keep({ x, x_hat, log_snr: next ? next.log_snr : Infinity });
    }
  }
  return { x: x.map((value) => Math.min(1, Math.max(-1, value))), nfe };
}
