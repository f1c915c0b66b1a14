# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# What the user or the sandbox of a pool's units cannot use is refused by check, reload and start, with the cause, before
# anything changes.
. /checks/lib.sh
ensure_started
before=$(parts_except none)

# refused WHAT CAUSE HANDLER [MORE]: check and reload refuse it, naming the cause.
refused() {
    local mark
    { base_configuration && default_pool 3 "$3" "${4:-}"; } | configure
    expect_failure "patou check with $1" patou check
    log "$1: $output"
    has -F -- "$2" <<<"$output" || fail "$1: patou check does not name '$2' but: $output"
    mark=$(mark)
    expect_failure "systemctl reload patou with $1" systemctl reload patou
    log_has "$mark" "$2" || fail "$1: the journal does not name '$2' but: $(messages_since "$mark")"
    expect "the set after a reload to $1" "$(parts_except none)" "$before"
}
app() { # FILE [MODE]
    mkdir -p "$(dirname "$1")"
    printf '#!/bin/sh\nprintf "Content-Type: text/plain\\n\\nserved\\n"\n' >"$1"
    chmod "${2:-755}" "$1"
}
app /home/op/app
refused "a program in /home" "ProtectHome=yes of their unit hides /home" '{ exec = ["/home/op/app"] }'
app /tmp/app
refused "a program in /tmp" "PrivateTmp=yes of their unit gives them a /tmp of their own" '{ exec = ["/tmp/app"] }'
app /srv/closed/in/app
chmod 700 /srv/closed
refused "a program in a closed directory" "user patou-worker may not enter the directory /srv/closed (mode 0700, owner root:root)" '{ exec = ["/srv/closed/in/app"] }'
app /srv/mine 700
refused "a program of root" "user patou-worker may not execute /srv/mine (mode 0700, owner root:root)" '{ coprocess = ["/srv/mine"] }'
app /srv/unreadable 711
refused "a script that cannot be read" "user patou-worker may not read /srv/unreadable" '{ exec = ["/srv/unreadable"] }'
sed -i '1s:.*:#!/srv/mine:' /srv/unreadable && chmod 755 /srv/unreadable
refused "an interpreter of root" "its interpreter /srv/mine cannot be executed: user patou-worker may not execute" '{ http = ["/srv/unreadable", "{socket}"] }'
mkdir -p /srv/noexec
mountpoint -q /srv/noexec || mount -t tmpfs -o noexec none /srv/noexec
app /srv/noexec/app
refused "a file system without exec" "the file system of /srv/noexec/app is mounted with noexec" '{ program = ["/srv/noexec/app"] }'
mkdir -p /root/work /srv/spool
refused "a hidden working directory" "ProtectHome=yes of their unit hides /root" '{ exec = ["sh"] }' 'working_dir = "/root/work"'
refused "a spool directory that is read-only" "a drop-in needs ReadWritePaths=/srv/spool" '{ exec = ["sh"] }' 'spool_dir = "/srv/spool"'
refused "an owner that does not exist" "there is no user no-such-user" '"echo"' 'user = "no-such-user"'

# What a drop-in of the pool shows is not refused. It takes effect when the workers start again.
configure_standard
mkdir -p /etc/systemd/system/patou-worker@default-.service.d
printf '[Service]\nProtectHome=read-only\n' >/etc/systemd/system/patou-worker@default-.service.d/home.conf
systemctl daemon-reload
systemctl restart 'patou-worker@default-*.service' || fail "systemctl restart of the workers"
{ base_configuration && default_pool 3 '{ exec = ["/home/op/app"] }'; } | configure
patou check >/dev/null || fail "patou check refuses a program that a drop-in shows"
# A user without rights is told what was not checked.
useradd --no-create-home stranger 2>/dev/null || true
chmod 700 /home/op
expect_failure "patou check of a directory that the workers may not enter" patou check
has "may not enter the directory /home/op" <<<"$output" || fail "patou check: $output"
output=$(setpriv --reuid stranger --regid stranger --clear-groups patou check 2>&1) || fail "patou check as another user: $output"
has "not checked: whether the users of the pools may execute" <<<"$output" || fail "patou check as another user: $output"
chmod 755 /home/op
systemctl reload patou || fail "systemctl reload patou to a program in /home with a drop-in"
serves_app() { [ "$(curl --silent --location http://127.0.0.1:7286/x)" = served ]; }
wait_for 10 "the program in /home serves" serves_app
rm -r /etc/systemd/system/patou-worker@default-.service.d
systemctl daemon-reload

# A start refuses as well.
systemctl stop patou
{ base_configuration && default_pool 3 '{ exec = ["/home/op/app"] }'; } | configure
mark=$(mark)
expect_failure "systemctl start patou with a program in /home" systemctl start patou
log_has "$mark" "ProtectHome=yes of their unit hides /home" || fail "the journal does not say why: $(messages_since "$mark")"
assert_nothing_left_except patou.service
systemctl reset-failed patou
umount /srv/noexec
rm -r /home/op /tmp/app /srv/closed /srv/mine /srv/unreadable /srv/noexec /srv/spool /root/work
