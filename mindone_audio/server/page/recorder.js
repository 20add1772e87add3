// Hands the microphone's samples to the page, in pieces of about 1/16 s at 16 kHz. A file of its own: the page's
// Content-Security-Policy allows no worklet from memory.

const PIECE = 1024; // samples

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Float32Array(PIECE);
    this.filled = 0;
    this.ended = false;
    this.port.onmessage = () => {
      this.send();
      this.ended = true;
      this.port.postMessage(null); // nothing comes after this
    };
  }

  process([channels]) {
    for (let place = 0; place < (channels[0]?.length ?? 0); place += 1) {
      let sum = 0;
      for (const channel of channels) sum += channel[place];
      this.piece[this.filled] = sum / channels.length;
      this.filled += 1;
      if (this.filled === PIECE) this.send();
    }
    return !this.ended;
  }

  send() {
    this.port.postMessage(this.piece.slice(0, this.filled));
    this.filled = 0;
  }
}

registerProcessor("recorder", Recorder);
