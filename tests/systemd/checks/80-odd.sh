# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# What goes wrong at a start fails with its reason, leaves nothing, and can be tried again; what runs is not harmed by
# a full /run or by somebody who starts a second set.
. /checks/lib.sh
need_started

# A second set in the same place, as root and as somebody else.
before=$(others_than none)
loop_curl 4
expect_failure "a second patou run" timeout 20 patou run --config /etc/patou/patou.toml
say "patou run says: $answer"
useradd --no-create-home stranger 2>/dev/null || true
expect_failure "a stranger's patou run" timeout 20 setpriv --reuid stranger --regid stranger --clear-groups patou run --config /etc/patou/patou.toml
say "to a stranger it says: $answer"
for part in "watchdog" "dispatcher" "worker default-1"; do
    # shellcheck disable=SC2086 # two words
    expect_failure "a second patou $part" env PATOU_CONFIG=/run/patou-applied/patou.toml timeout 20 patou $part
    say "patou $part says: $answer"
done
no_request_failed "others who want to be the set"
expect "the set" "$(others_than none)" "$before"

# Several sets.
expect_failure "systemctl start patou@other" systemctl start patou@other
say "systemctl start patou@other says: $answer"
expect "the set" "$(others_than none)" "$before"

# /run full while it runs: it serves, and what dies comes back.
size=$(findmnt --noheadings --output SIZE --bytes /run)
used=$(df --output=used --block-size=1 /run | tail -1)
fill_run() {
    # Smaller first, so that it costs no memory.
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
wait_for 10 "the set serves while /run is full" answered_on_tcp
# A reload cannot publish, and changes nothing.
before=$(others_than none)
{ configuration && default_pool 4; } | configure
mark=$(mark)
expect_failure "systemctl reload with a full /run" systemctl reload patou
words_since "$mark" | has -i 'no space' || fail "the journal does not say that /run is full: $(words_since "$mark")"
expect "the set" "$(others_than none)" "$before"
empty_run
wait_for 10 "the set is up" all_up
systemctl reload patou || fail "systemctl reload once there is room"
wait_for 10 "the set is up" all_up

# fails WHAT REASON: it does not start, says so, leaves nothing, and starts as soon as that is mended.
fails() {
    local mark
    mark=$(mark)
    expect_failure "systemctl start patou with $1" systemctl start patou
    expect "patou.service" "$(systemctl is-active patou || true)" failed
    words_since "$mark" | has -i -- "$2" || fail "$1: the journal does not say '$2' but: $(words_since "$mark")"
    nothing_is_left_but patou.service
}
mended() {
    systemctl start patou || fail "systemctl start patou once it is mended: $1"
    wait_for 10 "the set is up" all_up
    systemctl stop patou
    nothing_is_left
}
systemctl stop patou
standard
used=$(df --output=used --block-size=1 /run | tail -1)
fill_run
fails "a full /run" "no space"
empty_run
mended "a full /run"

mount -o remount,size=4k /dev/shm
dd if=/dev/zero of=/dev/shm/filler bs=4k count=1 status=none
expect_failure "systemctl start patou with a full /dev/shm" systemctl start patou
journalctl --quiet --boot --unit=patou-ipc.service --output=cat | has -i 'no space' ||
    fail "the journal does not say that /dev/shm is full: $(journalctl --boot --unit=patou-ipc.service --lines=20)"
rm /dev/shm/filler
mount -o remount,size=64m /dev/shm
mended "a full /dev/shm"

echo 'workers = "many"' | configure
fails "a wrong configuration" '/etc/patou/patou.toml:1'
rm /etc/patou/patou.toml
mkdir /etc/patou/patou.toml
fails "an unreadable configuration" '/etc/patou/patou.toml'
rmdir /etc/patou/patou.toml
{ configuration && default_pool 3 "\"echo\"" 'user = "nobody-knows-me"'; } | configure
fails "a user that does not exist" 'nobody-knows-me'
{ configuration && default_pool 3 '{ program = ["/bin/false"] }'; } | configure
mark=$(mark)
expect_failure "systemctl start patou with workers that cannot live" systemctl start patou
words_since "$mark" | has 'no worker could be started' || fail "the journal does not say that no worker could be started: $(words_since "$mark")"
nothing_is_left_but 'patou.service|patou-worker'
systemctl reset-failed 'patou*'
standard
mended "the configuration"
