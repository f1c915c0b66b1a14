// A Node service, the same under systemd alone and under patou. Its sessions are signed cookies.
const crypto = require("node:crypto");
const http = require("node:http");

const key = "a key for this example";
const sign = (text) => `${text}.${crypto.createHmac("sha256", key).update(text).digest("base64url")}`;

function sessionOf(request) {
  const cookie = /(?:^|; )session=([^;]+)/.exec(request.headers.cookie ?? "")?.[1] ?? "";
  const text = cookie.slice(0, cookie.lastIndexOf("."));
  return text && sign(text) === cookie ? JSON.parse(Buffer.from(text, "base64url")) : { visits: 0, name: "a stranger" };
}

const server = http.createServer((request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    const body = Buffer.concat(pieces);
    const session = sessionOf(request);
    const send = (status, headers, text) => {
      const cookie = sign(Buffer.from(JSON.stringify(session)).toString("base64url"));
      response.writeHead(status, { "Set-Cookie": `session=${cookie}; HttpOnly; Path=/`, ...headers });
      response.end(text);
    };
    if (request.url === "/healthz") {
      response.end("ok\n");
    } else if (request.url === "/") {
      session.visits += 1;
      const text = `<p>visit ${session.visits} of ${session.name} to http://${request.headers.host}/</p>\n`;
      send(200, { "Content-Type": "text/html; charset=utf-8" }, text);
    } else if (request.url === "/login" && request.method === "POST") {
      session.name = new URLSearchParams(body.toString()).get("name");
      send(302, { Location: "/" });
    } else if (request.url.startsWith("/files/") && request.method === "PUT") {
      const result = { name: request.url.slice("/files/".length), bytes: body.length };
      send(201, { "Content-Type": "application/json" }, JSON.stringify(result));
    } else {
      send(404, { "Content-Type": "text/plain" }, "not found\n");
    }
  });
});

// systemd and patou end the process with SIGTERM.
process.on("SIGTERM", () => server.close(() => process.exit(0)));
server.listen(process.env.PORT, "127.0.0.1");
