'use strict';
// Origin of the HTTP tests on the unmodified hyco-https package, until stdin ends. Each request says in its header
// x-answer what it wants for an answer; http_origin.py explains orders.
//
// Environment: RELAY_URL (listen URL), RELAY_KEY_NAME and RELAY_KEY.
// Reports: listening, request {method, target, headers, bytes, sha256, chunks}, error {message}, ended.

const crypto = require('crypto');
const https = require('hyco-https');

const url = process.env.RELAY_URL;
const UNIT = Buffer.from(Array.from({ length: 251 }, (_, i) => i));

function report(event, fields) {
  process.stdout.write(JSON.stringify(Object.assign({ event }, fields)) + '\n');
}

function bodyOf(content, received) {
  if (typeof content === 'number') return Buffer.alloc(content, UNIT);
  if (content === 'echo' || content === 'stream') return received;
  return Buffer.from(content ? content.hex : '', 'hex');
}

function answer(order, received, res) {
  // The package keeps one value a name: repeated ones are handed over as an array, as Node's own http wants them.
  const headers = {};
  for (const [name, value] of order.headers || []) headers[name] = name in headers ? [].concat(headers[name], value) : value;
  for (const name of Object.keys(headers)) res.setHeader(name, headers[name]);
  res.statusCode = order.status || 200;
  if (typeof order.reason === 'string') res.statusMessage = order.reason;
  const body = bodyOf(order.content || 0, received);
  let sent = 0;
  for (const [size, times] of order.writes || []) {
    for (let i = 0; i < times; i += 1) {
      res.write(body.subarray(sent, sent + size));
      sent += size;
    }
  }
  if (sent < body.length) res.end(body.subarray(sent));
  else res.end();
}

function serve(req, res) {
  const chunks = [];
  req.on('data', (chunk) => chunks.push(chunk));
  req.on('end', () => {
    const received = Buffer.concat(chunks);
    report('request', {
      method: req.method,
      target: req.url,
      headers: Object.entries(req.headers).map(([name, value]) => [name, String(value)]),
      bytes: received.length,
      sha256: crypto.createHash('sha256').update(received).digest('hex'),
      chunks: chunks.length,
    });
    answer(JSON.parse(req.headers['x-answer'] || '{}'), received, res);
  });
}

// The README signs the listen URI; with the port in it, as the helpers make it.
const token = () => https.createRelayToken(url, process.env.RELAY_KEY_NAME, process.env.RELAY_KEY);
const server = https.createRelayedServer({ server: url, token }, serve);
server.on('listening', () => report('listening'));
server.on('error', (event) => report('error', { message: String(event.message || event) }));
server.on('close', () => {
  report('ended');
  process.exit(0);
});
server.listen();

process.stdin.resume();
process.stdin.on('end', () => server.close());
