"use strict";
const $ = id => document.getElementById(id);
const WINDOW = 10;  // seconds that the live numbers cover
let info = null, samples = [], busy = false, timer = null;
let picture = null;  // the image file on the pad, until something else is drawn there

const count = n => { for (const [u, f] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) if (n >= f) return (n / f).toPrecision(4) + u; return String(n); };
const time = s => s == null ? "–" : s >= 1 ? s.toFixed(2) + " s" : s >= 1e-3 ? (s * 1e3).toFixed(2) + " ms" : (s * 1e6).toFixed(0) + " µs";
const share = x => (100 * x).toFixed(1) + "%";
const model = () => "v2/models/" + encodeURIComponent($("model").value);
function make(tag, words, parent) { const e = document.createElement(tag); if (words != null) e.textContent = words; if (parent) parent.append(e); return e; }

/* The key of this visit, where the server asks for one. */
let key = sessionStorage.getItem("key");
const withKey = options => key ? {...options, headers: {...options?.headers, "X-API-Key": key}} : options;
function useKey(event) {
  event.preventDefault();
  key = $("key").value.trim();
  sessionStorage.setItem("key", key);
  $("key-form").hidden = true;
  start().catch(failed);
}
/* A link of the browser has no key: fetch what it leads to. */
async function follow(event) {
  if (!key) return;
  event.preventDefault();
  const answer = await fetch(event.target.href, withKey());
  open(URL.createObjectURL(await answer.blob()));
}

async function get(path, options) {
  const answer = await fetch(path, withKey(options));
  const body = await answer.json();
  if (answer.status === 401) $("key-form").hidden = false;
  if (!answer.ok) throw new Error(body.error);
  return body;
}

async function start() {
  const index = await get("v2/repository/index", {method: "POST"});
  const models = [...new Set(index.filter(row => row.state === "READY").map(row => row.name))];
  $("model").replaceChildren(...models.map(name => new Option(name)));
  await chooseModel();
  poll();
}

async function chooseModel() {
  info = await get(model() + "/exits");
  samples = [];
  $("metric").textContent = info.metric === "bpc" ? "bits per character" : info.metric;
  $("confidence").disabled = info.task === "regression";
  $("exits").replaceChildren(...info.exits.map(e => {
    const row = make("tr");
    row.dataset.exit = e.exit;
    make("th", e.exit, row).scope = "row";
    for (const words of [count(e.flops), count(e.params), info.metric === "accuracy" ? share(e.quality) : e.quality.toPrecision(4), time(e.seconds)])
      make("td", words, row);
    const bar = make("div", null, make("td", null, row));
    bar.className = "bar";
    make("i", null, bar);
    make("span", "–", bar);
    return row;
  }));
  const {symbols, tokenizer} = info.preprocessing, kind = tokenizer ? "text" : info.preprocessing.kind;
  for (const each of ["image", "text", "array"]) $(each).hidden = each !== kind;
  $("text").firstElementChild.textContent = tokenizer ? "Text" : "Text to continue";
  $("budget").max = info.exits.length;
  $("budget").value = info.exits.length;
  budget();
  if (kind === "image") clear();
  else if (kind === "array") noise();
  else if (!tokenizer && [...$("words").value].some(each => !symbols.includes(each))) $("words").value = symbols.slice(0, 4);
  $("answer").replaceChildren(make("p", "No answer yet."));
}

/* The budgets to choose from are the costs of the exits, from the cheapest on. */
const costs = () => info.exits.map(e => e.flops).sort((a, b) => a - b);
function budget() {
  $("budget-words").textContent = count(costs()[$("budget").value - 1]) + " multiply-adds";
}

async function poll() {
  try {
    const stats = (await get(model() + "/stats")).model_stats[0];
    if (stats.name === info.model) showStats(stats);
    $("state").textContent = "serving";
    $("state").className = "";
  } catch (error) {
    $("state").textContent = "not answering";
    $("state").className = "error";
  }
  clearTimeout(timer);
  timer = setTimeout(poll, 1000);
}

function showStats(stats) {
  const now = {at: performance.now() / 1000, stats};
  samples = [...samples.filter(each => now.at - each.at <= WINDOW + 1), now];
  const zero = {at: now.at, stats: null}, first = samples[0];
  const recent = samples.length > 1 && stats.execution_count > first.stats.execution_count;
  const from = recent ? first : zero;
  const since = pick => pick(stats) - (from.stats ? pick(from.stats) : 0);
  const kept = since(s => s.anytime.deadlines.kept), missed = since(s => s.anytime.deadlines.missed);
  const done = since(s => s.inference_stats.success.count), spent = since(s => s.inference_stats.success.ns);
  $("on-time").textContent = kept + missed ? share(kept / (kept + missed)) : "–";
  $("rate").textContent = recent ? (done / (now.at - first.at)).toFixed(1) : "0";
  $("mean").textContent = done ? time(spent / done / 1e9) : "–";
  $("queue").textContent = stats.anytime.queue_length;
  const outcomes = Object.entries(stats.anytime.requests), sum = outcomes.reduce((total, [, n]) => total + n, 0);
  for (const [outcome, n] of outcomes) {
    $(outcome).textContent = n;
    $(outcome + "-share").textContent = sum ? share(n / sum) : "–";
  }
  $("all").textContent = sum;
  $("span").textContent = recent ? "answered, last 10 s" : "answered since the start";
  const answered = info.exits.map(e => since(s => s.anytime.exits[e.exit] || 0));
  const all = answered.reduce((a, b) => a + b, 0);
  info.exits.forEach((e, k) => {
    const cell = $("exits").rows[k].lastChild.firstChild;
    cell.firstChild.style.width = all ? 60 * answered[k] / all + "%" : "0";
    cell.lastChild.textContent = all ? share(answered[k] / all) : "–";
  });
}

const pad = $("pad"), pen = pad.getContext("2d", {willReadFrequently: true});
function clear(ground = "#000") {
  picture = null;
  pen.fillStyle = ground;
  pen.fillRect(0, 0, pad.width, pad.height);
}
function random() {
  picture = null;
  const small = sized();
  const noise = small.createImageData(small.canvas.width, small.canvas.height);
  for (let i = 0; i < noise.data.length; i += 4) {
    const grey = 256 * Math.random();
    for (let c = 0; c < 3; c++) noise.data[i + c] = info.preprocessing.channels === 1 ? grey : 256 * Math.random();
    noise.data[i + 3] = 255;
  }
  small.putImageData(noise, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small.canvas, 0, 0, pad.width, pad.height);
  pen.imageSmoothingEnabled = true;
}
/* Numbers of tokens, or numbers around 0, one after another. */
function noise() {
  const {shape, tokens} = info.preprocessing, size = shape.reduce((a, b) => a * b);
  const number = () => tokens ? Math.floor(tokens * Math.random()) : (4 * Math.random() - 2).toFixed(2);
  $("shape").textContent = `${size} ${tokens ? `tokens from 0 to ${tokens - 1}` : "numbers"}, ${shape.join(" x ")}`;
  $("numbers").value = Array.from({length: size}, number).join(" ");
}
function sized() {
  const small = document.createElement("canvas");
  small.width = info.preprocessing.width;
  small.height = info.preprocessing.height;
  return small.getContext("2d", {willReadFrequently: true});
}
function draw(event) {
  if (!event.buttons) return;
  picture = null;
  const box = pad.getBoundingClientRect(), at = e => [(e.clientX - box.left) / box.width * pad.width, (e.clientY - box.top) / box.height * pad.height];
  pen.strokeStyle = "#fff";
  pen.lineWidth = pad.width / 11;
  pen.lineCap = "round";
  pen.beginPath();
  const [x, y] = at(event);
  pen.moveTo(x - (event.type === "pointerdown" ? 0 : event.movementX * pad.width / box.width), y - (event.type === "pointerdown" ? 0 : event.movementY * pad.height / box.height));
  pen.lineTo(x, y);
  pen.stroke();
}
async function openFile() {
  const file = $("file").files[0];
  if (!file) return;
  try {
    const image = await createImageBitmap(file);
    clear("#fff");  // as the server shows what is transparent
    if (["image/jpeg", "image/png"].includes(file.type) && [1, 3].includes(info.preprocessing.channels)) picture = file;
    /* Cropped at the centre where the network was measured on such crops, else stretched. */
    const {resize, width} = info.preprocessing, scale = resize ? pad.width * resize / width / Math.min(image.width, image.height) : 0;
    const wide = scale * image.width || pad.width, tall = scale * image.height || pad.height;
    pen.drawImage(image, (pad.width - wide) / 2, (pad.height - tall) / 2, wide, tall);
    await ask();
  } catch (error) { showError(error); }
}

/* Pixels of the network's size and channels; the server normalises them. */
function pixels() {
  const {width, height, channels} = info.preprocessing, small = sized();
  small.imageSmoothingQuality = "high";
  small.drawImage(pad, 0, 0, width, height);
  const rgba = small.getImageData(0, 0, width, height).data, out = new Uint8Array(width * height * channels);
  for (let p = 0; p < width * height; p++) {
    const [r, g, b] = rgba.subarray(4 * p, 4 * p + 3);
    for (let c = 0; c < channels; c++) out[p * channels + c] = channels === 1 ? .299 * r + .587 * g + .114 * b : [r, g, b][c % 3];
  }
  return out;
}

async function ask() {
  if (busy) return;
  busy = true;
  try {
    const {kind, width, height, channels, shape, tokens, tokenizer} = info.preprocessing, parameters = {max_flops: costs()[$("budget").value - 1]};
    if ($("deadline").value) parameters.timeout = Math.max(1, Math.round(1000 * $("deadline").value));
    if ($("confidence").value && !$("confidence").disabled) parameters.min_confidence = $("confidence").value / 100;
    const input = {name: "input", datatype: "BYTES", shape: [1]};
    const outputs = [info.task === "regression" ? {name: "numbers"} : {name: "probabilities", parameters: {classification: 5}}];
    let parts = [];  // behind the JSON
    if (kind === "text" || tokenizer) input.data = [$("words").value];
    else if (kind === "array") {
      const data = $("numbers").value.split(/[\s,]+/).filter(Boolean).map(Number);
      Object.assign(input, {datatype: tokens ? "INT64" : "FP32", shape: [1, ...shape], data});
    }
    else if (picture) parts = [new Uint32Array([picture.size]), picture];  // every string of BYTES follows its length
    else {
      parts = [pixels()];
      Object.assign(input, {datatype: "UINT8", shape: [1, height, width, channels]});
    }
    const size = new Blob(parts).size;
    if (size) input.parameters = {binary_data_size: size};
    const head = new Blob([JSON.stringify({inputs: [input], outputs, parameters})]);
    const headers = {"Inference-Header-Content-Length": String(head.size), "Content-Type": "application/octet-stream"};
    const body = new Blob([head, ...parts]);
    const sentAt = performance.now();
    const reply = await get(model() + "/infer", {method: "POST", body, headers});
    showAnswer(reply, (performance.now() - sentAt) / 1000);
  } catch (error) { showError(error); } finally { busy = false; }
}

const WHY = {budget: "the budget allows no deeper exit", confident: "it is confident enough", deadline: "the deadline is near",
  load: "other requests wait", last: "no deeper exit is better"};
function showAnswer(reply, seconds) {
  const parameters = reply.parameters;
  const text = info.preprocessing.kind === "text", list = make("ol"), data = reply.outputs[0].data;
  if (info.task === "regression") data.forEach((number, k) => {
    const item = make("li", null, list);
    make("span", info.classes[k], item);
    make("span", number.toPrecision(5), item);
  });
  else for (const each of data) {
    const [p, , label] = /^(.*?):(.*?):(.*)$/s.exec(each).slice(1);  // value:index:label
    const item = make("li", null, list);
    make("i", null, item).style.width = 100 * p + "%";
    make("span", text ? JSON.stringify(label) : label, item);
    make("span", share(p), item);
  }
  const words = make("p");
  make("strong", "exit " + parameters.exit, words).id = "exit";
  words.append(`, because ${WHY[parameters.stopped]}; ${count(parameters.flops)} multiply-adds, `);
  make("span", `${parameters.server_us} µs`, words).id = "server-us";
  words.append(` in the server, ${time(seconds)} from here`);
  if ("on_time" in parameters) words.append(parameters.on_time ? ", on time" : ", late");
  $("answer").replaceChildren(make("p", text ? "What comes next:" : ""), list, words);
  for (const row of $("exits").rows) row.className = row.dataset.exit == parameters.exit ? "chosen" : "";
}
function showError(error) {
  const words = make("p", error.message);
  words.className = "error";
  $("answer").replaceChildren(words);
}
function failed(error) {
  showError(error);
  $("state").textContent = "not answering";
}

pad.addEventListener("pointerdown", draw);
pad.addEventListener("pointermove", draw);
pad.addEventListener("pointerup", ask);
$("clear").addEventListener("click", () => clear());
$("random").addEventListener("click", () => { random(); ask(); });
$("noise").addEventListener("click", () => { noise(); ask(); });
$("file").addEventListener("change", openFile);
$("budget").addEventListener("input", () => { budget(); ask(); });
$("go").addEventListener("click", ask);
$("words").addEventListener("keydown", e => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) ask(); });
$("model").addEventListener("change", () => chooseModel().catch(showError));
$("key-form").addEventListener("submit", useKey);
for (const link of document.querySelectorAll("header a")) link.addEventListener("click", follow);
start().catch(failed);
