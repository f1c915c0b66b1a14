# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# `patou recycle` on units: new code is served and no request fails, also with handlers that have a warm process.
. /checks/lib.sh
ensure_started
mark_set_changed

pids() { for unit in "${workers[@]}"; do main_pid "$unit"; done; }

# Workers without a warm process execute themselves again: the units stay active, with the same main process.
before=$(epochs) processes=$(pids)
load_start 4
t0=$(micros)
output=$(patou recycle default) || fail "patou recycle default: $output"
took=$(millis_since "$t0")
load_stop_without_failure "patou recycle of 3 echo workers ($took ms)"
[[ $output == "pool default: 3 workers recycled in "*" s" ]] || fail "patou recycle printed: $output"
are_replaced "$before" || fail "not every worker has another incarnation"
expect "the main processes" "$(pids)" "$processes"

# An application behind an http handler: it responds with what app.txt contained when it started.
mkdir -p /srv/recycle
cat >/srv/recycle/app.py <<'PYTHON'
import socket, sys, threading
body = open("/srv/recycle/app.txt", "rb").read()
if body == b"broken":
    raise SystemExit("app.txt is broken")
response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
def serve(connection):
    requests = connection.makefile("rb")
    while requests.readline():
        while requests.readline().strip():
            pass
        connection.sendall(response)
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
while True:
    threading.Thread(target=serve, args=[server.accept()[0]], daemon=True).start()
PYTHON
deploy() { printf '%s' "$1" >/srv/recycle/app.txt; }
responses() { curl --silent --location 'http://127.0.0.1:7286/[1-12]' --write-out '\n' | sort --unique; }
deploy one
{ base_configuration && default_pool 3 '{ http = ["python3", "/srv/recycle/app.py", "{socket}"] }'; } | configure
reload_handlers
expect "the responses" "$(responses)" one

deploy two
before=$(epochs) processes=$(pids)
load_start 4
t0=$(micros)
output=$(patou recycle --all) || fail "patou recycle --all: $output"
took=$(millis_since "$t0")
load_stop_without_failure "patou recycle of 3 workers with a Python server ($took ms)"
figure "patou recycle, 3 workers with a Python server, 4 clients: $took ms, $total requests, $failed failed"
expect "the responses after patou recycle" "$(responses)" two
expect "the incarnations" "$(epochs)" "$before"
expect "the main processes" "$(pids)" "$processes"

# Code that does not start: the reason is the status of the unit, and nothing else changes.
deploy broken
load_start 4
expect_failure "patou recycle of broken code" patou recycle default
load_stop_without_failure "patou recycle of code that does not start"
[[ $output == *"could not start its next process"*"app.txt is broken"*"not recycled after this failure"* ]] ||
    fail "patou recycle of broken code printed: $output"
expect "the responses after a failed recycle" "$(responses)" two

# A worker that an administrator has stopped is left alone.
deploy three
systemctl stop patou-worker@default-3.service
output=$(patou recycle default) || fail "patou recycle with a stopped worker: $output"
[[ $output == "pool default: 2 of 3 workers recycled in "*"default/3 is stopped" ]] ||
    fail "patou recycle with a stopped worker printed: $output"
expect "the responses of two workers" "$(responses)" three
systemctl start patou-worker@default-3.service
wait_for 10 "the set is up" all_up

# systemctl reload of one worker is another process image of that worker alone.
before=$(epochs)
systemctl reload patou-worker@default-1.service
renewed() { [ "$(patou status --json | jq '.pools[0].workers[0].epoch')" != "$(jq '."default/1"' <<<"$before")" ] && all_up; }
wait_for 10 "worker 1 has another incarnation" renewed
expect "the other workers" "$(epochs | jq --compact-output 'del(."default/1")')" "$(jq --compact-output 'del(."default/1")' <<<"$before")"
rm -r /srv/recycle
