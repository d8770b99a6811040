'use strict';
// Sender on the unmodified hyco-ws package: does what one JSON plan on stdin says, then exits.
//
// Environment: RELAY_URL (connect URL), RELAY_KEY_NAME and RELAY_KEY (both absent: anonymous).
// Plan: {"messages": [{"kind", "bytes"}...],   sent at once, an echo awaited for each
//        "protocols": ["p1", ...] | null, "token": "header" | "query",
//        "last": TEXT | null,                  sent after the last echo, none awaited
//        "close": {"code", "reason"} | null}   null: the listener is to close
// Reports: open {protocol, extensions}, message {kind, bytes, sha256}, refused {status, reason}, close {code, reason}, lost, error.

const { describe, hyco, makeToken, payload, readAll, report, reportEnd, reportError } = require('./peer');

function connect(plan) {
  let url = process.env.RELAY_URL;
  if (plan.token === 'query') {
    url = hyco.appendRelayToken(url, process.env.RELAY_KEY_NAME, process.env.RELAY_KEY);
    return new hyco(url, plan.protocols);
  }
  const token = makeToken(url);
  if (!plan.protocols) return hyco.relayedConnect(url, token); // the package's helper knows no sub-protocols
  return new hyco(url, plan.protocols, token ? { headers: { ServiceBusAuthorization: token } } : null);
}

function run(plan) {
  const client = connect(plan);
  let awaited = plan.messages.length;

  function finish() {
    if (plan.last) client.send(plan.last);
    if (plan.close) client.close(plan.close.code, plan.close.reason);
  }

  client.on('open', () => {
    report('open', { protocol: client.protocol || null, extensions: Object.keys(client.extensions) });
    for (const { kind, bytes } of plan.messages) client.send(payload(kind, bytes), { binary: kind === 'binary' });
    if (awaited === 0) finish();
  });
  client.on('message', (data, flags) => {
    report('message', describe(data, flags.binary === true));
    awaited -= 1;
    if (awaited === 0) finish();
  });
  client.on('unexpected-response', (request, response) => {
    report('refused', { status: response.statusCode, reason: response.statusMessage });
    request.abort();
  });
  client.on('error', reportError);
  client.on('close', (code, reason) => reportEnd(code, reason));
}

readAll(process.stdin, (text) => run(JSON.parse(text)));
