// The command that draws what the page has drawn.

/** A word as a POSIX shell reads it back. */
function quoted(word) {
  const text = String(word);
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
}

/** The command line; a class by `#` and its number, since the name of another may be that number. */
export function command(name, { sampler, steps, n, seed, label, guidance }) {
  const words = ["--run", name, "--sampler", sampler, "--steps", steps, "--seed", seed, "--n", n];
  if (label !== null) words.push("--label", `#${label}`);
  if (guidance !== 1) words.push("--guidance", guidance);
  return ["python -m diffusion sample", ...words.map(quoted)].join(" ");
}
