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

# Back to the package under test, for the next checks.
apt-get --quiet --quiet --yes --allow-downgrades install "$deb" >"$check_dir/apt" 2>&1 || fail "apt-get install: $(cat "$check_dir/apt")"
wait_for 20 "the set is up" all_up
