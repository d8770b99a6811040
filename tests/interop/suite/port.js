'use strict';
// Loaded before the suite: the package's helpers fix port 443, which is not free everywhere. What is dialled there goes to
// RELAY_PORT instead, below TLS and HTTP, as a redirect on the loopback interface would do it.

const net = require('net');

const { connect } = net.Socket.prototype;
net.Socket.prototype.connect = function (...given) {
  const options = Array.isArray(given[0]) ? given[0][0] : given[0];
  if (options && Number(options.port) === 443) options.port = Number(process.env.RELAY_PORT);
  return connect.apply(this, given);
};
