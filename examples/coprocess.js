#!/usr/bin/env node
// A co-process for patou in Node: see patou-coprocess(7). In the configuration of the pool:
//
//     handler = { coprocess = ["node", "/path/to/coprocess.js"] }
//     ping = "5s"
"use strict";
const fs = require("fs");

/** The head and the body of each frame in a stream. Names of fields are in lower case. */
async function* frames(stream) {
  let held = [], size = 0, head = null;
  for await (const chunk of stream) {
    held.push(chunk);
    size += chunk.length;
    for (;;) {
      if (!head) {
        const bytes = Buffer.concat(held), end = bytes.indexOf("\r\n\r\n");
        held = [end < 0 ? bytes : bytes.subarray(end + 4)];
        if (end < 0) break;
        size = held[0].length;
        const lines = bytes.toString("latin1", 0, end).split("\r\n").map((line) => /^([^:]*): ?(.*)$/.exec(line));
        head = Object.fromEntries(lines.map(([, name, value]) => [name.toLowerCase(), value]));
      }
      const length = Number(head["content-length"]);
      if (size < length) break;
      const bytes = Buffer.concat(held);
      yield [head, bytes.subarray(0, length)];
      held = [bytes.subarray(length)];
      size -= length;
      head = null;
    }
  }
}

/** The response to one request: status, headers, body. */
async function respond(head, body) {
  const greeting = { method: head.method, target: head.target, agent: head["http-user-agent"], bytes: body.length };
  return [200, { "Content-Type": "application/json" }, JSON.stringify(greeting) + "\n"];
}

async function main() {
  for await (const [head, body] of frames(fs.createReadStream(null, { fd: 3 }))) {
    if (head.ping) {
      fs.writeFileSync(4, "Ping: 1\r\n\r\n");
      continue;
    }
    const [status, headers, text] = await respond(head, body);
    const content = Buffer.from(text);
    const fields = { Status: status, ...headers, "Content-Length": content.length };
    const lines = Object.entries(fields).map(([name, value]) => `${name}: ${value}\r\n`);
    fs.writeFileSync(4, Buffer.concat([Buffer.from(lines.join("") + "\r\n", "latin1"), content]));
  }
}

main();
