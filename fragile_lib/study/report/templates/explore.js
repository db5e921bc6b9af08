// Draws the scatter again for the chosen network, estimator and truth; without it the first one stands as it is.
const sets = JSON.parse(document.getElementById("points").textContent);
const form = document.querySelector(".explore"), plot = document.querySelector(".explore-plot");
const told = document.querySelector(".explore-told"), run = document.querySelector(".explore-run");
const fields = Object.fromEntries(["set", "estimate", "damping", "truth", "spread"].map((name) => [name, form.elements[name]]));
const word = (code) => WORDS[code] ?? code.replaceAll("_", " ");
const number = (x) => (x === null || x === undefined ? "–" : (x > 0 ? "+" : "") + Number(x.toPrecision(2)).toString().replace("-", "−"));
const shape = (name, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const fill = (select, entries, wanted) => {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value, false, value === wanted)));
};
const ranks = (values) => {
  const order = values.map((_, i) => i).sort((a, b) => values[a] - values[b]), found = [];
  for (let i = 0, j; i < order.length; i = j) {
    for (j = i; j < order.length && values[order[j]] === values[order[i]]; j++);
    for (let k = i; k < j; k++) found[order[k]] = (i + j - 1) / 2;
  }
  return found;
};
const correlation = (a, b) => {
  const mean = (v) => v.reduce((s, x) => s + x, 0) / v.length, [x, y] = [a, b].map((v) => v.map((e) => e - mean(v)));
  const dot = (v, w) => v.reduce((s, e, i) => s + e * w[i], 0);
  return dot(x, y) / Math.sqrt(dot(x, x) * dot(y, y));
};

// "exact, damping 0.1" is the estimator "exact" at a damping that is not its network's own.
const AT = /^(.+), damping (\S+)$/, bare = (code) => AT.exec(code)?.[1] ?? code;
const chosen = () => fields.estimate.value + (fields.damping.value && `, damping ${fields.damping.value}`);

// The image at a place of the record's strip, the test image at 0, beside a text.
function tell(set, place, said) {
  const image = document.createElement("span"), text = document.createElement("span");
  if (set.pixels && place >= 0) {
    image.className = "explore-image";
    image.style.backgroundImage = `url(data:image/${set.pixels.startsWith("iVBOR") ? "png" : "jpeg"};base64,${set.pixels})`;
    image.style.backgroundSize = `${100 * set.labels.length}% 100%`;
    image.style.backgroundPosition = `${(100 * place) / (set.labels.length - 1)}% 0`;
  }
  text.textContent = said;
  told.replaceChildren(image, text);
}

function show(set, i, e, t, error) {
  const place = (set.pictured ?? []).indexOf(i) + 1;
  const label = place ? `, label ${set.labels[place]}` : "", spread = error ? ` ± ${number(error).replace("+", "")}` : "";
  tell(set, place || -1, `Training example ${set.ids[i]}${label}: estimated ${number(e)}, true ${number(t)}${spread}.`);
}

function draw() {
  const set = sets[fields.set.value], estimates = set.estimate[chosen()], truths = set.truth[fields.truth.value];
  const errors = set.error?.[fields.truth.value] ?? [], both = [];
  estimates.forEach((e, i) => { if (e !== null && truths[i] !== null) both.push([i, e, truths[i], errors[i] ?? 0]); });
  const sizes = both.flatMap(([, e, t]) => [Math.abs(e), Math.abs(t)]).filter((x) => x > 0).sort((a, b) => a - b);
  const small = sizes[Math.floor(sizes.length / 4)] || 1, bend = (x) => (fields.spread.checked ? Math.asinh(x / small) : x);
  const unbend = (x) => (fields.spread.checked ? small * Math.sinh(x) : x);
  const ends = both.flatMap(([, e, t, s]) => [bend(e), bend(t - s), bend(t + s), 0]);
  const low = Math.min(...ends), high = Math.max(...ends), at = (x) => 5 + (90 * (bend(x) - low)) / (high - low || 1);
  plot.replaceChildren(shape("path", { class: "diagonal", d: "M2 98L98 2" }), shape("path", { class: "zero", d: `M${at(0)} 2V98M2 ${100 - at(0)}H98` }));
  for (const [i, e, t, s] of both) {
    if (s) plot.append(shape("path", { class: "bar", d: `M${at(e)} ${100 - at(t - s)}V${100 - at(t + s)}` }));
    const mark = shape("circle", { cx: at(e), cy: 100 - at(t), r: 1.1, tabindex: 0, role: "img" });
    for (const event of ["mouseenter", "focus"]) mark.addEventListener(event, () => show(set, i, e, t, s));
    mark.setAttribute("aria-label", `Training example ${set.ids[i]}: estimated ${number(e)}, true ${number(t)}`);
    plot.append(mark);
  }
  const [x, y] = [both.map((b) => b[1]), both.map((b) => b[2])];
  document.querySelector(".explore-numbers").textContent =
    `${both.length} removals: Spearman ${correlation(ranks(x), ranks(y)).toFixed(2)}, Pearson ${correlation(x, y).toFixed(2)}. Both axes run from ${number(unbend(low))} to ${number(unbend(high))}.`;
  [run.textContent, run.href] = [set.run, `runs.html#run-${set.run}`];
  const label = set.labels ? `The test example, label ${set.labels[0]}. ` : "";
  tell(set, 0, `${label}Across, estimated: ${word(chosen())}. Upwards, true: ${word(fields.truth.value)}.`);
}

function choose() {
  const set = sets[fields.set.value];
  const codes = { estimate: [...new Set(Object.keys(set.estimate).map(bare))], truth: Object.keys(set.truth) };
  for (const kind of ["estimate", "truth"]) fill(fields[kind], codes[kind].map((code) => [code, word(code)]), fields[kind].value);
  damp();
}

// The dampings at which the record has this estimator.
function damp() {
  const at = Object.keys(sets[fields.set.value].estimate).filter((code) => bare(code) === fields.estimate.value);
  fill(fields.damping, at.map((code) => (AT.test(code) ? [AT.exec(code)[2], AT.exec(code)[2]] : ["", "as in its run"])), fields.damping.value);
  fields.damping.disabled = at.length < 2;
  draw();
}

fill(fields.set, sets.map((set, i) => [String(i), set.name]));
fields.set.addEventListener("change", choose);
fields.estimate.addEventListener("change", damp);
for (const name of ["damping", "truth", "spread"]) fields[name].addEventListener("change", draw);
form.hidden = false;
choose();
