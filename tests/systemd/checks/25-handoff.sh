# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# Connections that are handed over to workers, as the packaged configuration has it and on TCP: who may connect to what,
# what clients see when a part dies, and which sockets stay, come and go with their workers.
. /checks/lib.sh
need_installed
as() { setpriv --reuid "$1" --regid "$1" --init-groups "${@:2}"; }
handed() { curl --silent --fail --max-time 10 --unix-socket /run/patou/http.sock "$@"; }
served() { [ "$(handed http://localhost/hello)" = "GET /hello" ]; }
owner_of() { stat -c '%U:%G %a' "$1"; }
identity_of() { stat -c '%d:%i' "$1"; }

# As installed.
systemctl stop patou 2>/dev/null || true
forget_set
dpkg --fsys-tarfile "$deb" | tar --extract --directory / ./etc/patou/patou.toml
systemctl start patou || fail "systemctl start patou"
wait_for 10 "the set is up" all_up
useradd --groups patou --no-create-home member 2>/dev/null || true
useradd --no-create-home stranger 2>/dev/null || true
expect "what a member of group patou gets" "$(as member curl --silent --data hello --unix-socket /run/patou/http.sock http://localhost/)" hello
expect_failure "a request of a stranger" as stranger curl --silent --unix-socket /run/patou/http.sock http://localhost/
expect "the mode of http.sock" "$(owner_of /run/patou/http.sock)" "patou:patou 660"
expect "the mode of the directory" "$(owner_of /run/patou/default)" "patou:patou-worker 750"
for n in 1 2; do
    [ -S "/run/patou/default/$n.sock" ] || fail "there is no socket to hand over to worker $n"
    expect "the mode of $n.sock" "$(owner_of "/run/patou/default/$n.sock")" "patou:patou 660"
done
# Nobody but the dispatcher reaches them: members not the directory, workers not the socket.
connect='import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(sys.argv[1])'
for user in member stranger patou-worker; do
    expect_failure "$user connecting to 1.sock" as "$user" python3 -c "$connect" /run/patou/default/1.sock
    [[ $answer == *PermissionError* ]] || fail "$user connecting to 1.sock: $answer"
done
systemctl stop patou
nothing_is_left

# On TCP, beside the listeners of the other checks.
on() { # WORKERS [HANDLER [MORE]]
    configuration
    printf '\n[[listener]]\naddress = "unix:/run/patou/http.sock"\ndelivery = "handoff"\npool = "default"\n'
    printf '\n[[listener]]\naddress = "127.0.0.1:7287"\ndelivery = "handoff"\npool = "default"\n'
    default_pool "$@"
}
need_started
forget_set
on 3 | configure
systemctl reload patou || fail "systemctl reload patou with listeners that hand over"
wait_for 10 "the set is up" all_up
wait_for 5 "http.sock serves" served
expect "the answer on TCP" "$(curl --silent --max-time 10 http://127.0.0.1:7287/hello)" "GET /hello"
expect "the mode of 1.sock" "$(owner_of /run/patou/default/1.sock)" "patou:patou 600"

# A part dies or freezes under load.
strike() { # SIGNAL UNIT MOST
    local signal=$1 unit=$2 most=$3 pid before begin
    systemctl reset-failed 'patou*' 2>/dev/null || true
    loop_curl 8 --unix-socket /run/patou/http.sock
    before=$(others_than "$unit")
    pid=$(main_pid "$unit")
    begin=$(micros)
    kill "-$signal" "$pid"
    wait_for 6 "$unit is replaced after SIG$signal" replaced "$unit" "$pid"
    wait_for 6 "the set is up" all_up
    figure "handoff, SIG$signal of ${unit%.service}: the set is up after $(millis_since "$begin") ms"
    load_stop
    figure "handoff, SIG$signal of ${unit%.service}: $failed of $total requests of 8 clients failed, slowest $slowest ms"
    expect "the rest of the set after SIG$signal of $unit" "$(others_than "$unit")" "$before"
    ((failed <= most)) || fail "SIG$signal of $unit: $failed requests failed, not at most $most (end, curl's code, status, seconds, words): $failures"
    [ -z "$failures" ] || say "failed after SIG$signal of $unit: $failures"
}
socket=$(identity_of /run/patou/default/2.sock)
strike KILL patou-worker@default-2.service 1
strike STOP patou-worker@default-2.service 1
strike KILL patou-dispatcher.service 8
strike STOP patou-dispatcher.service 8
strike KILL patou-watchdog.service 0
expect "2.sock" "$(identity_of /run/patou/default/2.sock)" "$socket"

# Restarts lose nothing, neither of a worker nor of the dispatcher.
for unit in "${parts[@]}"; do
    systemctl reset-failed 'patou*' 2>/dev/null || true
    loop_curl 4 --unix-socket /run/patou/http.sock
    systemctl restart "$unit" || fail "systemctl restart $unit"
    no_request_failed "handoff, systemctl restart ${unit%.service}"
    wait_for 5 "the set is up" all_up
done

# The segments are made anew, and the sockets stay what they are.
systemctl reset-failed 'patou*' 2>/dev/null || true
systemctl restart patou-ipc || fail "systemctl restart patou-ipc"
wait_for 20 "the set is up" all_up
expect "2.sock" "$(identity_of /run/patou/default/2.sock)" "$socket"
for _ in 1 2 3 4 5 6; do
    served || fail "not served after a restart of patou-ipc"
done

# A worker less and one more; a pool with other workers leaves nothing of the old ones.
on 2 | configure
systemctl reload patou || fail "systemctl reload patou with a worker less"
gone() { [ ! -e "$1" ]; }
wait_for 5 "3.sock is gone" gone /run/patou/default/3.sock
expect "2.sock" "$(identity_of /run/patou/default/2.sock)" "$socket"
on 3 | configure
systemctl reload patou || fail "systemctl reload patou with a worker more"
wait_for 10 "the set is up" all_up
[ -S /run/patou/default/3.sock ] || fail "3.sock is not back"
on 3 | sed 's/"default"/"other"/' | configure
systemctl reload patou || fail "systemctl reload patou with another pool"
wait_for 10 "the set is up" all_up
wait_for 5 "http.sock serves" served
found=$(find /run/patou/default -mindepth 1 2>/dev/null || true)
[ -z "$found" ] || fail "left of the pool before: $found"

# A worker dies with a request in hand: 502 and the outcome. A dispatcher dies, and nobody notices: neither those who
# are with a worker nor those who wait for one.
# shellcheck disable=SC2016 # for the handler's shell
on 3 '{ exec = ["/bin/sh", "-c", "case $PATH_INFO in /long) sleep 300 ;; *) sleep 1 ;; esac; printf \"Content-Type: text/plain\\n\\ndone\\n\""] }' | configure
systemctl reload patou || fail "systemctl reload patou"
wait_for 10 "the set is up" all_up
curl --silent --include --max-time 60 --unix-socket /run/patou/http.sock http://localhost/long >"$check_dir/answer" &
client=$!
busy() { patou status --json | jq --exit-status --raw-output '.pools[].workers[] | select(.state == "busy") | .id'; }
wait_for 5 "a worker is busy" busy
wait_for 5 "its handler works" pgrep --exact sleep
unit=patou-worker@$(busy | head -n 1 | tr / -).service
pid=$(main_pid "$unit")
kill -KILL "$pid"
wait "$client" || fail "the client got no answer"
grep -q '^HTTP/1.1 502 ' "$check_dir/answer" || fail "not 502 but: $(cat "$check_dir/answer")"
grep -qi '^patou-outcome: started-unknown' "$check_dir/answer" || fail "no outcome: $(cat "$check_dir/answer")"
wait_for 6 "$unit is replaced" replaced "$unit" "$pid"
wait_for 10 "the set is up" all_up

clients=()
for n in 1 2 3 4 5 6; do
    handed "http://localhost/$n" >"$check_dir/answer.$n" &
    clients+=($!)
done
waiting() { [ "$(patou status --json | jq .dispatcher.queue)" = 3 ]; }
wait_for 5 "three work and three wait" waiting
sleep 0.1 # longer than store_after
pid=$(main_pid patou-dispatcher)
kill -KILL "$pid"
for n in 1 2 3 4 5 6; do
    wait "${clients[n - 1]}" || fail "client $n lost its request with the dispatcher"
    expect "the answer to client $n" "$(cat "$check_dir/answer.$n")" "done"
done
wait_for 5 "the dispatcher is replaced" replaced patou-dispatcher.service "$pid"

# A program that speaks for itself.
# shellcheck disable=SC2016 # for the program's shell
on 2 '{ inetd = ["/bin/sh", "-c", "read -r line; echo \"$PROTO: $line\""] }' | sed '/^address = "127.0.0.1:7286"/a delivery = "handoff"' |
    sed '/lease.sock/a delivery = "handoff"' | configure
systemctl reload patou || fail "systemctl reload patou with inetd"
wait_for 10 "the set is up" all_up
ask='import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect("/run/patou/http.sock"); s.sendall(b"hello\n"); sys.stdout.write(s.makefile().read())'
expect "what the program says" "$(python3 -c "$ask")" "UNIX: hello"

# Nothing is left, and the socket of a worker is nothing without its set.
systemctl reset-failed 'patou*' 2>/dev/null || true
systemctl stop patou
nothing_is_left
expect_failure "systemctl start of a worker's socket alone" systemctl start patou-worker@default-1.socket
nothing_is_left
expect "failed units" "$(systemctl list-units --failed --plain --no-legend --no-pager)" ""
