// Normal noise as a function of (seed, sample index, step, stream): Philox 4x32 with 10 rounds (Salmon et al. 2011) and
// the Box-Muller transform. The words are those of diffusion/numerics/random.py to the last bit; the normals are rounded
// to float32 from the same float64 formula, whose log, sin and cos may differ in the last bit between libraries.

const M0 = 0xd2511f53, M1 = 0xcd9e8d57, W0 = 0x9e3779b9, W1 = 0xbb67ae85;
const ROUNDS = 10;

/** The upper 32 bits of a product of two 32-bit words. */
function high(a, b) {
  const a0 = a & 0xffff, a1 = a >>> 16, b0 = b & 0xffff, b1 = b >>> 16;
  const first = a1 * b0 + ((a0 * b0) >>> 16);
  const second = a0 * b1 + (first & 0xffff);
  return (a1 * b1 + (first >>> 16) + (second >>> 16)) >>> 0;
}

/** Four random words from four words of a counter and two of a key, all in [0, 2^32). */
export function philox4x32(counter, key) {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < ROUNDS; round++) {
    const upper0 = high(c0, M0), lower0 = Math.imul(c0, M0) >>> 0;
    const upper1 = high(c2, M1), lower1 = Math.imul(c2, M1) >>> 0;
    c0 = (upper1 ^ c1 ^ k0) >>> 0;
    c2 = (upper0 ^ c3 ^ k1) >>> 0;
    c1 = lower1;
    c3 = lower0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** The words of one sample: `count` of them, in fours. `seed` and `index` are numbers or BigInts, 0 or more. */
export function words(seed, index, step, stream, count) {
  const wide = BigInt.asUintN(64, BigInt(seed)), place = BigInt(index);
  const key = [Number(wide & 0xffffffffn), Number(wide >> 32n)];
  const low = Number(place & 0xffffffffn), upper = Number((place >> 32n) & 0xffffn);
  const blocks = Math.ceil(count / 4), out = new Uint32Array(4 * blocks);
  for (let block = 0; block < blocks; block++) {
    out.set(philox4x32([block, low, step >>> 0, (upper | (stream << 16)) >>> 0], key), 4 * block);
  }
  return out.subarray(0, 4 * blocks);
}

/** Standard normals of one sample, Float32Array of `count`. */
export function normal(seed, index, step, stream, count) {
  const bits = words(seed, index, step, stream, count);
  const z = new Float32Array(bits.length), turn = 2 * Math.PI * 2 ** -32;
  for (let i = 0; i < bits.length; i += 2) {
    const radius = Math.sqrt(-2 * Math.log((bits[i] + 0.5) * 2 ** -32)), angle = (bits[i + 1] + 0.5) * turn;
    z[i] = Math.cos(angle) * radius;
    z[i + 1] = Math.sin(angle) * radius;
  }
  return z.subarray(0, count);
}

/** Standard normals of the samples 0 .. n - 1, one after the other. */
export function normals(seed, n, step, stream, count) {
  const z = new Float32Array(n * count);
  for (let index = 0; index < n; index++) z.set(normal(seed, index, step, stream, count), index * count);
  return z;
}
