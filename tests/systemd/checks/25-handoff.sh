# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# Handoff, as in the packaged configuration and on TCP: access to the sockets, what clients see when a part dies, and
# the lifetime of the workers' sockets.
. /checks/lib.sh
ensure_installed
run_as() { setpriv --reuid "$1" --regid "$1" --init-groups "${@:2}"; }
get_unix() { curl --silent --fail --max-time 10 --unix-socket /run/patou/http.sock "$@"; }
serves() { [ "$(get_unix http://localhost/hello)" = "GET /hello" ]; }
owner_of() { stat -c '%U:%G %a' "$1"; }
identity_of() { stat -c '%d:%i' "$1"; }

# The packaged configuration.
systemctl stop patou 2>/dev/null || true
mark_set_changed
dpkg --fsys-tarfile "$deb" | tar --extract --directory / ./etc/patou/patou.toml
systemctl start patou || fail "systemctl start patou"
wait_for 10 "the set is up" all_up
useradd --groups patou --no-create-home member 2>/dev/null || true
useradd --no-create-home stranger 2>/dev/null || true
expect "what a member of group patou gets" "$(run_as member curl --silent --data hello --unix-socket /run/patou/http.sock http://localhost/)" hello
expect_failure "a request of a stranger" run_as stranger curl --silent --unix-socket /run/patou/http.sock http://localhost/
expect "the mode of http.sock" "$(owner_of /run/patou/http.sock)" "patou:patou 660"
expect "the mode of the directory" "$(owner_of /run/patou/default)" "patou:patou-worker 750"
for n in 1 2; do
    [ -S "/run/patou/default/$n.sock" ] || fail "worker $n has no socket for handoff"
    expect "the mode of $n.sock" "$(owner_of "/run/patou/default/$n.sock")" "patou:patou 660"
done
# Only the dispatcher reaches these sockets: members cannot enter the directory, workers cannot connect.
connect='import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(sys.argv[1])'
for user in member stranger patou-worker; do
    expect_failure "$user connecting to 1.sock" run_as "$user" python3 -c "$connect" /run/patou/default/1.sock
    [[ $output == *PermissionError* ]] || fail "$user connecting to 1.sock: $output"
done
systemctl stop patou
assert_nothing_left

# On TCP, in addition to the listeners of the other checks.
handoff_configuration() { # WORKERS [HANDLER [MORE]]
    base_configuration
    printf '\n[[listener]]\naddress = "unix:/run/patou/http.sock"\ndelivery = "handoff"\npool = "default"\n'
    printf '\n[[listener]]\naddress = "127.0.0.1:7287"\ndelivery = "handoff"\npool = "default"\n'
    default_pool "$@"
}
ensure_started
mark_set_changed
handoff_configuration 3 | configure
systemctl reload patou || fail "systemctl reload patou with handoff listeners"
wait_for 10 "the set is up" all_up
wait_for 5 "http.sock serves" serves
expect "the response on TCP" "$(curl --silent --max-time 10 http://127.0.0.1:7287/hello)" "GET /hello"
expect "the mode of 1.sock" "$(owner_of /run/patou/default/1.sock)" "patou:patou 600"

# inject SIGNAL UNIT MOST: a part dies or freezes under load; at most MOST requests may fail.
inject() {
    local signal=$1 unit=$2 most=$3 pid before t0
    systemctl reset-failed 'patou*' 2>/dev/null || true
    load_start 8 --unix-socket /run/patou/http.sock
    before=$(parts_except "$unit")
    pid=$(main_pid "$unit")
    t0=$(micros)
    kill "-$signal" "$pid"
    wait_for 6 "$unit is replaced after SIG$signal" replaced "$unit" "$pid"
    wait_for 6 "the set is up" all_up
    figure "handoff, SIG$signal of ${unit%.service}: the set is up after $(millis_since "$t0") ms"
    load_stop
    figure "handoff, SIG$signal of ${unit%.service}: $failed of $total requests of 8 clients failed, slowest $slowest ms"
    expect "the rest of the set after SIG$signal of $unit" "$(parts_except "$unit")" "$before"
    ((failed <= most)) || fail "SIG$signal of $unit: $failed requests failed, not at most $most (end time, exit code of curl, status, duration in s, error message): $failures"
    [ -z "$failures" ] || log "failed after SIG$signal of $unit: $failures"
}
socket=$(identity_of /run/patou/default/2.sock)
inject KILL patou-worker@default-2.service 1
inject STOP patou-worker@default-2.service 1
inject KILL patou-dispatcher.service 8
inject STOP patou-dispatcher.service 8
inject KILL patou-watchdog.service 0
expect "2.sock" "$(identity_of /run/patou/default/2.sock)" "$socket"

# A restart of any part loses no request.
for unit in "${parts[@]}"; do
    systemctl reset-failed 'patou*' 2>/dev/null || true
    load_start 4 --unix-socket /run/patou/http.sock
    systemctl restart "$unit" || fail "systemctl restart $unit"
    load_stop_without_failure "handoff, systemctl restart ${unit%.service}"
    wait_for 5 "the set is up" all_up
done

# After a restart of patou-ipc the segments are new and the sockets are unchanged.
systemctl reset-failed 'patou*' 2>/dev/null || true
systemctl restart patou-ipc || fail "systemctl restart patou-ipc"
wait_for 20 "the set is up" all_up
expect "2.sock" "$(identity_of /run/patou/default/2.sock)" "$socket"
for _ in 1 2 3 4 5 6; do
    serves || fail "not serving after a restart of patou-ipc"
done

# One worker less, one worker more; a pool with another name leaves nothing of the previous pool behind.
handoff_configuration 2 | configure
systemctl reload patou || fail "systemctl reload patou with one worker less"
gone() { [ ! -e "$1" ]; }
wait_for 5 "3.sock is gone" gone /run/patou/default/3.sock
expect "2.sock" "$(identity_of /run/patou/default/2.sock)" "$socket"
handoff_configuration 3 | configure
systemctl reload patou || fail "systemctl reload patou with one worker more"
wait_for 10 "the set is up" all_up
[ -S /run/patou/default/3.sock ] || fail "3.sock is not back"
handoff_configuration 3 | sed 's/"default"/"other"/' | configure
systemctl reload patou || fail "systemctl reload patou with another pool"
wait_for 10 "the set is up" all_up
wait_for 5 "http.sock serves" serves
found=$(find /run/patou/default -mindepth 1 2>/dev/null || true)
[ -z "$found" ] || fail "left behind by the previous pool: $found"

# A worker dies during a request: its client gets 502 and the outcome. A dispatcher dies: all clients get responses,
# those with a worker and those in the queue.
# shellcheck disable=SC2016 # the handler's shell expands this
handoff_configuration 3 '{ exec = ["/bin/sh", "-c", "case $PATH_INFO in /long) sleep 300 ;; *) sleep 1 ;; esac; printf \"Content-Type: text/plain\\n\\ndone\\n\""] }' | configure
reload_handlers
curl --silent --include --max-time 60 --unix-socket /run/patou/http.sock http://localhost/long >"$check_dir/response" &
client=$!
busy() { patou status --json | jq --exit-status --raw-output '.pools[].workers[] | select(.state == "busy") | .id'; }
wait_for 5 "a worker is busy" busy
wait_for 5 "its handler runs" pgrep --exact sleep
unit=patou-worker@$(busy | head -n 1 | tr / -).service
pid=$(main_pid "$unit")
kill -KILL "$pid"
wait "$client" || fail "the client got no response"
grep -q '^HTTP/1.1 502 ' "$check_dir/response" || fail "not 502 but: $(cat "$check_dir/response")"
grep -qi '^patou-outcome: started-unknown' "$check_dir/response" || fail "no outcome: $(cat "$check_dir/response")"
wait_for 6 "$unit is replaced" replaced "$unit" "$pid"
wait_for 10 "the set is up" all_up

clients=()
for n in 1 2 3 4 5 6; do
    get_unix "http://localhost/$n" >"$check_dir/response.$n" &
    clients+=($!)
done
three_wait() { [ "$(patou status --json | jq .dispatcher.queue)" = 3 ]; }
wait_for 5 "three requests run and three wait" three_wait
sleep 0.1 # longer than store_after
pid=$(main_pid patou-dispatcher)
kill -KILL "$pid"
for n in 1 2 3 4 5 6; do
    wait "${clients[n - 1]}" || fail "client $n lost its request when the dispatcher died"
    expect "the response to client $n" "$(cat "$check_dir/response.$n")" "done"
done
wait_for 5 "the dispatcher is replaced" replaced patou-dispatcher.service "$pid"

# An inetd program.
# shellcheck disable=SC2016 # the program's shell expands this
handoff_configuration 2 '{ inetd = ["/bin/sh", "-c", "read -r line; echo \"$PROTO: $line\""] }' | sed '/^address = "127.0.0.1:7286"/a delivery = "handoff"' |
    sed '/lease.sock/a delivery = "handoff"' | configure
reload_handlers
client='import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect("/run/patou/http.sock"); s.sendall(b"hello\n"); sys.stdout.write(s.makefile().read())'
expect "the output of the program" "$(python3 -c "$client")" "UNIX: hello"

# A stop leaves nothing behind, and the socket of a worker cannot start without its set.
systemctl reset-failed 'patou*' 2>/dev/null || true
systemctl stop patou
assert_nothing_left
expect_failure "systemctl start of a worker's socket alone" systemctl start patou-worker@default-1.socket
assert_nothing_left
expect "failed units" "$(systemctl list-units --failed --plain --no-legend --no-pager)" ""
