# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# An upgrade to another segment layout, and back: all workers finish their requests, clients wait, and none fails.
. /checks/lib.sh
other=$(find /debs -name '2-*.deb')
if [ -z "$other" ]; then
    log "SKIPPED: no package with another layout (tests/systemd/next-layout makes one)"
    exit 0
fi
ensure_started

for next in "$other" "$deb"; do
    systemctl reset-failed 'patou*' 2>/dev/null || true
    before=$(patou ipc list | awk '{ print $2 }')
    load_start 4
    t0=$(micros)
    apt-get --quiet --quiet --yes --allow-downgrades install "$next" >"$check_dir/apt" 2>&1 ||
        fail "apt-get install: $(cat "$check_dir/apt")"
    took=$(millis_since "$t0")
    load_stop_without_failure "another layout ($took ms)"
    figure "an upgrade to another layout under 4 clients: $took ms, $failed of $total requests failed, slowest $slowest ms"
    grep -q "another layout" "$check_dir/apt" || fail "the other layout was not detected: $(cat "$check_dir/apt")"
    wait_for 20 "the set is up" all_up
    ! grep -qF "$before" <<<"$(patou ipc list)" || fail "the segments were not created again"
done
