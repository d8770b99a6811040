'use strict';
// What listener.js and sender.js share: one JSON object a line on stdout, message contents both ends can make, tokens.

const crypto = require('crypto');
const hyco = require('hyco-ws');

const BINARY_UNIT = Buffer.from(Array.from({ length: 251 }, (_, i) => i));
const TEXT_UNIT = 'a\u00e9\u20ac\u{1f600}'; // 1 + 2 + 3 + 4 bytes of UTF-8
const TEXT_UNIT_BYTES = 10;

function report(event, fields) {
  process.stdout.write(JSON.stringify(Object.assign({ event }, fields)) + '\n');
}

// ws 1.1 emits an Error, a string or an event object, as the case may be.
function reportError(error) {
  report('error', { message: typeof error === 'string' ? error : String((error && error.message) || error) });
}

// A connection that ended without a Close frame has code 1006 in ws (RFC 6455 7.4.1).
function reportEnd(code, reason) {
  if (code === 1006) report('lost');
  else report('close', { code, reason });
}

// The same contents as payload() in peers.py.
function payload(kind, bytes) {
  if (kind === 'binary') return Buffer.alloc(bytes, BINARY_UNIT);
  return TEXT_UNIT.repeat(Math.floor(bytes / TEXT_UNIT_BYTES)) + 'z'.repeat(bytes % TEXT_UNIT_BYTES);
}

function describe(data, isBinary) {
  const content = isBinary ? data : Buffer.from(data, 'utf8');
  return {
    kind: isBinary ? 'binary' : 'text',
    bytes: content.length,
    sha256: crypto.createHash('sha256').update(content).digest('hex'),
  };
}

// A token made by the package itself, or null for an anonymous peer. The key comes in through the environment.
function makeToken(url) {
  const { RELAY_KEY_NAME: name, RELAY_KEY: key } = process.env;
  return name && key ? hyco.createRelayToken(url, name, key) : null;
}

function readAll(stream, callback) {
  const chunks = [];
  stream.on('data', (chunk) => chunks.push(chunk));
  stream.on('end', () => callback(Buffer.concat(chunks).toString('utf8')));
}

module.exports = { describe, hyco, makeToken, payload, readAll, report, reportEnd, reportError };
