// One GET: look.js HOST PORT http|cares. With cares the name is looked up by c-ares, which asks DNS servers itself.
const http = require("node:http");
const dns = require("node:dns");
const [host, port, way] = process.argv.slice(2);

function fail(error) {
  console.error(String(error));
  process.exit(1);
}

function get(address) {
  const request = http.get({ host: address, port, path: "/", headers: { Host: host }, timeout: 10000 }, (answer) => {
    answer.setEncoding("utf8");
    answer.on("data", (text) => process.stdout.write(text));
  });
  request.on("error", fail);
  request.on("timeout", () => fail("timeout"));
}

if (way === "cares") {
  const resolver = new dns.Resolver({ timeout: 2000, tries: 1 });
  resolver.resolve4(host, (error, found) => (error ? fail(error) : get(found[0])));
} else {
  get(host);
}
