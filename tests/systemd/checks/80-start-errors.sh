# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# A failed start logs its reason, leaves nothing behind, and can be retried. A full /run or the start of a second set
# does not harm a running set.
. /checks/lib.sh
ensure_started

# A second set in the same runtime directory, as root and as another user.
before=$(parts_except none)
load_start 4
expect_failure "a second patou run" timeout 20 patou run --config /etc/patou/patou.toml
log "patou run prints: $output"
useradd --no-create-home stranger 2>/dev/null || true
expect_failure "a stranger's patou run" timeout 20 setpriv --reuid stranger --regid stranger --clear-groups patou run --config /etc/patou/patou.toml
log "to a stranger it prints: $output"
for part in "watchdog" "dispatcher" "worker default-1"; do
    # shellcheck disable=SC2086 # two arguments
    expect_failure "a second patou $part" env PATOU_CONFIG=/run/patou-applied/patou.toml timeout 20 patou $part
    log "patou $part prints: $output"
done
load_stop_without_failure "attempts to start a second set"
expect "the set" "$(parts_except none)" "$before"

# Several sets of units.
expect_failure "systemctl start patou@other" systemctl start patou@other
log "systemctl start patou@other prints: $output"
expect "the set" "$(parts_except none)" "$before"

# With a full /run the set serves, and parts that die are replaced.
size=$(findmnt --noheadings --output SIZE --bytes /run)
used=$(df --output=used --block-size=1 /run | tail -1)
fill_run() {
    # Shrink it first, so that filling it needs no memory.
    mount -o "remount,size=$((used + (8 << 20)))" /run
    dd if=/dev/zero of=/run/filler bs=4k status=none 2>/dev/null || true
    expect_failure "writing to a full /run" sh -c 'echo x >/run/one-more && test -s /run/one-more'
}
empty_run() {
    rm -f /run/filler /run/one-more
    mount -o "remount,size=$size" /run
}
fill_run
trap empty_run EXIT
for unit in "${parts[@]}"; do
    pid=$(main_pid "$unit")
    kill -KILL "$pid"
    wait_for 15 "$unit is replaced while /run is full" replaced "$unit" "$pid"
done
wait_for 10 "the set serves while /run is full" responds_on_tcp
# A reload cannot publish the configuration, and changes nothing.
before=$(parts_except none)
{ base_configuration && default_pool 4; } | configure
mark=$(mark)
expect_failure "systemctl reload with a full /run" systemctl reload patou
messages_since "$mark" | has -i 'no space' || fail "the journal has no message about the full /run: $(messages_since "$mark")"
expect "the set" "$(parts_except none)" "$before"
empty_run
wait_for 10 "the set is up" all_up
systemctl reload patou || fail "systemctl reload with space in /run"
wait_for 10 "the set is up" all_up

# start_fails WHAT REASON: the start fails, logs the reason and leaves nothing behind. start_succeeds WHAT: the start
# succeeds after the correction.
start_fails() {
    local mark
    mark=$(mark)
    expect_failure "systemctl start patou with $1" systemctl start patou
    expect "patou.service" "$(systemctl is-active patou || true)" failed
    messages_since "$mark" | has -i -- "$2" || fail "$1: the journal has no '$2' but: $(messages_since "$mark")"
    assert_nothing_left_except patou.service
}
start_succeeds() {
    systemctl start patou || fail "systemctl start patou after a correction of: $1"
    wait_for 10 "the set is up" all_up
    systemctl stop patou
    assert_nothing_left
}
systemctl stop patou
configure_standard
used=$(df --output=used --block-size=1 /run | tail -1)
fill_run
start_fails "a full /run" "no space"
empty_run
start_succeeds "a full /run"

mount -o remount,size=4k /dev/shm
dd if=/dev/zero of=/dev/shm/filler bs=4k count=1 status=none
expect_failure "systemctl start patou with a full /dev/shm" systemctl start patou
journalctl --quiet --boot --unit=patou-ipc.service --output=cat | has -i 'no space' ||
    fail "the journal has no message about the full /dev/shm: $(journalctl --boot --unit=patou-ipc.service --lines=20)"
rm /dev/shm/filler
mount -o remount,size=64m /dev/shm
start_succeeds "a full /dev/shm"

echo 'workers = "many"' | configure
start_fails "an invalid configuration" '/etc/patou/patou.toml:1'
rm /etc/patou/patou.toml
mkdir /etc/patou/patou.toml
start_fails "an unreadable configuration" '/etc/patou/patou.toml'
rmdir /etc/patou/patou.toml
{ base_configuration && default_pool 3 "\"echo\"" 'user = "no-such-user"'; } | configure
start_fails "a user that does not exist" 'no-such-user'
{ base_configuration && default_pool 3 '{ program = ["/bin/false"] }'; } | configure
mark=$(mark)
expect_failure "systemctl start patou with workers that exit at once" systemctl start patou
messages_since "$mark" | has 'no worker could be started' || fail "the journal has no message about the workers: $(messages_since "$mark")"
assert_nothing_left_except 'patou.service|patou-worker'
systemctl reset-failed 'patou*'
configure_standard
start_succeeds "the configuration"
