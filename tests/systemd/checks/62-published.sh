# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# What is published outlives what this version does not know, and a daemon-reload needs nothing but files.
. /checks/lib.sh
ensure_started

published=/run/patou-applied
settings() { for unit in "${parts[@]}" patou-worker@default-1.socket; do show "$unit" DropInPaths; done; }
kill_part() {
    local pid
    pid=$(main_pid "$1")
    kill -KILL "$pid"
    wait_for 10 "$1 is replaced ($2)" replaced "$1" "$pid"
}

# A newer version has published the configuration, with keys that this one does not know.
before=$(settings)
[ "$(grep -c 50-patou.conf <<<"$before")" = 6 ] || fail "not every unit has its drop-in: $before"
sed -i 's/^\[front\]/[future]\nkey = 1\n\n[front]\nfuture_key = "x"/' $published/set/patou.toml
grep -q future_key $published/patou.toml || fail "the published configuration is not changed"
load_start 4
systemctl daemon-reload
expect "the drop-ins" "$(settings)" "$before"
load_stop_without_failure "daemon-reload with unknown keys in the published configuration"
for unit in "${parts[@]}"; do
    kill_part "$unit" "unknown keys"
done
wait_for 10 "the set is up" all_up
patou systemd upgrade >"$check_dir/upgrade" || fail "patou systemd upgrade: $(cat "$check_dir/upgrade")"
grep -q future_key "$check_dir/upgrade" || fail "the upgrade does not name the unknown keys: $(cat "$check_dir/upgrade")"
grep -q future_key $published/patou.toml || fail "the upgrade has removed what a later version needs"
wait_for 10 "the set is up" all_up
systemctl reload patou || fail "systemctl reload with unknown keys in the published configuration"

# It is unreadable: the parts and their drop-ins stay, and a command that needs it says so.
good=$(cat $published/set/patou.toml)
echo '[[' >$published/set/patou.toml
systemctl daemon-reload
expect "the drop-ins" "$(settings)" "$before"
expect_failure "patou systemd upgrade" patou systemd upgrade
grep -q 'systemctl restart patou' <<<"$output" || fail "the upgrade names no remedy: $output"
expect_failure "systemctl reload" systemctl reload patou
responds_on_tcp || fail "not serving"
echo "$good" >$published/set/patou.toml
systemctl reload patou || fail "systemctl reload"

# A name service that does not respond: /etc/passwd is a FIFO, and whatever looks up a user blocks.
daemon_reload() { # WHAT
    local started took fastest=20000 passwd=/etc/passwd
    cp -p $passwd $passwd.saved
    mkfifo -m 0644 $passwd.fifo
    mv $passwd.fifo $passwd
    for _ in {1..5}; do
        started=$(micros)
        timeout --signal=KILL 20 systemctl daemon-reload || true
        took=$(millis_since "$started")
        ((took > fastest)) || fastest=$took
    done
    mv $passwd.saved $passwd
    figure "daemon-reload with a hanging name service, $1: $fastest ms"
    ((fastest < 200)) || fail "daemon-reload took $fastest ms, $1"
}
daemon_reload "the set runs"
expect "the drop-ins" "$(settings)" "$before"
responds_on_tcp || fail "not serving"

# The first of three listeners is removed, under load on the third and with connections to the second.
configuration() { # PORTS
    local port
    base_configuration | sed '/^\[\[listener/,$d'
    for port in "$@"; do printf '[[listener]]\naddress = "127.0.0.1:%s"\npool = "default"\n\n' "$port"; done
    default_pool 3
}
configuration 7291 7292 7286 | configure
systemctl reload patou || fail "systemctl reload with three listeners"
wait_for 10 "the set is up" all_up
since=$(sockets_named "$(listener_socket 127.0.0.1:7292)" "$(listener_socket 127.0.0.1:7286)")
load_start 4
python3 - >"$check_dir/refused" <<'PY' &
import socket, time
refused = total = 0
until = time.monotonic() + 3
while time.monotonic() < until:
    total += 1
    try:
        socket.create_connection(("127.0.0.1", 7292), 2).close()
    except OSError:
        refused += 1
    time.sleep(0.0005)
print(refused, total)
PY
connecting=$!
sleep 0.5
configuration 7292 7286 | configure
systemctl reload patou || fail "systemctl reload without the first listener"
wait "$connecting"
load_stop_without_failure "the first of three listeners is removed"
expect "the sockets of the other listeners" "$(sockets_named "$(listener_socket 127.0.0.1:7292)" "$(listener_socket 127.0.0.1:7286)")" "$since"
[[ $(cat "$check_dir/refused") =~ ^0\  ]] || fail "connections to the second listener: $(cat "$check_dir/refused") refused"
log "connections to the second listener (refused, all): $(cat "$check_dir/refused")"
expect_failure "a connection to the removed listener" curl --silent --max-time 5 http://127.0.0.1:7291/x

systemctl stop patou
daemon_reload "the set is stopped"
expect "generated files" "$(find /run/systemd/generator -name 'patou*')" ""
