'use strict';
// Echo listener on the unmodified hyco-ws package, until stdin ends.
//
// Environment: RELAY_URL (listen URL), RELAY_KEY_NAME and RELAY_KEY.
// Reports: listening, connection {path}, open {protocol}, message, close {code, reason}, lost, error {message}, ended.
// A text message "close CODE REASON" is not echoed: the listener closes that connection so.
// A text message "abort" makes it end the TCP connection without a Close frame.

const { describe, hyco, makeToken, report, reportEnd, reportError } = require('./peer');

const url = process.env.RELAY_URL;

// What the application sees of a rendezvous address: path behind /$hc/, decoded, and query as it is, without the relay's own parameters.
function applicationPath(address) {
  const [, path, query] = /^wss?:\/\/[^/]+\/\$hc\/([^?]*)\?(.*)$/.exec(address);
  const kept = query.split('&').filter((piece) => !piece.startsWith('sb-hc-')).join('&');
  return decodeURIComponent(path) + (kept && '?' + kept);
}

function serve(client) {
  report('connection', { path: applicationPath(client.url) });
  client.on('open', () => report('open', { protocol: client.protocol || null }));
  client.on('error', reportError);
  client.on('close', (code, reason) => reportEnd(code, reason));
  client.on('message', (data, flags) => {
    report('message', describe(data, flags.binary === true));
    const order = flags.binary ? null : /^close (\d+) (.*)$/.exec(data);
    if (order) client.close(Number(order[1]), order[2]);
    else if (data === 'abort') client._socket.destroy();
    else client.send(data, { binary: flags.binary === true });
  });
}

const server = hyco.createRelayedServer({ server: url, token: () => makeToken(url) }, serve);
server.on('listening', () => report('listening'));
server.on('error', reportError);
server.on('close', () => {
  report('ended');
  process.exit(0);
});

process.stdin.resume();
process.stdin.on('end', () => server.close());
