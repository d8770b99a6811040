'use strict';
// A listener whose listen is always refused, for RELAY_STORM_SECONDS: hyco-ws tries again at once, twice per failure.
//
// Environment: RELAY_URL, RELAY_KEY_NAME and RELAY_KEY (a key the relay does not know), RELAY_STORM_SECONDS.
// Reports: storming (after the first failure), ended {refused, cut, cpu_seconds}: attempts answered with a status and cut
// without any, and what they have cost here.

const { hyco, makeToken, report } = require('./peer');

const url = process.env.RELAY_URL;
const counts = { refused: 0, cut: 0 };
const server = hyco.createRelayedServer({ server: url, token: makeToken(url) });
server.on('error', (error) => {
  if (counts.refused + counts.cut === 0) report('storming');
  if (/unexpected server response/.test(error.message)) counts.refused += 1;
  else counts.cut += 1;
});

setTimeout(() => {
  const { user, system } = process.cpuUsage();
  report('ended', { ...counts, cpu_seconds: (user + system) / 1e6 });
  process.exit(0);
}, 1000 * Number(process.env.RELAY_STORM_SECONDS));
