# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# Reloads that move addresses of the set itself. Listeners that no reload touches refuse and reset no connection.
. /checks/lib.sh
ensure_started

cat >"$check_dir/client.py" <<'PY'
# Sends requests to a listener that nothing touches, one connection each, until a file is removed; counts what fails.
import os, socket, sys, time
served = 0
failed = []
slowest = 0
while os.path.exists(sys.argv[1]):
    started = time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", 7287), 10) as client:
            client.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            response = b""
            while data := client.recv(4096):
                response += data
        if not response.startswith(b"HTTP/1.1 200 "):
            raise OSError("response: " + repr(response[:80]))
        served += 1
    except OSError as error:
        failed.append("%.3f %s" % (time.time(), error))
    slowest = max(slowest, time.monotonic() - started)
    time.sleep(0.0005)
print(len(failed), served, round(slowest * 1000), failed[:5])
PY

listener() { printf '[[listener]]\naddress = "%s"\ndelivery = "%s"\npool = "%s"\n\n' "$@"; }
pool() { printf '[[pool]]\nname = "%s"\nworkers = %s\naddress = "%s"\n\n' "$@"; }
serves() { [ "$(curl --silent --location --max-time 10 --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:$1/x")" = 200 ]; }
refuses() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# step WHAT SERVED REFUSED: applies the configuration on standard input, with the standard set beside it, under load.
total_served=0 reloads=0
step() {
    local port clients=() n failed served slowest
    { base_configuration && default_pool 3 && listener 127.0.0.1:7287 handoff default && cat; } | configure
    touch "$check_dir/clients"
    load_start 2
    for n in 1 2; do
        python3 "$check_dir/client.py" "$check_dir/clients" >"$check_dir/client.$n" &
        clients+=($!)
    done
    sleep 0.2
    systemctl reload patou || fail "systemctl reload: $1: $(journalctl --quiet --boot --unit=patou.service --lines=5 --output=cat)"
    for port in $2; do
        wait_for 10 "port $port serves ($1)" serves "$port"
    done
    for port in $3; do
        wait_for 5 "port $port refuses ($1)" refuses "$port"
    done
    wait_for 20 "the set is up" all_up
    rm "$check_dir/clients"
    wait "${clients[@]}"
    load_stop_without_failure "$1"
    for n in 1 2; do
        read -r failed served slowest _ <"$check_dir/client.$n"
        [ "$failed" = 0 ] || fail "$1: $(cat "$check_dir/client.$n")"
        total_served=$((total_served + served))
    done
    reloads=$((reloads + 1))
    expect "failed units ($1)" "$(systemctl list-units --failed --plain --no-legend --no-pager)" ""
}

{ base_configuration && default_pool 3 && listener 127.0.0.1:7287 handoff default; } | configure
systemctl reload patou || fail "systemctl reload with a handoff listener"
wait_for 10 "the set is up" all_up
step "the first listener" 7401 "" < <(listener 127.0.0.1:7401 handoff a; pool a 3 127.0.0.1:7411)
step "127.0.0.1 to 0.0.0.0" 7401 "" < <(listener 0.0.0.0:7401 handoff a; pool a 3 127.0.0.1:7411)
step "0.0.0.0 to [::]" 7401 "" < <(listener '[::]:7401' handoff a; pool a 3 127.0.0.1:7411)
step "[::] to 127.0.0.1" 7401 "" < <(listener 127.0.0.1:7401 redirect a; pool a 3 127.0.0.1:7411)
step "workers to 0.0.0.0" 7401 "" < <(listener 127.0.0.1:7401 redirect a; pool a 3 0.0.0.0:7411)
step "ports shifted up" 7401 7411 < <(listener 127.0.0.1:7401 redirect a; pool a 3 127.0.0.1:7412)
step "ports shifted down" 7401 7414 < <(listener 127.0.0.1:7401 redirect a; pool a 3 127.0.0.1:7411)
step "a renamed pool" 7401 "" < <(listener 127.0.0.1:7401 redirect b; pool b 3 127.0.0.1:7411)
step "two pools" "7401 7402" 7413 < <(listener 127.0.0.1:7401 redirect b; listener 127.0.0.1:7402 redirect c; pool b 2 127.0.0.1:7411; pool c 2 127.0.0.1:7421)
step "two pools exchanged" "7401 7402" "" < <(listener 127.0.0.1:7401 redirect b; listener 127.0.0.1:7402 redirect c; pool b 2 127.0.0.1:7421; pool c 2 127.0.0.1:7411)
step "a listener on the port of a pool that goes" "7401 7411" "7402 7412" < <(listener 127.0.0.1:7401 redirect b; listener 127.0.0.1:7411 handoff b; pool b 2 127.0.0.1:7421)
step "listener and worker exchanged, admin on a listener's port" 7421 "7412 7422" < <(listener 127.0.0.1:7421 redirect b; pool b 1 127.0.0.1:7401; printf '[admin]\naddress = "127.0.0.1:7411"\n')
curl --silent --fail --max-time 5 --output /dev/null http://127.0.0.1:7411/metrics || fail "the admin endpoint does not serve"
step "a listener on the admin endpoint's port, which moves to a worker's" "7411" 7421 < <(listener 127.0.0.1:7411 redirect b; pool b 1 127.0.0.1:7422; printf '[admin]\naddress = "127.0.0.1:7401"\n')
curl --silent --fail --max-time 5 --output /dev/null http://127.0.0.1:7401/metrics || fail "the admin endpoint does not serve"

# Clients in the queue of a listener that moves get a response.
step "a listener for queued clients" 7401 "" < <(listener 127.0.0.1:7401 handoff b; pool b 1 127.0.0.1:7422)
{ base_configuration && default_pool 3 && listener 127.0.0.1:7287 handoff default && listener 127.0.0.1:7402 handoff b && pool b 1 127.0.0.1:7422; } | configure
pid=$(main_pid patou-dispatcher)
kill -STOP "$pid"
clients=()
for n in 1 2 3; do
    curl --silent --max-time 20 --output /dev/null --write-out '%{http_code}\n' http://127.0.0.1:7401/queued >"$check_dir/queued.$n" &
    clients+=($!)
done
queued() { [ "$(ss --no-header --listening --tcp 'sport = :7401' | awk '{ print $2 }')" = 3 ]; }
wait_for 1 "the clients are queued" queued
(sleep 0.3; kill -CONT "$pid") &
systemctl reload patou || fail "systemctl reload with queued clients"
wait "${clients[@]}"
for n in 1 2 3; do
    [[ $(cat "$check_dir/queued.$n") =~ ^(200|503)$ ]] || fail "a queued client gets '$(cat "$check_dir/queued.$n")'"
done

# Another process is in the way of the new address: refused, and nothing has changed.
python3 -c 'import socket, time
s = socket.socket(); s.bind(("127.0.0.2", 7402)); s.listen(); time.sleep(60)' &
other=$!
in_use() { ss --no-header --listening --tcp 'src 127.0.0.2:7402' | has .; }
wait_for 5 "the port is in use" in_use
{ base_configuration && default_pool 3 && listener 127.0.0.1:7287 handoff default && listener 0.0.0.0:7402 handoff b && pool b 1 127.0.0.1:7422; } | configure
before=$(sockets_named "$(listener_socket 127.0.0.1:7402)" && main_pid patou-dispatcher)
mark=$(mark)
expect_failure "systemctl reload to an address in use" systemctl reload patou
messages_since "$mark" --unit=patou.service | has 'another process listens on 127.0.0.2:7402' || fail "the journal names no reason: $(messages_since "$mark")"
expect "the listener" "$(sockets_named "$(listener_socket 127.0.0.1:7402)" && main_pid patou-dispatcher)" "$before"
wait_for 10 "the set is up" all_up
serves 7402 || fail "the listener that stays does not serve"
kill "$other"
wait "$other" 2>/dev/null || true
systemctl reload patou || fail "systemctl reload to an address that is free again"
wait_for 10 "the set is up" all_up
serves 7402 || fail "the listener does not serve on all addresses"
figure "$reloads reloads that move addresses: $total_served requests on an untouched handoff listener, 0 failed"
