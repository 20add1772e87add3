// A spoken conversation over /v1/realtime: the microphone's samples go to the server as they come, its events come back,
// and the sound of answers is played. Who speaks silences it.

const RATE = 16000; // Hz, of what is sent
const SOUND_RATE = 24000; // Hz, of what is played
const MOST_UNSENT = 2 ** 20; // bytes in the socket, above which the network is too slow to talk

const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

function base64Of(samples) {
  const pcm = new Int16Array(samples.length);
  samples.forEach((value, place) => (pcm[place] = Math.round(32767 * Math.max(-1, Math.min(1, value)))));
  return btoa(String.fromCharCode(...new Uint8Array(pcm.buffer)));
}

/** The sound of answers, piece after piece. */
class Sound {
  constructor() {
    this.context = new AudioContext({ sampleRate: SOUND_RATE });
    this.silence();
  }

  play(item, text) {
    const samples = Float32Array.from(new Int16Array(bytesOf(text).buffer), (value) => value / 32768);
    if (samples.length === 0) return;
    const buffer = this.context.createBuffer(1, samples.length, SOUND_RATE);
    buffer.copyToChannel(samples, 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    if (this.item !== item) Object.assign(this, { item, begins: Math.max(this.context.currentTime, this.ends) });
    this.ends = Math.max(this.context.currentTime, this.ends);
    source.start(this.ends);
    this.ends += buffer.duration;
    this.sources.add(source);
    source.addEventListener("ended", () => this.sources.delete(source));
  }

  get isPlaying() {
    return this.context.currentTime < this.ends;
  }

  /** Play nothing more; the item that was broken off and the milliseconds of it that were heard, if there was one. */
  silence() {
    const heard = this.item && this.isPlaying && Math.max(0, this.context.currentTime - this.begins);
    const broken = this.item && heard !== false ? { item: this.item, milliseconds: Math.round(1000 * heard) } : null;
    for (const source of this.sources ?? []) source.stop();
    Object.assign(this, { sources: new Set(), item: null, begins: 0, ends: 0 });
    return broken;
  }
}

export class Talk {
  /**
   * stream: of the microphone. url: of the server's /v1/realtime. session: what it is set to. level: called with the
   * microphone's, 0 to 1. happened: called with each event of the server. over: called once, at the end, with what
   * went wrong or nothing.
   */
  static async start({ stream, url, key, session, level, happened, over }) {
    const made = new Talk();
    Object.assign(made, { stream, session, level, happened, over });
    try {
      const protocols = ["realtime", ...(key ? [`openai-insecure-api-key.${key}`] : [])];
      made.socket = new WebSocket(url, protocols);
      await made.connect();
    } catch (error) {
      made.end();
      throw error;
    }
    return made;
  }

  async connect() {
    this.socket.addEventListener("message", ({ data }) => this.hear(JSON.parse(data)));
    const opened = new Promise((resolve, reject) => {
      this.socket.addEventListener("open", resolve);
      this.socket.addEventListener("close", () => {
        reject(new Error("the server does not take the connection"));
        this.end();
      });
    });
    this.context = new AudioContext({ sampleRate: RATE });
    this.sound = new Sound();
    await this.context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
    await opened;
    this.send("session.update", { session: this.session });
    const source = this.context.createMediaStreamSource(this.stream);
    this.node = new AudioWorkletNode(this.context, "recorder", { numberOfOutputs: 0 });
    this.node.port.onmessage = ({ data }) => this.listen(data);
    source.connect(this.node);
    await Promise.all([this.context.resume(), this.sound.context.resume()]);
    this.stream.getAudioTracks()[0].addEventListener("ended", () => this.end("The microphone was taken away."));
  }

  send(type, content = {}) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...content }));
  }

  listen(piece) {
    if (piece === null || this.isOver) return;
    if (this.socket.readyState !== WebSocket.OPEN) { // the server has gone; its "close" may take some time
      this.end();
      return;
    }
    if (this.socket.bufferedAmount > MOST_UNSENT) {
      this.end("The connection is too slow to talk.");
      return;
    }
    this.send("input_audio_buffer.append", { audio: base64Of(piece) });
    const peak = piece.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-4);
    this.level(Math.max(0, 1 + Math.log10(peak) / 2.5)); // 50 dB from end to end
  }

  hear(event) {
    if (event.type === "input_audio_buffer.speech_started") {
      const broken = this.sound.silence();
      if (broken) {
        const { item, milliseconds } = broken;
        this.send("conversation.item.truncate", { item_id: item, content_index: 0, audio_end_ms: milliseconds });
      }
    }
    if (event.type === "response.output_audio.delta") this.sound.play(event.item_id, event.delta);
    this.happened(event);
  }

  /** Leave. why: what went wrong. */
  end(why) {
    if (this.isOver) return;
    this.isOver = true;
    for (const track of this.stream.getTracks()) track.stop();
    this.sound?.silence();
    this.context?.close();
    this.sound?.context.close();
    this.socket?.close();
    this.over?.(why);
  }
}
