# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# An upgrade with apt under load: every part is a new process afterwards, and no request fails.
. /checks/lib.sh
ensure_started

# The same package with a later version.
rm -rf "$check_dir/next"
dpkg-deb --raw-extract "$deb" "$check_dir/next"
version=$(dpkg-deb --field "$deb" Version)
sed -i "s/^Version: .*/Version: $version+next/" "$check_dir/next/DEBIAN/control"
dpkg-deb --build "$check_dir/next" "$check_dir/next.deb" >/dev/null

systemctl reset-failed 'patou*' 2>/dev/null || true
before=$(parts_except none)
ipc=$(show patou-ipc ActiveEnterTimestampMonotonic)
load_start 4
t0=$(micros)
apt-get --quiet --quiet --yes install "$check_dir/next.deb" >"$check_dir/apt" 2>&1 || fail "apt-get install: $(cat "$check_dir/apt")"
took=$(millis_since "$t0")
load_stop_without_failure "an upgrade of the package ($took ms)"
figure "an upgrade under 4 clients: $took ms, $failed of $total requests failed, slowest $slowest ms"
expect "the version" "$(dpkg-query --show --showformat '${Version}' patou)" "$version+next"
for unit in "${parts[@]}"; do
    pid=$(awk -v unit="$unit" '$1 == unit { print $2 }' <<<"$before")
    replaced "$unit" "$pid" || fail "$unit is still process $pid"
done
expect "patou-ipc, which keeps the segments" "$(show patou-ipc ActiveEnterTimestampMonotonic)" "$ipc"

# Eight workers with requests of 2 s: half of them restart at once, and half of them serve.
{ base_configuration && default_pool 8 "{ exec = ['/bin/sh', '-c', 'sleep 2; echo Content-Type: text/plain; echo; echo x'] }"; } | configure
systemctl reload patou || fail "systemctl reload with slow requests"
wait_for 20 "the set is up" all_up
load_start 6
(
    least=8
    while [ -e "$load" ] && [ ! -e "$check_dir/upgraded" ]; do
        up=$(systemctl list-units --state=active --plain --no-legend 'patou-worker@default-*.service' | wc -l)
        ((up >= least)) || least=$up
    done
    echo "$least" >"$check_dir/least"
) &
counting=$!
t0=$(micros)
patou systemd upgrade >"$check_dir/upgrade" || fail "patou systemd upgrade: $(cat "$check_dir/upgrade")"
took=$(millis_since "$t0")
touch "$check_dir/upgraded"
wait "$counting"
rm "$check_dir/upgraded"
grep -q 'restarting 8 workers, at most 4 at once' "$check_dir/upgrade" || fail "the upgrade says: $(cat "$check_dir/upgrade")"
load_stop_without_failure "an upgrade of eight workers with requests of 2 s ($took ms)"
figure "an upgrade of eight workers with requests of 2 s: $took ms, at least $(cat "$check_dir/least") active"
(($(cat "$check_dir/least") >= 4)) || fail "only $(cat "$check_dir/least") of 8 workers were active"
((took < 9000)) || fail "the upgrade took $took ms"
configure_standard
systemctl reload patou
wait_for 20 "the set is up" all_up

# A set that an earlier version has started: only the configuration is published, the drop-ins are in systemd's directory,
# and the sockets of listeners have numbers. The upgrade keeps all of it, and each socket its name.
systemctl stop patou
published=/run/patou-applied
mkdir -p $published/set.0/drop-ins/patou-listener@{0,1}.socket.d
echo 'ListenStream=/run/patou/lease.sock' >$published/set.0/drop-ins/patou-listener@0.socket.d/50-patou.conf
echo 'ListenStream=127.0.0.1:7286' >$published/set.0/drop-ins/patou-listener@1.socket.d/50-patou.conf
ln -s set.0 $published/set
systemctl start patou
wait_for 20 "the set is up" all_up
expect "the listeners" "$(listener_socket /run/patou/lease.sock 127.0.0.1:7286)" "$(printf '%s\n' patou-listener@{0,1}.socket)"
cp --remove-destination "$(readlink -f $published/patou.toml)" $published/patou.toml
rm -r $published/set $published/set.*
since=$(sockets_named patou-listener@{0,1}.socket)
load_start 4
apt-get --quiet --quiet --yes --allow-downgrades install "$deb" >"$check_dir/apt" 2>&1 || fail "apt-get install: $(cat "$check_dir/apt")"
load_stop_without_failure "an upgrade from the published configuration alone"
expect "the sockets of the listeners" "$(sockets_named patou-listener@{0,1}.socket)" "$since"
expect "the listeners" "$(listener_socket /run/patou/lease.sock 127.0.0.1:7286)" "$(printf '%s\n' patou-listener@{0,1}.socket)"
load_start 4
{ base_configuration && printf '\n[[listener]]\naddress = "127.0.0.1:7290"\npool = "default"\n' && default_pool 3; } | configure
systemctl reload patou || fail "systemctl reload with one more listener"
curl --silent --fail --location --output /dev/null http://127.0.0.1:7290/x || fail "the new listener does not serve"
load_stop_without_failure "one more listener after that upgrade"
expect "the sockets of the listeners" "$(sockets_named patou-listener@{0,1}.socket)" "$since"
[[ $(listener_socket 127.0.0.1:7290) =~ ^patou-listener@[0-9a-f]{16}\.socket$ ]] || fail "the new listener is $(listener_socket 127.0.0.1:7290)"
configure_standard
systemctl restart patou
[[ $(listener_socket 127.0.0.1:7286) =~ ^patou-listener@[0-9a-f]{16}\.socket$ ]] || fail "the listener is $(listener_socket 127.0.0.1:7286)"

# Back to the package under test, for the next checks.
apt-get --quiet --quiet --yes --allow-downgrades install "$deb" >"$check_dir/apt" 2>&1 || fail "apt-get install: $(cat "$check_dir/apt")"
wait_for 20 "the set is up" all_up
