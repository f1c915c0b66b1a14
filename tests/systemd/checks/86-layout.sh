# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# An upgrade to segments of another layout, and back: all workers finish what they do, clients wait, none fails.
. /checks/lib.sh
other=$(find /debs -name '2-*.deb')
if [ -z "$other" ]; then
    say "SKIPPED: no package with another layout was given (tests/systemd/next-layout makes one)"
    exit 0
fi
need_started

for next in "$other" "$deb"; do
    systemctl reset-failed 'patou*' 2>/dev/null || true
    before=$(patou ipc list | awk '{ print $2 }')
    loop_curl 4
    begin=$(micros)
    apt-get --quiet --quiet --yes --allow-downgrades install "$next" >"$check_dir/apt" 2>&1 ||
        fail "apt-get install: $(cat "$check_dir/apt")"
    took=$(millis_since "$begin")
    no_request_failed "another layout ($took ms)"
    figure "an upgrade to another layout under 4 clients: $took ms, $failed of $total requests failed, the slowest took $slowest ms"
    grep -q "another layout" "$check_dir/apt" || fail "nobody has noticed the other layout: $(cat "$check_dir/apt")"
    wait_for 20 "the set is up" all_up
    ! grep -qF "$before" <<<"$(patou ipc list)" || fail "the segments are the same"
done
