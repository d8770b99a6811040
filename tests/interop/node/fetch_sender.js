'use strict';
// Sender on Node's own fetch: does what one JSON plan on stdin says, one request after the other, then exits.
//
// Plan: {"base": URL, "requests": [{"method", "target", "headers": [[NAME, VALUE]...], "bytes": N | null, "chunked"}...]}
// Reports, one for each request: answer {status, reason, headers, bytes, sha256} or failed {message}.

const crypto = require('crypto');

const UNIT = Buffer.from(Array.from({ length: 251 }, (_, i) => i));
const PIECE_BYTES = 251 * 1024;

function report(event, fields) {
  process.stdout.write(JSON.stringify(Object.assign({ event }, fields)) + '\n');
}

async function* pieces(bytes) {
  const piece = Buffer.alloc(PIECE_BYTES, UNIT);
  for (let left = bytes; left > 0; left -= PIECE_BYTES) yield left < PIECE_BYTES ? piece.subarray(0, left) : piece;
}

async function send(base, { method, target, headers, bytes, chunked }) {
  const options = { method, headers, redirect: 'manual' };
  if (bytes !== null && chunked) Object.assign(options, { body: pieces(bytes), duplex: 'half' });
  else if (bytes !== null) options.body = Buffer.alloc(bytes, UNIT);
  const response = await fetch(base + target, options);
  const digest = crypto.createHash('sha256');
  let size = 0;
  for await (const chunk of response.body || []) {
    digest.update(chunk);
    size += chunk.length;
  }
  report('answer', {
    status: response.status,
    reason: response.statusText,
    headers: [...response.headers],
    bytes: size,
    sha256: digest.digest('hex'),
  });
}

async function run({ base, requests }) {
  for (const request of requests) {
    try {
      await send(base, request);
    } catch (error) {
      report('failed', { message: String((error.cause && error.cause.message) || error.message) });
    }
  }
}

const chunks = [];
process.stdin.on('data', (chunk) => chunks.push(chunk));
process.stdin.on('end', () => run(JSON.parse(Buffer.concat(chunks).toString('utf8'))));
