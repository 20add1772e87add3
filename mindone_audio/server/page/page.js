// The page of a mindone_audio server: records or reads clips, asks the server's API about them, and shows what comes.
//
// The parts, from top to bottom: small helpers, clips, the player, the recorder, the server, the conversation, the
// composer, the talk. Text is only ever set as textContent, so that nothing a model says can become a part of the page.

import { Talk } from "./talk.js";

const RATE = 16000; // Hz, which the models hear
const HEADER = 44; // bytes of a WAV file before its samples
const LONGEST_RECORDING = 600; // seconds, where the server's limits allow more
const LARGEST_FILE = 2 ** 30; // bytes that this page reads: decoding needs several times as many
const FORM_BYTES = 16384; // more than a request has besides its clips and texts
const MOST_TRIES = 5; // of a request to a server that is full
const KEY = "mindone_audio key";

const $ = (id) => document.getElementById(id);

const state = {
  facts: {}, // what the server says of itself: page_files.py
  clip: null, // the clip in the composer
  turns: [], // of the conversation
  running: null, // the AbortController of the answer under way
  recording: null,
  talk: null, // the spoken conversation under way
  refused: null, // the turn that waits for a key
};
state.models = new Promise((resolve) => (state.modelsAreShown = resolve));

// ---------------------------------------------------------------------------------------------------- small helpers

/** What goes wrong, in words for the user. actions: [label, function] pairs, shown as buttons. */
class Problem extends Error {
  constructor(message, details = {}) {
    super(message);
    Object.assign(this, details);
  }
}

const clock = (seconds) => {
  const whole = Math.floor(seconds + 1e-6);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const rest = String(whole % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
};

const inWords = (seconds) => (seconds < 60 ? `${Math.round(seconds * 10) / 10} s` : `${clock(seconds)} min`);

const mebibytes = (bytes) => `${Math.round(bytes / 2 ** 20)} MiB`;

const clone = (id) => $(id).content.firstElementChild.cloneNode(true);

function button(label, action, className = "quiet") {
  const made = document.createElement("button");
  made.type = "button";
  made.className = className;
  made.textContent = label;
  made.addEventListener("click", action);
  return made;
}

function save(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https there is no clipboard object; the old command works there.
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "hidden";
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

/** What a promise brings, or the reason of the signal where that comes first. */
const unless = (signal, promise) =>
  new Promise((resolve, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason));
    promise.then(resolve, reject);
  });

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });

// ------------------------------------------------------------------------------------------------------------ clips

/** A mono clip as WAV with 16-bit samples. */
function wavOf(samples) {
  const data = new Int16Array(samples.length);
  for (let place = 0; place < samples.length; place += 1) {
    data[place] = Math.max(-32768, Math.min(32767, Math.round(samples[place] * 32768)));
  }
  const header = new DataView(new ArrayBuffer(HEADER));
  const word = (place, text) => [...text].forEach((letter, k) => header.setUint8(place + k, letter.charCodeAt(0)));
  word(0, "RIFF");
  header.setUint32(4, HEADER - 8 + data.byteLength, true);
  word(8, "WAVEfmt ");
  header.setUint32(16, 16, true); // bytes of this part
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // channels
  header.setUint32(24, RATE, true);
  header.setUint32(28, RATE * 2, true); // bytes a second
  header.setUint16(32, 2, true); // bytes of a sample
  header.setUint16(34, 16, true); // bits of a sample
  word(36, "data");
  header.setUint32(40, data.byteLength, true);
  return new Blob([header, data], { type: "audio/wav" });
}

/** The loudest sample of each part of a clip, between 0 and 1. */
function peaksOf(samples, count = 400) {
  const step = Math.max(1, samples.length / count);
  const peaks = [];
  for (let start = 0; start < samples.length; start += step) {
    const end = Math.min(samples.length, start + step);
    let peak = 0;
    for (let place = Math.floor(start); place < end; place += 1) peak = Math.max(peak, Math.abs(samples[place]));
    peaks.push(peak);
  }
  const most = Math.max(...peaks, 0.01);
  return peaks.map((peak) => peak / most);
}

function clipOf(samples, name) {
  const blob = wavOf(samples);
  return { name, blob, seconds: samples.length / RATE, peaks: peaksOf(samples), url: URL.createObjectURL(blob) };
}

function monoOf(audio) {
  const mono = new Float32Array(audio.length);
  for (let channel = 0; channel < audio.numberOfChannels; channel += 1) {
    const samples = audio.getChannelData(channel);
    for (let place = 0; place < mono.length; place += 1) mono[place] += samples[place] / audio.numberOfChannels;
  }
  return mono;
}

/**
 * The clip that a file holds. It is decoded here and sent as WAV: so the server needs no ffmpeg for what browsers play
 * (webm, m4a), the upload is small, and its length is known before it. What this browser cannot decode is sent as it
 * is: the server may know it.
 */
async function readClip(file) {
  const name = file.name || "clip";
  if (file.size === 0) throw new Problem(`“${name}” is empty. Choose another file.`);
  if (file.size > LARGEST_FILE) {
    throw new Problem(`“${name}” has ${mebibytes(file.size)}, too many to read here. Cut it, or save it as mp3.`);
  }
  let audio;
  try {
    audio = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
  } catch (error) {
    if (error.name === "NotReadableError" || error.name === "NotFoundError") {
      throw new Problem(`“${name}” cannot be read. Is it still there? Choose it again.`);
    }
    if (/^(text|image|font)\/|^application\/(pdf|json|zip|xml)/.test(file.type)) {
      throw new Problem(`“${name}” is not audio. Choose a recording, such as wav, mp3, m4a, ogg or flac.`);
    }
    return { name, blob: file, seconds: null, peaks: null, url: null };
  }
  if (audio.length === 0) throw new Problem(`“${name}” has no sound in it. Choose another file.`);
  return clipOf(monoOf(audio), name);
}

/** The beginning of a clip. */
async function beginning(clip, seconds) {
  const bytes = await clip.blob.slice(HEADER, HEADER + 2 * Math.floor(seconds * RATE)).arrayBuffer();
  const samples = Float32Array.from(new Int16Array(bytes), (value) => value / 32768);
  return clipOf(samples, `${clip.name}, first ${inWords(seconds)}`);
}

function base64Of(clip) {
  clip.base64 ??= new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Problem(`“${clip.name}” cannot be read. Choose it again.`));
    reader.readAsDataURL(clip.blob);
  });
  return clip.base64;
}

/** Three beeps, for whoever has neither a microphone nor a file at hand. */
function beeps() {
  const samples = new Float32Array(1.6 * RATE);
  for (const start of [0.2, 0.7, 1.2]) {
    for (let place = 0; place < 0.2 * RATE; place += 1) {
      const fade = Math.min(1, place / 160, (0.2 * RATE - place) / 160); // without one, the ends click
      samples[start * RATE + place] = 0.5 * fade * Math.sin((2 * Math.PI * 1000 * place) / RATE);
    }
  }
  return clipOf(samples, "three beeps");
}

// ------------------------------------------------------------------------------------------------------- the player

const darkness = matchMedia("(prefers-color-scheme: dark)");

/** A clip to see and to hear. One plays at a time. */
class Player {
  static playing = null;

  constructor(clip) {
    this.clip = clip;
    this.element = clone("player");
    this.element.querySelector(".name").textContent = clip.name;
    this.time = this.element.querySelector(".time");
    this.toggle = this.element.querySelector(".play");
    this.wave = this.element.querySelector(".wave");
    this.followers = [];
    this.leaving = new AbortController();
    if (clip.url === null) {
      this.element.classList.add("bare");
      this.toggle.remove();
      this.wave.remove();
      this.time.textContent = "no preview in this browser";
      return;
    }
    this.audio = new Audio(clip.url);
    this.wave.setAttribute("aria-valuemax", clip.seconds.toFixed(2));
    this.listen();
    this.moved();
  }

  listen() {
    const until = { signal: this.leaving.signal };
    this.toggle.addEventListener("click", () => this.switch());
    for (const event of ["play", "pause", "ended", "seeked", "timeupdate"]) {
      this.audio.addEventListener(event, () => this.moved(), until);
    }
    this.audio.addEventListener("play", () => this.follow(), until);
    this.wave.addEventListener("click", (event) => {
      this.seek((event.offsetX / this.wave.clientWidth) * this.clip.seconds);
    });
    this.wave.addEventListener("keydown", (event) => this.key(event));
    darkness.addEventListener("change", () => this.draw(), until);
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(this.wave);
  }

  key(event) {
    const [place, step] = [this.audio.currentTime, Math.max(0.1, this.clip.seconds / 20)];
    const target = {
      ArrowLeft: place - step,
      ArrowDown: place - step,
      ArrowRight: place + step,
      ArrowUp: place + step,
      Home: 0,
      End: this.clip.seconds,
    }[event.key];
    if (target !== undefined) this.seek(target);
    else if (event.key === " " || event.key === "Enter") this.switch();
    else return;
    event.preventDefault();
  }

  switch() {
    if (this.audio.paused) this.play();
    else this.audio.pause();
  }

  play(from) {
    if (!this.audio) return;
    if (Player.playing !== this) Player.playing?.audio.pause();
    Player.playing = this;
    if (from !== undefined) this.seek(from);
    this.audio.play().catch(() => {}); // the browser allows no sound: the button stays as it is
  }

  seek(seconds) {
    this.audio.currentTime = Math.max(0, Math.min(this.clip.seconds, seconds));
    this.moved();
  }

  follow() {
    this.moved();
    if (!this.audio.paused && !this.leaving.signal.aborted) requestAnimationFrame(() => this.follow());
  }

  moved() {
    const seconds = this.audio.currentTime;
    this.toggle.classList.toggle("playing", !this.audio.paused);
    this.toggle.setAttribute("aria-label", this.audio.paused ? "Play" : "Pause");
    this.wave.setAttribute("aria-valuenow", seconds.toFixed(2));
    this.wave.setAttribute("aria-valuetext", `${clock(seconds)} of ${clock(this.clip.seconds)}`);
    const isShort = this.clip.seconds < 10;
    const length = isShort ? `${this.clip.seconds.toFixed(1)} s` : clock(this.clip.seconds);
    this.time.textContent = seconds > 0 ? `${isShort ? seconds.toFixed(1) : clock(seconds)} / ${length}` : length;
    for (const follower of this.followers) follower(seconds, !this.audio.paused);
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.wave;
    if (!width || !height) return;
    const scale = devicePixelRatio || 1;
    [this.wave.width, this.wave.height] = [Math.round(width * scale), Math.round(height * scale)];
    const context = this.wave.getContext("2d");
    const style = getComputedStyle(this.wave);
    const [bar, step] = [2, 4];
    const count = Math.floor(width / step);
    const heard = (this.audio.currentTime / this.clip.seconds) * width;
    context.scale(scale, scale);
    for (let number = 0; number < count; number += 1) {
      const part = (place) => Math.floor((place * this.clip.peaks.length) / count);
      const within = this.clip.peaks.slice(part(number), Math.max(part(number + 1), part(number) + 1));
      const size = Math.max(2, Math.max(...within) * (height - 4));
      context.fillStyle = style.getPropertyValue(number * step < heard ? "--accent" : "--wave");
      context.beginPath();
      context.roundRect(number * step, (height - size) / 2, bar, size, bar / 2);
      context.fill();
    }
  }

  remove() {
    this.leaving.abort();
    this.watcher?.disconnect();
    this.audio?.pause();
    this.element.remove();
  }
}

// ----------------------------------------------------------------------------------------------------- the recorder

const NO_MICROPHONE = {
  NotAllowedError:
    "The microphone was not allowed. Allow it for this page (beside the address, or in the browser’s settings) and " +
    "press Record again. A file works without it.",
  NotFoundError: "No microphone was found. Connect one and press Record again, or choose a file.",
  NotReadableError: "The microphone cannot be used: another program may have it. Close that one, or choose a file.",
};

// As it sounds: what calls take away as noise and echo is what one may want to ask about.
const AS_IT_SOUNDS = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };

async function microphone(audio = AS_IT_SOUNDS) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Problem(
      "Browsers give a page the microphone only over https or at localhost. Open the page at " +
        `localhost:${location.port || 80} on the server’s machine, or start the server with --ssl-certfile and ` +
        "--ssl-keyfile. A file works without it.",
    );
  }
  try {
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    const known = NO_MICROPHONE[error.name] ?? (error.name === "SecurityError" && NO_MICROPHONE.NotAllowedError);
    throw new Problem(known || `The microphone cannot be used (${error.message || error.name}). Choose a file.`);
  }
}

class Recording {
  /** limit: seconds. heard: called with the level, 0 to 1, and the seconds so far. full: called at the limit. */
  static async start(limit, heard, full) {
    const made = new Recording();
    Object.assign(made, { limit, heard, full, pieces: [], size: 0 });
    made.stream = await microphone();
    try {
      await made.connect();
    } catch (error) {
      made.release();
      throw new Problem(`This browser cannot record here (${error.message || error.name}). Choose a file.`);
    }
    return made;
  }

  async connect() {
    this.context = new AudioContext({ sampleRate: RATE });
    let source;
    try {
      source = this.context.createMediaStreamSource(this.stream);
    } catch {
      // Some browsers connect a microphone only at its own rate; `end` changes it.
      this.context.close();
      this.context = new AudioContext();
      source = this.context.createMediaStreamSource(this.stream);
    }
    await this.context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
    await this.context.resume();
    this.node = new AudioWorkletNode(this.context, "recorder", { numberOfOutputs: 0 });
    this.node.port.onmessage = ({ data }) => this.hear(data);
    source.connect(this.node);
    this.stream.getAudioTracks()[0].addEventListener("ended", () => this.full("The microphone was taken away."));
  }

  get seconds() {
    return this.size / this.context.sampleRate;
  }

  hear(piece) {
    if (piece === null) {
      this.over?.();
      return;
    }
    this.pieces.push(piece);
    this.size += piece.length;
    const peak = piece.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-4);
    this.heard(Math.max(0, 1 + Math.log10(peak) / 2.5), this.seconds); // 50 dB from end to end
    if (this.seconds >= this.limit) this.full(`The recording has ${inWords(this.limit)}, the most for this.`);
  }

  /** The samples, when the last ones have come. */
  async end() {
    const last = new Promise((resolve) => (this.over = resolve));
    this.node.port.postMessage("end");
    await Promise.race([last, pause(1)]);
    const rate = this.context.sampleRate;
    this.release();
    const samples = new Float32Array(this.size);
    let place = 0;
    for (const piece of this.pieces) {
      samples.set(piece, place);
      place += piece.length;
    }
    return rate === RATE ? samples : resampled(samples, rate);
  }

  release() {
    for (const track of this.stream.getTracks()) track.stop();
    this.context?.close();
  }
}

async function resampled(samples, rate) {
  if (samples.length === 0) return samples;
  const offline = new OfflineAudioContext(1, Math.max(1, Math.round((samples.length * RATE) / rate)), RATE);
  const source = offline.createBufferSource();
  source.buffer = offline.createBuffer(1, samples.length, rate);
  source.buffer.copyToChannel(samples, 0);
  source.connect(offline.destination);
  source.start();
  return (await offline.startRendering()).getChannelData(0);
}

// ------------------------------------------------------------------------------------------------------- the server

let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Storage is switched off: the key is kept until the page is left.
}

/** An error of the server in words, with what a caller decides by. */
function refusal(error, status, retryAfter) {
  if (!error?.message) return new Problem(`The server answered with status ${status}. Try again.`, { status });
  const isClip = /input_audio|^file$/.test(error.param ?? ""); // the name of a field tells a user nothing
  const message = isClip ? error.message.replace(error.param, "the clip") : error.message;
  return new Problem(`The server says: ${message}`, { status, code: error?.code, retryAfter });
}

/** The response of the server; `Problem` for anything but success. */
async function call(path, options = {}) {
  const packed = String.fromCharCode(...new TextEncoder().encode(key)); // a header takes bytes: those of UTF-8
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${packed}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem("The server cannot be reached. Is it running? Check the connection and try again.");
  }
  if (response.ok) return response;
  const content = await response.json().catch(() => null);
  if (response.status === 401) {
    askForKey();
    throw new Problem("The server needs a key: give it above, and this is asked again.", { status: 401 });
  }
  throw refusal(content?.error, response.status, Number(response.headers.get("Retry-After")) || null);
}

/** `call`, again and again while the server loads its model, and some times while it is full. say: tells of waiting. */
async function patientCall(path, options, say) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await call(path, options);
    } catch (error) {
      const loads = error.code === "loading";
      const isBusy = [429, 503].includes(error.status) && error.retryAfter && error.code !== "draining";
      if (!loads && !(isBusy && tries < MOST_TRIES)) throw error;
      for (let left = Math.ceil(error.retryAfter ?? 5); left > 0; left -= 1) {
        const why = loads ? "The model is still loading" : error.message.replace(/[.:] ask again.*/, "");
        say(`${why}. Asking again in ${left} s`);
        await pause(1, options.signal);
      }
      say("Asking again …");
    }
  }
}

/** The JSON of server-sent events, to [DONE]; `Problem` where they end before that. */
async function* eventsOf(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.filter((each) => each.startsWith("data:"))) {
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw refusal(event.error);
        yield event;
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof Problem) throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new Problem("The connection to the server ended before the answer did. What came is kept. Try again.");
}

/** What the server says to a question, in pieces {text}, {note}. */
async function* chatPieces(turn, signal, say) {
  await unless(signal, state.models);
  const asked = { model: $("model").value, messages: await messagesFor(turn), stream: true };
  const body = JSON.stringify({ ...asked, ...settingsOf(CHAT_SETTINGS) });
  const headers = { "Content-Type": "application/json" };
  const response = await patientCall("v1/chat/completions", { method: "POST", body, headers, signal }, say);
  for await (const event of eventsOf(response, signal)) {
    const choice = event.choices?.[0];
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason === "length") yield { note: "Cut at the longest answer: see Settings." };
  }
}

/** What the server writes down of a clip, in pieces {text}, {segment}. */
async function* spokenPieces(turn, signal, say) {
  await unless(signal, state.models);
  const body = new FormData();
  body.append("file", turn.clip.blob, turn.clip.peaks ? "clip.wav" : turn.clip.name);
  const fields = { model: $("model").value, response_format: "verbose_json", stream: "true" };
  for (const [name, value] of Object.entries({ ...fields, ...settingsOf(FORM_SETTINGS) })) body.append(name, value);
  const response = await patientCall("v1/audio/transcriptions", { method: "POST", body, signal }, say);
  for await (const event of eventsOf(response, signal)) {
    if (event.type === "transcript.text.delta") yield { text: event.delta };
    if (event.type === "transcript.text.segment") yield { segment: event };
  }
}

const CHAT_SETTINGS = { "max-tokens": "max_tokens", temperature: "temperature", seed: "seed" };
const FORM_SETTINGS = { temperature: "temperature", language: "language", words: "prompt" };

/** The settings that the user has given, by the API's names. */
function settingsOf(names) {
  const given = Object.entries(names).map(([id, name]) => [name, $(id).value.trim(), $(id).type === "number"]);
  const told = given.filter(([, value]) => value !== "");
  return Object.fromEntries(told.map(([name, value, isNumber]) => [name, isNumber ? Number(value) : value]));
}

// ------------------------------------------------------------------------------------------------- the conversation

const TASKS = {
  ask: { label: "Ask", pieces: chatPieces },
  caption: {
    label: "Caption",
    pieces: chatPieces,
    purpose: "Says in a sentence what is to be heard.",
    words: "Describe the audio.",
  },
  transcribe: {
    label: "Transcribe",
    pieces: spokenPieces,
    purpose: "Writes down what is said, with times.",
    words: "Transcribe the speech.",
  },
};

/** What the model is asked: by the words of its family, where the user gives none. */
const wordsOf = (turn) => turn.question || state.facts.questions?.[turn.task] || TASKS[turn.task].words;

/** Whether a model can hear this clip in a conversation: each family has a longest clip. */
const isHeardWhole = ({ seconds }) => seconds === null || seconds <= (state.facts.longest_clip || Infinity);

/**
 * The turns that the server must be told before this one, as it remembers nothing. A caption needs none; turns without
 * an answer, and about clips that are too long for a conversation, are left out; those about other clips too, where the
 * model was taught one clip alone.
 */
function earlierTurns(turn) {
  if (turn.task !== "ask" || turn.isAlone || !$("earlier").checked) return [];
  const end = state.turns.includes(turn) ? state.turns.indexOf(turn) : state.turns.length;
  const isHeard = (clip) => isHeardWhole(clip) && (clip === turn.clip || !state.facts.one_clip);
  return state.turns.slice(0, end).filter((past) => past.text && isHeard(past.clip));
}

/** The clips that a request has, each once. */
const clipsFor = (turn) => [...new Set([...earlierTurns(turn), turn].map((each) => each.clip))];

async function messagesFor(turn) {
  const [messages, sent] = [[], new Set()];
  for (const each of [...earlierTurns(turn), turn]) {
    const parts = [{ type: "text", text: wordsOf(each) }];
    if (!sent.has(each.clip)) {
      const clip = { type: "input_audio", input_audio: { data: await base64Of(each.clip), format: "wav" } };
      parts.splice(state.facts.audio_first === false ? 1 : 0, 0, clip);
      sent.add(each.clip);
    }
    messages.push({ role: "user", content: parts });
    if (each !== turn) messages.push({ role: "assistant", content: each.text });
  }
  return messages;
}

/** `Problem` for a request that the server would refuse after the upload. */
function check(turn) {
  const { facts } = state;
  const clips = turn.task === "transcribe" ? [turn.clip] : clipsFor(turn);
  const seconds = clips.reduce((sum, clip) => sum + (clip.seconds ?? 0), 0);
  const bytes = clips.reduce((sum, clip) => sum + clip.blob.size, 0) * (turn.task === "transcribe" ? 1 : 4 / 3);
  if (turn.task !== "transcribe" && !isHeardWhole(turn.clip)) {
    const limit = inWords(facts.longest_clip);
    throw new Problem(`This clip has ${inWords(turn.clip.seconds)}, and the model hears at most ${limit} at a time.`, {
      actions: [
        [`Take the first ${limit}`, () => takeBeginning(turn)],
        ["Transcribe all of it", () => send("transcribe", "", turn.clip)],
      ],
    });
  }
  if (seconds > facts.max_audio_seconds || bytes + FORM_BYTES > facts.max_body_bytes) {
    const size = clips.some((clip) => clip.seconds === null) ? mebibytes(bytes) : inWords(seconds);
    const limit = `at most ${inWords(facts.max_audio_seconds)} and ${mebibytes(facts.max_body_bytes)} a request`;
    const one = `This clip is too long: it has ${size}, and this server takes ${limit}. Cut it into shorter ones.`;
    const several =
      `The clips of this conversation have ${size} together: this server takes ${limit}. Press Clear to begin anew, ` +
      "or switch off “Send the earlier turns” in the settings.";
    throw new Problem(clips.length > 1 ? several : one);
  }
}

async function takeBeginning(turn) {
  const clip = await beginning(turn.clip, state.facts.longest_clip);
  attach(clip);
  send(turn.task, turn.question, clip);
}

/** Begin a turn with the clip of the composer, or the last one of the conversation. */
function send(task, question, clip = state.clip ?? state.turns.at(-1)?.clip) {
  notify();
  try {
    checkComposer(task, question, clip);
    const turn = { task, question, clip, text: "", segments: [] };
    check(turn);
    turn.isNew = !state.turns.some((past) => past.clip === clip);
    state.turns.push(turn);
    show(turn);
    if (clip === state.clip) detach();
    if (task === "ask") $("question").value = "";
    sized();
    run(turn);
  } catch (error) {
    notify(error);
  }
}

/** Put a turn on the page. */
function show(turn) {
  $("welcome").hidden = true;
  $("clear").disabled = false;
  turn.view = clone("turn");
  turn.part = (name) => turn.view.querySelector(name);
  turn.part(".question").textContent = turn.question || TASKS[turn.task].label;
  turn.part(".question").classList.toggle("named", !turn.question);
  if (turn.isNew) {
    turn.clip.player = new Player(turn.clip);
    turn.part(".asked").prepend(turn.clip.player.element);
  }
  turn.clip.player.followers.push((seconds, plays) => mark(turn, plays ? seconds : -1));
  $("turns").append(turn.view);
  scrollTo(0, document.documentElement.scrollHeight);
}

/** Ask the server, and show what it says as it comes. */
async function run(turn) {
  const controller = new AbortController();
  const { signal } = controller;
  begin(turn, controller);
  let [outcome, note] = ["", ""];
  try {
    for await (const piece of TASKS[turn.task].pieces(turn, signal, (text) => say(turn, text))) {
      say(turn, "");
      if (piece.text) addText(turn, piece.text);
      if (piece.segment) addSegment(turn, piece.segment);
      note = piece.note ?? note;
    }
    outcome = "done";
    const nothing = turn.task === "transcribe" ? "No speech was found in this clip." : "The answer is empty.";
    if (!turn.text.trim()) note = nothing;
  } catch (error) {
    outcome = signal.aborted ? "stopped" : "failed";
    if (outcome === "failed") fail(turn, error);
    else note = "Stopped.";
  }
  if (state.running === controller) setRunning(null);
  turn.view.removeAttribute("aria-busy");
  say(turn, note);
  offer(turn, outcome);
  keepEnd();
}

function begin(turn, controller) {
  setRunning(controller);
  Object.assign(turn, { text: "", segments: [], live: document.createTextNode("") });
  turn.view.setAttribute("aria-busy", "true"); // it is read aloud when it is complete
  turn.part(".text").replaceChildren(turn.live);
  turn.part(".segments").replaceChildren();
  turn.part(".segments").hidden = true;
  turn.part(".notice").hidden = true;
  turn.part(".actions").replaceChildren();
  say(turn, turn.task === "transcribe" ? "Listening …" : "Thinking …");
}

function say(turn, text) {
  turn.part(".state").textContent = text;
}

function addText(turn, text) {
  turn.text += text;
  turn.live.appendData(turn.live.length ? text : text.trimStart());
  keepEnd();
}

/** A part of a transcription that is complete: the text that was shown as it came moves beside its time. */
function addSegment(turn, { start, end, text }) {
  turn.segments.push({ start, end, text });
  turn.live.data = "";
  const line = document.createElement("li");
  const at = button(clock(start), () => turn.clip.player.play(start), "at");
  at.setAttribute("aria-label", `Play from ${clock(start)}`);
  const words = document.createElement("span");
  words.textContent = text;
  line.append(at, words);
  turn.part(".segments").append(line);
  turn.part(".segments").hidden = false;
}

/** Show which segment is played. */
function mark(turn, seconds) {
  turn.segments.forEach(({ start, end }, number) => {
    const line = turn.part(".segments").children[number];
    line.classList.toggle("heard", start <= seconds && seconds < end);
  });
}

function fail(turn, error) {
  if (!(error instanceof Problem)) console.warn(error);
  if (error.status === 401) state.refused = turn;
  const message = error instanceof Problem ? error.message : `This page has failed: ${error.message}. Load it again.`;
  turn.part(".notice").textContent = message;
  turn.part(".notice").hidden = false;
  turn.canBeAlone = error.status === 400 && earlierTurns(turn).length > 0;
}

/** The buttons below an answer. */
function offer(turn, outcome) {
  const buttons = [];
  if (turn.text.trim()) {
    const copying = button("Copy", async () => {
      await copy(turn.text.trim());
      copying.textContent = "Copied";
      setTimeout(() => (copying.textContent = "Copy"), 1500);
    });
    buttons.push(copying);
  }
  if (turn.task === "transcribe" && turn.text.trim()) {
    const title = document.createElement("span");
    title.className = "soft";
    title.textContent = "Save as";
    buttons.push(title);
    for (const form of ["txt", "srt", "vtt"]) {
      const saving = button(form, () => download(turn, form));
      saving.setAttribute("aria-label", `Download as ${form}`);
      buttons.push(saving);
    }
  }
  buttons.push(button("Try again", () => again(turn), outcome === "done" ? "quiet" : "quiet strong"));
  if (turn.canBeAlone) {
    const alone = () => again(Object.assign(turn, { isAlone: true }));
    buttons.push(button("Ask without the earlier turns", alone));
  }
  turn.part(".actions").replaceChildren(...buttons);
}

function again(turn) {
  if (state.running) notify(new Problem(BUSY));
  else run(turn);
}

function download(turn, form) {
  const name = `${turn.clip.name.replace(/\.[^.]+$/, "").replace(/[^\p{L}\p{N} ._-]/gu, "_")}.${form}`;
  if (form === "txt") return save(name, `${turn.text.trim()}\n`, "text/plain");
  return save(name, subtitles(turn.segments, form), form === "vtt" ? "text/vtt" : "application/x-subrip");
}

/** The cues of segments, as the server's response_format srt and vtt have them. */
function subtitles(segments, form) {
  const point = form === "srt" ? "," : ".";
  const time = (seconds) => {
    const iso = new Date(Math.round(seconds * 1000)).toISOString().slice(14, 23); // minutes, seconds, milliseconds
    return `${String(Math.floor(seconds / 3600)).padStart(2, "0")}:${iso.replace(".", point)}`;
  };
  const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
  const plain = (text) => text.split(/\s*\n\s*/).filter(Boolean).join("\n");
  const cue = (text) =>
    form === "srt" ? text.replace(/-{2,}>/g, "->") : text.replace(/[&<>]/g, (letter) => escapes[letter]);
  const blocks = segments.map(({ start, end, text }, number) => {
    const title = form === "srt" ? `${number + 1}\n` : "";
    return `${title}${time(start)} --> ${time(end)}\n${cue(plain(text))}\n`;
  });
  return (form === "vtt" ? ["WEBVTT\n", ...blocks] : blocks).join("\n");
}

function setRunning(controller) {
  state.running = controller;
  const hadFocus = [$("go"), $("stop")].includes(document.activeElement);
  $("go").hidden = controller !== null;
  $("stop").hidden = controller === null;
  if (hadFocus) (controller ? $("stop") : $("go")).focus(); // a hidden button would lose it
}

/** Keep the end of the page in sight, unless the user has scrolled away from it. */
function keepEnd() {
  const page = document.documentElement;
  if (page.scrollHeight - innerHeight - scrollY < 200) scrollTo(0, page.scrollHeight);
}

function clear() {
  state.running?.abort();
  state.talk?.end();
  for (const { clip } of state.turns) {
    clip.player.remove();
    if (clip.url) URL.revokeObjectURL(clip.url);
  }
  state.turns = [];
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  $("clear").disabled = true;
  notify();
  $("record").focus();
}

// ----------------------------------------------------------------------------------------------------- the composer

const task = () => document.querySelector("input[name=task]:checked").value;

function setTask(name) {
  document.querySelector(`input[name=task][value=${name}]`).checked = true;
  showTask();
}

function showTask() {
  const { label, purpose } = TASKS[task()];
  $("go").textContent = label;
  $("question").hidden = purpose !== undefined;
  $("purpose").hidden = purpose === undefined;
  $("purpose").textContent = purpose ?? "";
}

/** Offer what the model does: one that writes down speech answers no questions. */
function offerTasks(offered) {
  for (const radio of document.querySelectorAll("input[name=task]")) {
    radio.disabled = !offered.includes(radio.value);
    radio.labels[0].hidden = radio.disabled;
  }
  const answers = offered.includes("ask");
  for (const part of document.querySelectorAll(".asking")) part.hidden = !answers;
  if (answers) return;
  if (!offered.length) {
    document.title = $("title").textContent = "Speech from text";
    $("lead").textContent = "This model speaks. Programs send it texts, to /v1/audio/speech.";
    $("composer").hidden = true;
    return;
  }
  document.title = $("title").textContent = "Write down speech";
  $("lead").textContent = "Record something or choose a file. Then have the speech written down, with times.";
  setTask(offered[0]);
}

/** Show a problem above the composer, or none. */
function notify(problem) {
  const text = problem instanceof Error ? problem.message : (problem ?? "");
  $("notice").replaceChildren(text);
  $("notice").hidden = text === "";
  $("notice").classList.toggle("bad", problem instanceof Error);
  if (problem?.actions) {
    const row = document.createElement("div");
    row.className = "row";
    row.append(...problem.actions.map(([label, action]) => button(label, action)));
    $("notice").append(row);
  }
}

const BUSY = "An answer is under way. Wait for its end, or press Stop.";

function checkComposer(name, question, clip) {
  if (state.running) throw new Problem(BUSY);
  if (state.talk) throw new Problem("You are talking with the model. End the talk first.");
  if (!clip) throw new Problem("There is no clip yet. Record one, choose a file, or drop one here.");
  if (name === "ask" && !question) {
    $("question").focus();
    throw new Problem("Write a question, such as “What’s that sound?”");
  }
  const wrong = [...document.querySelectorAll(".settings input")].find((input) => !input.checkValidity());
  if (wrong) {
    document.querySelector("details").open = true;
    wrong.focus();
    throw new Problem(`${wrong.labels[0].textContent.trim()}: ${wrong.validationMessage}`);
  }
}

function attach(clip) {
  detach();
  notify();
  state.clip = clip;
  state.preview = new Player(clip);
  const removing = button("Remove", () => {
    URL.revokeObjectURL(clip.url);
    detach();
    $("record").focus();
  });
  $("attached").replaceChildren(state.preview.element, removing);
  showRow("attached");
}

function detach() {
  state.preview?.remove();
  [state.preview, state.clip] = [null, null];
  showRow("source");
}

/** Of the three rows for a clip, the one to show. */
function showRow(name) {
  for (const row of ["source", "recording", "talking", "attached"]) $(row).hidden = row !== name;
  $("source-text").textContent = state.turns.length ? "or go on with the last clip" : "or drop or paste one";
}

async function takeFile(file) {
  if (!file) return;
  if (state.recording || state.talk) {
    const first = state.talk ? "End the talk" : "Finish or discard the recording";
    notify(`${first} first, then choose the file again.`);
    return;
  }
  notify(file.size > 5e6 ? `Reading “${file.name}” …` : undefined);
  try {
    attach(await readClip(file));
    $(task() === "ask" ? "question" : "go").focus();
  } catch (error) {
    notify(error instanceof Problem ? error : new Problem(`This file cannot be read: ${error.message}`));
  }
}

/** The most seconds that a recording for the chosen task may have. */
function recordingLimit() {
  const { longest_clip: longest, max_audio_seconds: most } = state.facts;
  return Math.min(LONGEST_RECORDING, most || Infinity, (task() !== "transcribe" && longest) || Infinity);
}

async function record() {
  notify();
  $("record").disabled = true;
  try {
    const limit = recordingLimit();
    $("level").value = 0;
    $("elapsed").textContent = "0:00";
    $("longest").textContent = clock(limit);
    state.recording = await Recording.start(limit, showLevel, (why) => finish(why));
    showRow("recording");
    $("finish").focus();
  } catch (error) {
    notify(error);
  }
  $("record").disabled = false;
}

function showLevel(level, seconds) {
  $("level").value = level;
  $("elapsed").textContent = clock(seconds);
}

/** End the recording and keep it. why: it ended by itself. */
async function finish(why) {
  const { recording } = state;
  state.recording = null;
  if (!recording) return;
  try {
    const samples = (await recording.end()).slice(0, recording.limit * RATE);
    showRow("source");
    if (samples.length < RATE / 10) {
      throw new Problem("The recording is empty. Press Record, say something, then press Finish.");
    }
    if (samples.every((value) => value === 0)) {
      throw new Problem("The recording is silent. Is the microphone muted? Try again, or choose a file.");
    }
    const time = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    attach(clipOf(samples, `recording ${time}`));
    if (why) notify(why);
    $(task() === "ask" ? "question" : "go").focus();
  } catch (error) {
    notify(error);
    $("record").focus();
  }
}

function discard() {
  state.recording?.release();
  state.recording = null;
  showRow("source");
  $("record").focus();
}

/** The question's field is as high as its text. */
function sized() {
  $("question").style.height = "auto";
  $("question").style.height = `${Math.min(160, $("question").scrollHeight + 2)}px`;
}

function listenToComposer() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!state.recording) send(task(), task() === "ask" ? $("question").value.trim() : "");
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("composer").requestSubmit();
    }
  });
  $("question").addEventListener("input", sized);
  for (const radio of document.querySelectorAll("input[name=task]")) radio.addEventListener("change", showTask);
  $("record").addEventListener("click", record);
  $("finish").addEventListener("click", () => finish());
  $("discard").addEventListener("click", discard);
  $("stop").addEventListener("click", () => state.running?.abort());
  $("clear").addEventListener("click", clear);
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    takeFile($("file").files[0]);
    $("file").value = ""; // so that the same file can be chosen again
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (state.recording) discard();
    else state.running?.abort();
  });
}

function listenToDrops() {
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").hidden = !hasFiles(event);
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("drop").hidden = true;
  });
  addEventListener("drop", (event) => {
    event.preventDefault(); // else the browser leaves the page for the file
    $("drop").hidden = true;
    if (hasFiles(event)) takeFile(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (!file) return;
    event.preventDefault();
    takeFile(file);
  });
}

// -------------------------------------------------------------------------------------------------------- the start

const EXAMPLES = [
  "What’s that sound?",
  "What does the person say?",
  "Is anybody speaking?",
  "How many beeps do you hear?",
  "Is the speaker male or female?",
];

function showExamples() {
  for (const text of EXAMPLES) {
    const line = document.createElement("li");
    line.append(button(text, () => useExample(text), "example"));
    $("examples").append(line);
  }
  $("beeps").addEventListener("click", () => {
    attach(beeps());
    useExample("How many beeps do you hear?");
  });
}

/** Ask an example at once where there is a clip; else it waits in the field for one. */
function useExample(text) {
  setTask("ask");
  $("question").value = text.replace("’", "'"); // as models were taught it
  sized();
  if (state.clip) $("composer").requestSubmit();
  else $("record").focus();
}

function askForKey() {
  const unknown = "The server does not know this key. Give another one.";
  $("key-text").textContent = key ? unknown : "This server needs a key.";
  $("keys").hidden = false;
  $("key").value = "";
  $("key").focus();
}

async function useKey(event) {
  event.preventDefault();
  key = $("key").value.trim();
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // as above: the variable has it
  }
  $("keys").hidden = true;
  await showModels();
  const turn = state.refused;
  state.refused = null;
  if (turn && $("keys").hidden) again(turn);
}

/** What `ask` brings, asked again and again while it fails; null where the server wants a key first. */
async function insisting(ask) {
  for (let problem = null; ; ) {
    try {
      const found = await ask();
      if (problem && $("notice").textContent === problem.message) notify();
      return found;
    } catch (error) {
      if (error.status === 401) return null;
      const message = `${error.message} This page tries again by itself.`;
      if (problem?.message !== message) notify((problem = new Problem(message)));
      await pause(3);
    }
  }
}

async function showModels() {
  const listed = await insisting(async () => (await call("v1/models")).json());
  if (listed === null) return;
  const models = listed.data;
  const options = models.map(({ id }) => new Option(id, id));
  $("model").replaceChildren(...options);
  $("model").disabled = models.length < 2;
  state.modelsAreShown();
}

const LOADING = "The model is still loading. You can record or choose a clip meanwhile.";

/** What the server says of itself; while it loads its model, this is asked again. */
async function showFacts() {
  for (let tries = 0; ; tries += 1) {
    state.facts = await insisting(async () => (await call("page/facts.json")).json());
    $("small").hidden = !state.facts.one_clip;
    if (state.facts.loaded !== false) break;
    if (tries === 0) notify(LOADING);
    await pause(2);
  }
  offerTasks(state.facts.tasks);
  if ($("notice").textContent === LOADING) notify();
}

async function start() {
  await showModels();
  await showFacts();
}

// --------------------------------------------------------------------------------------------------------- the talk

const LISTENING = "Speak: it listens.";

/** What the session is set to: a model that answers no questions writes down what is said. */
function sessionOf(facts) {
  const form = { type: "audio/pcm", rate: RATE };
  const language = $("language").value.trim();
  const input = { format: form, transcription: language ? { language } : {} };
  if (!facts.tasks.includes("ask")) return { type: "transcription", audio: { input } };
  const most = Number($("max-tokens").value);
  return {
    type: "realtime",
    audio: { input },
    output_modalities: [facts.spoken ? "audio" : "text"],
    ...($("question").value.trim() && { instructions: $("question").value.trim() }),
    ...(most > 0 && { max_output_tokens: most }),
  };
}

async function talk() {
  notify();
  $("talk").disabled = true;
  try {
    await state.models;
    const stream = await microphone({ echoCancellation: true, noiseSuppression: true, autoGainControl: true });
    const url = new URL(`v1/realtime?model=${encodeURIComponent($("model").value)}`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const turns = new Spoken();
    const made = await Talk.start({
      ...{ stream, url, key, session: sessionOf(state.facts) },
      level: (level) => ($("talk-level").value = level),
      happened: (event) => turns.hear(event),
      over: endTalk,
    });
    if (!made.isOver) {
      state.talk = made;
      $("talk-state").textContent = LISTENING;
      showRow("talking");
      $("leave").focus();
    }
  } catch (error) {
    const words = error instanceof Problem ? error : new Problem(`The talk cannot begin: ${error.message}.`);
    notify(words);
  }
  $("talk").disabled = false;
}

function endTalk(why) {
  state.talk = null;
  for (const view of document.querySelectorAll(".turn.spoken")) view.removeAttribute("aria-busy");
  showRow("source");
  if (why) notify(new Problem(why));
}

/** The turns of a talk on the page, by the server's events. */
class Spoken {
  constructor() {
    this.views = new Map(); // by the item of what was said
    this.last = null;
  }

  hear(event) {
    EVENTS[event.type]?.call(this, event);
    keepEnd();
  }

  begin({ item_id: item }) {
    $("welcome").hidden = true;
    $("clear").disabled = false;
    const view = clone("turn");
    view.classList.add("spoken");
    view.querySelector(".question").textContent = "…";
    this.views.set(item, (this.last = { view, said: "", text: "" }));
    $("turns").append(view);
    $("talk-state").textContent = "You are speaking.";
  }

  stop() {
    $("talk-state").textContent = LISTENING;
  }

  write({ item_id: item, delta, transcript }) {
    const turn = this.views.get(item);
    if (!turn) return;
    turn.said = transcript ?? turn.said + delta;
    turn.view.querySelector(".question").textContent = turn.said || "(no words)";
  }

  answer() {
    this.last?.view.setAttribute("aria-busy", "true");
    $("talk-state").textContent = "It answers. Speak to interrupt.";
  }

  add({ delta }) {
    if (!this.last) return;
    this.last.text += delta;
    this.last.view.querySelector(".text").textContent = this.last.text;
  }

  done({ response }) {
    const turn = [...this.views.values()].find(({ view }) => view.hasAttribute("aria-busy"));
    $("talk-state").textContent = LISTENING;
    if (!turn) return;
    turn.view.removeAttribute("aria-busy");
    const words = { cancelled: "Interrupted.", incomplete: "Cut off at the longest answer.", failed: "Failed." };
    turn.view.querySelector(".state").textContent = words[response.status] ?? "";
  }

  fail({ error }) {
    notify(new Problem(`The server says: ${error.message}`));
  }
}

const EVENTS = {
  "input_audio_buffer.speech_started": Spoken.prototype.begin,
  "input_audio_buffer.speech_stopped": Spoken.prototype.stop,
  "conversation.item.input_audio_transcription.delta": Spoken.prototype.write,
  "conversation.item.input_audio_transcription.completed": Spoken.prototype.write,
  "response.created": Spoken.prototype.answer,
  "response.output_text.delta": Spoken.prototype.add,
  "response.output_audio_transcript.delta": Spoken.prototype.add,
  "response.done": Spoken.prototype.done,
  error: Spoken.prototype.fail,
};

showExamples();
showTask();
$("talk").addEventListener("click", talk);
$("leave").addEventListener("click", () => state.talk?.end());
listenToComposer();
listenToDrops();
$("keys").addEventListener("submit", useKey);
start();
