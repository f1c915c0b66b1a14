# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# Runtimes that compile to machine code: what happens in the sandbox of the units, and the shipped drop-ins. Programs of a
# directory, and a FastCGI application, in the same sandbox.
. /checks/lib.sh
ensure_installed
mark_set_changed

mkdir -p /srv/runtimes
cat >/srv/runtimes/app.js <<'JS'
const os = require("os");
require("http").createServer((_, response) => response.end(`node ${os.cpus().length > 0}`)).listen(process.env.PATOU_SOCKET);
JS
cat >/srv/runtimes/app.php <<'PHP'
<?php header("Content-Type: text/plain"); $found = preg_match("/a+b/", "aaab"); echo "php $found";
PHP
cat >/srv/runtimes/app.bsh <<'JAVA'
import java.io.*;
import java.net.*;
server = new ServerSocket(Integer.parseInt(System.getenv("PORT")), 50, InetAddress.getByName("127.0.0.1"));
while (true) {
    client = server.accept();
    in = new BufferedReader(new InputStreamReader(client.getInputStream()));
    while ((line = in.readLine()) != null && line.length() > 0) {}
    out = new PrintStream(client.getOutputStream());
    out.print("HTTP/1.0 200 OK\r\n\r\njava " + new File("/proc/meminfo").exists());
    out.close();
}
JAVA

# A binary, which is executed by its descriptor, and a script, which is executed by its path.
mkdir -p /usr/lib/cgi-bin
cp /usr/bin/cat /usr/lib/cgi-bin/echo
cat >/usr/lib/cgi-bin/hello <<'SH'
#!/bin/sh
printf 'Content-Type: text/plain\n\n%s %s %s' "$0" "$SCRIPT_NAME" "$PATH_INFO"
SH
chmod 755 /usr/lib/cgi-bin/hello

listener() { printf '\n[[listener]]\naddress = "127.0.0.1:%s"\ndelivery = "handoff"\npool = "%s"\n' "$1" "$2"; }
pool() { printf '\n[[pool]]\nname = "%s"\nworkers = 1\naddress = "127.0.0.1:%s"\nhandler = %s\n' "$1" "$2" "$3"; }
{
    printf '[set]\nname = "patou"\nruntime_dir = "/run/patou"\n'
    listener 7281 node
    listener 7282 php
    listener 7283 java
    listener 7284 cgi
    listener 7285 app
    printf '\n[[listener]]\naddress = "unix:/run/patou/app.sock"\ndelivery = "handoff"\nprotocol = "fastcgi"\npool = "app"\n'
    pool cgi 7303 '{ scripts = "/usr/lib/cgi-bin", prefix = "/cgi-bin" }'
    pool app 7304 '{ fastcgi = ["php-cgi"], root = "/srv/runtimes", index = "app.php" }'
    pool node 7300 '{ http = ["node", "/srv/runtimes/app.js", "{socket}"] }'
    pool php 7301 '{ exec = ["php-cgi", "-d", "display_errors=1", "-d", "html_errors=0"] }'
    printf 'environment = { SCRIPT_FILENAME = "/srv/runtimes/app.php", REDIRECT_STATUS = "200" }\n'
    pool java 7302 '{ http = ["java", "-cp", "/usr/share/java/bsh.jar", "bsh.Interpreter", "/srv/runtimes/app.bsh", "{port}"] }'
} | configure
response() { curl --silent --max-time 10 "http://127.0.0.1:$1/${2:-}"; }

# Without the drop-ins.
start=$(mark)
systemctl restart patou
is_logged() { messages_since "$start" | has "$1"; }
wait_for 20 "node ends with SIGTRAP" is_logged 'node. is not ready: it was killed by SIGTRAP (in a unit: its runtime may need MemoryDenyWriteExecute=no, see RUNTIMES in patou(7))'
wait_for 20 "java does not start" is_logged 'java. is not ready: it exited with status 1.*executable'
wait_for 20 "the worker of php is idle" worker_is php/1 idle
[[ $(response 7282) == *"Allocation of JIT memory failed"*"php 1" ]] || fail "php responded: $(response 7282)"
expect "the response of a script" "$(response 7284 cgi-bin/hello/more)" "/usr/lib/cgi-bin/hello /cgi-bin/hello /more"
head=$'Content-Type: text/plain\n\na binary'
expect "the response of a binary" "$(curl --silent --max-time 10 --data-binary "$head" http://127.0.0.1:7284/cgi-bin/echo)" "a binary"
[[ $(response 7285 any/path) == *"php 1" ]] || fail "the FastCGI application responded: $(response 7285 any/path)"
[ -S /run/patou/app.sock ] || fail "the FastCGI listener has no socket"

# With them.
for runtime in node php java; do
    install -D -m 644 -t "/etc/systemd/system/patou-worker@$runtime-.service.d" "/usr/share/doc/patou/examples/systemd/$runtime.conf"
done
systemctl daemon-reload
t0=$(micros)
systemctl restart patou
wait_for 30 "the set is up with the drop-ins" all_up
figure "node, php and java are ready after $(millis_since "$t0") ms"
expect "the response of node" "$(response 7281)" "node true"
expect "the response of php" "$(response 7282)" "php 1"
expect "the response of java" "$(response 7283)" "java true"

rm -r /srv/runtimes /usr/lib/cgi-bin/{echo,hello} /etc/systemd/system/patou-worker@{node,php,java}-.service.d
systemctl daemon-reload
